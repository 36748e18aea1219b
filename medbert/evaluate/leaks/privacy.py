"""What a model gives away of those it was trained on: arrays in, numbers out.

Membership inference from losses (Yeom et al. 2018, arXiv 1709.01604): a model that knows a record
too well was trained on it. A loss means nothing by itself, for some records are easy (Watson et al.
2022, arXiv 2111.08440; Carlini et al. 2022, arXiv 2112.03570): it is set against what is expected
of such a record that was not trained on (as in Bertran et al. 2023, arXiv 2307.03694). Exposure of
planted canaries: Carlini et al. 2019, arXiv 1802.08232.

Suffixes: N subjects, F features, R resamples, K canaries, A alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from medbert.evaluate.intervals import Interval, bootstrap, percentiles
from medbert.evaluate.metrics import Array, Metric, answer, arrays_of, auroc
from medbert.schema import InputError

PASS, FAIL, CANNOT_TELL = "pass", "fail", "cannot tell"
CHANCE_BITS = 1 / math.log(2)  # exposure of what was never seen, on average
_FOLDS, _PENALTY, _FEWEST = 5, 1e-2, 20


@dataclass(frozen=True)
class Judged:
    """A number with its interval, and what it means by the ``threshold`` that it has to be below.

    ``verdict``: pass or fail where all of the interval lies on one side. ``needed``: how many (of
    ``of``) would make the interval short enough to tell, at most 100 times as many; None where it
    is, or nobody knows.
    """

    name: str
    value: Interval
    threshold: float
    n: int
    of: str

    @property
    def verdict(self) -> str:
        if self.value.high < self.threshold:
            return PASS
        return FAIL if self.value.low > self.threshold else CANNOT_TELL

    @property
    def needed(self) -> int | None:
        value, low, high = self.value.value, self.value.low, self.value.high
        half = high - value if value < self.threshold else value - low
        if self.verdict != CANNOT_TELL or not math.isfinite(half):
            return None
        return math.ceil(self.n * (half / max(abs(value - self.threshold), 0.1 * half)) ** 2)


def worst(verdicts: list[str]) -> str:
    """What stands when all have spoken."""
    return next((v for v in (FAIL, CANNOT_TELL) if v in verdicts), PASS)


def calibrated(losses: ArrayLike, member: ArrayLike, difficulty: ArrayLike, *, seed: int) -> Array:
    """(N,) how much lower each loss is than expected, in units of its spread: high for members.

    What is expected, and its spread, are ridge regressions on ``difficulty`` (N, F) and its squares
    among those that are no ``member``; nobody is judged by a regression that saw their own loss.
    """
    losses_N, member_N = np.asarray(losses, float), np.asarray(member, bool)
    x_NF = np.asarray(difficulty, float).reshape(len(losses_N), -1)
    if (~member_N).sum() < _FEWEST or not member_N.any():
        raise InputError(
            f"{int(member_N.sum())} members and {int((~member_N).sum())} others are too few to "
            f"compare: at least one and {_FEWEST}"
        )
    fold_N = np.random.default_rng(seed).permutation(len(losses_N)) % _FOLDS
    scores_N = np.zeros_like(losses_N)
    for fold in range(_FOLDS):
        known_N, asked_N = ~member_N & (fold_N != fold), fold_N == fold
        expected = _ridge(x_NF[known_N], losses_N[known_N])
        error_N = losses_N - expected(x_NF)
        floor = 1e-3 * error_N[known_N].std() + 1e-12
        spread = _ridge(x_NF[known_N], np.log(np.abs(error_N[known_N]) + floor))
        scores_N[asked_N] = -error_N[asked_N] / np.exp(spread(x_NF[asked_N]))
    return scores_N


def membership(
    scores: ArrayLike, member: ArrayLike, *, fpr: float, seed: int, resamples: int, level: float
) -> dict[str, Interval]:
    """``auc``, and ``tpr``: the share of members found where ``fpr`` of the others are taken for
    some; one score per subject, bootstrap over subjects."""
    ranks_N = rankdata(np.asarray(scores)) / len(np.asarray(scores))
    metrics: dict[str, Metric] = {"auc": auroc, "tpr": partial(true_positive_rate, fpr=fpr)}
    ids = np.arange(len(ranks_N))
    made = bootstrap(
        metrics, np.asarray(member, float), ranks_N, ids, seed=seed, n=resamples, level=level
    )
    return {name: made.interval("model", metric=name) for name in metrics}


def true_positive_rate(
    labels: ArrayLike, probabilities: ArrayLike, *, fpr: float, weights: ArrayLike | None = None
) -> Any:
    """Share of positives above the lowest threshold that at most ``fpr`` of the negatives pass.

    >>> true_positive_rate([1, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.1], fpr=0.0)
    0.6666666666666666
    """
    labels_N, scores_N, weights_NR = arrays_of(labels, probabilities, weights)
    order_N = np.argsort(-scores_N, kind="stable")
    last_N = np.append(np.diff(scores_N[order_N]) != 0, True)  # ties pass together
    weights_NR, positive_N1 = weights_NR[order_N].astype(float), labels_N[order_N, None]
    true_NR = np.cumsum(weights_NR * positive_N1, axis=0)
    false_NR = np.cumsum(weights_NR * (1 - positive_N1), axis=0)
    allowed_NR = (false_NR <= fpr * false_NR[-1] + 1e-9) & last_N[:, None]
    found_R = np.where(allowed_NR, true_NR, 0).max(axis=0) / np.maximum(true_NR[-1], 1e-300)
    return answer(found_R, weights)


def exposure(scores: ArrayLike, alternatives: ArrayLike) -> Array:
    """(K,) bits: by how much the rank of each score among the alternatives (A,), highest first,
    shortens guessing; from 0 to log2(A + 1), and ``CHANCE_BITS`` on average by chance."""
    scores_K, sorted_A = np.asarray(scores, float), np.sort(np.asarray(alternatives, float))
    rank_K = 1 + len(sorted_A) - np.searchsorted(sorted_A, scores_K, side="left")
    return np.log2((len(sorted_A) + 1) / rank_K)


def mean_of(values: ArrayLike, *, seed: int, resamples: int, level: float) -> Interval:
    """Mean and its bootstrap interval; no bounds for a single value."""
    values_K = np.asarray(values, float)
    if len(values_K) < 2:
        return Interval(float(values_K.mean()))
    drawn = np.random.default_rng(seed).integers(0, len(values_K), (resamples, len(values_K)))
    return Interval(float(values_K.mean()), *percentiles(values_K[drawn].mean(axis=1), level))


def _ridge(x_NF: Array, y_N: Array) -> Callable[[Array], Array]:
    """A quadratic regression that stays defined where features are constant or alike."""
    centre, scale = x_NF.mean(0), np.maximum(x_NF.std(0), 1e-9)

    def design(x: Array) -> Array:
        z = np.clip((x - centre) / scale, -5, 5)
        return np.column_stack([z, z**2])

    d, mean = design(x_NF), y_N.mean()
    middle = d.mean(0)
    d = d - middle
    weights = np.linalg.solve(d.T @ d + _PENALTY * len(d) * np.eye(d.shape[1]), d.T @ (y_N - mean))
    return lambda x: mean + (design(x) - middle) @ weights
