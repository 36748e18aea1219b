"""Net benefit is what its definition says; recalibration undoes what was done."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from medbert.evaluate.benefit import (
    TREAT_ALL,
    benefits,
    decision_curve,
    net_benefit,
    prior_shift,
    recalibrate,
)
from medbert.evaluate.metrics import auroc, calibration_intercept, calibration_slope
from medbert.schema import InputError


def simulated(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = expit(rng.normal(-1.5, 1.3, n))
    return (rng.random(n) < risk).astype(int), risk


def test_net_benefit_by_its_definition_at_every_threshold_and_tie() -> None:
    labels, risk = simulated(500)
    risk = risk.round(2)
    curve = decision_curve(labels, {"model": risk})
    for threshold, ours in zip(curve.thresholds, curve.models["model"], strict=True):
        treated = risk >= threshold
        true, false = (treated & (labels == 1)).sum(), (treated & (labels == 0)).sum()
        expected = true / 500 - false / 500 * threshold / (1 - threshold)
        assert ours == pytest.approx(expected, abs=1e-12)
        assert net_benefit(labels, risk, threshold=threshold) == pytest.approx(expected, abs=1e-12)


def test_treating_all_is_the_model_that_says_one() -> None:
    labels, _ = simulated(300)
    curve = decision_curve(labels, {TREAT_ALL: np.ones(300), "none": np.zeros(300)})
    assert curve.treat_all == pytest.approx(curve.models[TREAT_ALL], abs=1e-12)
    assert not curve.models["none"].any()


def test_a_weight_is_a_repeated_row() -> None:
    labels, risk = simulated(200)
    weights = np.random.default_rng(0).poisson(1, (200, 4)).astype(np.uint8)
    many = net_benefit(labels, risk, threshold=0.2, weights=weights)
    for ours, weight in zip(many, weights.T, strict=True):
        repeated = net_benefit(labels.repeat(weight), risk.repeat(weight), threshold=0.2)
        assert ours == pytest.approx(repeated, abs=1e-12)


def test_benefits_are_measured_against_all_none_and_the_reference() -> None:
    labels, risk = simulated(2000)
    worse = expit(logit(risk) + np.random.default_rng(1).normal(0, 2, 2000))
    found = benefits(
        labels,
        {"true": risk, "worse": worse},
        np.arange(2000),
        thresholds=[0.1, 0.3],
        reference="worse",
        seed=0,
        n=200,
    )
    assert [(each.model, each.threshold) for each in found] == [
        ("true", 0.1),
        ("worse", 0.1),
        ("true", 0.3),
        ("worse", 0.3),
    ]
    best = found[2]
    assert best.benefit.low < best.benefit.value < best.benefit.high
    assert best.over_none.value == pytest.approx(best.benefit.value)
    assert best.over_all.low > 0
    assert best.over_reference is not None and best.over_reference.low > 0
    assert found[3].over_reference is None


def test_prior_shift_calibrates_what_sampling_moved() -> None:
    rng = np.random.default_rng(0)
    labels, risk = simulated(400_000)
    prevalence = labels.mean()
    kept = (labels == 1) | (rng.random(labels.size) < 0.1)
    sampled = labels[kept].mean()
    seen = prior_shift(risk, sampled=prevalence, target=sampled)  # right on the sample
    assert calibration_intercept(labels[kept], seen[kept]) == pytest.approx(0, abs=0.03)
    assert calibration_intercept(labels, seen) < -2
    back = prior_shift(seen, sampled=sampled, target=prevalence)
    assert back == pytest.approx(risk, abs=1e-12)
    assert prior_shift([0, 1], sampled=0.5, target=0.1).tolist() == [0, 1]


def test_recalibration_makes_slope_one_and_keeps_ranks() -> None:
    labels, risk = simulated(3000)
    wrong = expit(2 * logit(risk) - 0.7)
    right = recalibrate(labels, wrong)(wrong)
    assert calibration_slope(labels, right) == pytest.approx(1, abs=1e-4)
    assert calibration_intercept(labels, right) == pytest.approx(0, abs=1e-4)
    assert auroc(labels, right) == pytest.approx(auroc(labels, wrong), abs=1e-12)
    moved = recalibrate(labels, wrong, slope=False)
    assert moved.slope == 1
    assert calibration_intercept(labels, moved(wrong)) == pytest.approx(0, abs=1e-4)


def test_refuses_in_words() -> None:
    labels, risk = simulated(300)
    with pytest.raises(InputError, match="wrong way round"):
        recalibrate(labels, 1 - risk)
    with pytest.raises(InputError, match="all equal"):
        recalibrate(labels, np.full(300, 0.2))
    with pytest.raises(InputError, match=r"threshold 1\.0"):
        net_benefit(labels, risk, threshold=1.0)
    with pytest.raises(InputError, match="prevalences"):
        prior_shift(risk, sampled=0.0, target=0.1)
    with pytest.raises(InputError, match="'lr' is not among 'm'"):
        benefits(labels, {"m": risk}, np.arange(300), thresholds=[0.1], reference="lr", seed=0)
