"""What holds of a subject around a time: codes, how often, how close, with which values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from medbert.data.tasks.cohorts import NEVER, Occurrences, Timeline
from medbert.schema import DAY_US, STATIC, InputError

_PER = ("moment", "day", "visit")


class Condition(Protocol):
    """Asks something of each row (subject, time). A timeline made by ``as_known`` answers with what
    is known by then, the plain one with what has happened."""

    @property
    def needs_dates(self) -> bool: ...

    def holds(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Has:
    """At least ``times`` occurrences of ``codes`` in a window around the time of a row.

    The window is ``from_days`` < t <= ``to_days``, in days after that time (negative: before); null
    is without limit, and the defaults mean "by then". Events without a time belong to every window
    that has no beginning, and to no other.

    Args:
        per: what counts as one occurrence: a distinct ``moment``, calendar ``day`` or ``visit``
            (at its first such event; events outside visits count by moment).
        min_value, max_value: of the event, both included; events without a value do not count.
        within_days: so many occurrences must lie within a span of this.
        apart_days: the first and the last in the window must lie at least this far apart.
        delay_days: after the time of an event until it counts.
    """

    codes: Sequence[str]
    times: int = 1
    per: str = "moment"
    from_days: float | None = None
    to_days: float | None = 0
    min_value: float | None = None
    max_value: float | None = None
    within_days: float | None = None
    apart_days: float | None = None
    delay_days: float = 0

    def __post_init__(self) -> None:
        low = -np.inf if self.from_days is None else self.from_days
        high = np.inf if self.to_days is None else self.to_days
        if self.per not in _PER or self.times < 1 or low >= high:
            raise InputError(
                f"condition on {list(self.codes)}: per={self.per} times={self.times} "
                f"from_days={self.from_days} to_days={self.to_days}: per is one of "
                f"{', '.join(_PER)}, times at least 1, and from_days less than to_days"
            )

    @property
    def needs_dates(self) -> bool:
        spans = (self.from_days, self.within_days, self.apart_days, self.to_days, self.delay_days)
        return any(spans) or self.from_days == 0 or self.per == "day"

    def holds(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        found = self.occurrences(timeline)
        first, stop = self._window(found, rows)
        mask = stop - first >= self.times
        if self.within_days is not None and self.times > 1:
            place = np.flatnonzero(mask)
            last = _next_tight(found.time, self.times, round(self.within_days * DAY_US))
            mask[place] = last[first[place] + self.times - 1] < stop[place]
        if self.apart_days is not None:
            place = np.flatnonzero(mask)
            begin, end = found.time[first[place]], found.time[stop[place] - 1]
            apart = end - np.where(begin == STATIC, end, begin)
            mask[place] = apart >= round(self.apart_days * DAY_US)
        return mask

    def first(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        """Time of the first occurrence in the window of each row; NEVER where there is none."""
        found = self.occurrences(timeline)
        first, stop = self._window(found, rows)
        time = np.full(len(rows), NEVER)
        some = stop > first
        time[some] = found.time[first[some]]
        return time

    def occurrences(self, timeline: Timeline) -> Occurrences:
        """All of them, each counted once (``per``)."""
        wanted = timeline.wanted(self.codes)
        with np.errstate(invalid="ignore"):
            if self.min_value is not None:
                wanted = wanted & (timeline.value_E >= np.float32(self.min_value))
            if self.max_value is not None:
                wanted = wanted & (timeline.value_E <= np.float32(self.max_value))
        place = np.flatnonzero(wanted)
        subject, time = timeline.subject_E[place], timeline.time_E[place]
        visit = timeline.visit_E[place] if self.per == "visit" else np.zeros(len(place), np.int64)
        unit = time // DAY_US if self.per == "day" else np.where(visit > 0, 0, time)
        again = pd.DataFrame({"subject": subject, "visit": visit, "unit": unit}).duplicated()
        once = ~again.to_numpy()
        return Occurrences(subject[once], time[once])

    def _window(self, found: Occurrences, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        subject, time = rows["subject"].to_numpy(), rows["time"].to_numpy()

        def edge(days: float | None, endless: int) -> np.ndarray:
            if days is None:
                return np.full(len(rows), endless)
            return time + round((days - self.delay_days) * DAY_US) + 1

        return found.between(subject, edge(self.from_days, STATIC), edge(self.to_days, NEVER))


def _next_tight(time: np.ndarray, n: int, span: int) -> np.ndarray:
    """For each place, the first from there on where the last n lie within ``span``; else the end.

    Subjects are not told apart: what lies between two places of one subject is its own.
    """
    start = time[: max(len(time) - n + 1, 0)]
    tight = (start != STATIC) & (time[n - 1 :] - np.where(start == STATIC, 0, start) <= span)
    place = np.full(len(time), len(time))
    place[n - 1 :][tight] = np.flatnonzero(tight) + n - 1
    return np.minimum.accumulate(place[::-1])[::-1]


@dataclass(frozen=True, kw_only=True)
class _Several:
    conditions: Sequence[Condition]

    @property
    def needs_dates(self) -> bool:
        return any(each.needs_dates for each in self.conditions)

    def count(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        none = np.zeros(len(rows), np.int64)
        return sum((each.holds(timeline, rows) for each in self.conditions), none)


class AllOf(_Several):
    """Every one of ``conditions`` holds."""

    def holds(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return self.count(timeline, rows) == len(self.conditions)


@dataclass(frozen=True, kw_only=True)
class AnyOf(_Several):
    """At least ``at_least`` of ``conditions`` hold."""

    at_least: int = 1

    def holds(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return self.count(timeline, rows) >= self.at_least


@dataclass(frozen=True, kw_only=True)
class Not:
    """``condition`` does not hold."""

    condition: Condition

    @property
    def needs_dates(self) -> bool:
        return self.condition.needs_dates

    def holds(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return ~self.condition.holds(timeline, rows)
