"""What pretraining is worth in labels: curves over nested subsets, label multiples, crossings.

Curves go through the mean AUROC over draws, made to rise (pool adjacent violators), and are read
between sizes on a straight line over log(labels). Resampling takes the draws, one draw being one
chain of nested subsets that all models share, and the held-out subjects where predictions are
given. Suffixes: K sizes, L lines of the table, R resamples, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbert.evaluate.intervals import Interval, bootstrap, expect, percentiles
from medbert.evaluate.metrics import Array, auroc
from medbert.schema import InputError

COLUMNS = ("model", "labels", "draw", "auroc")


@dataclass(frozen=True)
class Curve:
    """AUROC of one model by number of labels: mean over draws, its interval, and every draw."""

    sizes: Array
    mean: Array
    low: Array
    high: Array
    points: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """A number of labels, with its interval, that was looked for between two sizes.

    Infinite: more than ``largest``, not reached. Equal to ``smallest``: that or fewer.
    """

    value: float
    low: float
    high: float
    smallest: int
    largest: int

    def __str__(self) -> str:
        low, high = self._said(self.low), self._said(self.high)
        return f"{self._said(self.value)} (interval {low} to {high})"

    def _said(self, labels: float) -> str:
        if math.isinf(labels):
            return f"more than {self.largest:,}"
        if labels <= self.smallest:
            return f"at most {self.smallest:,}"
        return f"{round(labels, 1 - math.floor(math.log10(labels))):,.0f}"


@dataclass(frozen=True, slots=True)
class LabelMultiple:
    """``at`` labels of ``model`` give ``auroc``; ``needed``: what ``over`` needs for the same."""

    model: str
    over: str
    at: int
    auroc: float
    needed: Labels

    @property
    def multiple(self) -> tuple[float, float, float]:
        """As good as so many times the labels: value, low, high; infinite where not reached.

        The lower bound of what is not reached is ``needed.largest / at``.
        """
        return self.needed.value / self.at, self.needed.low / self.at, self.needed.high / self.at


@dataclass(frozen=True, slots=True)
class Crossing:
    """The size from which ``model`` is ahead of ``over`` up to the largest; infinite: never.

    ``share`` of the resamples in which it is ahead at the largest size.
    """

    model: str
    over: str
    labels: Labels
    share: float


@dataclass(frozen=True)
class Lead:
    """AUROC of ``model`` minus that of ``over`` by number of labels, paired by draw and subject.

    ``whole``: its mean over the logarithm of the labels.
    """

    model: str
    over: str
    by_size: dict[int, Interval]
    whole: Interval


@dataclass(frozen=True)
class Efficiency:
    """``curves`` by model, and ``samples``: the means of each size, resampled, (R, K)."""

    curves: dict[str, Curve]
    samples: dict[str, Array] = field(repr=False)
    level: float

    def multiple(self, model: str, *, over: str, at: int) -> LabelMultiple:
        """By how much the labels of ``over`` must grow to reach ``model`` at ``at`` labels."""
        sizes_K, others_K = self._sizes(model), self._sizes(over)
        if not sizes_K[0] <= at <= sizes_K[-1]:
            raise InputError(
                f"{model!r} was trained with {sizes_K[0]:,.0f} to {sizes_K[-1]:,.0f} labels: "
                f"{at:,} is outside"
            )
        # the first line is the estimate, the others are resamples
        target_R = _read(sizes_K, _rising(self._lines(model)), np.array([float(at)]))[:, 0]
        needed_R = _first_reached(others_K, _rising(self._lines(over)), target_R)
        needed = self._answer(needed_R, others_K)
        return LabelMultiple(model, over, at, float(target_R[0]), needed)

    def lead(self, model: str, *, over: str) -> Lead:
        """At the sizes that both were trained with, and over all of them."""
        sizes_K, mine_K, others_K = np.intersect1d(
            self._sizes(model), self._sizes(over), return_indices=True
        )
        if not sizes_K.size:
            raise InputError(f"{model!r} and {over!r} have no number of labels in common")
        ahead_RK = self._lines(model)[:, mine_K] - self._lines(over)[:, others_K]
        steps = np.diff(np.log(sizes_K))
        share_K = np.convolve(steps, [0.5, 0.5]) if steps.size else np.ones(1)

        def interval(ahead_R: Array) -> Interval:
            return Interval(float(ahead_R[0]), *percentiles(ahead_R[1:], self.level))

        by_size = dict(zip(map(int, sizes_K), map(interval, ahead_RK.T), strict=True))
        return Lead(model, over, by_size, interval(ahead_RK @ (share_K / share_K.sum())))

    def crossing(self, model: str, *, over: str) -> Crossing:
        """Where ``model`` overtakes ``over``, over the sizes that both were trained with."""
        sizes_K, others_K = self._sizes(model), self._sizes(over)
        first, last = max(sizes_K[0], others_K[0]), min(sizes_K[-1], others_K[-1])
        grid = np.union1d(sizes_K, others_K)
        grid = grid[(grid >= first) & (grid <= last)]
        if not grid.size:
            raise InputError(f"{model!r} and {over!r} have no range of labels in common")
        ahead_RK = _read(sizes_K, _rising(self._lines(model)), grid)
        ahead_RK -= _read(others_K, _rising(self._lines(over)), grid)
        crossed_R = np.array([_last_crossing(grid, ahead_K) for ahead_K in ahead_RK])
        labels = self._answer(crossed_R, grid)
        return Crossing(model, over, labels, float(np.isfinite(crossed_R[1:]).mean()))

    def _sizes(self, model: str) -> Array:
        expect([model], self.curves)
        return self.curves[model].sizes

    def _lines(self, model: str) -> Array:
        return np.vstack([self.curves[model].mean, self.samples[model]])

    def _answer(self, labels_R: Array, sizes_K: Array) -> Labels:
        # by order statistics: what is infinite cannot be interpolated
        ends = [(1 - self.level) / 2, (1 + self.level) / 2]
        low, high = np.quantile(labels_R[1:], ends, method="inverted_cdf")
        smallest, largest = int(sizes_K[0]), int(sizes_K[-1])
        return Labels(float(labels_R[0]), float(low), float(high), smallest, largest)


def efficiency(
    table: pd.DataFrame,
    *,
    seed: int,
    samples: ArrayLike | None = None,
    n: int = 1000,
    level: float = 0.95,
) -> Efficiency:
    """Curves from a table with a line per training: ``model``, ``labels``, ``draw``, ``auroc``.

    ``samples`` (L, R): AUROC of each line in R resamples of the held-out subjects, as ``score``
    makes them; without, intervals are over draws alone. Bootstrapped means over k draws are spread
    out by sqrt(k / (k - 1)), which a plain bootstrap of so few is short of. A size with one draw
    adds nothing to the spread.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing or table.empty:
        raise InputError(f"the table of trainings lacks {', '.join(missing) or 'lines'}")
    twice = table.duplicated(["model", "labels", "draw"])
    if twice.any() or table[list(COLUMNS)].isna().any(axis=None) or (table["labels"] < 1).any():
        raise InputError("expected one line per model, labels (1 or more) and draw, without gaps")
    value_L = table["auroc"].to_numpy(np.float64)
    sample_LR = np.tile(value_L[:, None], n) if samples is None else np.asarray(samples)
    if len(sample_LR) != len(table):
        raise InputError(f"samples of {len(sample_LR)} lines for a table of {len(table)}")
    draw_L, names = pd.factorize(table["draw"])
    draws, rng = len(names), np.random.default_rng(seed)
    times_DR = rng.multinomial(draws, np.full(draws, 1 / draws), size=sample_LR.shape[1]).T
    size_L, model_L = table["labels"].to_numpy(np.float64), table["model"].astype(str).to_numpy()
    curves, resampled = {}, {}
    for model in dict.fromkeys(model_L):
        sizes_K = np.unique(size_L[model_L == model])
        cells = [np.flatnonzero((model_L == model) & (size_L == size)) for size in sizes_K]
        means = [_resampled_mean(sample_LR[cell], times_DR[draw_L[cell]]) for cell in cells]
        resampled[model] = np.column_stack(means)
        bounds = np.array([percentiles(mean_R, level) for mean_R in means])
        mean_K = np.array([value_L[cell].mean() for cell in cells])
        points = tuple(tuple(value_L[cell].tolist()) for cell in cells)
        curves[model] = Curve(sizes_K, mean_K, bounds[:, 0], bounds[:, 1], points)
    return Efficiency(curves, resampled, level)


