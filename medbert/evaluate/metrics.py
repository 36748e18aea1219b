"""Discrimination and calibration of predicted probabilities.

Every metric takes ``(labels, probabilities, *, weights=None)``. Labels are 0 or 1, one per row.
``weights`` says how often each row counts: shape (N,), or (N, R) for R resamples at once (what the
bootstrap uses). The answer is a float, or an array (R,); a resample in which the metric does not
exist is NaN. Suffixes here: N rows, R resamples, G groups of rows that share a probability.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri

from medbert.schema import InputError

Array = NDArray[np.float64]

CLIP = 1e-6  # probabilities of exactly 0 and 1 have no logit
MAX_STEPS, MAX_STEP = 50, 3.0  # of Newton's method
TOLERANCE = 1e-5  # size of the last step; the error left is about its square
RESAMPLE_TOLERANCE = 1e-2  # far below the spread of the resamples


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
    labels_N, probabilities_N, weights_NR = _arrays(labels, probabilities, weights)
    positive_GR, negative_GR = _tie_groups(labels_N, probabilities_N, weights_NR)
    below_GR = np.cumsum(negative_GR, axis=0)
    pairs_R = positive_GR.sum(axis=0) * below_GR[-1]
    below_GR -= negative_GR / 2
    with np.errstate(invalid="ignore"):
        return _answer(np.einsum("gr,gr->r", positive_GR, below_GR) / pairs_R, weights)


def auprc(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Average precision: precision at each threshold, weighted by the recall it adds.

    No interpolation, as in scikit-learn. Chance level is the prevalence, not 0.5.
    """
    labels_N, probabilities_N, weights_NR = _arrays(labels, probabilities, weights)
    positive_GR, negative_GR = _tie_groups(labels_N, -probabilities_N, weights_NR)
    true_GR = np.cumsum(positive_GR, axis=0)
    flagged_GR = true_GR + np.cumsum(negative_GR, axis=0)
    precision_GR = true_GR / np.maximum(flagged_GR, 1e-300)  # a group of weight 0 adds no recall
    with np.errstate(invalid="ignore"):
        return _answer(np.einsum("gr,gr->r", positive_GR, precision_GR) / true_GR[-1], weights)


