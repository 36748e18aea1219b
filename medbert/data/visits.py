"""Visits: put together from what rows say of them, or made of events that name none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medbert.schema import DAY_US, KINDS, STATIC, Findings, InputError

_LATE = np.iinfo(np.int64).max
_INPATIENT, _UNKNOWN = KINDS.index("inpatient"), KINDS.index("unknown")
_POLICIES = ("auto", "column", "day", "gap")


@dataclass(frozen=True, kw_only=True)
class VisitRule:
    """What a visit is.

    ``by``: ``column``: the visits that the source names; events outside them are in no visit.
    ``auto``: the same, and one visit per calendar day of events outside them. ``day``: one visit
    per calendar day, whatever the source names. ``gap``: a visit ends where no event follows for
    more than ``gap_days``. Visits made of days and gaps have no length of stay.
    """

    by: str
    gap_days: float

    def __post_init__(self) -> None:
        if self.by not in _POLICIES or self.gap_days <= 0:
            raise InputError(
                f"visit.by={self.by} visit.gap_days={self.gap_days}: use one of {_POLICIES} and "
                "a gap of more than 0 days"
            )

    @property
    def named(self) -> bool:
        """Whether the visits that the source names are used."""
        return self.by in ("auto", "column")


class Stays(NamedTuple):
    """One value per visit; times in microseconds, STATIC where unknown; ``stay`` in days."""

    subject: np.ndarray
    start: np.ndarray
    end: np.ndarray
    stay: np.ndarray
    kind: np.ndarray  # place in KINDS

    def take(self, order: np.ndarray) -> Stays:
        return Stays(*(values[order] for values in self))


class Runs(NamedTuple):
    """Consecutive events of one subject and visit: first and last time (_LATE, STATIC: none)."""

    subject: np.ndarray
    visit: np.ndarray
    first: np.ndarray
    last: np.ndarray


def runs_of(subject: np.ndarray, visit: np.ndarray, time: np.ndarray) -> tuple[Runs, np.ndarray]:
    """The runs of events, and the run of each event."""
    head = heads(subject, visit)
    place = np.flatnonzero(head)
    first = np.minimum.reduceat(np.where(time == STATIC, _LATE, time), place)
    last = np.maximum.reduceat(time, place)
    return Runs(subject[place], visit[place], first, last), np.cumsum(head) - 1


def days_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Days from one time in microseconds to another; NaN where either is STATIC."""
    known = (start != STATIC) & (end != STATIC)
    return np.where(known, np.where(known, end, 0) - np.where(known, start, 0), np.nan) / DAY_US


def heads(*columns: np.ndarray) -> np.ndarray:
    """Mask of the rows that differ from the row above in any of the columns."""
    head = np.zeros(len(columns[0]), bool)
    head[:1] = True
    for column in columns:
        head[1:] |= column[1:] != column[:-1]
    return head


def put_together(
    stated: dict[str, np.ndarray],
    runs: Runs,
    *,
    findings: Findings,
    locate: Callable[[int], str],
) -> tuple[Stays, np.ndarray, np.ndarray, int]:
    """The visits that statements and events name, by subject and visit id.

    ``stated`` has STATED_VISITS as numpy columns (see spill), ``locate`` names the place of one.
    A visit starts at its first stated start, else at its first event; it ends at its last stated
    end, else, but for inpatients, at its last event. Its length is end - start where both are
    stated, unless rows disagree. A visit that ends before it starts keeps neither end nor length.
    Returns also the id of each visit, the visit of each run, and how many had both ends stated.
    """
    n_stated = len(stated["subject"])
    subject = np.concatenate([stated["subject"], runs.subject])
    visit = np.concatenate([stated["visit"], runs.visit])
    order = np.lexsort((visit, subject))
    head = heads(subject[order], visit[order])
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(head) - 1
    n, said, seen = int(head.sum()), group[:n_stated], group[n_stated:]

    start, last_start = _span(said, stated["start"], stated["start"], n)
    first_end, end = _span(said, stated["end"], stated["end"], n)
    shortest, longest = np.full((2, n), np.nan, np.float32)
    np.fmin.at(shortest, said, stated["stay"])
    np.fmax.at(longest, said, stated["stay"])
    kind = np.full(n, _UNKNOWN, np.int8)
    np.minimum.at(kind, said, stated["kind"])
    place = np.full(n, n_stated)
    np.minimum.at(place, said, np.arange(n_stated))
    first, last = _span(seen, runs.first, runs.last, n)

    both = (start != _LATE) & (end != STATIC)
    backward = both & (end < start)
    several = (last_start > start) | (end > first_end) | (longest > shortest)
    wrong = {"discharge_before_admission": backward, "visits_of_several_dates": several}
    for reason, bad in wrong.items():
        if bad.any():
            findings.note(reason, int(bad.sum()), locate(int(place[bad].min())))
    stay = np.where(both, (end - np.where(both, start, 0)) / DAY_US, np.nan).astype(np.float32)
    stay = np.where(np.isnan(longest), stay, longest)
    start = np.where(start == _LATE, first, start)
    start = np.where(start == _LATE, STATIC, start)
    end = np.where((end == STATIC) & (kind != _INPATIENT), last, end)
    stay[backward | several], end[backward] = np.nan, STATIC
    owner = np.zeros(n, np.int64)
    owner[group] = subject
    return Stays(owner, start, end, stay, kind), visit[order][head], seen, int(both.sum())


def _span(
    group: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first and last known time of each group; _LATE and STATIC where there is none."""
    first, last = np.full(n, _LATE), np.full(n, STATIC)
    np.minimum.at(first, group, np.where(firsts == STATIC, _LATE, firsts))
    np.maximum.at(last, group, lasts)
    return first, last


def made_of_events(
    rule: VisitRule, subject: np.ndarray, time: np.ndarray
) -> tuple[Stays, np.ndarray]:
    """Visits of timed events, sorted by subject and time, and the visit of each event."""
    by_gap = rule.by == "gap"
    head = heads(subject) if by_gap else heads(subject, time // DAY_US)
    if by_gap:
        head[1:] |= np.diff(time) > rule.gap_days * DAY_US
    place = np.flatnonzero(head)
    n = len(place)
    end = time[np.append(place[1:], len(time)) - 1] if by_gap and n else np.full(n, STATIC)
    kind = np.full(n, KINDS.index("gap" if by_gap else "day"), np.int8)
    unknown = np.full(n, np.nan, np.float32)
    return Stays(subject[place], time[place], end, unknown, kind), np.cumsum(head) - 1
