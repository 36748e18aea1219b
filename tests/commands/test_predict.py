from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import medbert
from medbert import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """events/, store/, run/; elsewhere/ has the records of others, with the vocabulary of run/."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed, vocabulary in (("store", 3, None), ("elsewhere", 4, folder / "run")):
        events = folder / f"{name}_events"
        medbert.synthesize(n_subjects=400, seed=seed, out=events)
        source = ("source=meds", f"source.path={events}")
        medbert.prepare(*source, vocabulary=vocabulary, out=folder / name)
        if vocabulary is None:
            medbert.finetune(
                store=folder / name,
                encoder="tiny",
                task="prolonged_los",
                head="mean",
                trainer={"max_epochs": 1, "accelerator": "cpu"},
                out=folder / "run",
            )
    return folder


def predicted(made: Path, out: Path, **settings) -> pa.Table:
    given = {"run": made / "run", "store": made / "store", "device": "cpu", "out": out / "said"}
    return pq.read_table(medbert.predict(**given | settings) / "predictions.parquet")


def test_the_rows_of_the_run_get_what_the_run_said(made, tmp_path):
    before = pq.read_table(made / "run" / "predictions.parquet")
    again = predicted(
        made,
        tmp_path,
        cohort=made / "run" / "labels.parquet",
        splits=["held_out"],
        batch_tokens=999,
    )
    assert again.schema.equals(before.schema)
    for name in ("subject_id", "prediction_time", "boolean_value"):
        assert again[name].equals(before[name])
    probability = "predicted_boolean_probability"
    np.testing.assert_allclose(again[probability], before[probability], atol=1e-6)
    decided = again["predicted_boolean_value"].to_numpy()
    assert (decided == (again[probability].to_numpy() >= 0.5)).all()


def test_another_hospital_without_labels(made, tmp_path):
    table = predicted(made, tmp_path, store=made / "elsewhere")
    assert table["subject_id"].to_pylist() == medbert.Store(made / "elsewhere").subject_ids.tolist()
    assert table["boolean_value"].null_count == len(table) == 400
    assert len(np.unique(table["predicted_boolean_probability"])) > 100


def test_another_vocabulary_is_refused_with_the_cure(made, tmp_path):
    source = ("source=meds", f"source.path={made}/store_events")
    medbert.prepare(*source, "rule=diagnoses", out=tmp_path / "store")
    with pytest.raises(InputError, match=r"vocabulary=.*run"):
        predicted(made, tmp_path, store=tmp_path / "store")


def test_an_encoder_has_nothing_to_predict_with(made, tmp_path):
    medbert.pretrain(
        store=made / "store",
        encoder="tiny",
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=tmp_path / "encoder",
    )
    with pytest.raises(InputError, match="no module 'head'"):
        predicted(made, tmp_path, run=tmp_path / "encoder")
    assert not (tmp_path / "said").exists()
