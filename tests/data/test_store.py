from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import records_of

from medbert.data.store import STATIC, Store
from medbert.schema import BIRTH, TRAIN, UNK, InputError

US = 1_000_000
DAY = 86_400 * US

EVENTS = [
    (2, None, "GENDER//F"),
    (2, "1960-01-01", BIRTH),
    (2, "2010-03-01T08:00", "ATC/A10BA02", None, 21),
    (2, "2010-03-01T09:00", "ICD9CM/250.00", None, 21),
    (2, "2012-05-01", "LOINC/4548-4", 7.5, None),
    (1, "2011-01-01", "ICD9CM/401.9", None, 11),
    (1, "2011-01-01", "ICD9CM/401.9", None, 11),
    (3, "2011-01-01T10:00", "A"),
    (3, "2011-01-01T18:00", "B"),
    (3, "2011-01-02T10:00", "A"),
]
VISITS = [
    (2, 21, "2010-03-01T07:00", "2010-03-11T07:00", "inpatient", 10.0),
    (1, 11, "2011-01-01", "2011-01-01", "outpatient", 0.0),
    (1, 12, "2011-06-01", "2011-06-01", "outpatient", 0.0),
]


def micros(text: str) -> int:
    return int(np.datetime64(text, "us").astype(np.int64))


@pytest.fixture
def store(make_store):
    return make_store(records_of(EVENTS, visits=VISITS))


def codes_of(store: Store, subject: int, until: str | None = None) -> list[str]:
    cut = None if until is None else np.array([micros(until)])
    history = store.history(store.rows_of(np.array([subject])), until=cut)
    return [store.codes[i] for i in history.code_T]


def test_history_is_sorted_static_first_and_repeats_are_dropped(store):
    assert codes_of(store, 1) == ["ICD9CM/401.9"]
    assert codes_of(store, 2)[0] == "GENDER//F"
    assert store.info["counts"]["duplicate_events_dropped"] == 1


def test_a_diagnosis_of_a_stay_is_known_at_its_discharge(store):
    assert "ATC/A10BA02" in codes_of(store, 2, "2010-03-02")
    assert "ICD9CM/250.00" not in codes_of(store, 2, "2010-03-11T06:59:59")
    assert "ICD9CM/250.00" in codes_of(store, 2, "2010-03-11T07:00")
    assert store.info["counts"]["diagnoses_moved_to_discharge"] == 1


def test_nothing_after_the_prediction_time_exists(store):
    rows = np.arange(len(store))
    for day in pd.date_range("2009-12-31", "2012-06-01", freq="37D"):
        until = np.full(3, micros(day.isoformat()))
        history = store.history(rows, until=until)
        assert (history.time_T <= np.repeat(until, np.diff(history.offsets_B1))).all()
        assert (history.start_V <= np.repeat(until, np.diff(history.visit_offsets_B1))).all()
        assert (history.end_V <= np.repeat(until, np.diff(history.visit_offsets_B1))).all()


def test_a_stay_that_goes_on_has_no_known_length(store):
    row = store.rows_of(np.array([2]))
    during = store.history(row, until=np.array([micros("2010-03-05")]))
    after = store.history(row, until=np.array([micros("2010-03-12")]))
    assert np.isnan(during.stay_V).all() and during.end_V.tolist() == [STATIC]
    assert after.stay_V.tolist() == [10.0]


def test_visits_are_numbered_and_loose_events_grouped_by_day(store):
    history = store.history(store.rows_of(np.array([3])))
    assert history.visit_T.tolist() == [1, 1, 2]
    assert history.kind_V.tolist() == ["day", "day"] and np.isnan(history.stay_V).all()
    history = store.history(store.rows_of(np.array([1])))
    assert history.visit_T.tolist() == [1] and len(history.start_V) == 2


def test_an_observation_window_shows_the_last_days_only(store):
    until = np.array([micros("2012-06-01")])
    rows = store.rows_of(np.array([2]))

    def seen(days: int | None):
        history = store.recent(days).history(rows, until=until)
        codes = [store.codes[i] for i in history.code_T]
        return codes, history.visit_T.tolist(), len(history.start_V), history

    whole, recent = seen(None), seen(100)
    assert whole[0][-3:] == ["ATC/A10BA02", "ICD9CM/250.00", "LOINC/4548-4"]
    assert whole[1][-3:] == [1, 1, 2] and whole[2] == 2
    assert recent[0] == ["GENDER//F", "LOINC/4548-4"]  # the static code stays, and so does birth
    assert recent[3].birth_B.tolist() == whole[3].birth_B.tolist() and recent[1] == [0, 1]
    assert recent[2] == 1  # how many visits there were before is not told either
    assert store.window_days is None and store.recent(100).recent(None).window_days is None


