"""Lives: the age at each onset, drawn from cumulative hazards that step up when a cause sets in.

Ages are years since birth, inf for never; clock times are whole minutes since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy import ndarray
from numpy.random import Generator

from medbert.data.synthetic.conditions import INDEX, LASTING, LIFE, Condition
from medbert.schema import DAY_US, DAYS_PER_YEAR

DAY_MIN = 1440
YEAR_MIN = DAYS_PER_YEAR * DAY_MIN
CHUNK = 20_000  # subjects simulated together, and in one shard
KNOTS = np.array([*LIFE.age_bands, LIFE.oldest])


class Lives(NamedTuple):
    """Arrays over n subjects; all but the first four are ages."""

    birth: ndarray  # days since 1970
    male: ndarray
    frailty: ndarray
    care: ndarray
    entry: ndarray
    leave: ndarray
    death: ndarray
    onset: ndarray  # (lasting conditions, n)

    @property
    def stop(self) -> ndarray:
        return np.minimum(self.death, self.leave)

    def minutes(self, who: ndarray, age: ndarray) -> ndarray:
        return self.birth[who] * DAY_MIN + np.rint(age * YEAR_MIN).astype(np.int64)


class Clock(NamedTuple):
    """Cumulative hazard along the age of n subjects, over segments of constant hazard ratio."""

    rates: ndarray  # cumulative rate at KNOTS
    ages: ndarray  # (segments + 1, n)
    base: ndarray  # (segments + 1, n) cumulative rate at ages
    ratio: ndarray  # (segments, n)
    total: ndarray  # (segments, n) cumulative hazard at the end of each segment

    def when(self, who: ndarray, hazard: ndarray) -> ndarray:
        """The ages at which subjects ``who`` reach a cumulative hazard."""
        total = self.total[:, who]
        segment = np.minimum((total < hazard).sum(0), len(total) - 1)
        before = np.where(segment > 0, total[segment - 1, np.arange(len(who))], 0.0)
        reached = self.base[segment, who] + (hazard - before) / self.ratio[segment, who]
        age = np.interp(reached, self.rates, KNOTS)
        return np.clip(age, self.ages[segment, who], self.ages[segment + 1, who])


def began(onset: ndarray, cause: str) -> ndarray:
    """The age at which a cause, or the last of causes joined by +, set in."""
    return np.max([onset[INDEX[part]] for part in cause.split("+")], axis=0)


def clock(
    condition: Condition, onset: ndarray, scale: ndarray, start: ndarray, stop: ndarray
) -> Clock:
    """The hazard of a condition from one age to another: ``scale`` times its rate and effects."""
    ratios = np.array([*condition.effects.values()])
    steps = np.array([began(onset, cause) for cause in condition.effects])
    steps = np.clip(steps.reshape(-1, len(start)), start, stop)
    order = np.argsort(steps, axis=0)
    ages = np.vstack([start, np.take_along_axis(steps, order, 0), stop])
    rates = _cumulative(condition.per_1000)
    base = np.interp(ages, KNOTS, rates)
    ratio = np.vstack([scale, scale * np.cumprod(ratios[order], axis=0)])
    return Clock(rates, ages, base, ratio, np.cumsum(ratio * np.diff(base, axis=0), axis=0))


def factor(condition: Condition, male: ndarray, frailty: ndarray) -> ndarray:
    """Ratio of a subject's hazard to the rate, by sex and frailty."""
    return np.where(male, condition.men, condition.women) * frailty**condition.frailty


def timestamps(minutes: ndarray, *, missing: ndarray | None = None) -> pa.Array:
    return pa.array(minutes * (DAY_US // DAY_MIN), pa.timestamp("us"), mask=missing)


def joined(parts: Iterable[Iterable[Any]]) -> Iterator[ndarray]:
    """The columns of all parts, end to end; a scalar stands for a whole column of its part."""
    columns = zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
    return (np.concatenate(column) for column in columns)


def draw(rng: Generator, n: int, window: Sequence[int]) -> Lives:
    """n subjects alive when their records begin.

    Args:
        window: days since 1970: the records' first and (exclusive) last, the first and last births.
    """
    lives = _candidates(rng, int(n * 1.4) + 50, window)
    alive = np.flatnonzero(lives.death > lives.entry)[:n]
    lives = Lives(*(column[..., alive] for column in lives))
    if len(alive) == n:
        return lives
    more = draw(rng, n - len(alive), window)
    return Lives(*(np.concatenate(pair, axis=-1) for pair in zip(lives, more, strict=True)))


def _candidates(rng: Generator, n: int, window: Sequence[int]) -> Lives:
    start, end, born_from, born_until = window
    birth = rng.integers(born_from, born_until, n, endpoint=True)
    male = rng.random(n) < LIFE.share_male
    spread = LIFE.frailty_spread
    frailty = np.exp(spread * rng.standard_normal(n) - spread**2 / 2)
    care = rng.gamma(LIFE.care_shape, 1 / LIFE.care_shape, n)
    entry = np.maximum(birth, start)
    late = rng.random(n) < LIFE.late_entry
    entry = np.where(late, (entry + rng.random(n) * (end - entry)).astype(np.int64), entry)
    entry = (entry - birth) / DAYS_PER_YEAR
    leave = entry + rng.exponential(1 / LIFE.leaving_per_year, n)
    leave = np.minimum(leave, (end - birth) / DAYS_PER_YEAR - 1 / YEAR_MIN)
    onset = _onsets(rng, male, frailty)
    death = _deaths(rng, male, frailty, onset)
    onset = np.where(onset <= death, onset, np.inf)
    return Lives(birth, male, frailty, care, entry, leave, death, onset)


def _onsets(rng: Generator, male: ndarray, frailty: ndarray) -> ndarray:
    onset = np.full((len(LASTING), len(male)), np.inf)
    oldest = np.full(len(male), LIFE.oldest)
    for place, condition in enumerate(LASTING.values()):
        if follows := condition.follows:
            stage = onset[INDEX[follows.stage]]
            who = np.flatnonzero(np.isfinite(stage))
            years = rng.gamma(follows.shape, follows.mean / follows.shape, len(who))
            onset[place, who] = stage[who] + follows.minimum + years
            continue
        start = onset[INDEX[condition.needs]] if condition.needs else np.zeros(len(male))
        ratio = factor(condition, male, frailty)
        hazards = clock(condition, onset, ratio, np.minimum(start, oldest), oldest)
        hazard = rng.standard_exponential(len(male))
        who = np.flatnonzero(hazard < hazards.total[-1])
        onset[place, who] = hazards.when(who, hazard[who])
    return onset


def _deaths(rng: Generator, male: ndarray, frailty: ndarray, onset: ndarray) -> ndarray:
    """The first of death at large and the added deaths of each condition."""
    hazard = rng.standard_exponential(len(male)) / factor(LIFE.mortality, male, frailty)
    death = np.interp(hazard, _cumulative(LIFE.mortality.per_1000), KNOTS)
    for begins, condition in zip(onset, LASTING.values(), strict=True):
        who = np.flatnonzero(np.isfinite(begins))
        wait = np.full(len(who), np.inf)
        if condition.fatality:
            wait = rng.exponential(1 / condition.fatality, len(who))
        if condition.sudden:
            soon = rng.random(len(who)) < condition.sudden
            wait[soon] = np.minimum(wait[soon], rng.random(soon.sum()) / 12)
        death[who] = np.minimum(death[who], begins[who] + wait)
    return death


def _cumulative(per_1000: Sequence[float]) -> ndarray:
    return np.cumsum([0.0, *(np.array(per_1000) / 1000 * np.diff(KNOTS))])
