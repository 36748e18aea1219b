from __future__ import annotations

import math

import numpy as np
import pytest

from medbert.evaluate.intervals import Interval
from medbert.evaluate.leaks import privacy
from medbert.evaluate.leaks.privacy import CANNOT_TELL, FAIL, PASS, Judged
from medbert.schema import InputError

RESAMPLING = {"seed": 0, "resamples": 300, "level": 0.95}


def population(n: int, *, told: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Losses of n members and n others: mostly difficulty; members' are lower by ``told``."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(size=(2 * n, 3))
    member = np.repeat([True, False], n)
    noise = np.exp(0.5 * difficulty[:, 1]) * random.normal(size=2 * n)
    losses = difficulty @ [2.0, 1.0, 0.5] + 0.5 * difficulty[:, 0] ** 2 + noise - told * member
    return losses, member, difficulty


def test_nothing_is_found_where_there_is_nothing():
    losses, member, difficulty = population(800, told=0.0)
    scores = privacy.calibrated(losses, member, difficulty, seed=1)
    found = privacy.membership(scores, member, fpr=0.01, **RESAMPLING)
    assert found["auc"].low < 0.5 < found["auc"].high
    assert found["tpr"].low <= 0.01 <= found["tpr"].high < 0.05


def test_what_is_known_of_difficulty_sharpens_the_attack():
    losses, member, difficulty = population(800, told=1.0)
    scores = privacy.calibrated(losses, member, difficulty, seed=1)
    sharp = privacy.membership(scores, member, fpr=0.01, **RESAMPLING)
    blunt = privacy.membership(-losses, member, fpr=0.01, **RESAMPLING)
    assert sharp["auc"].low > blunt["auc"].high
    assert sharp["tpr"].value > blunt["tpr"].value


def test_nobody_is_judged_by_a_regression_that_saw_their_own_loss():
    losses, member, difficulty = population(200, told=0.0)
    scores = privacy.calibrated(losses, member, difficulty, seed=1)
    for index in (3, 300):
        other = losses.copy()
        other[index] += 1.0
        again = privacy.calibrated(other, member, difficulty, seed=1)
        slope = again[index] - scores[index]
        other[index] += 1.0
        further = privacy.calibrated(other, member, difficulty, seed=1)
        assert further[index] - again[index] == pytest.approx(slope, rel=1e-9)


def test_too_few_others_are_refused():
    losses, member, difficulty = population(10, told=0.0)
    with pytest.raises(InputError, match="too few"):
        privacy.calibrated(losses, member, difficulty, seed=0)


def brute_tpr(labels, scores, weights, fpr):
    best = 0.0
    for threshold in [*np.unique(scores), np.inf]:
        passed = scores >= threshold
        wrong = weights[passed & (labels == 0)].sum() / weights[labels == 0].sum()
        if wrong <= fpr:
            best = max(best, weights[passed & (labels == 1)].sum() / weights[labels == 1].sum())
    return best


def test_true_positive_rate_is_that_of_every_threshold_tried():
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 60).astype(float)
    scores = random.integers(0, 12, 60) / 12  # ties
    weights = random.integers(0, 4, (60, 5)).astype(np.uint8)
    for fpr in (0.0, 0.1, 0.35):
        found = privacy.true_positive_rate(labels, scores, fpr=fpr, weights=weights)
        wanted = [brute_tpr(labels, scores, w.astype(float), fpr) for w in weights.T]
        assert found == pytest.approx(wanted)


def test_exposure_counts_the_alternatives_that_are_as_likely():
    bits = privacy.exposure([9.0, 0.5, 2.0, -1.0], [0.0, 1.0, 2.0])
    assert bits == pytest.approx([2.0, math.log2(4 / 3), 1.0, 0.0])  # ranks 1, 3, 2 and 4
    random = np.random.default_rng(0)
    chance = privacy.exposure(random.normal(size=4000), random.normal(size=1023))
    assert chance.mean() == pytest.approx(privacy.CHANCE_BITS, abs=0.1)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.5, 0.47, 0.53), PASS),
        (Interval(0.6, 0.57, 0.63), FAIL),
        (Interval(0.53, 0.5, 0.56), CANNOT_TELL),
        (Interval(0.57, 0.54, 0.6), CANNOT_TELL),
        (Interval(0.5, -math.inf, math.inf), CANNOT_TELL),
        (Interval(), CANNOT_TELL),
    ],
)
def test_a_verdict_is_of_the_whole_interval(interval, verdict):
    judged = Judged("AUC", interval, 0.55, 400, "subjects")
    assert judged.verdict == verdict
    assert privacy.worst([PASS, verdict]) == verdict
    if verdict != CANNOT_TELL:
        assert judged.needed is None
    elif math.isfinite(interval.high):
        half = 0.03 * math.sqrt(400 / judged.needed)
        assert half == pytest.approx(abs(interval.value - 0.55), rel=0.01)
    else:
        assert judged.needed is None  # nothing to reckon with