def score(
    labels: ArrayLike,
    predictions: Mapping[tuple[str, int, int], ArrayLike],
    subject_ids: ArrayLike,
    *,
    seed: int,
    n: int = 1000,
) -> tuple[pd.DataFrame, Array]:
    """The table and the samples for ``efficiency``, from predictions on the same held-out rows.

    Keys are (model, labels, draw).
    """
    named = {str(index): values for index, values in enumerate(predictions.values())}
    boot = bootstrap({"auroc": auroc}, labels, named, subject_ids, seed=seed, n=n)
    lines = [(*key, boot.values[i, "auroc"]) for key, i in zip(predictions, named, strict=True)]
    samples = np.stack([boot.samples[name, "auroc"] for name in named])
    return pd.DataFrame(lines, columns=list(COLUMNS)), samples


def _resampled_mean(sample_kR: Array, times_kR: np.ndarray) -> Array:
    """Mean over the draws of one cell in each resample; all of them where none was drawn."""
    k, all_R = len(sample_kR), sample_kR.mean(axis=0)
    if k == 1:
        return all_R
    drawn_R = times_kR.sum(axis=0)
    mean_R = (sample_kR * times_kR).sum(axis=0) / np.maximum(drawn_R, 1)
    return all_R + math.sqrt(k / (k - 1)) * (np.where(drawn_R > 0, mean_R, all_R) - all_R)


