"""Several comparisons at once, and several trainings of one model.

``compare`` adjusts the p values of many paired differences; ``over_seeds`` keeps apart what another
seed and what other subjects would have changed; ``over_items`` draws both again, of models that
share their seeds, for any metric of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    expect,
    percentiles,
)
from medbert.evaluate.metrics import Array, Metric, auroc, check
from medbert.schema import InputError

_CHUNK = 4_000_000  # numbers held at once


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
    expect((name for pair in pairs for name in pair), models)
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


def over_items(
    counts: Mapping[str, ArrayLike],
    of: Callable[[Array], Array],
    clusters: ArrayLike,
    *,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
) -> Bootstrap:
    """Models trained with the same S seeds and judged on the same N items: ``counts`` of each are
    (S, N, K), and ``of`` makes metrics (...) of their sums (..., K), here called "metric".

    Items of a cluster are drawn whole, and seeds are drawn too, the same ones for every model. One
    seed fewer is drawn than there are: the spread of few seeds would else be understated by 1 / S.
    A model's metric is the mean over its seeds.
    """
    arrays = {name: np.asarray(values, np.float64) for name, values in counts.items()}
    place_N = np.unique(np.asarray(clusters), return_inverse=True)[1]
    n_clusters, n_seeds = int(place_N.max()) + 1, next(iter(arrays.values())).shape[0]
    summed = {}
    for name, counts_SNK in arrays.items():
        if counts_SNK.ndim != 3 or counts_SNK.shape[:2] != (n_seeds, place_N.size):
            raise InputError(f"{name}: other seeds or items than those of the other models")
        sums_USK = np.zeros((n_clusters, n_seeds, counts_SNK.shape[2]))
        np.add.at(sums_USK, place_N, counts_SNK.swapaxes(0, 1))
        summed[name] = sums_USK
    rng = np.random.default_rng(seed)
    chunks: dict[tuple[str, str], list[Array]] = {(name, "metric"): [] for name in arrays}
    for start in range(0, n, size := max(1, _CHUNK // n_clusters)):
        some = min(size, n - start)
        item_RU = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), some)
        drawn = max(n_seeds - 1, 1)
        seed_RS = rng.multinomial(drawn, np.full(n_seeds, 1 / n_seeds), some) / drawn
        for name, sums_USK in summed.items():
            metric_RS = of(np.tensordot(item_RU.astype(float), sums_USK, axes=1))
            chunks[name, "metric"].append((metric_RS * seed_RS).sum(axis=1))
    values = {(name, "metric"): float(of(arrays[name].sum(axis=1)).mean()) for name in arrays}
    samples = {key: np.concatenate(parts) for key, parts in chunks.items()}
    return Bootstrap(values, samples, n=n, dropped=0, level=level)
