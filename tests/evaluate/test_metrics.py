"""Metrics agree with scikit-learn and with what the data were made with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from medbert.evaluate import metrics
from medbert.evaluate.metrics import METRICS, calibration_curve
from medbert.schema import InputError


def simulated(
    n: int, *, seed: int = 0, slope: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from a true risk, and probabilities whose logits are scaled and shifted."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.2, n)
    labels = (rng.random(n) < expit(logits)).astype(int)
    return labels, expit(slope * logits + shift)


@pytest.mark.parametrize("digits", [1, 2, 12])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn_with_ties_and_weights(digits: int, seed: int) -> None:
    labels, probabilities = simulated(300, seed=seed)
    probabilities = probabilities.round(digits)
    weights = np.random.default_rng(seed).integers(0, 4, (300, 3))
    pairs = [
        (metrics.auroc, roc_auc_score),
        (metrics.auprc, average_precision_score),
        (metrics.brier, brier_score_loss),
    ]
    for ours, theirs in pairs:
        assert ours(labels, probabilities) == pytest.approx(
            theirs(labels, probabilities), abs=1e-10
        )
        many = ours(labels, probabilities, weights=weights)
        for column, weight in zip(many, weights.T, strict=True):
            expected = theirs(labels, probabilities, sample_weight=weight)
            assert column == pytest.approx(expected, abs=1e-10)
            assert ours(labels, probabilities, weights=weight) == pytest.approx(expected, abs=1e-10)


def test_whole_numbers_in_a_byte_are_the_same_weights() -> None:
    labels, probabilities = simulated(700)
    weights = np.random.default_rng(3).poisson(1, (700, 5))
    for metric in METRICS.values():
        ours = metric(labels, probabilities.round(2), weights=weights.astype(np.uint8))
        same = metric(labels, probabilities.round(2), weights=weights.astype(float))
        assert ours == pytest.approx(same, abs=1e-12)


def test_blocks_and_cells_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = simulated(3000, slope=1.3)
    weights = np.random.default_rng(3).poisson(1, (3000, 40)).astype(np.uint8)
    exact = {name: METRICS[name](labels, probabilities, weights=weights) for name in METRICS}
    monkeypatch.setattr("medbert.evaluate.metrics.BLOCK", 7000)
    monkeypatch.setattr("medbert.evaluate.fits.BLOCK", 7000)
    monkeypatch.setattr("medbert.evaluate.metrics.CELLS", 500)
    for name, values in exact.items():
        ours = METRICS[name](labels, probabilities, weights=weights)
        error = 0.05 * values.std() if name.startswith("calibration") else 1e-12
        assert np.abs(ours - values).max() <= error


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_a_repeated_row(name: str) -> None:
    labels, probabilities = simulated(400)
    weight = np.random.default_rng(1).integers(0, 3, 400)
    repeated = METRICS[name](labels.repeat(weight), probabilities.repeat(weight))
    assert METRICS[name](labels, probabilities, weights=weight) == pytest.approx(repeated, abs=1e-8)
    many = METRICS[name](labels, probabilities, weights=np.stack([weight] * 2, axis=1))
    assert many == pytest.approx([repeated] * 2, abs=1e-4)


def test_calibration_recovers_scale_and_shift() -> None:
    labels, probabilities = simulated(40_000)
    assert metrics.calibration_slope(labels, probabilities) == pytest.approx(1, abs=0.04)
    assert metrics.calibration_intercept(labels, probabilities) == pytest.approx(0, abs=0.04)
    labels, extreme = simulated(40_000, slope=2)
    assert metrics.calibration_slope(labels, extreme) == pytest.approx(0.5, abs=0.02)
    labels, high = simulated(40_000, shift=0.7)
    assert metrics.calibration_intercept(labels, high) == pytest.approx(-0.7, abs=0.04)


def test_observed_over_expected() -> None:
    assert metrics.observed_expected([0, 1, 1], [0.1, 0.2, 0.7]) == pytest.approx(2.0)


def local_linear(labels: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """Weighted least squares at every row, tricube over the nearest three quarters."""
    fitted = np.empty(len(risk))
    for index, here in enumerate(risk):
        distance = np.abs(risk - here)
        width = np.sort(distance)[int(np.ceil(0.75 * len(risk))) - 1]
        root = np.sqrt(np.clip(1 - (distance / width) ** 3, 0, 1) ** 3)
        design = np.column_stack([np.ones_like(risk), risk - here])
        line = np.linalg.lstsq(design * root[:, None], labels * root, rcond=None)[0]
        fitted[index] = line[0]
    return fitted.clip(0, 1)


def test_ici_is_what_its_definition_says() -> None:
    labels, probabilities = simulated(300, slope=1.8)
    expected = np.abs(local_linear(labels, probabilities) - probabilities).mean()
    assert metrics.ici(labels, probabilities) == pytest.approx(expected, abs=1e-10)
    labels, probabilities = simulated(1500, slope=1.8)  # in cells
    expected = np.abs(local_linear(labels, probabilities) - probabilities).mean()
    assert metrics.ici(labels, probabilities) == pytest.approx(expected, abs=2e-4)


def test_ici_is_the_mean_error_of_the_risk() -> None:
    labels, probabilities = simulated(100_000, shift=0.8)
    truth = expit(np.log(probabilities / (1 - probabilities)) - 0.8)
    error = np.abs(truth - probabilities).mean()
    assert metrics.ici(labels, probabilities) == pytest.approx(error, abs=0.01)
    assert metrics.ici(labels, truth) < 0.01
    assert metrics.ici([0, 1, 1, 0], [0.3] * 4) == pytest.approx(0.2)


def test_calibration_slope_is_the_unpenalised_logistic_fit() -> None:
    from sklearn.linear_model import LogisticRegression

    labels, probabilities = simulated(500, slope=1.5)
    logits = np.log(probabilities / (1 - probabilities))[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits, labels)
    expected = fitted.coef_[0, 0]
    assert metrics.calibration_slope(labels, probabilities) == pytest.approx(expected, abs=1e-5)
    line = (fitted.intercept_[0], expected)
    assert metrics.calibration_line(labels, probabilities) == pytest.approx(line, abs=1e-5)


def test_calibration_that_does_not_exist_is_nan() -> None:
    assert np.isnan(metrics.calibration_slope([0, 1, 1], [0.3, 0.3, 0.3]))
    assert np.isnan(metrics.calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]))
    assert metrics.calibration_intercept([0, 1], [0.5, 0.5]) == pytest.approx(0)


def test_calibration_survives_zero_one_and_absurd_probabilities() -> None:
    assert np.isfinite(metrics.calibration_intercept([0, 1, 0, 1], [0.0, 1.0, 1.0, 0.0]))
    assert metrics.calibration_intercept([0, 1], [1e-6, 1e-6]) == pytest.approx(13.8, abs=0.1)


def test_calibration_curve_counts_every_row_once() -> None:
    labels, probabilities = simulated(1000)
    curve = calibration_curve(labels, probabilities)
    assert [point.n for point in curve] == [100] * 10
    assert sum(round(point.n * point.observed) for point in curve) == labels.sum()
    assert all(point.low <= point.observed <= point.high for point in curve)
    assert [point.predicted for point in curve] == sorted(point.predicted for point in curve)
    tied = calibration_curve(labels, np.full(1000, 0.3))
    assert [point.n for point in tied] == [1000]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("labels", "probabilities", "said"),
    [
        ([1, 1], [0.2, 0.3], "2 rows with 2 positives"),
        ([0, 0, 0], [0.2, 0.3, 0.1], "3 rows with 0 positives"),
        ([0, 1], [0.2, 0.3, 0.1], "do not match"),
        ([0, 1], [0.2, np.nan], "without gaps"),
        ([0, 1], [-1.2, 3.0], "no logits"),
        ([0, 2], [0.2, 0.3], "0 or 1"),
    ],
)
def test_refuses_in_words(name: str, labels: list, probabilities: list, said: str) -> None:
    with pytest.raises(InputError, match=said):
        METRICS[name](labels, probabilities)


def test_one_class_resample_is_nan_not_an_error() -> None:
    weights = np.array([[1, 1], [1, 0]])
    assert np.isnan(metrics.auroc([0, 1], [0.2, 0.3], weights=weights)).tolist() == [False, True]