def _rising(lines_RK: Array) -> Array:
    """The nearest lines that never fall (isotonic regression by its max-min formula)."""
    size = lines_RK.shape[1]
    sums_RK = np.cumsum(np.pad(lines_RK, ((0, 0), (1, 0))), axis=1)
    rising_RK = np.full_like(lines_RK, -np.inf)
    for start in range(size):
        means = (sums_RK[:, start + 1 :] - sums_RK[:, [start]]) / np.arange(1, size - start + 1)
        least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        rising_RK[:, start:] = np.maximum(rising_RK[:, start:], least)
    return rising_RK


def _read(sizes_K: Array, lines_RK: Array, at_G: Array) -> Array:
    """The lines at other sizes, (R, G), straight over the logarithm."""
    if sizes_K.size == 1:
        return np.repeat(lines_RK, at_G.size, axis=1)
    logs_K, log_G = np.log(sizes_K), np.log(at_G)
    left_G = np.clip(np.searchsorted(logs_K, log_G, side="right") - 1, 0, sizes_K.size - 2)
    share_G = (log_G - logs_K[left_G]) / (logs_K[left_G + 1] - logs_K[left_G])
    return lines_RK[:, left_G] * (1 - share_G) + lines_RK[:, left_G + 1] * share_G


def _first_reached(sizes_K: Array, lines_RK: Array, target_R: Array) -> Array:
    """The least size at which a rising line is at its target, (R,); infinite: it never is."""
    reached_RK = lines_RK >= target_R[:, None] - 1e-12
    at_R, rows_R = reached_RK.argmax(axis=1), np.arange(len(lines_RK))
    before_R = np.maximum(at_R - 1, 0)
    low_R, high_R = lines_RK[rows_R, before_R], lines_RK[rows_R, at_R]
    step_R = np.where(high_R > low_R, high_R - low_R, 1.0)
    share_R = np.clip((target_R - low_R) / step_R, 0, 1)
    logs_K = np.log(sizes_K)
    log_R = logs_K[before_R] + share_R * (logs_K[at_R] - logs_K[before_R])
    found_R = np.where(at_R == 0, sizes_K[0], np.exp(log_R))
    return np.where(reached_RK.any(axis=1), found_R, np.inf)


def _last_crossing(sizes_K: Array, ahead_K: Array) -> float:
    """Where a line comes to 0 for the last time; infinite if it ends below."""
    behind = np.flatnonzero(ahead_K < -1e-12)
    if not behind.size:
        return float(sizes_K[0])
    last = int(behind[-1])
    if last == ahead_K.size - 1:
        return math.inf
    logs_K = np.log(sizes_K)
    share = -ahead_K[last] / (ahead_K[last + 1] - ahead_K[last])
    return float(np.exp(logs_K[last] + max(0.0, share) * (logs_K[last + 1] - logs_K[last])))
