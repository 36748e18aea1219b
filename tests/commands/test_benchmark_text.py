"""``medbert benchmark text``: from folders of models to a verdict, taken up where it was killed."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import numpy as np
import pytest

import medbert
from medbert import InputError
from medbert.text.bench.terms import Terms

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LETTERS = string.ascii_lowercase
KINDS = {"itt": "CONDITION", "mab": "SUBSTANCE", "ose": "CONDITION", "pam": "SUBSTANCE"}


def model(folder: Path, *, scale: float) -> Path:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    tokenizer = transformers.BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=40
    )
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=40,
        initializer_range=scale,
    )
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    model(folder / "control", scale=0.02)
    model(folder / "adapted", scale=3.0)  # knows what is not so, and is sure of it
    draw = random.Random(0)
    lines = ["".join(draw.choices(LETTERS, k=6)) + end for end in KINDS for _ in range(40)]
    terms = "\n".join(f"{line}\t{KINDS[line[-3:]]}" for line in lines)
    (folder / "terms.tsv").write_text(terms)
    (folder / "general.txt").write_text("\n".join(f"{line} {line[::-1]}" for line in lines))
    return folder


def run(made: Path, name: str, **settings):
    return medbert.benchmark_text(
        "+text_task@tasks.terms=terms",
        models={"control": made / "control", "adapted": made / "adapted"},
        tasks={"terms": {"path": made / "terms.tsv", "labelled": 60, "min_count": 20, "epochs": 1}},
        general=made / "general.txt",
        seeds=2,
        n_bootstrap=200,
        out=made / name,
        **settings,
    )


def test_a_report_with_a_verdict_in_words(made):
    told = run(made, "report")["tasks"]
    loss = told["general text"]["comparisons"][0]
    assert (loss["model"], loss["verdict"]) == ("adapted", "worse")
    assert told["terms"]["rows"]["macro F1"]["character n-grams"]["value"]["value"] > 0.9
    page = (made / "report" / "report.md").read_text()
    assert "general text: adapted is worse than control" in page
    assert "terms: adapted: no gain over control" in page
    assert "character n-grams ahead of every model" in page
    assert "figures/task_terms.svg" in page and (made / "report" / "report.html").is_file()
    assert json.loads((made / "report" / "metrics.json").read_text())["seeds"] == 2


def test_a_killed_run_asks_no_model_twice(made, monkeypatch):
    asked, really = [], Terms.run

    def killed_at_the_third(self, model, *, seed):
        asked.append((model.name, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return really(self, model, seed=seed)

    monkeypatch.setattr(Terms, "run", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(made, "killed")
    run(made, "killed", pairs=["adapted:control"])
    assert asked == [("control", 0), ("adapted", 0), ("control", 1), ("control", 1), ("adapted", 1)]
    kept = made / "killed" / "answers"
    before = {file: file.stat().st_mtime_ns for file in kept.glob("*.npy")}
    run(made, "again", answers=kept)
    assert before == {file: file.stat().st_mtime_ns for file in kept.glob("*.npy")}
    assert len(asked) == 5
    assert np.load(next(iter(before)), allow_pickle=False).ndim == 2


def test_what_cannot_be_compared_is_refused(made):
    with pytest.raises(InputError, match="no model 'best'"):
        run(made, "no", reference="best")
    with pytest.raises(InputError, match="two models or more"):
        medbert.benchmark_text(models={"control": made / "control"}, out=made / "no")
    with pytest.raises(InputError, match="no model in safetensors"):
        (made / "empty").mkdir()
        medbert.benchmark_text(
            models={"control": made / "control", "adapted": made / "empty"},
            general=made / "general.txt",
            out=made / "no",
        )
