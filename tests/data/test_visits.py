"""What a visit is: statements of the source put together, days and gaps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from conftest import records_of

from medbert.data.sources.reading import InMemory
from medbert.data.store import STATIC, Store
from medbert.data.visits import VisitRule
from medbert.schema import DAY_US, InputError, Piece

DAYS = {d: f"2020-01-{d:02d}" for d in range(1, 31)}


def day(time: int) -> int | None:
    """The day of January 2020, from 1."""
    return None if time == STATIC else (time - 1_577_836_800_000_000) // DAY_US + 1


def visits_of(store: Store, subject: int = 1) -> list[tuple]:
    h = store.history(store.rows_of(np.array([subject])))
    stays = [None if np.isnan(s) else float(s) for s in h.stay_V]
    return list(zip(map(day, h.start_V), map(day, h.end_V), h.kind_V, stays, strict=True))


def test_a_visit_is_what_its_statements_say_together(make_store):
    events = [(1, DAYS[d], "LAB", float(d), 7) for d in (1, 3, 10)]
    said = [
        (1, 7, DAYS[2], None, "inpatient", None),
        (1, 7, None, DAYS[9], "unknown", None),
    ]
    assert visits_of(make_store(records_of(events, visits=said))) == [(2, 9, "inpatient", 7.0)]


def test_a_stay_without_discharge_is_open_and_a_visit_without_statement_spans_its_events(
    make_store,
):
    events = [(1, DAYS[d], "LAB", float(d), 7) for d in (2, 5)]
    events += [(2, DAYS[d], "LAB", float(d), 8) for d in (2, 5)]
    store = make_store(records_of(events, visits=[(1, 7, DAYS[2], None, "inpatient", None)]))
    assert visits_of(store, 1) == [(2, None, "inpatient", None)]
    assert visits_of(store, 2) == [(2, 5, "unknown", None)]


def test_statements_that_disagree_leave_the_length_unknown_and_are_counted(make_store):
    said = [
        (1, 7, DAYS[2], DAYS[4], "inpatient", None),
        (1, 7, DAYS[2], DAYS[6], "inpatient", None),
    ]
    store = make_store(records_of([(1, DAYS[2], "A", None, 7)], visits=said))
    assert visits_of(store) == [(2, 6, "inpatient", None)]
    assert store.info["findings"]["visits_of_several_dates"]["count"] == 1


def test_a_stated_length_goes_before_the_dates(make_store):
    said = [(1, 7, DAYS[2], DAYS[4], "inpatient", 3.0)]
    store = make_store(records_of([(1, DAYS[2], "A", None, 7)], visits=said))
    assert visits_of(store) == [(2, 4, "inpatient", 3.0)]


def test_discharge_before_admission_is_kept_with_neither_end_nor_length(make_store):
    said = [
        (1, 6, DAYS[1], DAYS[2], "inpatient", None),
        (1, 7, DAYS[9], DAYS[4], "inpatient", None),
    ]
    store = make_store(records_of([(1, DAYS[1], "A", None, 6)], visits=said))
    assert visits_of(store) == [(1, 2, "inpatient", 1.0), (9, None, "inpatient", None)]
    found = store.info["findings"]["discharge_before_admission"]
    assert found == {"count": 1, "first": "handmade.csv: start and end of the visit: row 2"}


def test_too_many_discharges_before_admission_stop_the_work(make_store):
    said = [(s, s, DAYS[9], DAYS[4], "inpatient", None) for s in range(1, 5)]
    events = [(s, DAYS[9], "A", None, s) for s in range(1, 5)]
    with pytest.raises(InputError, match=r"handmade\.csv.*row \d.*4 of 4 visits.*swapped"):
        make_store(records_of(events, visits=said), max_bad_share=0.1)


def test_visit_ids_of_several_subjects_are_counted_and_belong_to_each(make_store):
    said = [(s, 7, DAYS[s], DAYS[s + 1], "inpatient", None) for s in (1, 2)]
    store = make_store(
        records_of([(1, DAYS[1], "A", None, 7), (2, DAYS[2], "A", None, 7)], visits=said)
    )
    assert visits_of(store, 1) == [(1, 2, "inpatient", 1.0)]
    assert visits_of(store, 2) == [(2, 3, "inpatient", 1.0)]
    found = store.info["findings"]["visit_ids_of_several_subjects"]
    assert found == {"count": 1, "first": "handmade.csv: column of the visit id: row 1"}


def test_diagnoses_become_known_at_discharge_and_never_earlier(make_store):
    events = [
        (1, DAYS[2], "ICD10CM/I50.9", None, 7),  # of a stay that ends on the 9th
        (1, DAYS[12], "ICD10CM/E11.9", None, 7),  # recorded later still
        (1, DAYS[2], "LAB", None, 7),
        (1, None, "ICD10CM/Z00", None, 7),
    ]
    said = [(1, 7, DAYS[2], DAYS[9], "inpatient", None)]
    for rule in ("auto", "day"):
        store = make_store(
            records_of(events, visits=said), name=rule, visit=VisitRule(by=rule, gap_days=1)
        )
        h = store.history(np.array([0]))
        known = {store.codes[c]: day(t) for c, t in zip(h.code_T, h.time_T, strict=True)}
        assert known == {"ICD10CM/I50.9": 9, "ICD10CM/E11.9": 12, "LAB": 2, "ICD10CM/Z00": None}
        assert store.info["counts"]["diagnoses_moved_to_discharge"] == 1


RULES = {
    "auto": [(1, 3, "inpatient", 2.0), (5, None, "day", None), (6, None, "day", None)],
    "column": [(1, 3, "inpatient", 2.0)],
    "day": [(d, None, "day", None) for d in (1, 5, 6)],
    "gap": [(1, 1, "gap", None), (5, 6, "gap", None)],
}


@pytest.mark.parametrize("by", RULES)
def test_visits_by_rule(make_store, by):
    events = [(1, DAYS[1], "A", None, 7), (1, DAYS[1] + "T10:00", "B", None, 7)]
    events += [(1, DAYS[5] + "T23:00", "C"), (1, DAYS[6] + "T01:00", "D"), (1, None, "GENDER//F")]
    records = records_of(events, visits=[(1, 7, DAYS[1], DAYS[3], "inpatient", None)])
    store = make_store(records, visit=VisitRule(by=by, gap_days=1.0))
    assert visits_of(store) == RULES[by]
    h = store.history(np.array([0]))
    ordinals = dict(zip((store.codes[c] for c in h.code_T), h.visit_T.tolist(), strict=True))
    loose = {"auto": (2, 3), "column": (0, 0), "day": (2, 3), "gap": (2, 2)}[by]
    assert ordinals == {"GENDER//F": 0, "A": 1, "B": 1, "C": loose[0], "D": loose[1]}


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="visit.by=week"):
        VisitRule(by="week", gap_days=1)


def test_visits_without_any_statement_need_no_visit_columns(make_store):
    table = pa.table({"subject_id": [1], "time": pa.array([0], pa.timestamp("us")), "code": ["A"]})
    records = records_of([])._replace(parts=[InMemory("bare", Piece(table))])
    assert make_store(records).info["counts"]["visits"] == 1
