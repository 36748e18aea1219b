"""Holm's steps, the method that fits the rows, and the two kinds of error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t as student

from medbert.evaluate.comparisons import compare, holm, over_items, over_seeds
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


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def answers(rng: np.random.Generator, *, gain: float = 0.0, seeds: int = 5, items: int = 80):
    """Two models (S, N, 2): values share what is hard in an item, and what a seed does to both."""
    shared = rng.normal(size=(1, items)) + 0.3 * rng.normal(size=(seeds, 1))
    own = [shared + 0.5 * rng.normal(size=(seeds, items)) for _ in range(2)]
    own[0] = own[0] + gain + 0.2 * rng.normal(size=(seeds, 1))
    return {
        name: np.stack([value, np.ones_like(value)], axis=2)
        for name, value in zip(("a", "b"), own, strict=True)
    }


def test_items_and_seeds_are_drawn_together_and_differences_are_paired():
    counts = answers(np.random.default_rng(0), gain=0.5)
    found = over_items(counts, mean, np.arange(80), seed=0, n=500)
    gain = found.difference("a", minus="b", metric="metric")
    expected = counts["a"][..., 0].mean() - counts["b"][..., 0].mean()
    assert gain.value == pytest.approx(expected) and gain.low > 0 and gain.p < 0.05
    apart = found.interval("a", metric="metric")
    assert gain.high - gain.low < apart.high - apart.low
    again = over_items(counts, mean, np.arange(80), seed=0, n=500)
    assert again.difference("a", minus="b", metric="metric") == gain


def test_items_of_a_cluster_are_drawn_whole():
    counts = {"a": np.repeat(answers(np.random.default_rng(0))["a"], 4, axis=1)}
    width = [
        np.ptp(
            [
                (
                    of := over_items(counts, mean, c, seed=0, n=300).interval("a", metric="metric")
                ).low,
                of.high,
            ]
        )
        for c in (np.arange(320), np.repeat(np.arange(80), 4))
    ]
    assert width[1] > 1.2 * width[0]


def test_an_interval_over_items_and_seeds_holds_what_it_says():
    """Of a true difference of 0.3 between trainings and items that nobody has seen."""
    inside = 0
    for i in range(150):
        counts = answers(np.random.default_rng(i), gain=0.3, seeds=5, items=40)
        found = over_items(counts, mean, np.arange(40), seed=i, n=200)
        gain = found.difference("a", minus="b", metric="metric")
        inside += gain.low <= 0.3 <= gain.high
    assert inside >= 0.88 * 150


def test_models_of_other_items_are_refused():
    counts = answers(np.random.default_rng(0))
    with pytest.raises(InputError, match="other seeds or items"):
        over_items(counts | {"b": counts["b"][:, :-1]}, mean, np.arange(80), seed=0)
