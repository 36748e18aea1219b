"""The verbs in a row on a small invented cohort, and what they do with what cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import medbert
from medbert import InputError
from medbert.commands.main import _score
from medbert.train.checkpoints import Checkpoints

SCORED = {"encoder": "pretrain", "run": "finetune"}
QUICK = {"max_epochs": 1, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """events/, store/, encoder/, run/ and report/ of 1,500 invented subjects."""
    folder = tmp_path_factory.mktemp("made")
    medbert.synthesize(n_subjects=1500, seed=3, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    medbert.pretrain(store=folder / "store", encoder="tiny", trainer=QUICK, out=folder / "encoder")
    medbert.finetune(
        store=folder / "store",
        encoder_dir=folder / "encoder",
        task="prolonged_los",
        head="mean",
        trainer=QUICK,
        out=folder / "run",
    )
    medbert.evaluate(run=folder / "run", n_bootstrap=100, out=folder / "report")
    return folder


def test_every_artefact_is_a_folder_a_person_can_open(made):
    contents = {
        "store": {"data", "codes.parquet", "vocabulary.parquet", "dataset.json", "truth.parquet"},
        "encoder": {"model.safetensors", "config.json", "vocabulary.parquet", "metrics.json"},
        "run": {"labels.parquet", "predictions.parquet", "metrics.json", "report.html"},
        "report": {"report.html", "metrics.json"},
    }
    for name, files in contents.items():
        found = {path.name for path in (made / name).iterdir()}
        assert files | {"settings.json", "environment.json"} <= found
        assert not list(made.glob(f"{name}.*"))
    assert not list(made.rglob("*.pkl")) and not list(made.rglob("*.ckpt"))


def test_predictions_are_of_held_out_subjects_only_and_make_the_auc(made):
    predictions = pq.read_table(made / "run" / "predictions.parquet").to_pandas()
    splits = pq.read_table(made / "store" / "subject_splits.parquet").to_pandas()
    split = splits.set_index("subject_id")["split"][predictions["subject_id"]]
    assert set(split) == {"held_out"}
    assert predictions["predicted_boolean_probability"].dtype == np.float64
    auroc = roc_auc_score(
        predictions["boolean_value"], predictions["predicted_boolean_probability"]
    )
    metrics = json.loads((made / "report" / "metrics.json").read_text())
    assert str(auroc)[:10] in json.dumps(metrics)


def test_a_sweeper_is_told_of_tuning_subjects(made):
    pretrained, run = (json.loads((made / n / "metrics.json").read_text()) for n in SCORED)
    scores = [_score(verb, made / name) for name, verb in SCORED.items()]
    assert scores == [pretrained["tuning/loss"], run["training"]["tuning/auroc"]]
    assert _score("synthesize", made / "events") is None


def test_the_report_has_every_model_and_no_subject(made):
    text = (made / "report" / "report.html").read_text(encoding="utf-8")
    for name in ("pretrained", "untrained", "logistic regression", "LightGBM", "age + sex"):
        assert name in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_the_encoder_knows_training_subjects_only(made):
    vocabulary = pq.read_table(made / "encoder" / "vocabulary.parquet").to_pandas()
    assert (vocabulary["n_subjects"][4:] >= 5).all()
    codes = pq.read_table(made / "store" / "codes.parquet").to_pandas()
    kept = codes[codes["token"] > 3]
    assert (kept["train_subjects"] >= 5).all()


def test_a_finished_folder_is_refused_then_replaced_on_request(made, tmp_path):
    out = tmp_path / "events"
    medbert.synthesize(n_subjects=20, out=out)
    first = (out / "data").stat().st_ino
    with pytest.raises(InputError, match="overwrite=true"):
        medbert.synthesize(n_subjects=30, out=out)
    assert (out / "data").stat().st_ino == first
    medbert.synthesize(n_subjects=30, out=out, overwrite=True)
    subjects = pq.read_table(out / "data")["subject_id"].unique()
    assert len(subjects) == 30 and [p.name for p in tmp_path.iterdir()] == ["events"]


def test_an_unbroken_and_a_resumed_run_give_the_same_encoder(made, tmp_path, monkeypatch):
    def pretrain(out):
        settings = {"max_epochs": 3, "accelerator": "cpu"}
        return medbert.pretrain(
            store=made / "store", encoder="tiny", trainer=settings, batch_tokens=20000, out=out
        )

    def die(self, trainer, module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    pretrain(tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_start", die)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            pretrain(tmp_path / "broken")
    assert not (tmp_path / "broken").exists() and (tmp_path / "broken.partial").is_dir()
    with pytest.raises(InputError, match=r"unfinished work with other settings \(batch_tokens"):
        medbert.pretrain(
            store=made / "store",
            encoder="tiny",
            trainer={"max_epochs": 3, "accelerator": "cpu"},
            out=tmp_path / "broken",
        )
    pretrain(tmp_path / "broken")
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("unbroken", "broken")]
    assert weights[0] == weights[1]


def finetune(made, out, **settings):
    defaults = {
        "store": made / "store",
        "encoder_dir": made / "encoder",
        "task": "prolonged_los",
        "trainer": QUICK,
        "out": out,
    }
    return medbert.finetune(**defaults | settings)


@pytest.mark.parametrize("head", ["sum", "max", "gru", "bi_gru", "retain", "frozen_logistic"])
def test_every_head_trains_and_predicts(made, tmp_path, head):
    run = finetune(made, tmp_path / "run", head=head)
    predictions = pq.read_table(run / "predictions.parquet")["predicted_boolean_probability"]
    assert np.isfinite(predictions.to_numpy()).all() and len(set(predictions.to_pylist())) > 10


def test_frozen_means_the_encoder_is_the_one_given(made, tmp_path):
    finetune(made, tmp_path / "run", head="mean", freeze=True)
    before = load_file(made / "encoder" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(after[name].equal(value) for name, value in before.items())


def test_an_encoder_that_was_never_pretrained_is_evaluated_as_such(made, tmp_path):
    finetune(made, tmp_path / "run", encoder_dir=None, encoder="tiny")
    results = medbert.evaluate(run=tmp_path / "run", n_bootstrap=50, out=tmp_path / "report")
    assert results.results.reference == "Med-BERT, untrained"
    assert "Med-BERT, pretrained" not in results.table()["model"].tolist()
    columns = pq.read_schema(tmp_path / "report" / "predictions.parquet").names
    assert columns[3:] == results.table()["model"].tolist()


@pytest.fixture
def encoder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "encoder", tmp_path / "encoder"))


@pytest.mark.parametrize("change", ["missing", "extra", "truncated", "hash"])
def test_a_damaged_encoder_is_refused_and_nothing_is_left(made, tmp_path, encoder, change):
    file = encoder / "model.safetensors"
    weights = load_file(file)
    if change == "missing":
        weights.pop(sorted(weights)[0])
    if change == "extra":
        weights["encoder.surplus"] = weights[sorted(weights)[0]].clone()
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({k: v + (change == "hash") for k, v in weights.items()}, file)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        finetune(made, tmp_path / "run", encoder_dir=encoder)
    assert not list(tmp_path.glob("run*"))


def test_the_encoder_of_another_vocabulary_is_refused_with_the_cure(made, tmp_path):
    medbert.prepare(
        "source=meds", f"source.path={made}/events", "rule=diagnoses", out=tmp_path / "store"
    )
    with pytest.raises(InputError, match="prepare the records again with `medbert prepare"):
        finetune(made, tmp_path / "run", store=tmp_path / "store")


def test_an_encoder_works_on_another_store_prepared_with_its_vocabulary(made, tmp_path):
    medbert.synthesize(n_subjects=900, seed=8, out=tmp_path / "events")
    medbert.prepare(
        "source=meds",
        f"source.path={tmp_path}/events",
        vocabulary=made / "encoder",
        out=tmp_path / "store",
    )
    finetune(made, tmp_path / "run", store=tmp_path / "store", head="frozen_logistic")
    assert (tmp_path / "run" / "predictions.parquet").is_file()


def test_one_class_labels_are_refused(made, tmp_path):
    labels = pq.read_table(made / "run" / "labels.parquet").drop(["split"])
    alike = labels.set_column(2, "boolean_value", pa.array([False] * len(labels)))
    pq.write_table(alike, tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="one class only"):
        medbert.finetune(
            "task=labels",
            f"task.path={tmp_path}/labels.parquet",
            store=made / "store",
            encoder_dir=made / "encoder",
            out=tmp_path / "run",
        )
    assert not list(tmp_path.glob("run*"))


def test_what_must_be_given_is_named(tmp_path):
    with pytest.raises(InputError, match=r"needs out=\.\.\. store=\.\.\."):
        medbert.pretrain()
    with pytest.raises(InputError, match=r"needs source\.path=\.\.\."):
        medbert.prepare(source="meds", out=tmp_path / "store")


def test_a_store_that_is_made_anew_does_not_pass_for_the_old_one(made, tmp_path):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    medbert.prepare(
        "source=meds", f"source.path={made}/events", "rule=diagnoses", out=tmp_path / "store"
    )
    settings = json.loads((run / "settings.json").read_text())
    settings["store"] = str(tmp_path / "store")
    (run / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="another vocabulary since this run"):
        medbert.evaluate(run=run, out=tmp_path / "report")
    assert not list(tmp_path.glob("report*"))


def test_pretraining_draws_what_was_learned(encoder):
    told = json.loads((encoder / "metrics.json").read_text())
    assert told["by_chance"]["unigram"] == pytest.approx(told["tuning/unigram"], rel=1e-3)
    assert sum(group["codes"] for group in told["by_frequency"]) > 0
    assert (encoder / "learning.png").read_bytes().startswith(b"\x89PNG")
