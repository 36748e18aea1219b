"""Cohorts of random small stores beside what the words of a task say, event by event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import records_of

from medbert.data.tasks import Task
from medbert.data.tasks.cohorts import Landmarks, Timeline
from medbert.data.tasks.conditions import Has, Not
from medbert.data.tasks.outcomes import CodeWithin
from medbert.schema import BIRTH, DAYS_PER_YEAR, DEATH

DAY = timedelta(days=1)
FIRST, EVERY = datetime(2010, 1, 1), 40
END = datetime(2010, 9, 1)  # of the data: subject 0 makes sure of it
OUTCOME, DISEASE, OTHER = "DX//OUT", "DX//POP", "LAB//A"
CODES = (OUTCOME, DISEASE, DISEASE, OTHER, OTHER, "DRUG//B")


def some_events(rng: np.random.Generator, *, first: datetime, last: datetime) -> list:
    """Up to 8 events of a subject at noon or midnight of days from ``first`` to ``last``."""
    half_days = int((last - first) / DAY * 2)
    times = [
        first + DAY / 2 * int(rng.integers(0, half_days + 1)) for _ in range(rng.integers(0, 9))
    ]
    return [(t, str(rng.choice(CODES)), float(rng.integers(5, 9))) for t in times]


def lives(seed: int, *, n: int = 60) -> dict[int, list]:
    """Subject -> (time or None, code, value), birth, sex and death among them."""
    rng = np.random.default_rng(seed)
    found: dict[int, list] = {0: [(END, "LAST", None)]}
    for subject in range(1, n + 1):
        events = some_events(rng, first=datetime(2009, 9, 1), last=END)
        if rng.random() < 0.9:
            born = datetime(int(rng.choice([1950, 1991, 1992])), 3, 1)
            events.append((born, BIRTH, None))
        if rng.random() < 0.9:
            events.append((None, f"GENDER//{rng.choice(['F', 'M'])}", None))
        if rng.random() < 0.2:
            events.append((FIRST + DAY * int(rng.integers(0, 240)), DEATH, None))
        found[subject] = events
    return found


def stored(make_store: Any, people: dict[int, list], *, name: str = "store") -> Any:
    events = [
        (subject, None if time is None else time.isoformat(), code, value, None)
        for subject, mine in people.items()
        for time, code, value in mine
    ]
    return make_store(records_of(events), name=name, memory_gb=1.0)


def found(store: Any, task: Task) -> dict[tuple[int, datetime], bool]:
    cohort = task.build(store)
    times = pd.to_datetime(cohort.prediction_time, unit="us").to_pydatetime()
    keys = zip(store.subject_ids[cohort.rows].tolist(), times, strict=True)
    return dict(zip(keys, cohort.labels.tolist(), strict=True))


def naive(people: dict[int, list], task: Task) -> dict[tuple[int, datetime], bool]:
    """The same from the definition; ``task.where`` asks for no LAB//A of 8 or more before."""
    outcome, labels = task.outcome, {}
    assert isinstance(outcome, CodeWithin)
    for subject, mine in people.items():
        timed = sorted(
            (t, code, value) for t, code, value in mine if t is not None and code != BIRTH
        )
        born = [t for t, code, _ in mine if code == BIRTH]
        death = min((t for t, code, _ in timed if code == DEATH), default=datetime.max)
        at = FIRST
        while at < END:
            start = at + outcome.gap_days * DAY
            stop = start + outcome.window_days * DAY
            past = [(t, code, value) for t, code, value in timed if t <= at]
            entered = {
                t
                for t, code, _ in timed
                if code == DISEASE and t + task.delays.get(DISEASE, 0) * DAY <= at
            }
            age = (at - born[0]) / DAY / DAYS_PER_YEAR if born else float("nan")
            moments = [t for t, code, _ in timed if code == OUTCOME]
            washout = outcome.washout_days
            since = datetime.min if washout is None else at - washout * DAY
            positive = any(start < t <= stop for t in moments)
            observed = stop <= END
            if outcome.follow_up == "last_event":
                observed = positive or stop <= max((t for t, _, _ in timed), default=datetime.min)
            keep = (
                past
                and len(entered) >= task.population_encounters
                and (task.min_age is None or age >= task.min_age)
                and (task.max_age is None or age < task.max_age)
                and (task.sex is None or any(c == f"GENDER//{task.sex}" for _, c, _ in mine))
                and at - past[-1][0] <= (task.seen_within_days or 9999) * DAY
                and at - past[0][0] >= (task.min_history_days or 0) * DAY
                and not (task.where and any(c == OTHER and v >= 8 for _, c, v in past))
                and not (washout != 0 and any(since < t <= start for t in moments))
                and death > start
                and (observed or death <= stop)
            )
            if keep:
                labels[subject, at] = positive
            at += EVERY * DAY
    return labels


