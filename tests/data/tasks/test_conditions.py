from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from conftest import records_of

from medbert.data.tasks.cohorts import NEVER, Timeline
from medbert.data.tasks.conditions import AllOf, AnyOf, Has, Not
from medbert.schema import InputError

A, B = ["LAB//A"], ["DRUG//B"]
DAY = timedelta(days=1)
BEGIN = datetime(2009, 12, 25)  # so that some times come before, some after the rows' own


def random_events(seed: int, *, n_subjects: int = 25) -> list:
    """Few codes on few days, so that moments, days, visits and edges coincide; some static."""
    rng = np.random.default_rng(seed)
    events: list = []
    for subject in range(1, n_subjects + 1):
        for _ in range(rng.integers(0, 9)):
            when = (
                BEGIN
                + DAY * int(rng.integers(0, 14))
                + timedelta(hours=12) * int(rng.random() < 0.3)
            )
            time = None if rng.random() < 0.1 else when.isoformat()
            code = str(rng.choice(["LAB//A", "LAB//A//x", "DRUG//B", "C"]))
            value = None if rng.random() < 0.2 else float(rng.integers(5, 9))
            visit = None if time is None or rng.random() < 0.4 else int(rng.integers(0, 3))
            events.append(
                (subject, time, code, value, None if visit is None else subject * 9 + visit)
            )
    return [*events, (n_subjects + 1, "2012-01-01", "C")]


def naive(has: Has, events: list, subject: int, at: datetime) -> bool:
    """The definition, event by event."""
    seen, times = set(), []
    mine = sorted(
        ((*e, None, None)[:5] for e in events if e[0] == subject), key=lambda e: e[1] or ""
    )
    for _, time, code, value, visit in mine:
        if not any(code == c or code.startswith(c + "//") for c in has.codes):
            continue
        if has.min_value is not None and (value is None or value < has.min_value):
            continue
        if has.max_value is not None and (value is None or value > has.max_value):
            continue
        moment = None if time is None else datetime.fromisoformat(time)
        day = None if moment is None else moment.date()
        unit = {"moment": moment, "day": day, "visit": moment if moment is None else visit or day}
        if unit[has.per] not in seen:
            seen.add(unit[has.per])
            times.append(moment)
    late = has.delay_days * DAY
    window = []
    for time in times:
        if time is None:
            inside = has.from_days is None
        else:
            after = has.from_days is None or time + late > at + has.from_days * DAY
            inside = after and (has.to_days is None or time + late <= at + has.to_days * DAY)
        if inside:
            window.append(time)
    if len(window) < has.times:
        return False
    if has.within_days is not None and has.times > 1:
        runs = zip(window, window[has.times - 1 :], strict=False)
        if not any(a is not None and b - a <= has.within_days * DAY for a, b in runs):
            return False
    if has.apart_days is not None:
        first, last = window[0], window[-1]
        apart = timedelta(0) if first is None else last - first
        return apart >= has.apart_days * DAY
    return True


