"""Who is in, and at which prediction times: timelines, index rules and the cohort flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from medbert.data import codes
from medbert.data.store import Store
from medbert.schema import DAY_US, DAYS_PER_YEAR, DEATH, STATIC

NEVER = np.iinfo(np.int64).max


class Timeline:
    """The whole records of a store, future included: what labels and index dates are made of.

    One value per event (E), per visit (V) or per subject (S); times in microseconds. Visits of
    unknown start are left out.
    """

    def __init__(self, store: Store) -> None:
        history = store.history(np.arange(len(store)))
        self.store = store
        subjects = np.arange(len(store))
        self.subject_E = np.repeat(subjects, np.diff(history.offsets_B1))
        self.code_E, self.time_E, self.visit_E = history.code_T, history.time_T, history.visit_T
        self.birth_S = history.birth_B
        visit_subject = np.repeat(subjects, np.diff(history.visit_offsets_B1))
        self.visits = pd.DataFrame(
            {
                "subject": visit_subject,
                "ordinal": np.arange(len(visit_subject))
                - np.repeat(history.visit_offsets_B1[:-1], np.diff(history.visit_offsets_B1))
                + 1,
                "start": history.start_V,
                "end": np.where(history.end_V == STATIC, history.start_V, history.end_V),
                "stay": history.stay_V,
                "kind": history.kind_V,
            }
        )
        self.visits = self.visits[self.visits["start"] != STATIC].reset_index(drop=True)
        self._nth: dict[tuple[tuple[str, ...], int], np.ndarray] = {}
        self.death_S = self.nth([f"^{DEATH}"])

    def events(self, patterns: Sequence[str]) -> np.ndarray:
        """Indices of the timed events whose code matches one of ``patterns``."""
        wanted = codes.matches(self.store.codes, list(patterns))
        return np.flatnonzero(wanted[self.code_E] & (self.time_E != STATIC))

    def nth(self, patterns: Sequence[str], *, n: int = 1) -> np.ndarray:
        """Time of the n-th distinct moment a subject has such a code; NEVER where there is none."""
        key = (tuple(patterns), n)
        if key not in self._nth:
            place = self.events(patterns)
            moments = pd.DataFrame({"subject": self.subject_E[place], "time": self.time_E[place]})
            moments = moments.drop_duplicates()
            moments = moments[moments.groupby("subject").cumcount() == n - 1]
            self._nth[key] = np.full(len(self.store), NEVER)
            self._nth[key][moments["subject"]] = moments["time"]
        return self._nth[key]

    def first_event(self) -> np.ndarray:
        """Time of the first timed event after birth, per subject; NEVER where there is none."""
        return self.nth([r"^(?!MEDS_BIRTH)"])

    def age(self, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Years at ``time``; NaN where the birth is unknown."""
        birth = self.birth_S[subject]
        known = birth != STATIC
        days = np.where(known, time, 0) - np.where(known, birth, 0)
        return np.where(known, days / DAY_US / DAYS_PER_YEAR, np.nan)

    def last_event_before(self, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Time of the latest timed event at or before ``time``; STATIC where there is none."""
        moments = np.unique(self.time_E)
        # one integer that sorts like (subject, time); ranks keep it within 64 bits
        key_E = self.subject_E * (len(moments) + 1) + np.searchsorted(moments, self.time_E) + 1
        key = subject * (len(moments) + 1) + np.searchsorted(moments, time, side="right")
        place = np.searchsorted(key_E, key, side="right") - 1
        same = (place >= 0) & (self.subject_E[place] == subject)
        return np.where(same, self.time_E[place], STATIC)


class IndexRule(Protocol):
    """Puts candidate prediction times: a frame of subject (row), time, and the visit's ordinal."""

    needs_dates: bool
    title: str

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
        first = np.datetime64(self.first, "us").astype(np.int64)
        times = np.arange(first, timeline.store.end, self.every_days * DAY_US)
        subject = np.repeat(np.arange(len(timeline.store)), len(times))
        frame = pd.DataFrame({"subject": subject, "time": np.tile(times, len(timeline.store))})
        begun = timeline.first_event()[frame["subject"]] <= frame["time"]
        return frame[begun].assign(ordinal=0)


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
