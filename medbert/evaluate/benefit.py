"""From probabilities to decisions: recalibration, and net benefit over thresholds.

Net benefit (Vickers & Elkin 2006, Med Decis Making 26:565) weighs true against false positives at
the odds of the threshold at which one would treat. It asks for calibrated probabilities: those of a
model trained on sampled rows are put right first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from medbert.evaluate.fits import sums
from medbert.evaluate.intervals import Difference, Interval, bootstrap, expect
from medbert.evaluate.metrics import (
    CLIP,
    Array,
    answer,
    arrays_of,
    calibration_intercept,
    calibration_line,
    check,
)
from medbert.schema import InputError

TREAT_ALL, TREAT_NONE = "treat all", "treat none"


@dataclass(frozen=True, slots=True)
class Recalibration:
    """New logit = intercept + slope * logit. Call it with probabilities."""

    intercept: float
    slope: float

    def __call__(self, probabilities: ArrayLike) -> Array:
        probabilities_N = np.asarray(probabilities, dtype=np.float64)
        logits_N = logit(np.clip(probabilities_N, CLIP, 1 - CLIP))
        return expit(self.intercept + self.slope * logits_N)


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold of each model and of treating all; that of treating none is 0."""

    thresholds: Array
    models: dict[str, Array]
    treat_all: Array


@dataclass(frozen=True, slots=True)
class Benefit:
    """Net benefit of one model at one threshold, and what it has over the other ways to decide.

    Times 1,000: true positives more per 1,000 rows, at no more false positives. ``over_reference``
    is None without a reference, and for the reference itself.
    """

    model: str
    threshold: float
    benefit: Interval
    over_all: Difference
    over_none: Difference
    over_reference: Difference | None


def recalibrate(
    labels: ArrayLike, probabilities: ArrayLike, *, slope: bool = True
) -> Recalibration:
    """Logistic recalibration (Cox 1958; Steyerberg 2019, ch. 15), to be fitted on ``tuning`` rows.

    ``slope=False`` moves the intercept only: for few events, or where only the prevalence differs.
    InputError where no fit exists, or where it would turn the ranks around.
    """
    if not slope:
        return Recalibration(float(calibration_intercept(labels, probabilities)), 1.0)
    intercept, fitted = calibration_line(labels, probabilities)
    if math.isnan(fitted) or fitted <= 0:
        raise InputError(
            f"the probabilities cannot be recalibrated (slope {fitted:.3g}): they are all equal, "
            "separate the labels fully, or rank them the wrong way round"
        )
    return Recalibration(intercept, fitted)


def prior_shift(probabilities: ArrayLike, *, sampled: float, target: float) -> Array:
    """Probabilities at prevalence ``target`` from those of a model trained at ``sampled``.

    Every logit moves by logit(target) - logit(sampled): exact where rows were sampled by their
    label alone and the model was right on the sample (King & Zeng 2001, Polit Anal 9:137).

    >>> prior_shift([0.5, 0.9], sampled=0.5, target=0.1).round(3).tolist()
    [0.1, 0.5]
    """
    if not (0 < sampled < 1 and 0 < target < 1):
        raise InputError(f"prevalences must lie between 0 and 1, not {sampled} and {target}")
    return expit(
        logit(np.asarray(probabilities, dtype=np.float64)) + logit(target) - logit(sampled)
    )


def net_benefit(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    threshold: float,
    weights: ArrayLike | None = None,
) -> Any:
    """True positives less false positives at the odds of the threshold, per row.

    Rows at or above the threshold are treated.

    >>> round(net_benefit([1, 0, 0, 1], [0.6, 0.3, 0.1, 0.2], threshold=0.2), 4)
    0.4375
    """
    labels_N, probabilities_N, weights_NR = arrays_of(labels, probabilities, weights)
    odds = _odds(threshold)
    gain_N = (probabilities_N >= threshold) * (labels_N - (1 - labels_N) * odds)
    gains_R, rows_R = sums([gain_N, np.ones_like(gain_N)], weights_NR)
    return answer(gains_R / rows_R, weights)


def decision_curve(labels: ArrayLike, models: Mapping[str, ArrayLike]) -> DecisionCurve:
    """Net benefit of every model at every threshold from 0.01 to 0.99."""
    thresholds_T = np.arange(1, 100) / 100
    odds_T = np.array([_odds(float(threshold)) for threshold in thresholds_T])
    curves, prevalence = {}, math.nan
    for name, probabilities in models.items():
        labels_N, probabilities_N = check(labels, probabilities)
        prevalence = float(labels_N.mean())
        order_N = np.argsort(probabilities_N)
        missed_T = np.searchsorted(probabilities_N[order_N], thresholds_T)  # rows below
        found_N = labels_N.sum() - np.r_[0, np.cumsum(labels_N[order_N])]
        true_T = found_N[missed_T]
        false_T = labels_N.size - missed_T - true_T
        curves[name] = (true_T - false_T * odds_T) / labels_N.size
    return DecisionCurve(thresholds_T, curves, prevalence - (1 - prevalence) * odds_T)


def benefits(
    labels: ArrayLike,
    models: Mapping[str, ArrayLike],
    subject_ids: ArrayLike,
    *,
    thresholds: Sequence[float],
    seed: int,
    reference: str | None = None,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[Benefit, ...]:
    """Net benefit at chosen thresholds with intervals, by paired bootstrap over subjects.

    ``reference`` names the model that the others are measured against, such as a logistic
    regression.
    """
    if reference is not None:
        expect([reference], models)
    rows = np.size(np.asarray(labels))
    everyone = {**models, TREAT_ALL: np.ones(rows), TREAT_NONE: np.zeros(rows)}
    metrics = {f"{t:g}": partial(net_benefit, threshold=t) for t in thresholds}
    boot = bootstrap(metrics, labels, everyone, subject_ids, seed=seed, n=n, level=level)
    answers = []
    for threshold, metric in zip(thresholds, metrics, strict=True):
        for name in models:
            over = partial(boot.difference, name, metric=metric)
            over_reference = None
            if reference is not None and name != reference:
                over_reference = over(minus=reference)
            others = over(minus=TREAT_ALL), over(minus=TREAT_NONE), over_reference
            benefit = boot.interval(name, metric=metric)
            answers.append(Benefit(name, threshold, benefit, *others))
    return tuple(answers)


def _odds(threshold: float) -> float:
    if not 0 < threshold < 1:
        raise InputError(f"threshold {threshold}: expected a probability between 0 and 1")
    return threshold / (1 - threshold)