def brier(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Mean squared distance between probability and label; smaller is better."""
    labels_N, probabilities_N, weights_NR = _arrays(labels, probabilities, weights)
    squares_N = (probabilities_N - labels_N) ** 2
    return _answer(squares_N @ weights_NR / weights_NR.sum(axis=0), weights)


def calibration_slope(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Slope of the label on logit(probability) in a logistic regression; ideal 1.

    Below 1: the probabilities are too extreme (Van Calster 2019, BMC Med 17:230). NaN where it does
    not exist: all probabilities equal, or labels that the probabilities separate fully.
    """
    labels_N, probabilities_N, weights_NR = _arrays(labels, probabilities, weights)
    logits_N = logit(np.clip(probabilities_N, CLIP, 1 - CLIP))
    logits_N -= logits_N.mean()
    if np.ptp(logits_N) < 1e-6:
        return _answer(np.full(weights_NR.shape[1], np.nan), weights)
    design_NK = np.column_stack([np.ones_like(logits_N), logits_N])
    return _answer(_logistic(design_NK, np.zeros_like(logits_N), labels_N, weights_NR)[1], weights)


def calibration_intercept(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Calibration in the large: what must be added to every logit, slope fixed at 1; ideal 0.

    Below 0: the probabilities are too high on average (Van Calster 2019, BMC Med 17:230).
    """
    labels_N, probabilities_N, weights_NR = _arrays(labels, probabilities, weights)
    logits_N = logit(np.clip(probabilities_N, CLIP, 1 - CLIP))
    ones_N1 = np.ones((labels_N.size, 1))
    return _answer(_logistic(ones_N1, logits_N, labels_N, weights_NR)[0], weights)


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
        low, high = wilson(positives, n, level=level)
        curve.append(Bin(n, float(probabilities_N[inside_N].mean()), positives / n, low, high))
    return curve


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    >>> tuple(round(bound, 4) for bound in wilson(0, 10))
    (0.0, 0.2775)
    """
    z2 = float(ndtri((1 + level) / 2)) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


METRICS: dict[str, Metric] = {
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
}


def _arrays(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    labels_N, probabilities_N = check(labels, probabilities)
    if weights is None:
        return labels_N, probabilities_N, np.ones((labels_N.size, 1))
    weights_NR = np.asarray(weights, dtype=np.float64)
    if weights_NR.ndim not in (1, 2) or weights_NR.shape[0] != labels_N.size:
        raise InputError(f"weights {weights_NR.shape} do not match {labels_N.size} rows")
    return labels_N, probabilities_N, weights_NR.reshape(labels_N.size, -1)


def _answer(values_R: Array, weights: ArrayLike | None) -> Any:
    return values_R if np.ndim(weights) == 2 else float(values_R[0])  # type: ignore[arg-type]


def _tie_groups(labels_N: Array, scores_N: Array, weights_NR: Array) -> tuple[Array, Array]:
    """Weight of positives and of negatives in each group of equal scores, scores ascending."""
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    starts_G = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    weights_NR = weights_NR[order_N]
    positive_NR = weights_NR * labels_N[order_N, None]
    negative_NR = weights_NR - positive_NR
    if starts_G.size == labels_N.size:
        return positive_NR, negative_NR
    return np.add.reduceat(positive_NR, starts_G), np.add.reduceat(negative_NR, starts_G)


def _logistic(design_NK: Array, offset_N: Array, labels_N: Array, weights_NR: Array) -> Array:
    """Maximum likelihood coefficients (K, R) of R weighted logistic regressions; NaN: none exist.

    Newton's method. Resamples start one step from the fit to all rows, a step that is one matrix
    product for all of them, and need one or two more.
    """
    n_resamples, n_coefficients = weights_NR.shape[1], design_NK.shape[1]
    products_NK = (design_NK[:, :, None] * design_NK[:, None, :]).reshape(len(labels_N), -1)
    beta_KR, tolerance = np.zeros((n_coefficients, n_resamples)), TOLERANCE
    if n_resamples > 1:
        whole_K1 = _logistic(design_NK, offset_N, labels_N, np.ones((len(labels_N), 1)))
        whole_K1 = np.nan_to_num(whole_K1)
        mean_N1 = expit(offset_N[:, None] + design_NK @ whole_K1)
        gradient_KR = _sums(design_NK * (labels_N[:, None] - mean_N1), weights_NR)
        hessian_KR = _sums(products_NK * mean_N1 * (1 - mean_N1), weights_NR)
        beta_KR, tolerance = whole_K1 + _newton_step(gradient_KR, hessian_KR), RESAMPLE_TOLERANCE
    for _ in range(MAX_STEPS):
        mean_NR = expit(offset_N[:, None] + np.einsum("nk,kr->nr", design_NK, beta_KR))
        gradient_KR = _sums(design_NK, weights_NR * (labels_N[:, None] - mean_NR))
        hessian_KR = _sums(products_NK, weights_NR * mean_NR * (1 - mean_NR))
        step_KR = _newton_step(gradient_KR, hessian_KR)
        beta_KR += step_KR
        if np.abs(step_KR).max() < tolerance:
            break
    return np.where(np.abs(step_KR).max(axis=0) < tolerance, beta_KR, np.nan)


def _sums(values_NK: Array, weights_NR: Array) -> Array:
    # matrices this thin are slow in a threaded BLAS when cores are shared; einsum does not use it
    return np.einsum("nk,nr->kr", values_NK, weights_NR)


def _newton_step(gradient_KR: Array, hessian_KR: Array) -> Array:
    """Solves one small system per resample; ``hessian_KR`` holds K x K numbers for each."""
    n_coefficients = len(gradient_KR)
    hessian_RKK = hessian_KR.T.reshape(-1, n_coefficients, n_coefficients)
    ridge_KK = 1e-12 * np.eye(n_coefficients)
    step_RK1 = np.linalg.solve(hessian_RKK + ridge_KK, gradient_KR.T[:, :, None])
    return np.clip(step_RK1[:, :, 0].T, -MAX_STEP, MAX_STEP)