def task_of(**changes: Any) -> Task:
    outcome = {"codes": [OUTCOME], "gap_days": 10, "window_days": 60}
    names = ("gap_days", "washout_days", "follow_up")
    outcome |= {name: changes.pop(name) for name in names if name in changes}
    settings: dict[str, Any] = {
        "title": "random",
        "index": Landmarks(first=FIRST.date().isoformat(), every_days=EVERY),
        "outcome": CodeWithin(**outcome),
        "population": [DISEASE],
    }
    return Task(**settings | changes)


WITHOUT_HIGH = {"no high value": Not(condition=Has(codes=[OTHER], min_value=8))}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gap_days": 0, "population_encounters": 2},
        {"washout_days": 30, "seen_within_days": 30},
        {"washout_days": 0, "gap_days": 0, "where": WITHOUT_HIGH},
        {"follow_up": "last_event", "min_age": 18, "max_age": 19.1},
        {"follow_up": "last_event", "washout_days": 20, "min_history_days": 60, "sex": "F"},
        {"delays": {DISEASE: 20, OUTCOME: 30}, "min_age": 18.5},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_a_cohort_is_what_the_words_of_its_task_say(make_store, changes):
    people, task = lives(5, n=200), task_of(**changes)
    expected = naive(people, task)
    assert set(expected.values()) == {False, True}
    assert found(stored(make_store, people), task) == expected


def test_the_moment_of_a_landmark_belongs_to_the_past(make_store):
    people = {0: [(END, "LAST", None)], 1: [(FIRST, DISEASE, None)]}
    store, task = stored(make_store, people), task_of(min_history_days=EVERY)
    assert min(at for _, at in found(store, task)) == FIRST + EVERY * DAY
    assert min(at for _, at in found(store, task_of())) == FIRST


@dataclass(frozen=True)
class Anything:
    """An outcome that leaves nobody out."""

    needs_dates: bool = True
    title: str = "anything"

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        return {}

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(rows), bool)


def with_another(
    people: dict[int, list], *, first: datetime, last: datetime, seed: int = 8
) -> dict[int, list]:
    """Other events with ``first`` < t <= ``last``; birth stays, and the end of the data."""
    rng, changed = np.random.default_rng(seed), {0: people[0]}
    for subject in list(people)[1:]:
        kept = [e for e in people[subject] if e[0] is None or not first < e[0] <= last]
        changed[subject] = kept + some_events(rng, first=first + DAY / 2, last=last)
    return changed


def test_who_is_eligible_does_not_depend_on_the_future(make_store):
    people = lives(6)
    task = task_of(
        outcome=Anything(),
        min_age=18,
        seen_within_days=60,
        min_history_days=20,
        where=WITHOUT_HIGH,
        delays={DISEASE: 3},
    )
    before = found(stored(make_store, people), task)
    for landmark in sorted({at for _, at in before}):
        other = with_another(people, first=landmark, last=END)
        after = found(stored(make_store, other, name=f"{landmark:%m%d}"), task)
        for keys in (before, after):
            assert any(at == landmark for _, at in keys)
        assert {k for k in before if k[1] <= landmark} == {k for k in after if k[1] <= landmark}


def test_what_is_not_yet_known_makes_nobody_eligible(make_store):
    people, landmark = lives(7), FIRST + EVERY * DAY
    task = task_of(outcome=Anything(), delays={DISEASE: 30})
    late = {
        s: [e for e in mine if not (e[1] == DISEASE and e[0] > landmark - 30 * DAY)]
        for s, mine in people.items()
    }
    rows = [
        {key for key in found(stored(make_store, lived, name=name), task) if key[1] == landmark}
        for name, lived in (("a", people), ("b", late))
    ]
    assert rows[0] and rows[0] == rows[1]


@pytest.mark.parametrize("gap_days", [0, 10])
def test_labels_do_not_depend_on_what_comes_before_the_window(make_store, gap_days):
    people, landmark = lives(9, n=150), FIRST + EVERY * DAY
    gap_ends = landmark + gap_days * DAY
    task = task_of(gap_days=gap_days, population=())
    before = found(stored(make_store, people, name="a"), task)
    other = with_another(people, first=datetime(2009, 9, 1), last=gap_ends)
    after = found(stored(make_store, other, name="b"), task)
    both = [key for key in before if key in after and key[1] == landmark]
    assert {before[key] for key in both} == {False, True}
    assert all(before[key] == after[key] for key in both)
