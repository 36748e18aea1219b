"""The truth behind the records: the latent state, and the risk that it means at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from numpy import ndarray

from medbert.data.synthetic.conditions import (
    ANYONE,
    INDEX,
    LASTING,
    LIFE,
    OUTCOMES,
    PARAMETERS,
    Condition,
    Follows,
)
from medbert.data.synthetic.lives import Lives, factor, timestamps
from medbert.schema import DAY_US, DAYS_PER_YEAR, SUBJECT_ID, InputError

BLOCK = 20_000  # rows at a time, for memory


def truth_table(lives: Lives, *, first_subject: int) -> pa.Table:
    """One row per subject: its latent state, times as timestamp[us], null for never."""
    everyone = np.arange(len(lives.birth))

    def times(age: ndarray) -> pa.Array:
        never = ~np.isfinite(age)
        return timestamps(lives.minutes(everyone, np.where(never, 0.0, age)), missing=never)

    columns = {
        SUBJECT_ID: pa.array(everyone + first_subject),
        "sex": pa.array(np.where(lives.male, "M", "F")),
        "birth": times(np.zeros(len(everyone))),
        "entry": times(lives.entry),
        "exit": times(lives.leave),
        "death": times(lives.death),
        "frailty": pa.array(lives.frailty),
        "care": pa.array(lives.care),
    }
    columns |= {f"onset_{name}": times(lives.onset[INDEX[name]]) for name in LASTING}
    return pa.table(columns)


def true_risk(
    truth: pa.Table,
    *,
    subject_id: ndarray,
    prediction_time: ndarray,
    outcome: str,
    gap_days: float,
    window_days: float,
) -> ndarray:
    """Probability, given the latent state at t, of the outcome's record in (t + gap, t + gap + w].

    The state is age, sex, frailty, the conditions present and the beginning of the hidden stage,
    if it began by t. In the stage: the distribution of its length, given that it lasts yet; before
    it: the hazard of the stage, held at its value at t, against that distribution. Death and
    moving away compete, at rates held at t; rule-out codes are added. Zero once the outcome is
    there, after death and before birth. Subjects are not required to be free of the outcome
    through the gap: a task that excludes those who are not has slightly higher rates.

    The state is more than any record shows, and records depend on nothing else that moves the
    outcome, so no model can rank better: this is an upper bound, up to the rates held.

    Args:
        truth: of a Simulation.
        subject_id, prediction_time: one row each; datetime64.
        outcome: heart_failure or pancreatic_cancer.

    Raises:
        InputError: unknown outcome or subject.
    """
    return risk_of(truth, subject_id, prediction_time, outcome, gap_days, window_days, hidden=_seen)


Hidden = Callable[["State", Follows, ndarray, float, float], ndarray]
"""State at each of N rows, the stage, rates (N,) at which all ends, gap and window in years: to the
chance (N,) that the outcome sets in within the window."""


def risk_of(
    truth: pa.Table,
    subject_id: ndarray,
    prediction_time: ndarray,
    outcome: str,
    gap_days: float,
    window_days: float,
    *,
    hidden: Hidden,
) -> ndarray:
    """``true_risk``, by what is made of the hidden stage."""
    if outcome not in OUTCOMES:
        raise InputError(f"outcome={outcome!r}: the simulator knows {', '.join(OUTCOMES)}")
    ids = truth[SUBJECT_ID].to_numpy()
    rows = np.minimum(np.searchsorted(ids, subject_id), len(ids) - 1)
    if unknown := int(np.sum(ids[rows] != subject_id)):
        raise InputError(f"{unknown} rows have a subject_id that is not in the truth table")
    state = State(truth, rows, np.asarray(prediction_time, "datetime64[us]"))
    gap, window = gap_days / DAYS_PER_YEAR, window_days / DAYS_PER_YEAR
    end_rate = state.mortality() + LIFE.leaving_per_year
    risk = hidden(state, OUTCOMES[outcome], end_rate, gap, window)
    rate = sum(
        rate * (cause == ANYONE or state.since(cause) >= 0)
        for cause, rate in PARAMETERS.rule_out[outcome].items()
    )
    leaving = rate + end_rate
    ruled_out = rate / leaving * -np.expm1(-leaving * window) * np.exp(-end_rate * gap)
    risk += (1 - risk) * ruled_out
    over = (state.since(outcome) >= 0) | (state.age >= state.death) | (state.age < 0)
    return np.where(over, 0.0, risk)


def _seen(state: State, stage: Follows, end_rate: ndarray, gap: float, window: float) -> ndarray:
    since = state.since(stage.stage)
    staged = since >= 0
    risk = np.zeros(len(since))
    risk[staged] = within_stage(stage, since[staged], end_rate[staged], gap, window)
    hazard = state.hazard(LASTING[stage.stage])
    risk[~staged] = before_stage(stage, hazard[~staged], end_rate[~staged], gap, window)
    return risk


class State:
    """What is true of subjects at a time; ages in years."""

    def __init__(
        self, truth: pa.Table, rows: ndarray, time: ndarray, alike: Mapping[str, str] | None = None
    ) -> None:
        self._truth, self._rows, self._time, self._alike = truth, rows, time, alike or {}
        self._birth = truth["birth"].to_numpy()[rows]
        self.male = (truth["sex"].to_numpy() == "M")[rows]
        self._frailty = truth["frailty"].to_numpy()[rows]
        self.age = self.years(time)
        self.entry, self.death = (self._age_at(name) for name in ("entry", "death"))

    @property
    def care(self) -> ndarray:
        """The tendency to seek care; tables of before 2026-11-29 do not have it."""
        return self._truth["care"].to_numpy()[self._rows]

    def at(self, places: ndarray) -> State:
        """The state of some of the rows."""
        return State(self._truth, self._rows[places], self._time[places], self._alike)

    def blurred(self, alike: Mapping[str, str]) -> State:
        """As if a condition set in with the first of itself and of the other one, by name, whose
        codes look like its own."""
        return State(self._truth, self._rows, self._time, alike)

    def years(self, time: ndarray) -> ndarray:
        """Ages at a time of each row."""
        years = (time - self._birth) / np.timedelta64(1, "us") / (DAY_US * DAYS_PER_YEAR)
        return np.where(np.isnat(time), np.inf, years)

    def _age_at(self, name: str) -> ndarray:
        return self.years(self._truth[name].to_numpy()[self._rows])

    def onset(self, name: str) -> ndarray:
        """The age at which a cause, or the last of causes joined by +, sets in."""
        return np.max([self._first(part) for part in name.split("+")], axis=0)

    def _first(self, name: str) -> ndarray:
        age = self._age_at(f"onset_{name}")
        other = self._alike.get(name)
        return age if other is None else np.minimum(age, self._age_at(f"onset_{other}"))

    def since(self, name: str) -> ndarray:
        """Years since the onset; negative before."""
        return self.age - self.onset(name)

    def hazard(self, condition: Condition, age: ndarray | None = None) -> ndarray:
        """Events per person-year, (N,) or at ages of each row, (N, ...)."""
        age = self.age if age is None else age
        of_row = (-1, *[1] * (age.ndim - 1))
        ratio = factor(condition, self.male, self._frailty).reshape(of_row)
        for name, effect in condition.effects.items():
            ratio = np.where(self.onset(name).reshape(of_row) <= age, ratio * effect, ratio)
        band = np.searchsorted(LIFE.age_bands, age, side="right") - 1
        return ratio * (np.array(condition.per_1000)[np.maximum(band, 0)] / 1000)

    def mortality(self) -> ndarray:
        """Deaths per person-year; ``sudden`` deaths after a recent onset are left out."""
        rate = self.hazard(LIFE.mortality)
        for name, condition in LASTING.items():
            if condition.fatality:
                rate = rate + condition.fatality * (self.since(name) >= 0)
        return rate


def lasts(stage: Follows, years: ndarray) -> ndarray:
    """Probability that the hidden stage lasts longer than so many years."""
    from scipy.special import gammaincc

    return gammaincc(stage.shape, np.maximum(years - stage.minimum, 0) * stage.shape / stage.mean)


def within_stage(
    stage: Follows, since: ndarray, end_rate: ndarray, gap: float, window: float
) -> ndarray:
    edges = gap + window * np.linspace(0, 1, 25)
    still = lasts(stage, since[:, None] + edges) / lasts(stage, since)[:, None]
    alive = np.exp(-end_rate[:, None] * (edges[1:] + edges[:-1]) / 2)
    return (-np.diff(still, axis=1) * alive).sum(1)


def before_stage(
    stage: Follows, hazard: ndarray, end_rate: ndarray, gap: float, window: float
) -> ndarray:
    latest = gap + window - stage.minimum  # years until the stage must have begun
    risk = np.zeros(len(hazard))
    if latest <= 0:
        return risk
    begins = (np.arange(48) + 0.5) / 48 * latest
    edges = gap + window * np.linspace(0, 1, 49)
    overt = -np.diff(lasts(stage, edges - begins[:, None]), axis=1) * latest / 48
    middle = (edges[1:] + edges[:-1]) / 2
    for first in range(0, len(hazard), BLOCK):
        part = slice(first, first + BLOCK)
        rate = hazard[part, None]
        begun = rate * np.exp(-rate * begins)
        risk[part] = (begun @ overt * np.exp(-end_rate[part, None] * middle)).sum(1)
    return risk