def test_a_visit_that_goes_on_into_the_window_is_in_it_with_what_is_late_enough(store):
    rows, until = store.rows_of(np.array([2])), np.array([micros("2010-03-12")])
    history = store.recent(5).history(rows, until=until)  # from 7 March; discharge on the 11th
    codes = [store.codes[i] for i in history.code_T]
    assert codes == ["GENDER//F", "ICD9CM/250.00"] and history.visit_T.tolist() == [0, 1]
    assert history.stay_V.tolist() == [10.0]


def test_whole_records_know_no_window_and_a_window_needs_days_and_dates(store, make_store):
    rows = np.arange(len(store))
    parts = store.history(rows), store.recent(1).history(rows)  # labels are made of whole records
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*parts, strict=True)
    )
    with pytest.raises(InputError, match="more than 0 days"):
        store.recent(0)
    order = make_store(records_of([(1, "1970-01-01", "A")], time="order"), name="order")
    with pytest.raises(InputError, match="needs dates"):
        order.recent(30)


def test_rows_come_back_in_the_order_asked_across_shards(store):
    assert len(store.info["shards"]) > 1
    rows = np.array([2, 0, 1, 0])
    together = store.history(rows)
    alone = [store.history(np.array([row])) for row in rows]
    for i, one in enumerate(alone):
        span = slice(together.offsets_B1[i], together.offsets_B1[i + 1])
        assert together.code_T[span].tolist() == one.code_T.tolist()
        assert together.birth_B[i] == one.birth_B[0]


def test_history_of_nobody_and_of_nothing(store):
    empty = store.history(np.array([], dtype=np.int64))
    assert empty.offsets_B1.tolist() == [0] and len(empty.code_T) == 0
    early = store.history(np.array([0]), until=np.array([0]))
    assert early.offsets_B1.tolist() == [0, 0]


def test_values_and_birth_are_kept(store):
    history = store.history(store.rows_of(np.array([2])))
    assert history.birth_B.tolist() == [micros("1960-01-01")]
    assert history.value_T[-1] == np.float32(7.5) and np.isnan(history.value_T[:-1]).all()


def test_vocabulary_is_counted_on_training_subjects_only(make_store):
    splits = pa.table({"subject_id": [1, 2, 3], "split": ["tuning", TRAIN, "held_out"]})
    store = make_store(records_of(EVENTS, visits=VISITS), splits=splits)
    assert "ICD9CM/401.9" not in store.vocabulary.codes and "A" not in store.vocabulary.codes
    history = store.history(store.rows_of(np.array([1])))
    assert history.token_T.tolist() == [UNK]
    assert store.info["counts"]["unknown_share"] > 0


def test_vocabulary_of_another_store_can_be_reused(make_store):
    first = make_store(records_of(EVENTS, visits=VISITS))
    other = records_of([(9, "2015-01-01", "A"), (9, "2015-01-02", "NEW")])
    second = make_store(other, name="second", vocabulary=first.vocabulary)
    assert second.vocabulary.sha256 == first.vocabulary.sha256
    assert second.info["counts"]["unknown_share"] == 0.5


def test_other_tools_open_the_files(store):
    files = sorted((store.folder / "data").glob("*.arrow"))
    frames = [pa.ipc.open_file(str(file)).read_all().to_pandas() for file in files]
    frame = pd.concat(frames).set_index("subject_id")
    assert sorted(frame.index) == [1, 2, 3]
    assert list(frame["visit_kind"][2]) == ["inpatient", "day"]


def test_a_truncated_shard_is_refused(store):
    file = store.folder / "data" / "1.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"1\.arrow: .*truncated or damaged"):
        Store(store.folder)


def test_a_damaged_shard_of_the_right_size_is_refused(store):
    file = store.folder / "data" / "1.arrow"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(InputError, match=r"1\.arrow: .*truncated or damaged"):
        Store(store.folder)


def test_the_vocabulary_of_another_dataset_is_refused(make_store, store):
    make_store(records_of([(1, "2011-01-01", "OTHER")]), name="other")
    other = store.folder.parent / "other" / "vocabulary.parquet"
    (store.folder / "vocabulary.parquet").write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="vocabulary of another dataset"):
        Store(store.folder)


def test_a_subject_listed_twice_in_the_splits_is_refused(store):
    file = store.folder / "subject_splits.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    with pytest.raises(InputError, match="not the subjects of this store"):
        Store(store.folder)


def test_no_folder_or_another_format_is_refused(tmp_path, store):
    with pytest.raises(InputError, match="medbert prepare"):
        Store(tmp_path / "nowhere")
    info = json.loads((store.folder / "dataset.json").read_text())
    (store.folder / "dataset.json").write_text(json.dumps(info | {"format": 99}))
    with pytest.raises(InputError, match="store format 99"):
        Store(store.folder)


def test_no_events_are_refused(make_store):
    with pytest.raises(InputError, match="no events"):
        make_store(records_of([]))
