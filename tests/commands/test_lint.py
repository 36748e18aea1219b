"""Leaks planted one at a time in an invented cohort, each found by its own name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import SHARED

import medbert
from medbert import InputError, Store
from medbert.commands.encoders.classifier import Rows, by_split
from medbert.commands.encoders.trained_on import TRAINED_ON, training_set
from medbert.commands.lint import leaks, washed_out
from medbert.data.counts import count_codes
from medbert.data.splits import places
from medbert.data.tasks import Task
from medbert.data.tasks.cohorts import BeforeVisits
from medbert.data.tasks.outcomes import CodeInVisit, CodeWithin, LongStay, NewPhenotypes
from medbert.evaluate.leaks.findings import NOT_CHECKED
from medbert.schema import DAY_US, DEATH, HELD_OUT, SPLITS, TRAIN, TUNING

TASK = Task(title="long stay", index=BeforeVisits(kinds=["inpatient"]), outcome=LongStay(days=7))
FRACTIONS = (0.7, 0.1, 0.2)


def prepare(events: Path, out: Path, *words: str) -> Store:
    medbert.prepare("source=meds", f"source.path={events}", *words, out=out)
    return Store(out)


def pretrained_on(store: Path, folder: Path, **told: object) -> Path:
    """What is asked of an encoder folder: where it comes from. The weights are never read."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"store": str(store)}))
    (folder / "config.json").write_text(json.dumps({"format": 1, **told}))
    if (store / "vocabulary.parquet").is_file():
        shutil.copy(store / "vocabulary.parquet", folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    medbert.synthesize(n_subjects=2000, seed=1, out=folder / "events")
    prepare(folder / "events", folder / "store")
    return folder


@pytest.fixture(scope="module")
def records(made) -> Store:
    return Store(made / "store")


@pytest.fixture(scope="module")
def splits(records) -> dict[str, Rows]:
    return by_split(records, TASK.build(records))


def names(found) -> set[str]:
    return {one.name for one in found if one.severity != NOT_CHECKED}


@pytest.mark.parametrize("task", ["prolonged_los", "readmission_30d", "dhf"])
def test_the_clean_cohort_is_silent(made, tmp_path, task):
    encoder = pretrained_on(made / "store", tmp_path / "encoder")
    found = medbert.lint(
        store=made / "store", task=task, encoder_dir=encoder, out=tmp_path / "lint"
    )
    assert not names(found)
    unchecked = {one.name for one in found}
    assert unchecked == (set() if task == "dhf" else {"outcome_in_history"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("task", ["dhf_next", "prolonged_los"])
def test_real_records_without_dates_are_silent(tmp_path_factory, tmp_path, task):
    store = tmp_path_factory.getbasetemp() / "diabetes130"
    if not store.is_dir():
        medbert.prepare("source=diabetes130", f"source.path={SHARED}/diabetes130", out=store)
    found = medbert.lint(store=store, task=task, out=tmp_path / "lint")
    assert not names(found)
    assert "near_identical_visits" in {one.name for one in found}  # not looked for: no dates


# --- codes after the index, the outcome in the history ------------------------------------------


def test_features_counted_past_the_prediction_time(records, splits):
    held_out = splits[HELD_OUT]
    later = count_codes(
        records, held_out.rows, until=held_out.until + 30 * DAY_US, window_days=[365, None]
    )
    found = leaks(records, splits, features={HELD_OUT: later})
    assert names(found) == {"codes_after_index"}
    (late,) = (one for one in found if one.name == "codes_after_index")
    assert late.details == ("counts of codes",) and set(late.by_split) == {HELD_OUT}


def test_a_reader_that_forgets_the_cut(records, splits, monkeypatch):
    whole = Store.history
    monkeypatch.setattr(Store, "history", lambda self, rows, *, until=None: whole(self, rows))
    found = {one.name: one for one in leaks(records, splits)}
    assert {"codes", "visits", "codes in sequences"} <= set(found["codes_after_index"].details)


@pytest.mark.parametrize("what", ["visit_end", "visit_stay"])
def test_what_is_known_at_discharge_only(made, tmp_path, what):
    """A stay that goes on has no length, and its diagnoses come at its end."""
    folder = Path(shutil.copytree(made / "store", tmp_path / "store"))
    records, leaky = Store(folder), Store(folder)
    events, visits, birth_B = leaky._columns[0]
    columns = dict(visits.columns)
    splits = by_split(records, TASK.build(records))
    if what == "visit_end":  # later than its diagnoses, which so come before it
        columns["end_V"] = columns["end_V"] + 3650 * DAY_US
    else:
        columns["end_V"] = np.where(columns["stay_V"] > 0, 2**62, columns["end_V"])
    leaky.__dict__["_columns"] = [(events, visits._replace(columns=columns), birth_B)]
    found = {one.name: one for one in leaks(leaky, splits)}
    assert found["codes_after_index"].details == ("diagnoses of a stay that goes on",)


def test_rows_after_the_outcome(records, splits):
    codes = ["ICD9CM/401", "ICD10CM/I10"]
    whole = records.history(splits[HELD_OUT].rows, until=splits[HELD_OUT].until)
    has = np.isin(
        whole.code_T, [i for i, c in enumerate(records.codes) if c.startswith(tuple(codes))]
    )
    expected = np.add.reduceat(np.r_[has, False], whole.offsets_B1[:-1]) > 0
    expected &= np.diff(whole.offsets_B1) > 0
    (found,) = (o for o in leaks(records, splits, outcome=codes) if o.name == "outcome_in_history")
    assert found.by_split[HELD_OUT] == expected.sum() > 0
    (recent,) = (
        one
        for one in leaks(records, splits, outcome=codes, washout_days=30)
        if one.name == "outcome_in_history"
    )
    assert recent.count < found.count


def test_what_must_be_new_is_what_the_task_washes_out():
    window = {"codes": ["X"], "gap_days": 0, "window_days": 30}
    assert washed_out(CodeWithin(**window)) == (["X"], None)
    assert washed_out(CodeWithin(**window, washout_days=90)) == (["X"], 90)
    assert washed_out(CodeWithin(**window, washout_days=0)) == ((), None)
    assert washed_out(CodeWithin(**window, min_value=6.5)) == ((), None)
    assert washed_out(CodeInVisit(codes=["X"])) == ((), None)
    assert washed_out(LongStay(days=7)) == washed_out(None) == ((), None)
    several = NewPhenotypes(groups={"a": ["X"], "b": ["Y"]}, gap_days=0, window_days=30, only="b")
    assert washed_out(several) == (["Y"], None)


# --- the encoder --------------------------------------------------------------------------------


def of_encoder(found):
    (one,) = (o for o in found if o.name == "held_out_in_pretraining")
    return one


def test_an_encoder_of_another_split_of_the_same_records(made, records, splits, tmp_path):
    other = prepare(made / "events", tmp_path / "other", "seed=5", f"vocabulary={made}/store")
    encoder = pretrained_on(other.folder, tmp_path / "encoder")
    found = leaks(records, splits, encoder_dir=encoder)
    judged = np.unique(splits[HELD_OUT].rows)
    trained = other.split_of_row[other.rows_of(records.subject_ids[judged])]
    at_least = (trained == TRAIN).sum()
    assert names(found) == {"held_out_in_pretraining"}
    assert of_encoder(found).details == ("trained on", "chosen on")
    assert 0.9 * at_least <= of_encoder(found).by_split[HELD_OUT] <= (trained != HELD_OUT).sum()


def test_an_encoder_made_of_another_is_followed_back(made, records, splits, tmp_path):
    other = prepare(made / "events", tmp_path / "other", "seed=5", f"vocabulary={made}/store")
    first = pretrained_on(other.folder, tmp_path / "first")
    second = pretrained_on(made / "store", tmp_path / "second")
    begun = {"store": str(made / "store"), "encoder_dir": str(first)}
    (second / "settings.json").write_text(json.dumps(begun))
    assert names(leaks(records, splits, encoder_dir=second)) == {"held_out_in_pretraining"}


def test_a_person_under_a_new_id_is_found_by_the_record(made, records, splits, tmp_path):
    events = Path(shutil.copytree(made / "events", tmp_path / "events"))
    for file in (events / "data").glob("*.parquet"):
        table = pq.read_table(file)
        ids = pc.add(table["subject_id"], 10**6)
        pq.write_table(table.set_column(0, "subject_id", ids), file)
    other = prepare(events, tmp_path / "other", f"vocabulary={made}/store")
    encoder = pretrained_on(other.folder, tmp_path / "encoder")
    assert of_encoder(leaks(records, splits, encoder_dir=encoder)).details[0] == "trained on"


def test_namesakes_of_another_hospital_are_other_people(made, records, splits, tmp_path):
    medbert.synthesize(n_subjects=2000, seed=9, out=tmp_path / "events")
    other = prepare(tmp_path / "events", tmp_path / "other", f"vocabulary={made}/store", "seed=5")
    assert np.isin(records.subject_ids, other.subject_ids).all()
    encoder = pretrained_on(other.folder, tmp_path / "encoder")
    assert not names(leaks(records, splits, encoder_dir=encoder))


def test_splits_that_were_changed_after_the_vocabulary_was_counted(made, tmp_path):
    folder = Path(shutil.copytree(made / "store", tmp_path / "store"))
    file = folder / "subject_splits.parquet"
    table = pq.read_table(file)
    swap = {TRAIN: HELD_OUT, HELD_OUT: TRAIN, TUNING: TUNING}
    swapped = pa.array([swap[s] for s in table["split"].to_pylist()])
    pq.write_table(table.set_column(1, "split", swapped), file)
    records = Store(folder)
    splits = by_split(records, TASK.build(records))
    encoder = pretrained_on(folder, tmp_path / "encoder")
    assert names(leaks(records, splits)) == {"held_out_in_pretraining"}
    assert len(of_encoder(leaks(records, splits, encoder_dir=encoder)).details) == 2


def test_what_an_encoder_says_of_its_training_set_decides_where_its_store_is_gone(
    made, records, splits, tmp_path
):
    gone, told = tmp_path / "gone", training_set(records)
    assert told["seed"] == 0 and len(told["sha256"]) == 64

    def found(**fingerprint: object):
        encoder = pretrained_on(gone, tmp_path / "encoder", **{TRAINED_ON: told | fingerprint})
        return leaks(records, splits, encoder_dir=encoder)

    assert not [one for one in found() if one.name == "held_out_in_pretraining"]
    larger = found(sha256="of a larger extract")  # the same hash of ids: the same people are in it
    assert not [one for one in larger if one.name == "held_out_in_pretraining"]
    assert of_encoder(found(sha256="another", seed=5)).severity == NOT_CHECKED
    assert of_encoder(found(sha256="another", seed=None)).severity == NOT_CHECKED
    stale = pretrained_on(
        made / "store", tmp_path / "stale", **{TRAINED_ON: told | {"sha256": "another"}}
    )
    assert names(leaks(records, splits, encoder_dir=stale)) == {"held_out_in_pretraining"}


# --- copies -------------------------------------------------------------------------------------


def with_events(made: Path, tmp_path: Path, columns: dict[str, pa.Array]) -> Store:
    """A store of the same events and some more."""
    events = Path(shutil.copytree(made / "events", tmp_path / "more"))
    (file,) = (events / "data").glob("*.parquet")
    table = pq.read_table(file)
    nothing = {f.name: pa.nulls(len(columns["code"]), f.type) for f in table.schema}
    more = pa.table(nothing | columns).select(table.column_names).cast(table.schema)
    pq.write_table(pa.concat_tables([table, more]).sort_by("subject_id"), file)
    return prepare(events, tmp_path / "planted")


def events_of(made: Path, subjects: np.ndarray) -> pa.Table:
    table = pq.read_table(made / "events" / "data")
    return table.filter(pc.is_in(table["subject_id"], pa.array(subjects)))


def test_subjects_that_are_there_twice(made, records, tmp_path):
    busy = np.flatnonzero(np.diff(records.history(np.arange(len(records))).offsets_B1) > 30)
    originals = records.subject_ids[np.intersect1d(busy, records.rows(HELD_OUT))][:15]
    new = np.arange(10**6, 10**6 + 200)
    new = new[places(new, fractions=FRACTIONS, seed=0) == SPLITS.index(TRAIN)][: len(originals)]
    copies = events_of(made, originals)
    ids = dict(zip(originals.tolist(), new.tolist(), strict=True))
    column = pa.array([ids[i] for i in copies["subject_id"].to_pylist()], pa.int64())
    columns = {name: copies[name] for name in copies.column_names} | {"subject_id": column}
    planted = with_events(made, tmp_path, columns)
    found = leaks(planted, by_split(planted, TASK.build(planted)))
    assert names(found) == {"duplicate_subjects"}
    (twins,) = (one for one in found if one.name == "duplicate_subjects")
    assert twins.by_split == {HELD_OUT: len(originals), TRAIN: len(originals)}


def test_visits_that_are_there_twice(made, records, tmp_path):
    ids = (records.subject_ids[records.rows(split)][:12].tolist() for split in (HELD_OUT, TRAIN))
    rows = []
    for i, (one, other) in enumerate(zip(*ids, strict=True)):
        codes = [f"LAB//{i}-{k}" for k in range(9)]
        rows += [(one, code) for code in codes] + [(other, code) for code in codes[:-1]]
    columns = {
        "subject_id": pa.array([subject for subject, _ in rows]),
        "time": pa.array([np.datetime64("2021-05-05T10:00", "us")] * len(rows)),
        "code": pa.array([code for _, code in rows]),
    }
    planted = with_events(made, tmp_path, columns)
    found = leaks(planted, by_split(planted, TASK.build(planted)))
    assert names(found) == {"near_identical_visits"}
    (visits,) = (one for one in found if one.name == "near_identical_visits")
    assert visits.by_split == {HELD_OUT: 12, TRAIN: 12}


# --- features, labels and rows ------------------------------------------------------------------


def test_a_code_that_gives_the_outcome_away(made, records, splits, tmp_path):
    """A code beside the latest one of each positive row that is its subject's first."""
    first = {s: np.unique(rows.rows, return_index=True)[1] for s, rows in splits.items()}
    alone = {s: Rows(*(part[first[s]] for part in rows)) for s, rows in splits.items()}
    events = {"subject_id": [], "time": [], "code": []}
    for rows in alone.values():
        history = records.history(rows.rows, until=rows.until)
        for i in np.flatnonzero(rows.labels & (np.diff(history.offsets_B1) > 0)):
            events["subject_id"].append(int(records.subject_ids[rows.rows[i]]))
            events["time"].append(history.time_T[history.offsets_B1[i + 1] - 1])
            events["code"].append("BILLING//LONG_STAY")
    columns = {
        "subject_id": pa.array(events["subject_id"], pa.int64()),
        "time": pa.array(np.array(events["time"]).view("datetime64[us]")),
        "code": pa.array(events["code"]),
    }
    planted = with_events(made, tmp_path, columns)
    rows = {
        s: part._replace(rows=planted.rows_of(records.subject_ids[part.rows]))
        for s, part in alone.items()
    }
    found = leaks(planted, rows)
    assert names(found) == {"single_feature"}
    details = next(one for one in found if one.name == "single_feature").details
    assert details[0].startswith("BILLING//LONG_STAY")


def test_a_split_that_was_sampled(records, splits):
    held_out = splits[HELD_OUT]
    keep = held_out.labels | (np.arange(len(held_out.rows)) % 4 == 0)
    sampled = splits | {HELD_OUT: Rows(*(part[keep] for part in held_out))}
    assert names(leaks(records, sampled)) == {"prevalence_differs"}


def test_rows_of_one_subject_in_two_splits(records, splits):
    train, held_out = splits[TRAIN], splits[HELD_OUT]
    stray = Rows(*(np.r_[a, b[:20]] for a, b in zip(train, held_out, strict=True)))
    rest = Rows(*(part[20:] for part in held_out))
    found = names(leaks(records, splits | {TRAIN: stray, HELD_OUT: rest}))
    several = np.isin(held_out.rows[:20], held_out.rows[20:]).any()
    assert found == ({"subjects_in_two_splits"} if several else set())
    assert several


def test_rows_twice_and_labels_that_contradict(records, splits):
    train = splits[TRAIN]
    twice = Rows(*(np.r_[part, part[:15]] for part in train))
    assert names(leaks(records, splits | {TRAIN: twice})) == {"duplicate_rows"}
    other = twice._replace(labels=np.r_[train.labels, ~train.labels[:15]])
    assert names(leaks(records, splits | {TRAIN: other})) == {"contradicting_labels"}


def test_prediction_times_after_the_end_or_after_death(records, splits):
    late = splits | {s: p._replace(until=p.until + 9000 * DAY_US) for s, p in splits.items()}
    assert names(leaks(records, late)) == {"time_order"}
    died = [i for i, code in enumerate(records.codes) if code.startswith(DEATH)]
    whole = records.history(splits[HELD_OUT].rows)
    owner = np.repeat(np.arange(len(splits[HELD_OUT].rows)), np.diff(whole.offsets_B1))
    dead = np.isin(whole.code_T, died)
    until = splits[HELD_OUT].until.copy()
    until[owner[dead]] = whole.time_T[dead] + 2 * DAY_US
    late = splits | {HELD_OUT: splits[HELD_OUT]._replace(until=np.minimum(until, records.end))}
    (found,) = (one for one in leaks(records, late) if one.name == "time_order")
    assert found.details == ("after death",) and found.by_split == {HELD_OUT: len(set(owner[dead]))}


# --- the verb -----------------------------------------------------------------------------------


def write_labels(path: Path, records: Store, splits: dict[str, Rows]) -> Path:
    parts = [Rows(*part) for part in splits.values()]
    columns = {
        "subject_id": np.concatenate([records.subject_ids[p.rows] for p in parts]),
        "prediction_time": np.concatenate([p.until for p in parts]).view("datetime64[us]"),
        "boolean_value": np.concatenate([p.labels for p in parts]),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_the_verb_stops_writes_what_it_found_and_names_nobody(made, records, splits, tmp_path):
    labels = write_labels(tmp_path / "labels.parquet", records, splits)
    asked = {"store": made / "store", "outcome": ["ICD10CM/I10"], "out": tmp_path / "lint"}
    words = ("task=labels", f"task.path={labels}")
    with pytest.raises(InputError, match=r"outcome_in_history.*allow=\[outcome_in_history\]") as e:
        medbert.lint(*words, **asked)
    text = (tmp_path / "lint" / "lint.json").read_text(encoding="utf-8")
    (found,) = (f for f in json.loads(text)["findings"] if f["name"] == "outcome_in_history")
    assert found["severity"] == "error" and found["count"] > 10 and found["cure"]
    ids = {str(i) for i in records.subject_ids if i > 999}
    assert not ids & set(json.dumps([found["meaning"], found["details"], str(e.value)]).split())
    allowed = medbert.lint(*words, **asked, allow=["outcome_in_history"], overwrite=True)
    assert "outcome_in_history" in names(allowed)
    written = json.loads((tmp_path / "lint" / "lint.json").read_text(encoding="utf-8"))
    assert written["allowed"] == ["outcome_in_history"]
    assert [f["name"] for f in written["findings"]] == [f.name for f in allowed]


def test_a_name_that_no_finding_has_is_refused_before_any_work(made, tmp_path):
    with pytest.raises(InputError, match="'codes_after' is no finding"):
        medbert.lint(store=made / "store", allow=["codes_after"], out=tmp_path / "lint")
    assert not (tmp_path / "lint").exists()


def test_findings_are_frozen(records, splits):
    found = leaks(records, splits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].count = 1
