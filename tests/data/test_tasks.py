from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import records_of

from medbert.data.cohorts import BeforeVisits, FirstOutcomeOrLastVisit, Landmarks, VisitEnds
from medbert.data.tasks import (
    CodeAtNextVisit,
    CodeWithin,
    EverCode,
    ExternalLabels,
    LongStay,
    Task,
    VisitWithin,
)
from medbert.schema import BIRTH, DEATH, InputError

HF, DM = ["ICD9CM/428"], ["ICD9CM/250"]


def landmark_task(**changes) -> Task:
    settings = {
        "title": "test",
        "index": Landmarks(first="2010-01-01", every_days=365),
        "outcome": CodeWithin(codes=HF, gap_days=30, window_days=365),
        "population": DM,
        "min_age": 18,
        "seen_within_days": 730,
    }
    return Task(**settings | changes)


def subject(number: int, *events: tuple[str, str], born: str = "1950-01-01") -> list:
    return [(number, born, BIRTH), *((number, when, code) for when, code in events)]


def built(make_store, events, task, **settings) -> list[tuple[int, str, bool]]:
    store = make_store(records_of(events, **settings))
    cohort = task.build(store)
    times = pd.to_datetime(cohort.prediction_time, unit="us").strftime("%Y-%m-%d")
    return list(zip(store.subject_ids[cohort.rows], times, cohort.labels, strict=True))


END = [(99, "2013-06-01", "ICD9CM/V70.0")]  # the last event: what comes later is not observed


def test_landmarks_label_new_onset_in_the_window(make_store):
    events = [
        *subject(1, ("2009-06-01", "ICD9CM/250.00"), ("2011-06-01", "ICD9CM/428.0")),
        *subject(2, ("2009-06-01", "ICD9CM/250.00"), ("2011-06-01", "ICD9CM/401.9")),
        *END,
    ]
    assert built(make_store, events, landmark_task()) == [
        (1, "2010-01-01", False),
        (1, "2011-01-01", True),
        (2, "2010-01-01", False),
        (2, "2011-01-01", False),
        (2, "2012-01-01", False),
    ]


@pytest.mark.parametrize(
    ("heart_failure", "expected"),
    [
        ("2010-01-01", []),  # before or at the index: no new onset
        ("2010-01-20", []),  # in the gap
        ("2010-02-01", [True]),  # first day of the window
        ("2011-01-31", [True]),  # last day
        ("2011-02-01", [False]),
    ],
)
def test_gap_and_window_edges(make_store, heart_failure, expected):
    events = [*subject(1, ("2009-06-01", "ICD9CM/250.00"), (heart_failure, "ICD9CM/428.0")), *END]
    task = landmark_task(index=Landmarks(first="2010-01-01", every_days=3650))
    if expected:
        assert [row[2] for row in built(make_store, events, task)] == expected
    else:
        with pytest.raises(InputError, match="the cohort is empty. Rows left by step"):
            built(make_store, events, task)


def test_population_age_recency_and_death_decide_who_is_in(make_store):
    events = [
        *subject(1, ("2009-06-01", "ICD9CM/250.00")),
        *subject(2, ("2009-06-01", "ICD9CM/401.9")),  # no diabetes
        *subject(3, ("2009-06-01", "ICD9CM/250.00"), born="2000-01-01"),  # a child
        *subject(4, ("2005-06-01", "ICD9CM/250.00")),  # not seen for years
        *subject(5, ("2009-06-01", "ICD9CM/250.00"), ("2009-12-01", DEATH)),
        *subject(6, ("2009-06-01", "ICD9CM/250.00"), ("2010-06-01", DEATH)),  # died in the window
        *END,
    ]
    task = landmark_task(index=Landmarks(first="2010-01-01", every_days=3650))
    assert [row[0] for row in built(make_store, events, task)] == [1, 6]


def test_the_flow_counts_every_exclusion(make_store):
    events = [*subject(1, ("2009-06-01", "ICD9CM/250.00")), *subject(2, ("2009-06-01", "X")), *END]
    store = make_store(records_of(events))
    task = landmark_task(index=Landmarks(first="2010-01-01", every_days=3650))
    flow = task.build(store).flow
    assert flow[0] == ("subjects in the store", 3, 0)
    assert ("population code by the index", 1, 1) in flow
    rows = [step.n_rows for step in flow[1:]]
    assert rows == sorted(rows, reverse=True)


