"""From invented notes to an adapted model, its report and its audit: every verb once."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import medbert  # noqa: E402
from medbert.text.encoders.masked_lm import fresh  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTES = ROOT / "data_synthetic" / "notes" / "notes.jsonl"
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUICK = {
    "length": 64,
    "batch_rows": 16,
    "looks": 1,
    "judged": 20,
    "steps": 30,
    "optimizer": {"lr": 8e-3},
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    prose = (ROOT / "README.md").read_text("utf-8") + (ROOT / "CHANGELOG.md").read_text("utf-8")
    lines = [line for line in prose.splitlines() if len(line) > 60 and line[0].isalpha()]
    (folder / "general.txt").write_text("\n".join(lines * 3))
    with NOTES.open(encoding="utf-8") as few:
        (folder / "few.jsonl").write_text("".join(islice(few, 40)), "utf-8")
    medbert.deidentify(in_=NOTES, out=folder / "clean")
    medbert.corpus(
        in_=folder / "clean" / "notes.jsonl",
        fractions=[0.5, 0.25, 0.25],
        out=folder / "corpus",
    )
    medbert.corpus_gate(
        corpus=folder / "corpus",
        gold=NOTES,
        found=folder / "clean",
        by=["language"],
        recall=0.8,
        residual=0.1,
        sample=20,
    )
    medbert.tokenizer_train(corpus=folder / "corpus", size=800, out=folder / "tokenizer")
    config = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 128}
    base = fresh(folder / "tokenizer", model_type="modernbert", config=config, seed=0)
    (folder / "base").mkdir()
    base.save(folder / "base")
    general, reason = folder / "general.txt", "public text"
    medbert.adapt(
        corpus=general, gate_override=reason, base=folder / "base", out=folder / "control", **QUICK
    )
    medbert.adapt(corpus=folder / "corpus", base=folder / "base", out=folder / "adapted", **QUICK)
    return folder


def test_the_report_says_what_the_domain_gave(made):
    told = medbert.benchmark_text(
        "+text_task@tasks.phi=entities",
        models={name: made / name for name in ("base", "control", "adapted")},
        tasks={"phi": {"path": made / "few.jsonl", "labelled": 10, "epochs": 1, "min_count": 5}},
        corpus=made / "corpus",
        general=made / "general.txt",
        seeds=2,
        n_bootstrap=300,
        out=made / "report",
    )["tasks"]
    of = {c["model"]: c for c in told["held-out patients"]["comparisons"]}
    assert of["adapted"]["verdict"] == "gain" and of["adapted"]["difference"]["value"] < -0.3
    assert {*told["held-out patients"]["parts"]["language"]} <= {"nb", "nn", "en", "mixed"}
    assert told["general text"]["comparisons"][1]["verdict"] != "gain"
    page = (made / "report" / "report.md").read_text()
    assert "held-out patients: adapted gains over control" in page and "phi: adapted" in page


def test_the_audit_speaks_of_patients_and_goes_into_the_card(made):
    out = medbert.audit_text(
        corpus=made / "corpus",
        model=made / "adapted",
        base=made / "base",
        characters=500,
        resamples=200,
        device="cpu",
        out=made / "audit",
    )
    found = json.loads((out / "audit.json").read_text())
    membership, *_, canaries = found["findings"]
    assert membership["check"] == "membership: AUC" and membership["n"] > 30
    assert membership["low"] < 0.75 and canaries["verdict"] == "cannot tell"
    card = (made / "adapted" / "README.md").read_text()
    assert "## Privacy audit" in card and "passed" in card
