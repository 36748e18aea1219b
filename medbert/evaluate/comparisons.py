"""Several comparisons at once, and several trainings of one model.

``compare`` adjusts the p values of many paired differences; ``over_seeds`` keeps apart what another
seed and what other subjects would have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from medbert.evaluate.intervals import (
    Bootstrap,
    Difference,
    Interval,
    bootstrap,
    delong,
    percentiles,
)
from medbert.evaluate.metrics import Array, Metric, auroc, check
from medbert.schema import InputError


@dataclass(frozen=True, slots=True)
class Comparison:
    """``model`` minus ``minus`` in a metric; ``adjusted_p`` holds over all comparisons made."""

    model: str
    minus: str
    difference: Difference
    adjusted_p: float
    method: str


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """A metric over the trainings of one model that differ in their seed.

    ``sd``, ``low`` and ``high`` (least and most) are of ``values``, on the rows at hand;
    ``sampling`` is the interval of the mean over other subjects, with these trainings; ``total`` is
    that of the mean over both, NaN for a single training. ``value`` of both is the mean.
    """

    values: tuple[float, ...]
    sd: float
    low: float
    high: float
    sampling: Interval
    total: Interval


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p values (Holm 1979, Scand J Stat 6:65): the chance of any false finding is kept.

    NaN, a test that could not be made, stays NaN and is not counted.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    adjusted_M, known_M = np.full(p_M.shape, np.nan), np.flatnonzero(~np.isnan(p_M))
    order = known_M[np.argsort(p_M[known_M], kind="stable")]
    steps = p_M[order] * np.arange(order.size, 0, -1)
    adjusted_M[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted_M


def compare(
    labels: ArrayLike,
    models: Mapping[str, ArrayLike],
    subject_ids: ArrayLike,
    *,
    pairs: Sequence[tuple[str, str]],
    seed: int,
    metric: Metric = auroc,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[Comparison, ...]:
    """Paired differences, first minus second, with p values adjusted by Holm's method.

    AUROCs are compared by DeLong's test where each subject has one row; all else by paired
    bootstrap over subjects, whose p value is never below 2 / (n + 1): many comparisons need an
    ``n`` to match. Intervals are of one difference each, not adjusted.
    """
    for name in (name for pair in pairs for name in pair):
        if name not in models:
            raise InputError(f"model {name!r} is not among {', '.join(map(repr, models))}")
    ids_N = np.asarray(subject_ids)
    labels_N = check(labels, next(iter(models.values())))[0]
    single = len(np.unique(ids_N)) == labels_N.size
    enough = 2 <= labels_N.sum() <= labels_N.size - 2
    if metric is auroc and single and enough:
        method = "DeLong"
        found = [delong(labels, models[a], models[b], level=level) for a, b in pairs]
    else:
        method = "paired bootstrap over subjects"
        used = {name: models[name] for pair in pairs for name in pair}
        boot = bootstrap({"metric": metric}, labels, used, ids_N, seed=seed, n=n, level=level)
        found = [boot.difference(a, minus=b, metric="metric") for a, b in pairs]
    adjusted = holm([difference.p for difference in found])
    return tuple(
        Comparison(a, b, difference, float(p), method)
        for (a, b), difference, p in zip(pairs, found, adjusted, strict=True)
    )


def over_seeds(
    labels: ArrayLike,
    trainings: Sequence[ArrayLike],
    subject_ids: ArrayLike,
    *,
    seed: int,
    minus: Sequence[ArrayLike] = (),
    metric: Metric = auroc,
    n: int = 1000,
    level: float = 0.95,
) -> SeedSpread:
    """The mean of a metric over K trainings, with both kinds of error apart and together.

    Rule for ``total``: the variance of the mean over subjects (bootstrap, the same draws for every
    training) plus sd^2 / K, taken as independent; Student's t with the degrees of freedom of
    Satterthwaite (1946, Biometrics Bull 2:110), those of the bootstrap taken as without end.
    ``minus``: the trainings of another model on the same rows. All numbers are then of the
    difference of the two means; ``values`` and what is made of them are those of the first model,
    less the mean of the second, and both models' seeds count in ``total``.
    """
    first = {f"first {i}": values for i, values in enumerate(trainings)}
    second = {f"second {i}": values for i, values in enumerate(minus)}
    boot = bootstrap(
        {"metric": metric}, labels, {**first, **second}, subject_ids, seed=seed, n=n, level=level
    )
    values_K, samples_R = _mean(boot, list(first))
    spreads = [(values_K.size, _sd(values_K))]
    if second:
        others_K, others_R = _mean(boot, list(second))
        samples_R = samples_R - others_R
        values_K = values_K - others_K.mean()
        spreads.append((others_K.size, _sd(others_K)))
    mean = float(values_K.mean())
    known_R = samples_R[~np.isnan(samples_R)]
    variance = float(known_R.var(ddof=1)) if known_R.size > 1 else math.nan
    half = _half_width(variance, spreads, level=level)
    return SeedSpread(
        values=tuple(map(float, values_K)),
        sd=spreads[0][1],
        low=float(values_K.min()),
        high=float(values_K.max()),
        sampling=Interval(mean, *percentiles(known_R, level)),
        total=Interval(mean, mean - half, mean + half),
    )


def _mean(boot: Bootstrap, names: list[str]) -> tuple[Array, Array]:
    """The value of each training, and the mean of all in each resample."""
    values_K = np.array([boot.values[name, "metric"] for name in names])
    return values_K, np.mean([boot.samples[name, "metric"] for name in names], axis=0)


def _sd(values_K: Array) -> float:
    return float(values_K.std(ddof=1)) if values_K.size > 1 else math.nan


def _half_width(sampling: float, spreads: list[tuple[int, float]], *, level: float) -> float:
    """``spreads``: number of trainings and their sd, by model."""
    parts = [(sd**2 / k, k - 1) for k, sd in spreads]
    total = sampling + sum(part for part, _ in parts)
    lost = sum(part**2 / freedom for part, freedom in parts if freedom)
    freedom = total**2 / lost if lost else 1e9
    return float(stdtrit(freedom, (1 + level) / 2) * math.sqrt(total))
