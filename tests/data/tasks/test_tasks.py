from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import records_of
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from medbert.data.codes import matches
from medbert.data.tasks import ExternalLabels, Task
from medbert.data.tasks.cohorts import (
    BeforeVisits,
    FirstEvents,
    FirstOutcomeOrLastVisit,
    Landmarks,
    LastEvents,
    VisitEnds,
    VisitStarts,
)
from medbert.data.tasks.conditions import Has, Not
from medbert.data.tasks.outcomes import (
    CodeAtNextVisit,
    CodeInVisit,
    CodeWithin,
    EverCode,
    LongStay,
    NewPhenotypes,
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
        ("2010-01-02", []),  # in the gap
        ("2010-01-31", []),  # its last day
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


def test_of_a_rare_outcome_all_stay_and_some_of_the_others(make_store):
    ill = ("2011-06-01", "ICD9CM/428.0")
    events = [*END]
    for number in range(1, 61):
        events += subject(number, ("2009-06-01", "ICD9CM/250.00"), *[ill][: number % 20 == 0])
    every = set(built(make_store, events, landmark_task()))
    some = built(make_store, events, landmark_task(controls=5))
    assert set(some) < every and {row for row in every if row[2]} < set(some)
    assert sum(row[2] for row in some) == 3 and len(some) == 3 * (1 + 5) == len(set(some))
    assert len({row[0] for row in some}) > 12  # not the first of them, nor those of a few
    assert {when for _, when, ill in some if not ill} == {when for _, when, ill in every if not ill}
    more = built(make_store, events, landmark_task(controls=1_000))
    assert set(more) == every
    with pytest.raises(InputError, match="controls=0: more than 0"):
        landmark_task(controls=0)


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


def test_a_stay_that_ends_in_death_is_no_candidate_whenever_the_death_is_stamped(make_store):
    died = [(1, "2010-06-20", "HOSPITAL_DISCHARGE//DIED", None, 13), (1, "2010-06-20T23:00", DEATH)]
    home = (1, "2010-02-03", "HOSPITAL_DISCHARGE//HOME", None, 12)
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        task = instantiate(compose("finetune", ["task=readmission_30d"]).task, _convert_="all")
    rows = built(make_store, [*STAY_EVENTS, home, *died], task, visits=STAYS)
    assert rows == [(1, "2010-01-11", True), (1, "2010-02-03", False)]


def test_next_listing_needs_only_order(make_store):
    task = Task(title="n", index=VisitEnds(kinds=["inpatient"]), outcome=CodeAtNextVisit(codes=HF))
    rows = built(make_store, STAY_EVENTS, task, visits=STAYS, time="order")
    assert [row[2] for row in rows] == [False, True]  # the last stay has no next


def test_long_stay_is_predicted_before_it_begins(make_store):
    task = Task(title="l", index=BeforeVisits(kinds=["inpatient"]), outcome=LongStay(days=7))
    rows = built(make_store, STAY_EVENTS, task, visits=STAYS)
    assert rows == [(1, "2010-01-31", False), (1, "2010-05-31", True)]


def hours(store, cohort) -> list[str]:
    return pd.to_datetime(cohort.prediction_time, unit="us").strftime("%Y-%m-%d %H").tolist()


DEATHS = [
    (1, 11, "2010-01-01", "2010-01-11", "inpatient", 10.0),  # outlived
    (1, 12, "2010-02-01", "2010-02-05", "inpatient", 4.0),  # died in
    (2, 21, "2010-02-01", "2010-02-01T20:00", "inpatient", 0.8),  # over within a day
    (2, 22, "2010-03-01", None, "inpatient", None),  # of unknown end
    (3, 31, "2010-03-01", "2010-03-09", "inpatient", 8.0),  # died within a day
    (4, 41, "2010-03-01", "2010-03-09", "outpatient", 8.0),
]
DEATH_EVENTS = [
    *[(v[0], v[2], "X", None, v[1]) for v in DEATHS],
    (1, "2010-02-05", DEATH),
    (3, "2010-03-01T23:00", DEATH),
    (99, "2013-06-01", "X"),
]


def test_death_in_hospital_is_predicted_a_day_after_admission(make_store):
    store = make_store(records_of(DEATH_EVENTS, visits=DEATHS))
    task = Task(
        title="d",
        index=VisitStarts(kinds=["inpatient"], hours_after_start=24),
        outcome=CodeInVisit(codes=[DEATH]),
    )
    cohort = task.build(store)
    assert hours(store, cohort) == ["2010-01-02 00", "2010-02-02 00"]
    assert cohort.labels.tolist() == [False, True]
    assert [(s.step, s.n_rows) for s in cohort.flow[1:]] == [
        ("24 hours after the start of each inpatient visit that lasts longer", 3),
        ("some history before the index", 3),
        ("end of the visit known", 3),
        ("alive at the index", 2),
        ("no outcome in the visit by the index", 2),
    ]
    at_once = Task(
        title="d", index=VisitStarts(kinds=["inpatient"]), outcome=CodeInVisit(codes=[DEATH])
    )
    cohort = at_once.build(store)
    rows = zip(store.subject_ids[cohort.rows], hours(store, cohort), cohort.labels, strict=True)
    assert sorted(rows) == [
        (1, "2010-01-01 00", False),
        (1, "2010-02-01 00", True),
        (2, "2010-02-01 00", False),  # its other stay, of unknown end, has no answer
        (3, "2010-03-01 00", True),
    ]


def test_first_and_last_events_are_index_dates(make_store):
    events = [
        (1, "2010-01-01", "A"),
        (1, "2010-02-01", "A"),
        (1, "2010-03-01", DEATH),
        (2, "2010-04-01", "B"),
    ]
    store = make_store(records_of(events))
    outcome = CodeWithin(codes=["Z"], gap_days=0, window_days=1)
    for index, expected in (
        (FirstEvents(codes=["A"]), ["2010-01-01 00"]),
        (FirstEvents(codes=["A"], times=2), ["2010-02-01 00"]),
        (LastEvents(), ["2010-02-01 00"]),  # the other's window is not observed
    ):
        cohort = Task(title="i", index=index, outcome=outcome).build(store)
        assert hours(store, cohort) == expected
    late = Task(title="i", index=FirstEvents(codes=["A"]), outcome=outcome, delays={"A": 2})
    assert hours(store, late.build(store)) == ["2010-01-03 00"]


def test_an_outcome_that_is_not_confirmed_is_neither_case_nor_control(make_store):
    dm = ("2009-06-01", "ICD9CM/250.00")
    events = [
        *subject(1, dm, ("2010-03-01", "ICD9CM/428.0"), ("2010-03-05", "ATC/C03CA01")),
        *subject(2, dm, ("2010-03-01", "ICD9CM/428.0"), ("2010-06-01", "ATC/C03CA01")),
        *subject(3, dm, ("2010-03-01", "ATC/C03CA01")),
        *END,
    ]
    soon = Has(codes=["^ATC/C03"], from_days=-30, to_days=30)
    outcome = CodeWithin(codes=HF, gap_days=30, window_days=365, confirm=soon)
    task = landmark_task(index=Landmarks(first="2010-01-01", every_days=3650), outcome=outcome)
    rows = sorted(built(make_store, events, task))
    assert [(number, label) for number, _, label in rows] == [(1, True), (3, False)]


def test_a_value_can_be_the_outcome(make_store):
    low = [
        (1, "2010-06-01", "LOINC/33914-3", 29.0, None),
        (2, "2010-06-01", "LOINC/33914-3", 31.0, None),
    ]
    events = [*low, *((n, "2009-06-01", "ICD9CM/250.00", None, None) for n in (1, 2)), *END]
    outcome = CodeWithin(codes=["LOINC/33914-3"], gap_days=0, window_days=365, max_value=30)
    task = landmark_task(
        index=Landmarks(first="2010-01-01", every_days=3650), outcome=outcome, min_age=None
    )
    assert [row[2] for row in sorted(built(make_store, events, task))] == [True, False]


def test_several_phenotypes_are_each_the_task_of_their_codes(make_store):
    dm = ("2009-06-01", "ICD9CM/250.00")
    events = [
        *subject(1, dm, ("2010-03-01", "ICD9CM/428.0"), ("2010-04-01", "ICD9CM/410.1")),
        *subject(2, dm, ("2009-03-01", "ICD9CM/428.0"), ("2010-04-01", "ICD9CM/401.9")),
        *END,
    ]
    groups = {"failure": HF, "infarction": ["ICD9CM/410"], "everyone has": DM}
    store = make_store(records_of(events))
    several = landmark_task(outcome=NewPhenotypes(groups=groups, gap_days=30, window_days=365))
    cohorts = several.expand(store)
    assert list(cohorts) == ["failure", "infarction"]  # nobody is new to the third
    for name, cohort in cohorts.items():
        alone = CodeWithin(codes=groups[name], gap_days=30, window_days=365)
        expected = landmark_task(outcome=alone).expand(store)["test"]
        named = NewPhenotypes(groups=groups, gap_days=30, window_days=365, only=name)
        for other in (expected, landmark_task(outcome=named).build(store)):
            assert all(np.array_equal(a, b) for a, b in zip(cohort[:3], other[:3], strict=True))
            assert cohort.flow == other.flow
    with pytest.raises(InputError, match="task.outcome.only=None.*failure, infarction"):
        several.build(store)


@pytest.mark.parametrize(
    "wrong", [{"sex": "X"}, {"outcome": {"follow_up": "never"}}, {"outcome": {"window_days": 0}}]
)
def test_a_task_that_means_nothing_is_refused(wrong):
    outcome = {"codes": HF, "gap_days": 30, "window_days": 365} | wrong.pop("outcome", {})
    with pytest.raises(InputError, match="F, M or null|follow_up is one of"):
        landmark_task(outcome=CodeWithin(**outcome), **wrong)


@pytest.mark.parametrize(
    "dated",
    [{"min_history_days": 3}, {"delays": {"X": 1}}, {"where": {"x": Has(codes=DM, within_days=3)}}],
)
def test_days_are_refused_where_there_are_none(make_store, dated):
    settings = {"index": VisitEnds(kinds=["inpatient"]), "outcome": CodeAtNextVisit(codes=HF)}
    store = make_store(records_of(STAY_EVENTS, visits=STAYS, time="order"))
    Task(title="n", **settings, where={"x": Not(condition=Has(codes=HF, times=2))}).build(store)
    with pytest.raises(InputError, match="needs dates"):
        Task(title="n", **settings, **dated).build(store)


@pytest.mark.parametrize(
    ("task", "meant", "not_meant"),
    [
        (
            "ckd_progression",
            "ICD9CM/585.6 ICD10CM/N18.4 ICD9CM/V56.0 CPT4/90935 CPT//90960 ICD9PROC/39.95 "
            "ICD9Proc/3995 ICD10PCS/5A1D70Z ICD10PCS/3E1M39Z ICD10CM/Z99.2 ICD9CM/V45.11",
            "ICD9CM/585.3 ICD10CM/N18.9 ICD9CM/585.9 CPT4/90471 CPT4/90936 ICD10CM/Z99.1 "
            "ICD10PCS/5A1D80Z ICD10PCS/5A1D90Z",
        ),
        (
            "next_phenotypes",
            "ICD9CM/428.0 ICD10CM/I50.9 ICD9CM/404.91 ICD10CM/K76.0 ICD10CM/F03.90 ICD9CM/V56.8",
            "ICD9CM/404.90 ICD10CM/K76.1 ICD9CM/401.9 ICD10CM/I10 ICD9CM/V43.0 ICD10CM/Z99.1",
        ),
        (
            "in_hospital_mortality",
            "MEDS_DEATH HOSPITAL_DISCHARGE//DIED",
            "HOSPITAL_DISCHARGE//HOME HOSPITAL_DISCHARGE//DIED_ELSEWHERE MEDS_BIRTH",
        ),
    ],
)
def test_the_codes_of_a_shipped_task_mean_what_they_should(task, meant, not_meant):
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        outcome = instantiate(compose("finetune", [f"task={task}"]).task, _convert_="all").outcome
    groups = outcome.groups.values() if task == "next_phenotypes" else [outcome.codes]
    patterns = [code for codes in groups for code in codes]
    assert matches(meant.split(), patterns).all()
    assert not matches(not_meant.split(), patterns).any()


def test_cancer_before_pancreatic_cancer_is_any_but_of_the_skin():
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        exclude = compose("finetune", ["task=paca"]).task.exclude
    cancers = "ICD9CM/140.0 ICD9CM/172.9 ICD9CM/209.36 ICD9CM/208.91 ICD10CM/C4A.9 ICD10CM/C7B.8"
    others = "ICD9CM/173.0 ICD9CM/209.40 ICD9CM/238.6 ICD10CM/C44.90 ICD10CM/D37.8"
    assert matches(f"{cancers} ICD10CM/C96.9".split(), list(exclude)).all()
    assert not matches(others.split(), list(exclude)).any()


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
    assert cohort.flow[0].n_rows == 3 and cohort.flow[-1] == ("subjects in the store", 1, 2)


def labels_file(path, rows, **columns):
    """A Parquet as ACES writes it: every value column of the schema, the unused ones all null."""
    table = {
        "subject_id": pa.array([row[0] for row in rows], pa.int64()),
        "prediction_time": pa.array(pd.to_datetime([row[1] for row in rows]), pa.timestamp("us")),
        "boolean_value": pa.array([None] * len(rows), pa.bool_()),
        "integer_value": pa.array([None] * len(rows), pa.int64()),
        "float_value": pa.array([None] * len(rows), pa.float32()),
        "categorical_value": pa.array([None] * len(rows), pa.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | columns), path)


DAYS = [
    (1, "2010-01-11"),
    (1, "2010-02-03"),
    (1, "2010-02-04"),
    (1, "2010-02-04"),
    (5, "2010-02-04"),
]


def test_a_folder_of_labels_is_read_and_what_is_left_out_is_counted(make_store, tmp_path):
    store = make_store(records_of(STAY_EVENTS, visits=STAYS))
    labels_file(
        tmp_path / "l/train/0.parquet", DAYS[:3], boolean_value=pa.array([True, None, False])
    )
    labels_file(tmp_path / "l/train/1.parquet", [])
    again = pa.array([True, True, True])
    labels_file(tmp_path / "l/held_out/0.parquet", [*DAYS[3:], DAYS[0]], boolean_value=again)
    cohort = ExternalLabels(path=str(tmp_path / "l"), title="given").build(store)
    assert cohort.labels.tolist() == [True] and cohort.labels.dtype == bool
    assert cohort.flow == [
        ("labels given", 2, 6),
        ("with a value", 2, 5),
        ("one row a subject and time", 2, 4),
        ("not contradicted", 2, 2),
        ("subjects in the store", 1, 1),
    ]


@pytest.mark.parametrize("column", ["integer_value", "float_value"])
def test_numbers_are_labels_by_a_threshold(make_store, tmp_path, column):
    store, file = make_store(records_of(STAY_EVENTS, visits=STAYS)), tmp_path / "labels.parquet"
    labels_file(file, DAYS[:3], **{column: pa.array([2, 3, None], pa.int64())})
    assert ExternalLabels(path=str(file), title="g", threshold=3).build(store).labels.tolist() == [
        False,
        True,
    ]
    with pytest.raises(InputError, match="or with numbers and task.threshold"):
        ExternalLabels(path=str(file), title="g").build(store)
    labels_file(file, DAYS[:1], boolean_value=pa.array([True]))
    with pytest.raises(InputError, match="threshold=3 asks for values in one of the columns"):
        ExternalLabels(path=str(file), title="g", threshold=3).build(store)


def test_labels_without_their_columns_or_subjects_are_refused(make_store, tmp_path):
    store = make_store(records_of(STAY_EVENTS, visits=STAYS))
    file = tmp_path / "labels.parquet"
    pd.DataFrame({"subject_id": [1]}).to_parquet(file)
    with pytest.raises(InputError, match=r"labels\.parquet: not a Parquet of labels"):
        ExternalLabels(path=str(file), title="given").build(store)
    with pytest.raises(InputError, match="not a Parquet of labels"):
        ExternalLabels(path=str(tmp_path / "missing.parquet"), title="given").build(store)
    labels_file(file, [(5, "2010-01-01")], boolean_value=pa.array([True]))
    with pytest.raises(InputError, match="no label is left for the store"):
        ExternalLabels(path=str(file), title="given").build(store)
    labels_file(file, [(1, None)], boolean_value=pa.array([True]))
    with pytest.raises(InputError, match="the first two without nulls"):
        ExternalLabels(path=str(file), title="given").build(store)
