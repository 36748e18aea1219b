"""Outcomes: whether what is predicted follows, and which rows have an answer at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from medbert.data.tasks.cohorts import NEVER, Timeline
from medbert.data.tasks.conditions import Condition, Has
from medbert.schema import DAY_US, InputError

_FOLLOW_UP = ("end_of_data", "last_event")


class Outcome(Protocol):
    """Labels candidate rows (subject, time, ordinal) and tells which rows have an answer at all."""

    @property
    def needs_dates(self) -> bool: ...

    @property
    def title(self) -> str: ...

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray: ...

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Named masks of the rows to keep."""
        ...


@dataclass(frozen=True, kw_only=True)
class CodeWithin:
    """One of ``codes`` in the ``window_days`` that begin ``gap_days`` after the index.

    New onset only: rows with the code before the end of the gap are excluded (of those before the
    index only the last ``washout_days``; null: all of them, 0: none). Rows whose window is not
    wholly observed are excluded too, unless the subject died in it (then the label is false).

    Args:
        min_value, max_value: of the event, both included: a laboratory result as an outcome.
        follow_up: how far subjects are observed. ``end_of_data``: all of them to the last event of
            the store, as in a register. ``last_event``: each to its own last event; a row whose
            window goes on after it stays only if the outcome or death came. Who is seen again then
            decides who counts, and outcomes are over-represented where many are lost.
        confirm: must hold around the outcome (its time is the time of the condition), with what
            follows the outcome too; rows whose outcome lacks it are excluded, as neither case nor
            control.
    """

    codes: Sequence[str]
    gap_days: int
    window_days: int
    washout_days: int | None = None
    min_value: float | None = None
    max_value: float | None = None
    follow_up: str = "end_of_data"
    confirm: Condition | None = None
    needs_dates: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.follow_up not in _FOLLOW_UP or self.window_days <= 0 or self.gap_days < 0:
            raise InputError(
                f"outcome: follow_up={self.follow_up} gap_days={self.gap_days} "
                f"window_days={self.window_days}: follow_up is one of {', '.join(_FOLLOW_UP)}, "
                "the gap is not negative and the window more than 0 days"
            )

    @property
    def title(self) -> str:
        first = "first code" if self.washout_days is None else "code"
        return f"{first} from day {self.gap_days + 1} to {self.gap_days + self.window_days}"

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        death, masks = timeline.death_S[rows["subject"]], {}
        start = rows["time"].to_numpy() + self.gap_days * DAY_US
        stop = start + self.window_days * DAY_US
        if self.washout_days != 0:
            since, when = None, "before"
            if self.washout_days is not None:
                since, when = -self.washout_days, f"in the {self.washout_days} days before"
            masks[f"no outcome {when} the index"] = ~self._has(since, 0).holds(timeline, rows)
            if self.gap_days:
                gap = self._has(0, self.gap_days).holds(timeline, rows)
                masks[f"no outcome in the gap of {self.gap_days} days"] = ~gap
        masks["alive at the end of the gap"] = death > start
        if self.follow_up == "last_event":
            last = timeline.last_event()[rows["subject"]]
            observed = (stop <= last) | (death <= stop) | self.label(timeline, rows)
            masks["followed to the end of the window, the outcome or death"] = observed
        else:
            observed = (stop <= timeline.store.end) | (death <= stop)
            masks["window observed to its end"] = observed
        if self.confirm is not None:
            first = self._in_window().first(timeline, rows)
            masks["outcome confirmed"] = _confirmed(self.confirm, timeline, rows, first)
        return masks

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return self._in_window().holds(timeline, rows)

    def _in_window(self) -> Has:
        return self._has(self.gap_days, self.gap_days + self.window_days)

    def _has(self, from_days: int | None, to_days: int) -> Has:
        return Has(
            codes=self.codes,
            from_days=from_days,
            to_days=to_days,
            min_value=self.min_value,
            max_value=self.max_value,
        )


def _confirmed(
    condition: Condition, timeline: Timeline, rows: pd.DataFrame, outcome: np.ndarray
) -> np.ndarray:
    """Mask of the rows without an outcome (NEVER), or with the condition at its time."""
    mask = outcome == NEVER
    cases = rows[~mask].assign(time=outcome[~mask])
    mask[~mask] = condition.holds(timeline, cases)
    return mask


