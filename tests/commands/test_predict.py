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


# --- an encoder that foretells ------------------------------------------------------------------

DISEASE = "ICD10CM/I10"


@pytest.fixture(scope="module")
def foretelling(made) -> Path:
    return medbert.pretrain(
        *("encoder.layers=1", "encoder.hidden=16", "encoder.feed_forward=16"),
        store=made / "store",
        encoder="causal",
        objective="time_to_event",
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=made / "foretelling",
    )


def asked(made: Path, encoder: Path, out: Path, **settings) -> pa.Table:
    given = {"run": None, "encoder_dir": encoder, "query": DISEASE, "overwrite": True}
    return predicted(made, out, **given | settings)


def test_the_answer_is_a_probability_and_null_for_those_who_have_had_the_code(
    made, foretelling, tmp_path
):
    table = asked(made, foretelling, tmp_path)
    records = medbert.Store(made / "store")
    history = records.history(np.arange(len(records)))
    below = np.char.startswith(np.array(records.codes), DISEASE)[history.code_T]
    had = np.logical_or.reduceat(below, history.offsets_B1[:-1])
    assert 20 < had.sum() < 380 and table["subject_id"].to_pylist() == records.subject_ids.tolist()
    for name in ("predicted_boolean_probability", "predicted_boolean_value"):
        assert (table[name].is_null().to_numpy() == had).all()
    said = table["predicted_boolean_probability"].drop_null().to_numpy()
    assert ((said > 0) & (said < 1)).all() and len(np.unique(said)) > 50


def test_longer_horizons_are_likelier_and_a_gap_splits_one(made, foretelling, tmp_path):
    def said(**settings) -> np.ndarray:
        table = asked(made, foretelling, tmp_path, **settings)
        return table["predicted_boolean_probability"].drop_null().to_numpy()

    month, year, rest = said(horizon=30), said(horizon="365d"), said(horizon="335d", gap="30d")
    assert (month < year).all()
    np.testing.assert_allclose(month + rest, year, rtol=1e-4)
    np.testing.assert_allclose(said(batch_tokens=300), year, rtol=1e-4)
    assert len(said(query=[DISEASE, "ICD10CM/E11"])) < len(year)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": "ICD10CM/Q99.9"}, "query=ICD10CM/Q99.9: no token of .*vocabulary.parquet"),
        ({"horizon": "a year"}, "horizon=a year: expected days, such as 365 or 365d"),
        ({"gap": "soon"}, "gap=soon: expected days"),
        ({"horizon": 0}, "gap=0 horizon=0: the gap is 0 or more, the horizon above 0"),
        ({"horizon": "nan"}, "horizon=nan: "),
        ({"gap": -1}, "gap=-1 horizon=365d: "),
        ({"encoder_dir": None}, "say run=FOLDER, or encoder_dir=FOLDER query=CODE"),
        ({"run": "run"}, "say run=FOLDER, or"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_in_one_line(made, foretelling, tmp_path, wrong, message):
    if "run" in wrong:
        wrong = {**wrong, "run": made / "run"}
    with pytest.raises(InputError, match=message) as refused:
        asked(made, foretelling, tmp_path, **wrong)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "said").exists()


def test_an_encoder_has_nothing_to_predict_with(made, tmp_path):
    medbert.pretrain(
        store=made / "store",
        encoder="tiny",
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=tmp_path / "encoder",
    )
    with pytest.raises(InputError, match="no module 'head'"):
        predicted(made, tmp_path, run=tmp_path / "encoder")
    with pytest.raises(
        InputError, match="does not foretell codes; make one with `medbert pretrain"
    ):
        asked(made, tmp_path / "encoder", tmp_path)
    assert not (tmp_path / "said").exists()
