"""Discrimination and calibration of predicted probabilities.

Every metric takes ``(labels, probabilities, *, weights=None)``. Labels are 0 or 1, one per row.
``weights`` says how often each row counts: shape (N,), or (N, R) for R resamples at once (from the
bootstrap: in one byte each). The answer is a float, or an array (R,); a resample in which the
metric does not exist is NaN. Suffixes here: N rows, R resamples, P positives, C cells of rows.

Many resamples of many rows are a matter of memory traffic: everything that does not depend on the
weights is worked out once, and weights pass through in blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit
from scipy.stats import binomtest

from medbert.evaluate.fits import BLOCK, Array, cells_of, logistic, smooth, sums
from medbert.schema import InputError

CLIP = 1e-6  # probabilities of exactly 0 and 1 have no logit
CELLS = 4096  # of rows alike, for calibration in resamples; their width is far below its error
SMOOTH_CELLS = 400  # of the smoothed calibration curve


class Metric(Protocol):
    """One number from labels and probabilities; R numbers where the weights are (N, R)."""

    def __call__(
        self, labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
    ) -> Any: ...


class Bin(NamedTuple):
    """One group of a calibration curve: rows, mean probability, share of positives, interval."""

    n: int
    predicted: float
    observed: float
    low: float
    high: float


def check(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 (N,); InputError unless they fit, are complete, and hold both classes."""
    labels_N = np.asarray(labels, dtype=np.float64)
    probabilities_N = np.asarray(probabilities, dtype=np.float64)
    if labels_N.ndim != 1 or labels_N.shape != probabilities_N.shape:
        raise InputError(
            f"labels {labels_N.shape} and probabilities {probabilities_N.shape} do not match: "
            "expected one label and one probability per row"
        )
    if not np.isin(labels_N, (0.0, 1.0)).all():
        raise InputError("labels must be 0 or 1 (or booleans) without gaps")
    if not ((probabilities_N >= 0) & (probabilities_N <= 1)).all():
        raise InputError("probabilities must lie between 0 and 1 without gaps: pass no logits")
    positives = int(labels_N.sum())
    if positives in (0, labels_N.size):
        raise InputError(
            f"{labels_N.size} rows with {positives} positives: both classes are needed to "
            "evaluate; use more rows, or look at how the labels were made"
        )
    return labels_N, probabilities_N


