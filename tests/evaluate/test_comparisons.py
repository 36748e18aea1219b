"""Holm's steps, the method that fits the rows, and the two kinds of error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t as student

from medbert.evaluate.comparisons import compare, holm, over_seeds
from medbert.evaluate.intervals import delong
from medbert.evaluate.metrics import auroc, brier
from medbert.schema import InputError


def trainings(k: int, *, noise: float, n: int = 600, seed: int = 0) -> tuple[np.ndarray, list]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4 == 0
    signal = labels + rng.normal(size=n)
    return labels, [expit(signal + noise * rng.normal(size=n)) for _ in range(k)]


def test_holm_by_its_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    gaps = holm([0.04, np.nan, 0.01])
    assert gaps[[0, 2]] == pytest.approx([0.04, 0.02]) and np.isnan(gaps[1])
    assert (holm(np.full(5, 0.9)) == 1).all()


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    p = np.random.default_rng(0).random((4000, 6))
    false = np.mean([(holm(row) < 0.05).any() for row in p])
    assert 0.035 <= false <= 0.06
    assert (p < 0.05).any(axis=1).mean() > 0.2  # which it is not without


def test_compare_uses_delong_where_it_may() -> None:
    labels, (first, second, third) = trainings(3, noise=1.0)
    models = {"a": first, "b": second, "c": third}
    pairs = [("a", "b"), ("a", "c")]
    found = compare(labels, models, np.arange(600), pairs=pairs, seed=0)
    assert found[0].difference == delong(labels, first, second)
    assert [one.adjusted_p for one in found] == pytest.approx(
        list(holm([one.difference.p for one in found]))
    )
    clustered = compare(labels, models, np.arange(600) // 2, pairs=pairs, seed=0, n=50)
    assert {one.method for one in clustered} == {"paired bootstrap over subjects"}
    by_brier = compare(labels, models, np.arange(600), pairs=pairs, metric=brier, seed=0, n=50)
    assert by_brier[0].method == clustered[0].method
    with pytest.raises(InputError, match="'d' is not among"):
        compare(labels, models, np.arange(600), pairs=[("a", "d")], seed=0)


def test_seeds_and_subjects_are_told_apart() -> None:
    labels, alike = trainings(5, noise=0.01)
    _, unlike = trainings(5, noise=2.0)
    steady = over_seeds(labels, alike, np.arange(600), seed=0, n=200)
    wild = over_seeds(labels, unlike, np.arange(600), seed=0, n=200)
    assert steady.values == pytest.approx([auroc(labels, values) for values in alike])
    assert steady.sd < 0.002 < 0.01 < wild.sd
    assert steady.low == min(steady.values) and steady.high == max(steady.values)
    for spread in (steady, wild):
        assert spread.total.low <= spread.sampling.low + 0.01
        assert spread.total.value == pytest.approx(np.mean(spread.values))
    width = steady.sampling.high - steady.sampling.low
    assert steady.total.high - steady.total.low == pytest.approx(width, rel=0.12)
    seeds_alone = 2 * student.ppf(0.975, 1e9) * wild.sd / 5**0.5
    assert wild.total.high - wild.total.low > seeds_alone


def test_one_seed_says_nothing_about_seeds() -> None:
    labels, one = trainings(1, noise=1.0)
    spread = over_seeds(labels, one, np.arange(600), seed=0, n=100)
    assert np.isnan([spread.sd, spread.total.low, spread.total.high]).all()
    assert spread.sampling.low < spread.sampling.value < spread.sampling.high


def test_the_total_covers_where_the_parts_do_not() -> None:
    """A difference of nothing, between two models of few seeds each."""
    parts, total = 0, 0
    for seed in range(80):
        labels, six = trainings(6, noise=2.0, n=900, seed=seed)
        gain = over_seeds(
            labels, six[:3], np.arange(900), minus=six[3:], seed=seed, n=100, level=0.9
        )
        parts += gain.sampling.low <= 0 <= gain.sampling.high
        total += gain.total.low <= 0 <= gain.total.high
    assert total >= 66
    assert parts <= total
