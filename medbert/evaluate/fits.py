"""The fits behind calibration, many resamples at once: logistic regression and a smooth curve.

Suffixes: N rows, C cells of rows that are alike, R resamples, K coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

MAX_STEPS, MAX_STEP = 50, 3.0  # of Newton's method
TOLERANCE = 1e-5  # size of the last step; the error left is about its square
RESAMPLE_TOLERANCE = 1e-2  # far below the spread of the resamples
SPAN = 0.75  # of the rows, as in R's loess
BLOCK = 400_000  # weights that fit the cache


def sums(values: Sequence[Array], weights_NR: NDArray[Any]) -> Array:
    """Weighted sum of each of the values, by resample."""
    weights_RN, parts = weights_NR.T, []
    size = max(1, BLOCK // weights_RN.shape[1])
    for start in range(0, len(weights_RN), size):
        block_RN = np.asarray(weights_RN[start : start + size], dtype=np.float64)
        parts.append(np.stack([block_RN @ value_N for value_N in values]))
    return np.concatenate(parts, axis=1)


def cells_of(
    labels_N: Array, values_N: Array, weights_NR: NDArray[Any], *, cells: int, always: bool = False
) -> tuple[Array, Array, Array]:
    """Mean value (C,), weight and weight of positives (C, R) of cells of equal count.

    Rows of equal value stay together, and make a cell each where there are no more than ``cells``.
    Rows stay as they are where there is one set of weights (unless ``always``), or few rows.
    """
    if values_N.size <= cells or (weights_NR.shape[1] == 1 and not always):
        weights_NR = weights_NR.astype(np.float64)
        return values_N, weights_NR, weights_NR * labels_N[:, None]
    order_N = np.argsort(values_N, kind="stable")
    sorted_N, labels_N = values_N[order_N], labels_N[order_N]
    starts_C = np.flatnonzero(np.diff(sorted_N, prepend=-np.inf))
    if starts_C.size > cells:
        edges = np.arange(cells) * sorted_N.size // cells
        starts_C = np.unique(np.searchsorted(sorted_N, sorted_N[edges]))
    mean_C = np.add.reduceat(sorted_N, starts_C) / np.diff(starts_C, append=sorted_N.size)
    positive_P = np.flatnonzero(labels_N)
    cell_P = np.searchsorted(starts_C, positive_P, side="right") - 1
    cells_P, first_P = np.unique(cell_P, return_index=True)
    weights_RN, size = weights_NR.T, max(1, BLOCK // labels_N.size)
    total_RC = np.empty((len(weights_RN), starts_C.size))
    positive_RC = np.zeros_like(total_RC)
    for start in range(0, len(weights_RN), size):
        rows = slice(start, start + size)
        ordered_RN = np.take(weights_RN[rows], order_N, axis=1).astype(np.float64)
        total_RC[rows] = np.add.reduceat(ordered_RN, starts_C, axis=1)
        weight_RP = np.take(ordered_RN, positive_P, axis=1)
        positive_RC[rows, cells_P] = np.add.reduceat(weight_RP, first_P, axis=1)
    return mean_C, total_RC.T, positive_RC.T


def smooth(risk_C: Array, total_CR: Array, positive_CR: Array) -> Array:
    """Share of positives by risk (C, R): local linear regression, tricube, nearest SPAN of rows."""
    distance_CC = np.abs(risk_C[:, None] - risk_C)
    order_CC = np.argsort(distance_CC, axis=1)
    rows_CC = np.cumsum(total_CR.mean(axis=1)[order_CC], axis=1)
    reach_C = (rows_CC < SPAN * rows_CC[:, -1:]).sum(axis=1)
    width_C = np.take_along_axis(distance_CC, order_CC, axis=1)[np.arange(len(risk_C)), reach_C]
    kernel_CC = np.clip(1 - (distance_CC / np.maximum(width_C, 1e-9)[:, None]) ** 3, 0, 1) ** 3
    shift_CC = risk_C - risk_C[:, None]
    first_CC = kernel_CC * shift_CC
    s0_CR, s1_CR = kernel_CC @ total_CR, first_CC @ total_CR
    s2_CR = (first_CC * shift_CC) @ total_CR
    t0_CR, t1_CR = kernel_CC @ positive_CR, first_CC @ positive_CR
    s0_CR = np.maximum(s0_CR, 1e-300)
    spread_CR = s2_CR - s1_CR**2 / s0_CR
    line_CR = np.where(spread_CR > 1e-12 * s0_CR, spread_CR, np.inf)  # one value: a plain mean
    slope_CR = (t1_CR - s1_CR * t0_CR / s0_CR) / line_CR
    return np.clip((t0_CR - slope_CR * s1_CR) / s0_CR, 0, 1)


def logistic(design_NK: Array, offset_N: Array, total_NR: Array, positive_NR: Array) -> Array:
    """Maximum likelihood coefficients (K, R) of R weighted logistic regressions; NaN: none exist.

    ``total`` is the weight of a row and ``positive`` how much of it is positive. Newton's method.
    Resamples start one step from the fit to their mean, a step that is one matrix product for all
    of them, and need one or two more.
    """
    n_resamples, n_coefficients = total_NR.shape[1], design_NK.shape[1]
    products_NK = (design_NK[:, :, None] * design_NK[:, None, :]).reshape(len(design_NK), -1)
    beta_KR, tolerance = np.zeros((n_coefficients, n_resamples)), TOLERANCE
    if n_resamples > 1:
        means = [values.mean(axis=1, keepdims=True) for values in (total_NR, positive_NR)]
        whole_K1 = np.nan_to_num(logistic(design_NK, offset_N, *means))
        mean_N1 = expit(offset_N[:, None] + design_NK @ whole_K1)
        gradient_KR = _products(design_NK, positive_NR) - _products(design_NK * mean_N1, total_NR)
        hessian_KR = _products(products_NK * mean_N1 * (1 - mean_N1), total_NR)
        beta_KR, tolerance = whole_K1 + _newton_step(gradient_KR, hessian_KR), RESAMPLE_TOLERANCE
    for _ in range(MAX_STEPS):
        mean_NR = expit(offset_N[:, None] + np.einsum("nk,kr->nr", design_NK, beta_KR))
        gradient_KR = _products(design_NK, positive_NR - total_NR * mean_NR)
        hessian_KR = _products(products_NK, total_NR * mean_NR * (1 - mean_NR))
        step_KR = _newton_step(gradient_KR, hessian_KR)
        beta_KR += step_KR
        if np.abs(step_KR).max() < tolerance:
            break
    return np.where(np.abs(step_KR).max(axis=0) < tolerance, beta_KR, np.nan)


def _products(values_NK: Array, weights_NR: Array) -> Array:
    # matrices this thin are slow in a threaded BLAS when cores are shared; einsum does not use it
    return np.einsum("nk,nr->kr", values_NK, weights_NR)


def _newton_step(gradient_KR: Array, hessian_KR: Array) -> Array:
    """Solves one small system per resample; ``hessian_KR`` holds K x K numbers for each."""
    n_coefficients = len(gradient_KR)
    hessian_RKK = hessian_KR.T.reshape(-1, n_coefficients, n_coefficients)
    ridge_KK = 1e-12 * np.eye(n_coefficients)
    step_RK1 = np.linalg.solve(hessian_RKK + ridge_KK, gradient_KR.T[:, :, None])
    return np.clip(step_RK1[:, :, 0].T, -MAX_STEP, MAX_STEP)
