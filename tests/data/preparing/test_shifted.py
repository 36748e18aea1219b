"""A shifted store holds the same lives at other times, each moved as the notes are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import records_of
from intervals import intervals_kept

import medbert
from medbert.data.preparing.shift import shifted
from medbert.data.sources.flat import Flat
from medbert.data.sources.meds import Meds
from medbert.data.store import STATIC, Store
from medbert.schema import BIRTH, DAY_US, DEATH, PREDICTION_TIME, SUBJECT_ID, InputError
from medbert.text.redaction.shift import Shift

SYNTHETIC = Path(__file__).resolve().parents[3] / "data_synthetic" / "meds"
KEY = b"a secret of more than sixteen bytes"
SHIFT = Shift(key=KEY)


def moved(records, shift: Shift = SHIFT):
    return shifted(records, shift.days, told=shift.told)


def datetimes(times: np.ndarray) -> list:
    return times[times != STATIC].view("datetime64[us]").tolist()


@pytest.mark.parametrize("memory_gb", [1e-3, 1.0], ids=["buckets", "files"])
def test_every_time_of_a_subject_moves_by_its_days_and_nothing_else_changes(make_store, memory_gb):
    records = Meds(str(SYNTHETIC)).read()
    old = make_store(records, name="old", memory_gb=memory_gb)
    new = make_store(moved(records), name="new", memory_gb=memory_gb)
    assert new.subject_ids.tolist() == old.subject_ids.tolist() and new.codes == old.codes
    assert (new.split_of_row == old.split_of_row).all()
    assert new.info["vocabulary_sha256"] == old.info["vocabulary_sha256"]
    assert new.info["counts"] == old.info["counts"]
    before, after = (store.history(np.arange(1000)) for store in (old, new))
    days = np.array([SHIFT.days(subject) for subject in old.subject_ids.tolist()]) * DAY_US
    of_T = np.repeat(days, np.diff(before.offsets_B1))
    of_V = np.repeat(days, np.diff(before.visit_offsets_B1))
    for name, by in {"time_T": of_T, "birth_B": days, "start_V": of_V, "end_V": of_V}.items():
        was, now = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(now, np.where(was == STATIC, STATIC, was + by), name)
    for name in ("code_T", "token_T", "value_T", "visit_T", "stay_V", "kind_V"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), name)
    lives = []
    for history in (before, after):
        cuts = history.offsets_B1
        parts = [history.time_T[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        lives.append({i: datetimes(times) for i, times in enumerate(parts)})
    audit = intervals_kept(*lives)
    assert audit.all_kept and audit.intervals > 100_000


def test_nobody_is_taken_to_be_observed_after_the_end_of_the_records(make_store):
    """A subject whose dates moved back cannot have been followed to where the others' ends are."""
    rows = [row for s in range(1, 80) for row in [(s, "2010-01-01", "A"), (s, "2019-12-31", "B")]]
    store = make_store(moved(records_of(rows)))
    last = datetimes(np.array([store.end]))[0]
    ends = [
        np.datetime64("2019-12-31", "us") + np.timedelta64(SHIFT.days(s), "D") for s in range(1, 80)
    ]
    assert all(last <= end for end in ends)
    assert make_store(records_of(rows), name="plain").end == (
        np.datetime64("2019-12-31", "us").astype(int)
    )


def test_a_patient_with_letters_in_the_id_moves_as_the_notes_do(make_store, tmp_path):
    (tmp_path / "events.csv").write_text(
        "subject_id,time,code\nA-17,2010-05-01,X\n007,2010-05-01,X\n7,2010-05-01,X\n"
    )
    store = make_store(moved(Flat(path=str(tmp_path / "events.csv")).read()))
    history = store.history(np.arange(3))
    found = np.datetime64("2010-05-01", "us") + np.array(
        [np.timedelta64(SHIFT.days(patient), "D") for patient in ("A-17", "007", "7")]
    )
    assert sorted(datetimes(history.time_T)) == sorted(found.tolist())


def test_births_deaths_and_stated_visits_move_and_impossible_ages_stay_out(make_store):
    rows = [
        (1, "1950-01-01", BIRTH),
        (1, "1940-01-01", "BEFORE"),
        (1, "2010-03-27 22:00", "A", None, 5),
        (1, "2010-05-01", DEATH),
    ]
    said = [(1, 5, "2010-03-27 20:00", "2010-03-29 08:00", "inpatient", None)]
    plain = make_store(records_of(rows, visits=said), name="plain")
    store = make_store(moved(records_of(rows, visits=said)))
    assert store.info["findings"] == plain.info["findings"] != {}
    old, new = plain.history(np.array([0])), store.history(np.array([0]))
    by = SHIFT.days(1) * DAY_US
    assert (new.start_V - old.start_V, new.end_V - old.end_V) == (by, by)
    assert new.stay_V.tolist() == old.stay_V.tolist() == [1.5]  # over a change to summer time
    assert new.birth_B[0] - old.birth_B[0] == by


def test_stated_labels_move_and_files_stay_out():
    labels = pa.table(
        {
            SUBJECT_ID: [1, 2],
            PREDICTION_TIME: pa.array([0, DAY_US], pa.timestamp("us")),
            "boolean_value": [True, False],
        }
    )
    records = records_of([(1, "2010-01-01", "A")])._replace(
        labels={"death": labels}, files={"truth.parquet": "/nowhere"}
    )
    done = moved(records)
    days = [time.date().toordinal() for time in done.labels["death"][PREDICTION_TIME].to_pylist()]
    assert [d - 719163 for d in days] == [SHIFT.days(1), SHIFT.days(2) + 1]
    assert not done.files


def test_an_order_without_dates_is_refused():
    with pytest.raises(InputError, match="an order but no dates"):
        moved(records_of([(1, "2010-01-01", "A")], time="order"))


def test_unfinished_work_of_another_key_is_not_taken_up():
    part, other = (
        moved(records_of([(1, "2010-01-01", "A")]), shift).parts[0]
        for shift in (SHIFT, Shift(key=KEY[::-1]))
    )
    assert part.stamp != other.stamp and part.name == other.name


def test_the_verb_shifts_and_writes_no_key(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", KEY.decode())
    words = {"source": "meds", "memory_gb": 1.0, "out": str(tmp_path / "store")}
    with caplog.at_level("DEBUG"):
        medbert.prepare(
            f"source.path={SYNTHETIC}", "shift.key='env:A_KEY'", "shift.max_days=70", **words
        )
    store = Store(tmp_path / "store")
    shift = Shift(key=KEY, max_days=70)
    assert store.info["source"]["shift"] == shift.told
    assert Meds(str(SYNTHETIC)).read().files and not list(tmp_path.rglob("truth.parquet"))
    settings = json.loads((tmp_path / "store" / "settings.json").read_text())
    assert settings["shift"] == {"key": "env:A_KEY", "max_days": 70, "step": 7}
    for file in (tmp_path / "store").rglob("*"):
        assert file.is_dir() or KEY not in file.read_bytes()
    assert KEY.decode() not in caplog.text


def test_a_key_on_the_command_line_is_refused_unsaid_and_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="never the secret itself") as error:
        medbert.prepare(
            f"source.path={SYNTHETIC}", source="meds", shift={"key": "0123456789abcdef0123"},
            out=str(tmp_path / "store"),
        )  # fmt: skip
    assert "0123456789" not in str(error.value) and not list(tmp_path.iterdir())