def test_a_window_past_the_end_of_the_data_is_not_observed(make_store):
    events = [*subject(1, ("2009-06-01", "ICD9CM/250.00"), ("2010-06-01", "ICD9CM/401.9"))]
    with pytest.raises(InputError, match="window observed to its end: 0"):
        built(
            make_store, events, landmark_task(index=Landmarks(first="2010-01-01", every_days=3650))
        )


def test_dates_are_needed_where_they_are(make_store):
    events = subject(1, ("2009-06-01", "ICD9CM/250.00"))
    with pytest.raises(InputError, match="needs dates.*dhf_next"):
        built(make_store, events, landmark_task(), time="order")


STAYS = [
    (1, 11, "2010-01-01", "2010-01-11", "inpatient", 10.0),
    (1, 12, "2010-02-01", "2010-02-03", "inpatient", 2.0),
    (1, 13, "2010-06-01", "2010-06-20", "inpatient", 19.0),
]
STAY_EVENTS = [
    (1, "2010-01-02", "ICD9CM/250.00", None, 11),
    (1, "2010-02-02", "ICD9CM/401.9", None, 12),
    (1, "2010-06-02", "ICD9CM/428.0", None, 13),
    (99, "2013-06-01", "X"),
]


def test_readmission_looks_from_discharge_to_the_next_admission(make_store):
    task = Task(
        title="r",
        index=VisitEnds(kinds=["inpatient"]),
        outcome=VisitWithin(kinds=["inpatient"], window_days=30),
    )
    rows = built(make_store, STAY_EVENTS, task, visits=STAYS)
    assert rows == [
        (1, "2010-01-11", True),
        (1, "2010-02-03", False),
        (1, "2010-06-20", False),
    ]


def test_next_listing_needs_only_order(make_store):
    task = Task(title="n", index=VisitEnds(kinds=["inpatient"]), outcome=CodeAtNextVisit(codes=HF))
    rows = built(make_store, STAY_EVENTS, task, visits=STAYS, time="order")
    assert [row[2] for row in rows] == [False, True]  # the last stay has no next


def test_long_stay_is_predicted_before_it_begins(make_store):
    task = Task(title="l", index=BeforeVisits(kinds=["inpatient"]), outcome=LongStay(days=7))
    rows = built(make_store, STAY_EVENTS, task, visits=STAYS)
    assert rows == [(1, "2010-01-31", False), (1, "2010-05-31", True)]


def test_case_control_puts_cases_before_the_first_outcome_and_controls_before_the_last(make_store):
    events = [
        *[(1, *e[1:]) for e in STAY_EVENTS[:3]],
        (1, "2010-09-01", "ICD9CM/428.1"),
        *subject(2, ("2009-01-01", "ICD9CM/250.00"), ("2011-01-01", "ICD9CM/401.9")),
        *subject(3, ("2009-01-01", "ICD9CM/250.00"), ("2011-01-01", "ICD9CM/428.0")),  # once only
    ]
    task = Task(
        title="c",
        population=DM,
        index=FirstOutcomeOrLastVisit(outcome=HF),
        outcome=EverCode(codes=HF, population=DM, min_encounters=2, min_days_after=30),
    )
    rows = built(make_store, events, task, visits=STAYS)
    assert rows == [(1, "2010-05-31", True), (2, "2010-12-31", False)]


def test_labels_made_elsewhere_are_taken_as_they_are(make_store, tmp_path):
    store = make_store(records_of(STAY_EVENTS, visits=STAYS))
    frame = pd.DataFrame(
        {
            "subject_id": [1, 1, 5],
            "prediction_time": pd.to_datetime(["2010-01-11", "2010-02-03", "2010-02-03"]),
            "boolean_value": [True, False, True],
            "float_value": [None, None, None],
        }
    )
    frame.to_parquet(tmp_path / "labels.parquet")
    cohort = ExternalLabels(path=str(tmp_path / "labels.parquet"), title="given").build(store)
    assert cohort.labels.tolist() == [True, False] and len(np.unique(cohort.rows)) == 1
    assert [step.n_rows for step in cohort.flow] == [3, 2]


def test_labels_without_their_columns_or_subjects_are_refused(make_store, tmp_path):
    store = make_store(records_of(STAY_EVENTS, visits=STAYS))
    file = tmp_path / "labels.parquet"
    pd.DataFrame({"subject_id": [1]}).to_parquet(file)
    with pytest.raises(InputError, match=r"labels\.parquet: not a Parquet of labels"):
        ExternalLabels(path=str(file), title="given").build(store)
    with pytest.raises(InputError, match="not a Parquet of labels"):
        ExternalLabels(path=str(tmp_path / "missing.parquet"), title="given").build(store)
