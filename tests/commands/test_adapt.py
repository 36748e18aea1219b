"""``medbert adapt``: from a corpus and a base to a Hugging Face folder, broken off or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

import medbert  # noqa: E402
from medbert.commands import adapt as verb  # noqa: E402
from medbert.schema import InputError  # noqa: E402
from medbert.text.corpus.documents import DOCUMENTS  # noqa: E402
from medbert.text.encoders.masked_lm import fresh  # noqa: E402
from medbert.text.encoders.rows import RowSampler  # noqa: E402
from medbert.train.checkpoints import Checkpoints  # noqa: E402

SUBJECTS = ("Pasienten", "Kvinnen", "Mannen", "Barnet", "Den gamle")
VERBS = ("har vondt i", "ble operert i", "klager over smerter i", "er bedre i")
PLACES = ("kneet", "ryggen", "magen", "hodet", "hånden", "foten", "nakken")
QUICK = {
    "gate_override": "invented text",
    "length": 32,
    "batch_rows": 4,
    "looks": 2,
    "judged": 12,
    "checkpoint_minutes": 0,
    "optimizer": {"lr": 2e-2},
    "trainer": {"accelerator": "cpu"},
}
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def sentence(i: int) -> str:
    return f"{SUBJECTS[i % 5]} {VERBS[i % 4]} {PLACES[i % 7]} på dag {i}."


def documents(n: int) -> list[str]:
    return [" ".join(sentence(i * 7 + j) for j in range(3)) for i in range(n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """corpus/ (60 documents of two sites), general.txt, tokenizer/ and base/ (a ModernBERT)."""
    place = tmp_path_factory.mktemp("adapt")
    splits = ["train"] * 4 + ["tuning"] + ["held_out"]
    rows = [
        {
            "note_id": str(i),
            "patient_id": str(i // 2),
            "site": "north" if i % 2 else "south",
            "kind": "discharge",
            "language": "nb",
            "time": None,
            "year": None,
            "split": splits[i // 2 % 6],
            "copies": 1,
            "text": text,
            "sha256": f"{i:064x}",
        }
        for i, text in enumerate(documents(120))
    ]
    (place / "corpus").mkdir()
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=DOCUMENTS), place / "corpus" / "documents.parquet"
    )
    manifest = {"documents": len(rows), "sha256": "c0ffee"}
    (place / "corpus" / "manifest.json").write_text(json.dumps(manifest))
    general = [
        text.replace("vondt", "glede").replace("smerter", "sanger") for text in documents(90)
    ]
    (place / "general.txt").write_text("\n".join(general), encoding="utf-8")
    medbert.tokenizer_train(corpus=place / "general.txt", size=300, out=place / "tokenizer")
    config = TINY | {"num_hidden_layers": 2, "max_position_embeddings": 64, "local_attention": 8}
    config |= {"embedding_dropout": 0.1, "mlp_dropout": 0.1}
    fresh(place / "tokenizer", model_type="modernbert", config=config, seed=0).save(place / "base")
    return place


def run(made: Path, out: Path, *words: str, **settings) -> Path:
    corpus = {"corpus": made / "corpus", "base": made / "base", "out": out}
    return medbert.adapt(*words, **(QUICK | corpus | settings))


@pytest.fixture
def killed_at(monkeypatch) -> Callable[[int | None], list[tuple[int, float]]]:
    """Kills at the begin of a step; the list has what each batch was told of its place."""
    told: list[tuple[int, float]] = []

    def plan(step: int | None) -> list[tuple[int, float]]:
        def begin(self, trainer, module, batch, batch_idx):
            if trainer.global_step == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoints, "on_train_batch_start", begin, raising=False)
        return told

    each = RowSampler.__iter__

    def noted(self):
        for index in each(self):
            told.append((index.batch, index.progress))
            yield index

    monkeypatch.setattr(RowSampler, "__iter__", noted)
    return plan


def test_a_base_learns_the_notes_and_is_told_so(made, tmp_path):
    general = {"general": made / "general.txt", "replay": 0.25}
    out = run(made, tmp_path / "out", steps=40, **general)
    metrics = json.loads((out / "metrics.json").read_text())
    found = metrics["masked_loss"]
    assert found["held_out"]["high"] < 0 < found["held_out"]["documents"]
    assert set(found["tuning"]["groups"]) <= {"north, nb", "south, nb"}
    assert "general text" in found and metrics["corpus_sha256"] == "c0ffee"
    assert metrics["gate"] == {"state": "overridden", "sha256": None, "reason": "invented text"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "gain: masked loss" in card and metrics["base_sha256"] in card and "c0ffee" in card
    model = transformers.AutoModelForMaskedLM.from_pretrained(out, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    text = f"Pasienten har vondt i {tokenizer.mask_token} på dag 3."
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits
    assert logits.shape[-1] >= len(tokenizer) and logits.isfinite().all()
    left = {file.name for file in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "losses.png"} <= left
    assert not {"tokens", "checkpoints", "before.json"} & left, "nothing of the texts stays"


@pytest.mark.parametrize("step", [3, 7])
def test_a_broken_run_ends_with_the_same_weights_and_goes_on_at_its_mask_rate(
    made, tmp_path, killed_at, step
):
    settings = {"steps": 10, "general": made / "general.txt", "replay": 0.25}
    words = ["text_objective=schedule", "trainer.accumulate_grad_batches=2"]
    told = killed_at(None)
    whole = run(made, tmp_path / "whole", *words, **settings)
    expected = sorted(told)
    assert [batch for batch, _ in expected] == list(range(20))
    assert expected[0][1] == 0 and expected[-1][1] == 19 / 20
    told.clear()
    killed_at(step)
    with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)):
        run(made, tmp_path / "broken", *words, **settings)
    assert (tmp_path / "broken.partial" / "checkpoints").is_dir()
    told.clear()
    killed_at(None)
    broken = run(made, tmp_path / "broken", *words, **settings)
    assert told == expected[told[0][0] :] and 0 < told[0][0] <= 2 * step
    weights = [load_file(folder / "model.safetensors") for folder in (whole, broken)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_spans_and_two_epochs(made, tmp_path):
    out = run(
        made, tmp_path / "out", "text_objective=span", trainer={"max_epochs": 2}, batch_rows=16
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] % 2 == 0 and metrics["masked_loss"]["held_out"]["change"] < 0


def test_a_bert_from_nothing_is_asked_for_the_next_sentence(made, tmp_path):
    tiny = [f"+architecture.config.{k}={v}" for k, v in {"type_vocab_size": 2}.items()]
    tiny += [f"architecture.config.{k}={v}" for k, v in TINY.items()]
    first = run(
        made,
        tmp_path / "first",
        "text_objective=mlm_nsp",
        "architecture=bert",
        *tiny,
        base=None,
        tokenizer=made / "tokenizer",
        steps=4,
    )
    metrics = json.loads((first / "metrics.json").read_text())
    assert 0 <= metrics["tuning/next_right"] <= 1
    _, told = transformers.BertForPreTraining.from_pretrained(
        first, local_files_only=True, output_loading_info=True
    )
    assert not told["missing_keys"], "the head is kept"
    again = run(made, tmp_path / "again", "text_objective=mlm_nsp", base=first, steps=4)
    transformers.AutoModelForMaskedLM.from_pretrained(again, local_files_only=True)


def test_what_cannot_be_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="gate"):
        run(made, tmp_path / "out", gate_override=None)
    with pytest.raises(InputError, match="length"):
        run(made, tmp_path / "out", length=512)
    with pytest.raises(InputError, match="tokenizer"):
        run(made, tmp_path / "out", base=None)
    with pytest.raises(InputError, match="max_epochs"):
        run(made, tmp_path / "out", steps=3, trainer={"accelerator": "cpu", "max_epochs": 2})
    assert not list(tmp_path.iterdir())


def test_looks_part_an_epoch_evenly():
    class Train(list):
        pass

    for steps, looks, every in ((40, 10, 4), (40, 4, 10), (7, 10, 7), (3, 10, 3), (45, 10, 5)):
        told = verb._looks(Train(range(steps * 2)), {"accumulate_grad_batches": 2}, looks)
        assert told == {"val_check_interval": every * 2}