@dataclass(frozen=True, kw_only=True)
class NewPhenotypes:
    """Several outcomes of one design: for each of ``groups`` (name -> codes) a ``CodeWithin``.

    Subjects who have a phenotype already are out of its rows alone. ``Task.expand`` makes a cohort
    of every group; ``Task.build`` of the one named by ``only``.
    """

    groups: Mapping[str, Sequence[str]]
    gap_days: int
    window_days: int
    washout_days: int | None = None
    follow_up: str = "end_of_data"
    only: str | None = None
    needs_dates: bool = field(default=True, init=False)

    @property
    def title(self) -> str:
        return f"{self.only}: {self._one().title}"

    def each(self) -> dict[str, CodeWithin]:
        """The outcomes by name."""
        shared = ("gap_days", "window_days", "washout_days", "follow_up")
        design: dict[str, Any] = {name: getattr(self, name) for name in shared}
        return {name: CodeWithin(codes=codes, **design) for name, codes in self.groups.items()}

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        return self._one().exclusions(timeline, rows)

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return self._one().label(timeline, rows)

    def _one(self) -> CodeWithin:
        outcomes = self.each()
        if self.only not in outcomes:
            raise InputError(
                f"task.outcome.only={self.only}: this task has several outcomes, and one is needed "
                f"here: {', '.join(outcomes)}"
            )
        return outcomes[self.only]


@dataclass(frozen=True, kw_only=True)
class CodeInVisit:
    """One of ``codes`` between the index and the end of the visit that the index lies in.

    ``slack_days``: how long after the end a code still counts (a death that is dated by day).
    """

    codes: Sequence[str]
    slack_days: float = 0
    needs_dates: bool = field(default=True, init=False)
    title: str = field(default="code before the end of the visit", init=False)

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        visit, time = _visit(timeline, rows), rows["time"].to_numpy()
        found = Has(codes=self.codes).occurrences(timeline)
        subject = rows["subject"].to_numpy()
        first, stop = found.between(subject, visit["start"].to_numpy(), time + 1)
        return {
            "end of the visit known": visit["ended"].eq(True).to_numpy(),
            "alive at the index": timeline.death_S[rows["subject"]] > time,
            "no outcome in the visit by the index": first == stop,
        }

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        end = _visit(timeline, rows)["end"].to_numpy() + round(self.slack_days * DAY_US)
        return Has(codes=self.codes, from_days=0, to_days=None).first(timeline, rows) <= end


@dataclass(frozen=True, kw_only=True)
class CodeAtNextVisit:
    """A first ``codes`` event at the subject's next visit; needs order, not dates."""

    codes: Sequence[str]
    needs_dates: bool = field(default=False, init=False)
    title: str = field(default="first listing of a code at the next visit", init=False)

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        first = timeline.nth(self.codes)[rows["subject"]]
        return {
            "has a next visit": _visit(timeline, rows, later=1)["start"].notna().to_numpy(),
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
        return {"length of stay known": _visit(timeline, rows)["stay"].notna().to_numpy()}

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return (_visit(timeline, rows)["stay"] > self.days).to_numpy()


@dataclass(frozen=True, kw_only=True)
class EverCode:
    """Case or control: whether the subject ever has one of ``codes``.

    A case needs ``min_encounters`` distinct moments with the code, the first at least
    ``min_days_after`` days after the population code, and what ``confirm`` asks for around the
    first; subjects with less are excluded.
    """

    codes: Sequence[str]
    population: Sequence[str]
    min_encounters: int
    min_days_after: int
    confirm: Condition | None = None
    needs_dates: bool = field(default=True, init=False)
    title: str = field(default="ever has the code (case or control)", init=False)

    def exclusions(self, timeline: Timeline, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        subject = rows["subject"].to_numpy()
        first = timeline.nth(self.codes)[subject]
        confirmed = timeline.nth(self.codes, n=self.min_encounters)[subject]
        population = timeline.nth(self.population)[subject]
        late_enough = first - np.minimum(population, first) >= self.min_days_after * DAY_US
        control, after = first == NEVER, f"{self.min_days_after} days or more after"
        masks = {
            f"cases confirmed at {self.min_encounters} encounters": control | (confirmed != NEVER),
            f"cases {after} the population code": control | late_enough,
        }
        if self.confirm is not None:
            confirmed = _confirmed(self.confirm, timeline, rows, first)
            masks["cases confirmed by what surrounds them"] = confirmed
        return masks

    def label(self, timeline: Timeline, rows: pd.DataFrame) -> np.ndarray:
        return timeline.nth(self.codes)[rows["subject"]] != NEVER


def _visit(timeline: Timeline, rows: pd.DataFrame, *, later: int = 0) -> pd.DataFrame:
    """The visit of each row, or that many later; null where there is none."""
    wanted = pd.DataFrame({"subject": rows["subject"], "ordinal": rows["ordinal"] + later})
    return wanted.merge(timeline.visits, how="left", on=["subject", "ordinal"])
