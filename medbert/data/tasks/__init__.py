"""A task turns a store into labels: who, when, and whether the outcome follows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medbert.data.splits import mixed
from medbert.data.store import Store
from medbert.data.tasks.cohorts import Cohort, FlowStep, IndexRule, Timeline
from medbert.data.tasks.conditions import Condition, Has
from medbert.data.tasks.outcomes import NewPhenotypes, Outcome
from medbert.schema import (
    BOOLEAN_VALUE,
    DATES,
    DAY_US,
    LABELS,
    PREDICTION_TIME,
    SEX,
    STATIC,
    SUBJECT_ID,
    InputError,
)

log = logging.getLogger(__name__)

_NUMBERS = ("integer_value", "float_value")  # of the MEDS label schema


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction task; every field is a line of its YAML.

    Args:
        population: codes that must be present by the index, at ``population_encounters`` distinct
            moments.
        exclude: codes that must be absent by then.
        min_age, max_age: in years at the index; the first is included, the second is not.
        sex: ``F`` or ``M``; others and unknown ones are then left out.
        seen_within_days: asks for some event in that time before the index.
        min_history_days: asks that the first event lies at least so long before it (enrolment).
        where: conditions at the index, each by the name that the flow gives it.
        controls: of the rows without the outcome so many stay for each one with it, drawn from all
            of them alike: for rare outcomes, where labels of all would say little more. AUROC stays
            what it is; risks, precision and net benefit are those of the rows that stay.
        delays: pattern -> days until such an event is known (see ``Timeline.as_known``): index
            dates and eligibility go by what is known, outcomes by what has happened.
        truth: the simulator's condition, where there is one.
        notes: go into the report as what the design cannot show.
    """

    title: str
    index: IndexRule
    outcome: Outcome
    population: Sequence[str] = ()
    population_encounters: int = 1
    exclude: Sequence[str] = ()
    min_age: float | None = None
    max_age: float | None = None
    sex: str | None = None
    seen_within_days: int | None = None
    min_history_days: int | None = None
    where: Mapping[str, Condition] = field(default_factory=dict)
    controls: float | None = None
    delays: Mapping[str, float] = field(default_factory=dict)
    truth: str | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sex not in (None, "F", "M"):
            raise InputError(f"task {self.title!r}: sex={self.sex}: use F, M or null")
        if self.controls is not None and not self.controls > 0:
            raise InputError(f"task {self.title!r}: controls={self.controls}: more than 0, or null")

    def build(self, store: Store) -> Cohort:
        """Candidates, exclusions one by one, labels. Raises InputError for an empty cohort."""
        return self._labelled(self.outcome, *self._enrolled(store))

    def expand(self, store: Store) -> dict[str, Cohort]:
        """A cohort of every outcome, by its name: several for ``NewPhenotypes``, else one by the
        task's title. Outcomes without any row are left out; raises InputError if all are."""
        if not isinstance(self.outcome, NewPhenotypes):
            return {self.title: self.build(store)}
        enrolled = self._enrolled(store)
        found, empty = {}, []
        for name, outcome in self.outcome.each().items():
            try:
                found[name] = self._labelled(outcome, *enrolled)
            except InputError as error:
                log.warning("left out: %s: %s", name, error)
                empty.append(error)
        if not found:
            raise empty[-1]
        return found

    def _check_dates(self, store: Store) -> None:
        days = self.seen_within_days, self.min_history_days, *self.delays.values()
        parts: list[Any] = [self.index, self.outcome, *self.where.values()]
        dated = any(day is not None for day in days) or any(part.needs_dates for part in parts)
        if store.time != DATES and dated:
            raise InputError(
                f"task {self.title!r} needs dates, and this store knows only the order of visits; "
                "use an order task (dhf_next, prolonged_los) or labels that the source states "
                "(task=labels task.path=STORE/labels/NAME.parquet)"
            )

    def _enrolled(self, store: Store) -> tuple[Timeline, pd.DataFrame, list[FlowStep]]:
        """The candidates that are eligible by what is known at the index."""
        self._check_dates(store)
        timeline = Timeline(store)
        known = timeline.as_known(self.delays)
        rows = self.index.candidates(known).reset_index(drop=True)
        flow = [
            FlowStep("subjects in the store", len(store), 0),
            FlowStep(self.index.title, rows["subject"].nunique(), len(rows)),
        ]
        return timeline, *_kept(rows, self._eligible(known, rows), flow)

    def _labelled(
        self, outcome: Outcome, timeline: Timeline, rows: pd.DataFrame, flow: list[FlowStep]
    ) -> Cohort:
        rows, flow = _kept(rows, outcome.exclusions(timeline, rows), flow)
        if not len(rows):
            steps = "; ".join(f"{s.step}: {s.n_rows}" for s in flow[1:])
            raise InputError(
                f"task {self.title!r}: the cohort is empty. Rows left by step: {steps}"
            )
        labels = np.asarray(outcome.label(timeline, rows), bool)
        if self.controls is not None:
            kept = self._drawn(timeline.store, rows, labels)
            step = f"with the outcome, and {self.controls:g} others for each"
            rows, flow = _kept(rows, {step: kept}, flow)
            labels = labels[kept]
        about = {"task": self.title, "index": self.index.title, "outcome": outcome.title}
        if self.delays:
            days = "; ".join(f"{pattern} after {d:g} days" for pattern, d in self.delays.items())
            about["known"] = f"{days} (populations and exclusions, not the inputs of models)"
        return Cohort(
            rows=rows["subject"].to_numpy(),
            prediction_time=rows["time"].to_numpy(),
            labels=labels,
            flow=flow,
            task=about,
        )

    def _drawn(self, store: Store, rows: pd.DataFrame, labels: np.ndarray) -> np.ndarray:
        """Mask of the rows with the outcome and of as many others as ``controls`` asks for."""
        subject, time = store.subject_ids[rows["subject"]], rows["time"].to_numpy()
        hash_N = mixed(mixed(subject.astype("u8")) ^ time.astype("u8"))
        others = np.flatnonzero(~labels)
        n = round((self.controls or 0) * labels.sum())
        kept = labels.copy()
        kept[others[np.argsort(hash_N[others], kind="stable")[:n]]] = True
        return kept

    def _eligible(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        subject, time = rows["subject"].to_numpy(), rows["time"].to_numpy()
        last, age = timeline.last_event_before(subject, time), timeline.age(subject, time)
        masks = {"some history before the index": last != STATIC}
        if self.population:
            entered = Has(codes=self.population, times=self.population_encounters)
            masks["population code by the index"] = entered.holds(timeline, rows)
        if self.exclude:
            excluded = Has(codes=self.exclude).holds(timeline, rows)
            masks["no excluding code by the index"] = ~excluded
        if self.min_age is not None:
            masks[f"age {self.min_age:g} or more"] = age >= self.min_age
        if self.max_age is not None:
            masks[f"younger than {self.max_age:g}"] = age < self.max_age
        if self.sex is not None:
            masks[f"sex {self.sex}"] = Has(codes=[f"{SEX}//{self.sex}"]).holds(timeline, rows)
        if self.seen_within_days is not None:
            recent = last >= time - self.seen_within_days * DAY_US
            masks[f"seen in the {self.seen_within_days} days before"] = recent
        if self.min_history_days is not None:
            begun = timeline.first_event()[subject] <= time - self.min_history_days * DAY_US
            masks[f"first event {self.min_history_days} days before or earlier"] = begun
        masks |= {name: each.holds(timeline, rows) for name, each in self.where.items()}
        return masks


def _kept(
    rows: pd.DataFrame, masks: Mapping[str, np.ndarray], flow: Sequence[FlowStep]
) -> tuple[pd.DataFrame, list[FlowStep]]:
    """The rows in every mask, and the flow with a step for each."""
    kept, steps = np.ones(len(rows), bool), list(flow)
    for step, mask in masks.items():
        kept &= np.asarray(mask)
        left = rows["subject"][kept]
        steps.append(FlowStep(step, left.nunique(), len(left)))
    return rows[kept].reset_index(drop=True), steps


@dataclass(frozen=True, kw_only=True)
class ExternalLabels:
    """Labels made elsewhere (ACES, an ATLAS cohort, the source itself) in the MEDS label schema.

    Rows without a label, repeated ones, and all of those that contradict each other are left out
    and counted in the flow. Columns that are all null are taken for absent, as ACES writes them.

    Args:
        path: a Parquet file, or a folder of them, of ``subject_id``, ``prediction_time`` and
            ``boolean_value``; or ``integer_value`` or ``float_value`` with a threshold.
        threshold: the label is true where the number is at least this.
    """

    path: str
    title: str
    threshold: float | None = None
    truth: str | None = None
    notes: Sequence[str] = ()

    def build(self, store: Store) -> Cohort:
        labels = self._read()
        flow: list[FlowStep] = []

        def keep(step: str, where: Callable[[pd.DataFrame], Any]) -> None:
            nonlocal labels
            labels = labels[where(labels)]
            flow.append(FlowStep(step, labels[SUBJECT_ID].nunique(), len(labels)))

        key = [SUBJECT_ID, PREDICTION_TIME]
        keep("labels given", lambda rows: rows[SUBJECT_ID].notna())
        keep("with a value", lambda rows: rows[BOOLEAN_VALUE].notna())
        keep("one row a subject and time", lambda rows: ~rows.duplicated([*key, BOOLEAN_VALUE]))
        keep("not contradicted", lambda rows: ~rows.duplicated(key, keep=False))
        keep("subjects in the store", lambda rows: store.rows_of(rows[SUBJECT_ID].to_numpy()) >= 0)
        if not len(labels):
            steps = "; ".join(f"{step.step}: {step.n_rows}" for step in flow)
            raise InputError(
                f"{self.path}: no label is left for the store {store.folder}. Rows left by step: "
                f"{steps}"
            )
        times = labels[PREDICTION_TIME].to_numpy().astype("datetime64[us]").view(np.int64)
        return Cohort(
            rows=store.rows_of(labels[SUBJECT_ID].to_numpy()),
            prediction_time=times,
            labels=labels[BOOLEAN_VALUE].to_numpy(bool),
            flow=flow,
            task={"task": self.title, "index": "as given", "outcome": "as given"},
        )

    def _read(self) -> pd.DataFrame:
        """The keys, and the label, null where there is none."""
        path, value = Path(self.path), pa.field(BOOLEAN_VALUE, pa.bool_())
        schema = pa.schema([LABELS.field(SUBJECT_ID), LABELS.field(PREDICTION_TIME), value])
        try:
            files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            table = _joined([pq.read_table(file) for file in files])
            if self.threshold is not None:
                table = table.append_column(value, self._above(table))
            return table.select(schema.names).cast(schema).to_pandas()
        except InputError:
            raise
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{self.path}: not a Parquet of labels with columns {LABELS.names}, the first two "
                f"without nulls, or with numbers and task.threshold ({error})"
            ) from error

    def _above(self, table: pa.Table) -> pa.Array:
        numbers = [name for name in _NUMBERS if name in table.column_names]
        if len(numbers) != 1 or BOOLEAN_VALUE in table.column_names:
            raise InputError(
                f"{self.path}: threshold={self.threshold} asks for values in one of the columns "
                f"{', '.join(_NUMBERS)} and none in {BOOLEAN_VALUE}; it has {table.column_names}"
            )
        return pc.greater_equal(table[numbers[0]].cast(pa.float64()), self.threshold)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows; a column that is all null everywhere is left out, as is a file without rows."""
    some = [table for table in tables if len(table)] or list(tables[:1])
    joined = pa.concat_tables(some, promote_options="permissive")
    empty = [name for name in joined.column_names if 0 < len(joined) == joined[name].null_count]
    return joined.drop_columns(empty)
