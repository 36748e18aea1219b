"""Who is in, and at which prediction times: timelines, index rules and the cohort flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from medbert.data import codes
from medbert.data.store import Store
from medbert.data.visits import days_between, heads
from medbert.schema import DAY_US, DAYS_PER_YEAR, DEATH, STATIC

NEVER = np.iinfo(np.int64).max


class Occurrences(NamedTuple):
    """When subjects (rows of the store) have some codes: sorted by subject and time."""

    subject: np.ndarray
    time: np.ndarray

    def between(
        self, subject: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each of ``subject``, the place of the first with low <= time, and the place after the
        last with time < high; as many lie between as one exceeds the other."""
        moments = np.unique(self.time)
        # one integer that sorts like (subject, time); ranks keep it within 64 bits
        key = self.subject * (len(moments) + 1) + np.searchsorted(moments, self.time)
        first, stop = (
            np.searchsorted(key, subject * (len(moments) + 1) + np.searchsorted(moments, edge))
            for edge in (low, high)
        )
        return first, stop


class Timeline:
    """The whole records of a store, future included: what labels and index dates are made of.

    One value per event (E), per visit (V) or per subject (S); times in microseconds. Visits of
    unknown start are left out; one of unknown end has its start for an end, and is not ``ended``.
    """

    def __init__(self, store: Store) -> None:
        history = store.history(np.arange(len(store)))
        self.store = store
        subjects = np.arange(len(store))
        self.subject_E = np.repeat(subjects, np.diff(history.offsets_B1))
        self.code_E, self.time_E, self.visit_E = history.code_T, history.time_T, history.visit_T
        self.value_E = history.value_T
        self.birth_S = history.birth_B
        visit_subject = np.repeat(subjects, np.diff(history.visit_offsets_B1))
        self.visits = pd.DataFrame(
            {
                "subject": visit_subject,
                "ordinal": pd.Series(visit_subject).groupby(visit_subject).cumcount() + 1,
                "start": history.start_V,
                "end": np.where(history.end_V == STATIC, history.start_V, history.end_V),
                "ended": history.end_V != STATIC,
                "stay": history.stay_V,
                "kind": history.kind_V,
            }
        )
        self.visits = self.visits[self.visits["start"] != STATIC].reset_index(drop=True)
        self._nth: dict[tuple[tuple[str, ...], int], np.ndarray] = {}
        self._wanted: dict[tuple[str, ...], np.ndarray] = {}
        self.death_S = self.nth([f"^{DEATH}"])

    def as_known(self, delays: Mapping[str, float]) -> Timeline:
        """The same records with each event at the time it becomes known.

        ``delays``: pattern -> days that pass between the time an event is stamped with and its
        being there to read (a result, a coded claim); of several patterns the longest counts. This
        is what index dates, populations and exclusions see. It does not reach what models are
        given: ``Store.history`` cuts at the time stamped, so events that come late have to be
        stamped so when the store is made, as diagnoses of a stay are at its discharge.
        """
        delay_C = np.zeros(len(self.store.codes), np.int64)
        for pattern, days in delays.items():
            late = codes.matches(self.store.codes, [pattern])
            delay_C[late] = np.maximum(delay_C[late], round(days * DAY_US))
        if not delay_C.any():
            return self
        known_E = np.where(self.time_E == STATIC, STATIC, self.time_E + delay_C[self.code_E])
        order = np.lexsort((known_E, self.subject_E))
        known = copy(self)
        known.time_E, known._nth = known_E[order], {}
        for name in ("subject_E", "code_E", "visit_E", "value_E"):
            setattr(known, name, getattr(self, name)[order])
        return known

    def wanted(self, patterns: Sequence[str]) -> np.ndarray:
        """Mask of the events, static ones too, whose code matches one of ``patterns``."""
        key = tuple(patterns)
        if key not in self._wanted:
            self._wanted[key] = codes.matches(self.store.codes, list(patterns))
        return self._wanted[key][self.code_E]

    def events(self, patterns: Sequence[str]) -> np.ndarray:
        """Indices of the timed events whose code matches one of ``patterns``."""
        return np.flatnonzero(self.wanted(patterns) & (self.time_E != STATIC))

    def nth(self, patterns: Sequence[str], *, n: int = 1) -> np.ndarray:
        """Time of the n-th distinct moment a subject has such a code; NEVER where there is none."""
        key = (tuple(patterns), n)
        if key not in self._nth:
            place, subject_S = self.events(patterns), np.arange(len(self.store))
            place = place[heads(self.subject_E[place], self.time_E[place])]
            nth = np.searchsorted(self.subject_E[place], subject_S) + n - 1
            has = nth < np.searchsorted(self.subject_E[place], subject_S, side="right")
            self._nth[key] = np.full(len(subject_S), NEVER)
            self._nth[key][has] = self.time_E[place[nth[has]]]
        return self._nth[key]

    def first_event(self) -> np.ndarray:
        """Time of the first timed event after birth, per subject; NEVER where there is none."""
        return self.nth([r"^(?!MEDS_BIRTH)"])

    def last_event(self) -> np.ndarray:
        """Time of the last timed event, per subject; STATIC where there is none."""
        subject_S = np.arange(len(self.store))
        return self.last_event_before(subject_S, np.full(len(subject_S), NEVER - 1))

    def age(self, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Years at ``time``; NaN where the birth is unknown."""
        return days_between(self.birth_S[subject], time) / DAYS_PER_YEAR

    def last_event_before(self, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Time of the latest timed event at or before ``time``; STATIC where there is none."""
        _, after = Occurrences(self.subject_E, self.time_E).between(subject, time, time + 1)
        same = (after > 0) & (self.subject_E[after - 1] == subject)
        return np.where(same, self.time_E[after - 1], STATIC)


class IndexRule(Protocol):
    """Puts candidate prediction times: a frame of subject (row), time, and the visit's ordinal."""

    @property
    def needs_dates(self) -> bool: ...

    @property
    def title(self) -> str: ...

    def candidates(self, timeline: Timeline) -> pd.DataFrame: ...


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Fixed calendar dates, the same for everybody, ``every_days`` apart.

    The index date then depends on nothing that happens later, so it cannot leak the outcome
    (van Houwelingen 2007; Yuan 2021, doi 10.1038/s41467-021-21390-2 on designs where it can).
    """

    every_days: int
    first: str  # ISO date of the first landmark; those outside the data yield no rows
    needs_dates: bool = field(default=True, init=False)

    @property
    def title(self) -> str:
        return f"landmarks every {self.every_days} days from {self.first}"

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        """Those from the first event on. Where a subject's records end is not looked at: to leave
        out the dates that nothing follows would be to choose by the future."""
        first = np.datetime64(self.first, "us").astype(np.int64)
        times = np.arange(first, timeline.store.end, self.every_days * DAY_US)
        begun = np.searchsorted(times, timeline.first_event())
        each = len(times) - begun
        subject = np.repeat(np.arange(len(begun)), each)
        place = np.arange(len(subject)) - np.repeat(np.cumsum(each) - len(times), each)
        return pd.DataFrame({"subject": subject, "time": times[place], "ordinal": 0})


@dataclass(frozen=True, kw_only=True)
class VisitEnds:
    """The end of each visit of ``kinds``: what is known when a subject goes home."""

    kinds: Sequence[str]
    needs_dates: bool = field(default=False, init=False)

    @property
    def title(self) -> str:
        return f"end of each {' or '.join(self.kinds)} visit"

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        visits = timeline.visits[timeline.visits["kind"].isin(list(self.kinds))]
        return visits.assign(time=visits["end"])[["subject", "time", "ordinal"]]


@dataclass(frozen=True, kw_only=True)
class BeforeVisits:
    """The moment before each visit of ``kinds`` after the subject's first visit."""

    kinds: Sequence[str]
    needs_dates: bool = field(default=False, init=False)

    @property
    def title(self) -> str:
        return f"just before each {' or '.join(self.kinds)} visit but the first"

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        visits = timeline.visits
        visits = visits[visits["kind"].isin(list(self.kinds)) & (visits["ordinal"] > 1)]
        return visits.assign(time=visits["start"] - 1)[["subject", "time", "ordinal"]]


@dataclass(frozen=True, kw_only=True)
class VisitStarts:
    """The start of each visit of ``kinds``, or ``hours_after_start`` into those that last longer.

    That a visit still goes on then is known then. Visits of unknown end are left out if hours are
    to pass.
    """

    kinds: Sequence[str]
    hours_after_start: float = 0.0

    @property
    def needs_dates(self) -> bool:
        return self.hours_after_start > 0

    @property
    def title(self) -> str:
        visits = f"start of each {' or '.join(self.kinds)} visit"
        hours = f"{self.hours_after_start:g} hours after the {visits} that lasts longer"
        return hours if self.hours_after_start else visits

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        visits = timeline.visits[timeline.visits["kind"].isin(list(self.kinds))]
        visits = visits.assign(time=visits["start"] + round(self.hours_after_start / 24 * DAY_US))
        if self.hours_after_start:
            visits = visits[visits["end"] > visits["time"]]
        return visits[["subject", "time", "ordinal"]]


@dataclass(frozen=True, kw_only=True)
class FirstEvents:
    """The first moment of ``codes``, or that of number ``times``: one row a subject."""

    codes: Sequence[str]
    times: int = 1
    needs_dates: bool = field(default=False, init=False)

    @property
    def title(self) -> str:
        return f"moment number {self.times} of {', '.join(self.codes)}"

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        return _one_each(timeline.nth(self.codes, n=self.times))


@dataclass(frozen=True, kw_only=True)
class LastEvents:
    """The last event of each subject but its death.

    It is chosen knowing that nothing follows, so an outcome after it cannot be seen: for states
    that hold at the end of the records, and for outcomes that another source states.
    """

    needs_dates: bool = field(default=False, init=False)
    title: str = field(default="last event", init=False)

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        place = timeline.events([f"^(?!{DEATH})"])
        last = np.full(len(timeline.store), NEVER)
        # in time order, so the last one stays
        last[timeline.subject_E[place]] = timeline.time_E[place]
        return _one_each(last)


def _one_each(time_S: np.ndarray) -> pd.DataFrame:
    subject = np.flatnonzero(time_S != NEVER)
    return pd.DataFrame({"subject": subject, "time": time_S[subject], "ordinal": 0})


@dataclass(frozen=True, kw_only=True)
class FirstOutcomeOrLastVisit:
    """Case-control: cases just before the visit of the first outcome, controls before their last.

    As published in Med-BERT. The index date of a control is chosen knowing that nothing follows,
    so that time itself separates the groups: a temporal bias (Yuan 2021).
    """

    outcome: Sequence[str]
    needs_dates: bool = field(default=True, init=False)
    title: str = field(default="first outcome (cases) or last visit (controls)", init=False)

    def candidates(self, timeline: Timeline) -> pd.DataFrame:
        place = timeline.events(self.outcome)
        cases = pd.DataFrame(
            {"subject": timeline.subject_E[place], "ordinal": timeline.visit_E[place]}
        ).drop_duplicates("subject")
        last = timeline.visits.drop_duplicates("subject", keep="last")
        controls = last.loc[~last["subject"].isin(cases["subject"]), ["subject", "ordinal"]]
        chosen = pd.concat([cases, controls]).sort_values("subject")
        rows = chosen.merge(timeline.visits, on=["subject", "ordinal"])
        return rows.assign(time=rows["start"] - 1)[["subject", "time", "ordinal"]]


class FlowStep(NamedTuple):
    """What was left after one exclusion."""

    step: str
    n_subjects: int
    n_rows: int


class Cohort(NamedTuple):
    """Rows to predict: ``rows`` of the store, times in microseconds, labels; and how they came.

    ``task`` is what the report says of the design.
    """

    rows: np.ndarray
    prediction_time: np.ndarray
    labels: np.ndarray
    flow: list[FlowStep]
    task: dict[str, str]
