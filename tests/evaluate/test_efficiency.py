"""Known curves give known multiples and crossings; what is out of reach is said to be."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from medbert.evaluate.efficiency import Efficiency, _rising, efficiency, score
from medbert.schema import InputError

SIZES = (100, 200, 400, 800, 1600, 3200)


def table(noise: float = 0.0, draws: int = 5, seed: int = 0) -> pd.DataFrame:
    """AUROC straight over log2(labels): "pre" is worth four times the labels of "lr"; "steep"
    starts below "lr", passes it at 800, and ends above."""
    rng = np.random.default_rng(seed)
    lines = []
    for size in SIZES:
        doublings = math.log2(size / 100)
        for draw in range(draws):
            for model, value in (
                ("lr", 0.6 + 0.03 * doublings),
                ("pre", 0.66 + 0.03 * doublings),
                ("steep", 0.54 + 0.05 * doublings),
            ):
                lines.append((model, size, draw, value + noise * rng.normal()))
    return pd.DataFrame(lines, columns=["model", "labels", "draw", "auroc"])


def test_a_known_multiple_and_a_known_crossing() -> None:
    found = efficiency(table(), seed=0, n=50)
    multiple = found.multiple("pre", over="lr", at=300)
    assert multiple.multiple == pytest.approx((4, 4, 4))
    assert multiple.auroc == pytest.approx(0.66 + 0.03 * math.log2(3))
    assert str(multiple.needed) == "1,200 (interval 1,200 to 1,200)"
    crossing = found.crossing("steep", over="lr")
    assert crossing.labels.value == pytest.approx(800)
    assert crossing.share == 1


def test_a_lead_is_paired_by_draw_and_told_by_size_and_over_all() -> None:
    lines = table(noise=0.05)
    shared = lines[lines["model"] == "lr"].assign(model="above")
    shared["auroc"] += np.log(shared["labels"]) / 100
    lead = efficiency(pd.concat([lines, shared]), seed=0, n=200).lead("above", over="lr")
    assert [*lead.by_size] == [*SIZES]
    for labels, found in lead.by_size.items():  # the noise is that of the draw: it cancels
        assert found.low == pytest.approx(found.high)
        assert found.value == pytest.approx(math.log(labels) / 100)
    assert lead.whole.value == pytest.approx((math.log(100) + math.log(3200)) / 200)

    unpaired = efficiency(lines, seed=0, n=200).lead("steep", over="lr")
    assert unpaired.by_size[800].low < 0 < unpaired.by_size[800].high
    one = efficiency(lines[lines["labels"] == 100], seed=0, n=200).lead("pre", over="lr")
    assert one.whole == one.by_size[100]


def test_out_of_reach_is_an_answer_with_a_bound() -> None:
    found = efficiency(table(), seed=0, n=50)
    beyond = found.multiple("pre", over="lr", at=1600)
    assert beyond.multiple == (math.inf,) * 3
    assert beyond.needed.largest / beyond.at == 2
    assert str(beyond.needed).startswith("more than 3,200 ")
    below = found.multiple("lr", over="pre", at=100)
    assert below.needed.value == 100 and str(below.needed).startswith("at most 100 ")
    assert math.isinf(found.crossing("lr", over="pre").labels.value)
    assert found.crossing("lr", over="pre").share == 0
    assert found.crossing("pre", over="lr").labels.value == 100
    with pytest.raises(InputError, match="100 to 3,200 labels: 5,000 is outside"):
        found.multiple("pre", over="lr", at=5000)


def test_the_interval_of_the_multiple_covers_it() -> None:
    covered, widths = 0, []
    for seed in range(60):
        found = efficiency(table(noise=0.02, seed=seed), seed=seed, n=200)
        _, low, high = found.multiple("pre", over="lr", at=400).multiple
        covered += low <= 4 <= high
        widths.append(high - low)
    assert covered >= 50
    assert np.median(widths) < 8


def test_more_draws_make_it_surer() -> None:
    def width(draws: int) -> float:
        found = efficiency(table(noise=0.02, draws=draws), seed=0, n=200)
        return float(np.mean(found.curves["lr"].high - found.curves["lr"].low))

    assert width(20) < 0.75 * width(4)


def test_draws_that_models_share_cancel_out() -> None:
    shared = table()
    shared["auroc"] += shared.groupby(["labels", "draw"])["auroc"].transform(
        lambda group: 0.03 * np.random.default_rng(len(group) + int(group.index[0])).normal()
    )
    found = efficiency(shared, seed=0, n=200)
    crossing = found.crossing("pre", over="lr")
    assert crossing.share == 1
    curve = found.curves["pre"]
    assert (curve.high - curve.low).mean() > 0.01


def test_rising_lines_are_isotonic_regressions() -> None:
    from sklearn.isotonic import isotonic_regression

    lines = np.random.default_rng(0).normal(size=(50, 7))
    expected = np.stack([isotonic_regression(line) for line in lines])
    assert _rising(lines) == pytest.approx(expected, abs=1e-12)


def test_subjects_count_where_predictions_are_given() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3 == 0
    predictions = {
        (model, size, draw): expit(gain * math.log2(size / 50) * labels + rng.normal(size=300))
        for model, gain in (("a", 0.5), ("b", 0.3))
        for size in (100, 400, 1600)
        for draw in range(3)
    }
    lines, samples = score(labels, predictions, np.arange(300), seed=0, n=100)
    assert samples.shape == (18, 100)
    drawn = efficiency(lines, seed=0, n=100).curves["a"]
    both = efficiency(lines, samples=samples, seed=0).curves["a"]
    assert both.mean == pytest.approx(drawn.mean)
    assert (both.high - both.low).mean() > (drawn.high - drawn.low).mean()


def test_a_size_with_one_draw_is_kept() -> None:
    whole = table()
    whole = whole[(whole["labels"] < 3200) | (whole["draw"] == 0)]
    found = efficiency(whole, seed=0, n=50)
    assert len(found.curves["lr"].points[-1]) == 1
    assert found.multiple("pre", over="lr", at=400).multiple[0] == pytest.approx(4)


def test_refuses_in_words() -> None:
    lines = table()
    with pytest.raises(InputError, match="lacks draw"):
        efficiency(lines.drop(columns="draw"), seed=0)
    with pytest.raises(InputError, match="one line per model"):
        efficiency(pd.concat([lines, lines]), seed=0)
    with pytest.raises(InputError, match="'gru' is not among"):
        efficiency(lines, seed=0, n=10).crossing("gru", over="lr")
    assert isinstance(efficiency(lines, seed=0, n=10), Efficiency)