def random_has(rng: np.random.Generator) -> Has:
    def maybe(*values: float) -> float | None:
        return None if rng.random() < 0.5 else float(rng.choice(values))

    low, high = maybe(-6, -3, 0), maybe(0, 2, 4)
    return Has(
        codes=A if rng.random() < 0.7 else [*A, *B],
        times=int(rng.integers(1, 4)),
        per=str(rng.choice(["moment", "day", "visit"])),
        from_days=low,
        to_days=high if low is None or high is None or high > low else low + 2,
        min_value=maybe(6, 7),
        max_value=maybe(7, 8),
        within_days=maybe(0.5, 2, 5),
        apart_days=maybe(0, 1, 4),
        delay_days=float(rng.choice([0, 0, 2])),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_a_condition_is_what_its_definition_says(make_store, seed):
    events = random_events(seed)
    store = make_store(records_of(events))
    timeline, rng = Timeline(store), np.random.default_rng(seed)
    at = [BEGIN + DAY * day + timedelta(hours=12) for day in (0, 5, 6, 13, 20)] + [BEGIN + 7 * DAY]
    rows = pd.DataFrame(
        [
            (row, int(np.datetime64(t, "us").astype(np.int64)), t)
            for t in at
            for row in range(len(store))
        ],
        columns=["subject", "time", "at"],
    )
    answers = set()
    for _ in range(60):
        has = random_has(rng)
        expected = [
            naive(has, events, int(store.subject_ids[row.subject]), row.at.to_pydatetime())
            for row in rows.itertuples()
        ]
        assert has.holds(timeline, rows).tolist() == expected, has
        answers |= set(expected)
    assert answers == {True, False}


def microseconds(day: str) -> int:
    return int(np.datetime64(day, "us").astype(np.int64))


def rows_at(timeline: Timeline, day: str, *subjects: int) -> pd.DataFrame:
    rows = timeline.store.rows_of(np.array(subjects))
    return pd.DataFrame({"subject": rows, "time": microseconds(day)})


def test_and_or_not_are_what_they_are_in_logic(make_store):
    events = [(1, "2010-01-01", "LAB//A"), (2, "2010-01-01", "DRUG//B"), (3, "2010-01-01", "C")]
    events += [(4, "2010-01-01", "LAB//A"), (4, "2010-01-01", "DRUG//B")]
    timeline = Timeline(make_store(records_of(events)))
    rows = rows_at(timeline, "2010-01-02", 1, 2, 3, 4)
    a, b = Has(codes=A), Has(codes=B)
    assert AllOf(conditions=[a, b]).holds(timeline, rows).tolist() == [False, False, False, True]
    assert AnyOf(conditions=[a, b]).holds(timeline, rows).tolist() == [True, True, False, True]
    both = AnyOf(conditions=[a, b], at_least=2).holds(timeline, rows)
    assert both.tolist() == [False, False, False, True]
    neither = Not(condition=AnyOf(conditions=[a, b])).holds(timeline, rows)
    assert neither.tolist() == [False, False, True, False]


def test_the_first_of_a_window_is_found_where_the_subject_has_one(make_store):
    events = [(1, "2010-01-03", "LAB//A"), (1, "2010-01-05", "LAB//A"), (2, "2010-02-01", "LAB//A")]
    timeline = Timeline(make_store(records_of(events)))
    window, rows = Has(codes=A, from_days=0, to_days=10), rows_at(timeline, "2010-01-01", 1, 2)
    assert window.first(timeline, rows).tolist() == [microseconds("2010-01-03"), NEVER]


def test_what_is_known_late_counts_late_and_has_happened_all_the_same(make_store):
    events = [(1, "2010-01-01", "LAB//A"), (1, "2010-01-04", "DRUG//B"), (2, "2010-01-04", "C")]
    plain = Timeline(make_store(records_of(events)))
    known = plain.as_known({"LAB//A": 5, "^LAB": 2})
    for day, expected in (("2010-01-05", False), ("2010-01-06", True)):
        rows = rows_at(plain, day, 1)
        assert Has(codes=A).holds(known, rows).tolist() == [expected]
        assert Has(codes=A, delay_days=5).holds(plain, rows).tolist() == [expected]
        assert Has(codes=A).holds(plain, rows).tolist() == [True]
    first = known.subject_E == plain.store.rows_of(np.array([1]))[0]
    assert np.all(np.diff(known.time_E[first]) >= 0)
    assert plain.as_known({"Z": 3}) is plain


@pytest.mark.parametrize("wrong", [{"per": "week"}, {"times": 0}, {"from_days": 0, "to_days": -1}])
def test_a_condition_that_means_nothing_is_refused(wrong):
    with pytest.raises(InputError, match="per is one of"):
        Has(codes=A, **wrong)


def test_what_counts_days_needs_dates():
    assert not Has(codes=A, times=2, per="visit").needs_dates
    assert Not(condition=AllOf(conditions=[Has(codes=A), Has(codes=B, from_days=-3)])).needs_dates
    assert AnyOf(conditions=[Has(codes=A, within_days=3)]).needs_dates
