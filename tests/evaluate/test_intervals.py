"""Intervals cover, differences are paired, and DeLong is what its definition says."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from medbert.evaluate.intervals import bootstrap, delong, delong_auroc, summarise
from medbert.evaluate.metrics import auroc, brier
from medbert.schema import InputError


def scores(n: int, *, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a good model and a noisier one that shares part of its error."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    signal = labels + rng.normal(size=n)
    return labels, expit(signal), expit(signal + noise * rng.normal(size=n))


def test_a_model_minus_itself_is_exactly_nothing() -> None:
    labels, first, _ = scores(200, seed=0)
    drawn = bootstrap({"auroc": auroc}, labels, {"a": first, "b": first}, np.arange(200), seed=1)
    for difference in (
        drawn.difference("a", minus="b", metric="auroc"),
        delong(labels, first, first),
    ):
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_same_seed_same_numbers_and_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, first, second = scores(100, seed=0)
    args = ({"auroc": auroc}, labels, {"a": first, "b": second}, np.arange(100))
    once = bootstrap(*args, seed=5, n=50)
    monkeypatch.setattr("medbert.evaluate.intervals.CHUNK", 700)
    again, other = bootstrap(*args, seed=5, n=50), bootstrap(*args, seed=6, n=50)
    assert np.array_equal(once.samples["a", "auroc"], again.samples["a", "auroc"])
    assert not np.array_equal(once.samples["a", "auroc"], other.samples["a", "auroc"])


def test_bootstrap_interval_covers_the_truth() -> None:
    truth, covered = 0.7602499389065233, 0  # normal(1, 1) above normal(0, 1)
    for seed in range(100):
        labels, first, _ = scores(150, seed=seed)
        interval = bootstrap({"m": auroc}, labels, first, np.arange(150), seed=seed, n=200)
        bounds = interval.interval("model", metric="m")
        covered += bounds.low <= truth <= bounds.high
    assert 88 <= covered <= 99


def test_rows_of_a_subject_are_drawn_together() -> None:
    labels, first, _ = scores(200, seed=3)
    copies = 6
    many = (labels.repeat(copies), first.repeat(copies))
    one = bootstrap({"m": brier}, labels, first, np.arange(200), seed=1, n=300)
    clustered = bootstrap({"m": brier}, *many, np.arange(200).repeat(copies), seed=1, n=300)
    naive = bootstrap({"m": brier}, *many, np.arange(200 * copies), seed=1, n=300)
    assert clustered.samples["model", "m"] == pytest.approx(one.samples["model", "m"])
    assert naive.samples["model", "m"].std() < 0.6 * one.samples["model", "m"].std()


def test_pairing_makes_the_interval_narrower() -> None:
    labels, first, second = scores(400, seed=2, noise=0.3)
    models = {"a": first, "b": second}
    drawn = bootstrap({"m": auroc}, labels, models, np.arange(400), seed=1)
    difference = drawn.difference("a", minus="b", metric="m")
    width_of_one = drawn.interval("a", metric="m")
    assert difference.high - difference.low < 0.6 * (width_of_one.high - width_of_one.low)
    by_delong = delong(labels, first, second)
    assert by_delong.value == pytest.approx(difference.value, abs=1e-12)
    assert by_delong.low == pytest.approx(difference.low, abs=0.005)
    assert by_delong.high == pytest.approx(difference.high, abs=0.005)


def test_resamples_of_one_class_are_dropped_and_counted() -> None:
    labels, probabilities = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    drawn = bootstrap({"m": auroc}, labels, probabilities, np.arange(4), seed=0, n=400)
    assert drawn.dropped + drawn.n == 400
    assert drawn.dropped / 400 == pytest.approx((3 / 4) ** 4, abs=0.08)
    assert drawn.samples["model", "m"].shape == (drawn.n,)


def test_delong_against_its_definition() -> None:
    labels, first, second = scores(60, seed=4)
    first, second = first.round(1), second.round(1)  # with ties
    placements = []
    for values in (first, second):
        positive, negative = values[labels == 1], values[labels == 0]
        kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        placements.append((kernel.mean(axis=1), kernel.mean(axis=0), kernel.mean()))
    variance = 0.0
    for side in (0, 1):
        covariance = np.cov(np.stack([placements[0][side], placements[1][side]]))
        contrast = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        variance += contrast / len(placements[0][side])
    ours = delong(labels, first, second)
    assert ours.value == pytest.approx(placements[0][2] - placements[1][2], abs=1e-12)
    assert ours.high - ours.low == pytest.approx(2 * 1.959963984540054 * variance**0.5, abs=1e-12)


def test_delong_of_one_against_its_definition() -> None:
    labels, first, _ = scores(60, seed=4)
    positive, negative = first[labels == 1].round(1), first[labels == 0].round(1)
    kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    by_side = [kernel.mean(axis=side) for side in (0, 1)]
    error = sum(values.var(ddof=1) / len(values) for values in by_side) ** 0.5
    ours = delong_auroc(labels, first.round(1))
    assert ours.value == pytest.approx(kernel.mean(), abs=1e-12)
    assert ours.value - ours.low == pytest.approx(1.959963984540054 * error, abs=1e-12)
    assert ours.high <= 1


@pytest.mark.skipif("MEDBERT_ASAH" not in os.environ, reason="no CSV of pROC's aSAH (GPL) named")
def test_delong_gives_the_published_numbers() -> None:
    """pROC 1.19: var and roc.test of aSAH, outcome Poor, as in its own tests."""
    table = pd.read_csv(os.environ["MEDBERT_ASAH"])
    labels = (table["outcome"] == "Poor").to_numpy()
    score = {name: table[name] / table[name].max() for name in ("wfns", "s100b", "ndka")}
    for name, variance in (
        ("wfns", 0.00146991470882363),
        ("ndka", 0.0031908105493913),
        ("s100b", 0.00266868245717244),
    ):
        ours = delong_auroc(labels, score[name])
        error = (ours.value - ours.low) / 1.959963984540054
        assert error**2 == pytest.approx(variance, rel=1e-12)
    for first, second, low, high, p in (
        ("wfns", "s100b", 0.0104061769564846, 0.174214419249478, 0.0271757822291882),
        ("wfns", "ndka", 0.0634011709339876, 0.3600405634833566, 0.00514557970691098),
        ("ndka", "s100b", -0.2876917446341914, 0.0488706064228094, 0.164295175223054),
    ):
        ours = delong(labels, score[first], score[second])
        assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, p), rel=1e-10)


def test_delong_p_is_uniform_where_models_are_alike() -> None:
    rng, small = np.random.default_rng(0), 0
    for _ in range(300):
        labels = np.arange(120) % 2
        signal = labels + rng.normal(size=120)
        pair = [expit(signal + rng.normal(size=120)) for _ in range(2)]
        small += delong(labels, *pair).p < 0.1
    assert 15 <= small <= 48


def test_delong_says_when_it_cannot_say() -> None:
    assert np.isnan(delong([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1]).p)
    with pytest.raises(InputError, match="two positives"):
        delong([0, 0, 1], [0.1, 0.2, 0.8], [0.9, 0.1, 0.2])


def test_summarise_holds_every_number_and_writes_strict_json() -> None:
    labels, first, second = scores(300, seed=1)
    everyone = {"pretrained": first, "untrained": second, "flat": np.full(300, 0.3)}
    results = summarise(
        labels,
        everyone,
        np.arange(300),
        reference="pretrained",
        untrained="untrained",
        oracle=first,
        seed=0,
        n_bootstrap=60,
    )
    table = results.table().set_index("model")
    assert table.loc["pretrained", "auroc"] == pytest.approx(auroc(labels, first))
    assert table.loc["untrained", "gain"] == pytest.approx(
        auroc(labels, first) - auroc(labels, second)
    )
    assert table["share_of_oracle"].tolist()[0] == 1
    assert table["role"].tolist() == ["reference", "untrained", "baseline", "oracle"]
    assert (table["auroc_low"] <= table["auroc"]).all()
    assert results.method == "DeLong"
    record = json.loads(json.dumps(results.to_dict()), parse_constant=pytest.fail)
    assert record["positives"] == 100
    assert record["models"][2]["calibration_slope"]["value"] is None


def test_several_rows_per_subject_are_not_for_delong() -> None:
    labels, first, second = scores(300, seed=1)
    models, subjects = {"a": first, "b": second}, np.arange(300) // 2
    results = summarise(labels, models, subjects, reference="a", seed=0, n_bootstrap=60)
    assert results.method == "paired bootstrap over subjects"
    assert results.subjects == 150


def test_summarise_refuses_in_words() -> None:
    labels, first, _ = scores(30, seed=1)
    with pytest.raises(InputError, match="'b' is not among 'a'"):
        summarise(labels, {"a": first}, np.arange(30), reference="b", seed=0)
    with pytest.raises(InputError, match="29 subject ids for 30 rows"):
        summarise(labels, {"a": first}, np.arange(29), reference="a", seed=0)