def auroc(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Chance that a positive ranks above a negative, ties counted half.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    arrays = arrays_of(labels, probabilities, weights)
    areas = []
    for ranks in _ranks(*arrays):
        positives_R = ranks.weight_RP.sum(axis=1)
        # weighted ranks of the positives, less what they owe to one another
        beaten_RP = (ranks.below_RP + ranks.through_RP) / 2
        wins_R = np.einsum("rp,rp->r", ranks.weight_RP, beaten_RP) - positives_R**2 / 2
        pairs_R = positives_R * (ranks.total_R - positives_R)
        areas.append(np.divide(wins_R, pairs_R, np.full_like(pairs_R, np.nan), where=pairs_R > 0))
    return answer(np.concatenate(areas), weights)


def auprc(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Average precision: precision at each threshold, weighted by the recall it adds.

    No interpolation, as in scikit-learn. Chance level is the prevalence, not 0.5.
    """
    arrays = arrays_of(labels, probabilities, weights)
    areas = []
    for ranks in _ranks(*arrays):
        positives_R = ranks.weight_RP.sum(axis=1)
        true_RP = positives_R[:, None] - ranks.positives_below_RP
        flagged_RP = ranks.total_R[:, None] - ranks.below_RP
        # where nothing is flagged, the row itself weighs nothing
        sums_R = np.einsum("rp,rp->r", ranks.weight_RP, true_RP / np.maximum(flagged_RP, 1e-300))
        empty_R = np.full_like(sums_R, np.nan)
        areas.append(np.divide(sums_R, positives_R, empty_R, where=positives_R > 0))
    return answer(np.concatenate(areas), weights)


def brier(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Mean squared distance between probability and label; smaller is better."""
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    squares_N = (probabilities_N - labels_N) ** 2
    sums_2R = sums([squares_N, np.ones_like(squares_N)], weights_NR)
    return answer(sums_2R[0] / sums_2R[1], weights)


def observed_expected(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Positives observed by the number expected, the sum of the probabilities; ideal 1."""
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    observed_R, expected_R = sums([labels_N, probabilities_N], weights_NR)
    return answer(observed_R / np.maximum(expected_R, 1e-300), weights)


def calibration_slope(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Slope of the label on logit(probability) in a logistic regression; ideal 1.

    Below 1: the probabilities are too extreme (Van Calster 2019, BMC Med 17:230). NaN where it does
    not exist: all probabilities equal, or labels that the probabilities separate fully.
    """
    return answer(_calibration_line(labels, probabilities, weights)[1], weights)


def calibration_line(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, float]:
    """Intercept and slope of that regression, fitted together; (0, 1) is ideal, NaN: none exists.

    This intercept is the one to recalibrate with, and not ``calibration_intercept``.
    """
    intercept_R, slope_R = _calibration_line(labels, probabilities, None)
    return float(intercept_R[0]), float(slope_R[0])


def calibration_intercept(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Calibration in the large: what must be added to every logit, slope fixed at 1; ideal 0.

    Below 0: the probabilities are too high on average (Van Calster 2019, BMC Med 17:230).
    """
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    logits_N = logit(np.clip(probabilities_N, CLIP, 1 - CLIP))
    logits_C, total_CR, positive_CR = cells_of(labels_N, logits_N, weights_NR, cells=CELLS)
    ones_C1 = np.ones((logits_C.size, 1))
    return answer(logistic(ones_C1, logits_C, total_CR, positive_CR)[0], weights)


def ici(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Integrated calibration index: mean distance of probability and smoothed outcome; ideal 0.

    Austin & Steyerberg 2019, Stat Med 38:4051. Their smoother is loess. This one is local linear
    with tricube weights over the nearest 75% of the rows, on SMOOTH_CELLS cells of equal count;
    bandwidths are those of all rows, in every resample. It is above 0 by chance alone, more so in
    few rows: the bootstrap interval is of the same biased number.
    """
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    cells = cells_of(labels_N, probabilities_N, weights_NR, cells=SMOOTH_CELLS, always=True)
    risk_C, total_CR, _ = cells
    distance_CR = np.abs(smooth(*cells) - risk_C[:, None])
    sums_R = np.einsum("cr,cr->r", total_CR, distance_CR)
    return answer(sums_R / total_CR.sum(axis=0), weights)


def calibration_curve(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 10, level: float = 0.95
) -> list[Bin]:
    """Observed share of positives by quantile of the probability, with Wilson intervals.

    Rows of equal probability stay together, so there may be fewer bins than asked for. The
    intervals take rows as independent.
    """
    labels_N, probabilities_N = check(labels, probabilities)
    edges = np.unique(np.quantile(probabilities_N, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_N = np.searchsorted(edges, probabilities_N, side="left")
    curve = []
    for index in np.unique(bin_N):
        inside_N = bin_N == index
        n, positives = int(inside_N.sum()), int(labels_N[inside_N].sum())
        bounds = binomtest(positives, n).proportion_ci(level, method="wilson")
        curve.append(Bin(n, float(probabilities_N[inside_N].mean()), positives / n, *bounds))
    return curve


METRICS: dict[str, Metric] = {
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
    "ici": ici,
    "observed_expected": observed_expected,
}


def arrays_of(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Checked labels and probabilities (N,), and weights (N, R), of 1 where none are given."""
    labels_N, probabilities_N = check(labels, probabilities)
    if weights is None:
        return labels_N, probabilities_N, np.ones((labels_N.size, 1))
    weights_NR = np.asarray(weights)
    if weights_NR.dtype != np.uint8:
        weights_NR = weights_NR.astype(np.float64)
    if weights_NR.ndim not in (1, 2) or weights_NR.shape[0] != labels_N.size:
        raise InputError(f"weights {weights_NR.shape} do not match {labels_N.size} rows")
    return labels_N, probabilities_N, weights_NR.reshape(labels_N.size, -1)


def answer(values_R: Array, weights: ArrayLike | None) -> Any:
    """As many numbers as there were sets of weights; a float for one set or none."""
    return values_R if np.ndim(weights) == 2 else float(values_R[0])  # type: ignore[arg-type]


class _Ranks(NamedTuple):
    """Weight of each positive, of all rows ranked below it, and of those and its ties as well."""

    weight_RP: Array
    below_RP: Array
    through_RP: Array
    positives_below_RP: Array
    total_R: Array


def _ranks(labels_N: Array, scores_N: Array, weights_NR: Array) -> Iterator[_Ranks]:
    """What AUROC and AUPRC are made of, for some resamples at a time; positives by score."""
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N, positive_P = scores_N[order_N], np.flatnonzero(labels_N[order_N])
    score_P = sorted_N[positive_P]
    below_P, through_P = (np.searchsorted(sorted_N, score_P, side) for side in ("left", "right"))
    positives_below_P = np.searchsorted(score_P, score_P)
    weights_RN, size = weights_NR.T, max(1, BLOCK // labels_N.size)
    for start in range(0, len(weights_RN), size):
        ordered_RN = np.take(weights_RN[start : start + size], order_N, axis=1)
        weight_RP = np.take(ordered_RN, positive_P, axis=1)
        sums_RN, sums_RP = _running_sums(ordered_RN), _running_sums(weight_RP)
        below_RP, through_RP = (np.take(sums_RN, at, axis=1) for at in (below_P, through_P))
        parts = (weight_RP, below_RP, through_RP, np.take(sums_RP, positives_below_P, axis=1))
        yield _Ranks(*(part.astype(np.float64) for part in (*parts, sums_RN[:, -1])))


def _running_sums(values_RN: Array) -> Array:
    """Sum of the first 0, 1, ..., N values."""
    kind = np.int64 if values_RN.dtype == np.uint8 else np.float64
    running = np.zeros((len(values_RN), values_RN.shape[1] + 1), dtype=kind)
    np.cumsum(values_RN, axis=1, out=running[:, 1:])
    return running


def _calibration_line(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> Array:
    """Intercepts and slopes, (2, R)."""
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    logits_N = logit(np.clip(probabilities_N, CLIP, 1 - CLIP))
    if np.ptp(logits_N) < 1e-6:
        return np.full((2, weights_NR.shape[1]), np.nan)
    centre = logits_N.mean()
    logits_C, total_CR, positive_CR = cells_of(labels_N, logits_N, weights_NR, cells=CELLS)
    design_CK = np.column_stack([np.ones_like(logits_C), logits_C - centre])
    intercept_R, slope_R = logistic(design_CK, np.zeros_like(logits_C), total_CR, positive_CR)
    return np.stack([intercept_R - slope_R * centre, slope_R])
