"""A task turns a store into labels: who, when, and whether the outcome follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data.cohorts import NEVER, Cohort, FlowStep, IndexRule, Timeline
from medbert.data.store import Store
from medbert.schema import (
    BOOLEAN_VALUE,
    DATES,
    DAY_US,
    LABELS,
    PREDICTION_TIME,
    STATIC,
    SUBJECT_ID,
    InputError,
)


class Outcome(Protocol):
    """Labels candidate rows (subject, time, ordinal) and tells which rows have an answer at all."""

    needs_dates: bool
    title: str

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray: ...

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Named masks of the rows to keep."""
        ...


@dataclass(frozen=True, kw_only=True)
class CodeWithin:
    """A first ``codes`` event in the ``window_days`` that begin ``gap_days`` after the index.

    New onset only: rows with the code before the end of the gap are excluded, and so are rows
    whose window is not wholly observed, unless the subject died in it (then the label is false).
    """

    codes: Sequence[str]
    gap_days: int
    window_days: int
    needs_dates: bool = field(default=True, init=False)

    @property
    def title(self) -> str:
        return f"first code from day {self.gap_days + 1} to {self.gap_days + self.window_days}"

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        first, death = self._first(timeline, rows), timeline.death_S[rows["subject"]]
        start, stop = self._window(rows)
        return {
            "no outcome before the index": first > rows["time"].to_numpy(),
            f"no outcome in the gap of {self.gap_days} days": first > start,
            "alive at the end of the gap": death > start,
            "window observed to its end": (stop <= timeline.store.end) | (death <= stop),
        }

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        start, stop = self._window(rows)
        first = self._first(timeline, rows)
        return (first > start) & (first <= stop)

    def _first(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return timeline.nth(self.codes)[rows["subject"]]

    def _window(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        start = rows["time"].to_numpy() + self.gap_days * DAY_US
        return start, start + self.window_days * DAY_US


@dataclass(frozen=True, kw_only=True)
class CodeAtNextVisit:
    """A first ``codes`` event at the subject's next visit; needs order, not dates."""

    codes: Sequence[str]
    needs_dates: bool = field(default=False, init=False)
    title: str = field(default="first listing of a code at the next visit", init=False)

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        first = timeline.nth(self.codes)[rows["subject"]]
        return {
            "has a next visit": _next_visit(timeline, rows)["start"].notna().to_numpy(),
            "outcome not listed before": first > rows["time"].to_numpy(),
        }

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        place = timeline.events(self.codes)
        with_code = pd.DataFrame(
            {"subject": timeline.subject_E[place], "ordinal": timeline.visit_E[place]}
        ).drop_duplicates()
        wanted = pd.DataFrame({"subject": rows["subject"], "ordinal": rows["ordinal"] + 1})
        return wanted.merge(with_code, how="left", indicator="found")["found"].eq("both").to_numpy()


@dataclass(frozen=True, kw_only=True)
class VisitWithin:
    """A new visit of ``kinds`` that starts within ``window_days`` after the index."""

    kinds: Sequence[str]
    window_days: int
    needs_dates: bool = field(default=True, init=False)

    @property
    def title(self) -> str:
        return f"{' or '.join(self.kinds)} visit within {self.window_days} days"

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        time, death = rows["time"].to_numpy(), timeline.death_S[rows["subject"]]
        stop = time + self.window_days * DAY_US
        return {
            "discharged alive": death > time,
            "window observed to its end": (stop <= timeline.store.end) | (death <= stop),
        }

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        visits = timeline.visits[timeline.visits["kind"].isin(list(self.kinds))]
        later = pd.merge_asof(
            rows[["subject", "time"]].reset_index(drop=True).reset_index().sort_values("time"),
            visits[["subject", "start"]].sort_values("start"),
            left_on="time",
            right_on="start",
            by="subject",
            direction="forward",
            allow_exact_matches=False,
        ).sort_values("index")
        within = later["start"] - later["time"] <= self.window_days * DAY_US
        return within.to_numpy()


@dataclass(frozen=True, kw_only=True)
class LongStay:
    """The visit that the index comes just before lasts longer than ``days``."""

    days: float
    needs_dates: bool = field(default=False, init=False)

    @property
    def title(self) -> str:
        return f"stay longer than {self.days:g} days"

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        return {"length of stay known": ~np.isnan(self._stay(timeline, rows))}

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return self._stay(timeline, rows) > self.days

    def _stay(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        found = rows[["subject", "ordinal"]].merge(
            timeline.visits[["subject", "ordinal", "stay"]], how="left"
        )
        return found["stay"].to_numpy()


@dataclass(frozen=True, kw_only=True)
class EverCode:
    """Case or control: whether the subject ever has one of ``codes``.

    A case needs ``min_encounters`` distinct moments with the code, the first at least
    ``min_days_after`` days after the population code; subjects with less are excluded.
    """

    codes: Sequence[str]
    population: Sequence[str]
    min_encounters: int
    min_days_after: int
    needs_dates: bool = field(default=True, init=False)
    title: str = field(default="ever has the code (case or control)", init=False)

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        subject = rows["subject"].to_numpy()
        first = timeline.nth(self.codes)[subject]
        confirmed = timeline.nth(self.codes, n=self.min_encounters)[subject]
        population = timeline.nth(self.population)[subject]
        late_enough = first - np.minimum(population, first) >= self.min_days_after * DAY_US
        return {
            f"cases confirmed at {self.min_encounters} encounters": (first == NEVER)
            | (confirmed != NEVER),
            f"cases {self.min_days_after} days or more after the population code": (first == NEVER)
            | late_enough,
        }

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return timeline.nth(self.codes)[rows["subject"]] != NEVER


def _next_visit(timeline: Timeline, rows: pd.DataFrame) -> pd.DataFrame:
    wanted = pd.DataFrame({"subject": rows["subject"], "ordinal": rows["ordinal"] + 1})
    return wanted.merge(timeline.visits, how="left", on=["subject", "ordinal"])


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction task; every field is a line of its YAML.

    ``population`` codes must be present (at ``population_encounters`` distinct moments) and
    ``exclude`` codes absent at the index; ``seen_within_days`` asks for some event in that time
    before it. ``truth`` names the simulator's condition, where there is one. ``notes`` go into the
    report as what the design cannot show.
    """

    title: str
    index: IndexRule
    outcome: Outcome
    population: Sequence[str] = ()
    population_encounters: int = 1
    exclude: Sequence[str] = ()
    min_age: float | None = None
    seen_within_days: int | None = None
    truth: str | None = None
    notes: Sequence[str] = ()

    def build(self, store: Store) -> Cohort:
        """Candidates, exclusions one by one, labels. Raises InputError for an empty cohort."""
        if store.time != DATES and (self.index.needs_dates or self.outcome.needs_dates):
            raise InputError(
                f"task {self.title!r} needs dates, and this store knows only the order of visits; "
                "use an order task (dhf_next, prolonged_los) or labels that the source states "
                "(task=labels task.path=STORE/labels/NAME.parquet)"
            )
        timeline = Timeline(store)
        flow = [FlowStep("subjects in the store", len(store), 0)]
        rows = self.index.candidates(timeline).reset_index(drop=True)
        flow.append(FlowStep(self.index.title, rows["subject"].nunique(), len(rows)))
        for make in (self._eligible, self.outcome.exclusions):
            masks = make(timeline, rows)
            kept = np.ones(len(rows), bool)
            for step, mask in masks.items():
                kept &= np.asarray(mask)
                left = rows["subject"][kept]
                flow.append(FlowStep(step, left.nunique(), len(left)))
            rows = rows[kept].reset_index(drop=True)
        if not len(rows):
            steps = "; ".join(f"{s.step}: {s.n_rows}" for s in flow[1:])
            raise InputError(
                f"task {self.title!r}: the cohort is empty. Rows left by step: {steps}"
            )
        labels = self.outcome.label(timeline, rows)
        return Cohort(
            rows=rows["subject"].to_numpy(),
            prediction_time=rows["time"].to_numpy(),
            labels=np.asarray(labels, bool),
            flow=flow,
            task={"task": self.title, "index": self.index.title, "outcome": self.outcome.title},
        )

    def _eligible(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        subject, time = rows["subject"].to_numpy(), rows["time"].to_numpy()
        last = timeline.last_event_before(subject, time)
        masks = {"some history before the index": last != STATIC}
        if self.population:
            entered = timeline.nth(self.population, n=self.population_encounters)[subject]
            masks["population code by the index"] = entered <= time
        if self.exclude:
            masks["no excluding code by the index"] = timeline.nth(self.exclude)[subject] > time
        if self.min_age is not None:
            masks[f"age {self.min_age:g} or more"] = timeline.age(subject, time) >= self.min_age
        if self.seen_within_days is not None:
            recent = last >= time - self.seen_within_days * DAY_US
            masks[f"seen in the {self.seen_within_days} days before"] = recent
        return masks


@dataclass(frozen=True, kw_only=True)
class ExternalLabels:
    """Labels made elsewhere (ACES, an ATLAS cohort, the source itself): a Parquet file or folder
    of ``subject_id, prediction_time, boolean_value``; columns that are all null are ignored."""

    path: str
    title: str
    truth: str | None = None
    notes: Sequence[str] = ()

    def build(self, store: Store) -> Cohort:
        try:
            table = pq.read_table(self.path)
            labels = table.select(LABELS.names).cast(LABELS).to_pandas()
        except (OSError, KeyError, pa.ArrowInvalid, ValueError) as error:
            raise InputError(
                f"{self.path}: not a Parquet of labels with columns {LABELS.names}, none of them "
                f"null ({error})"
            ) from error
        labels = labels.drop_duplicates([SUBJECT_ID, PREDICTION_TIME])
        flow = [FlowStep("labels given", labels[SUBJECT_ID].nunique(), len(labels))]
        rows = store.rows_of(labels[SUBJECT_ID].to_numpy())
        labels, rows = labels[rows >= 0], rows[rows >= 0]
        flow.append(FlowStep("subjects in the store", labels[SUBJECT_ID].nunique(), len(labels)))
        if not len(labels):
            raise InputError(f"{self.path}: none of its subjects is in the store {store.folder}")
        times = labels[PREDICTION_TIME].to_numpy().astype("datetime64[us]").view(np.int64)
        return Cohort(
            rows=rows,
            prediction_time=times,
            labels=labels[BOOLEAN_VALUE].to_numpy(),
            flow=flow,
            task={"task": self.title, "index": "as given", "outcome": "as given"},
        )
