"""Models on several tasks: what is said of them is what was found."""

from __future__ import annotations

import numpy as np
import pytest

from medbert.evaluate import figures
from medbert.evaluate.reports.contest import Counted, contest, picture, sections, to_dict, words


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def task(gains: dict[str, float], *, higher: bool = True, beside: tuple[str, ...] = ()) -> Counted:
    random = np.random.default_rng(0)
    shared = random.normal(size=(6, 60))
    counts = {}
    for name, gain in gains.items():
        value = shared + gain + 0.3 * random.normal(size=(6, 60))
        counts[name] = np.stack([value, np.ones_like(value)], axis=2)
    language = np.repeat(["nb", "nn"], [50, 10])
    measures = (("score", higher, ratio), ("more", higher, ratio))
    return Counted(measures, counts, np.arange(60), {"language": language}, beside)


GAINS = {"base": -0.5, "control": 0.0, "adapted": 0.5}


@pytest.fixture(scope="module")
def found():
    tasks = {
        "phi": task(GAINS),
        "loss": task({**GAINS, "adapted": 0.5}, higher=False),
        "terms": task({"base": 0, "control": 0, "adapted": 0, "n-grams": 2}, beside=("n-grams",)),
    }
    how = {"seed": 0, "n": 400, "level": 0.95, "min_clusters": 20}
    return contest(tasks, reference="control", pairs=[("adapted", "base")], **how)


def test_the_verdict_says_gain_worse_or_no_gain(found):
    said = words(found)
    assert any(line.startswith("phi: adapted gains over control, +0.5") for line in said)
    assert any(line.startswith("phi: adapted gains over base, +") for line in said)
    assert any(line.startswith("loss: adapted is worse than control, +0.5") for line in said)
    assert any(line.startswith("loss: base gains over control") for line in said)
    assert any(line.startswith("terms: adapted: no gain over control") for line in said)
    assert said[-1] == "terms: n-grams ahead of every model here."
    assert not any("n-grams gains" in line for line in said)


def test_p_is_adjusted_over_all_tasks(found):
    every = [one for each in found for one in each.comparisons]
    assert len(every) == 3 + 3 + 4
    assert all(one.adjusted_p >= one.difference.p for one in every)
    assert max(one.adjusted_p for one in every) > max(one.difference.p for one in every) or any(
        one.adjusted_p == 1 for one in every
    )


def test_groups_that_are_too_small_are_not_shown(found):
    assert list(found[0].parts["language"]) == ["nb"]
    clusters, rows = found[0].parts["language"]["nb"]
    assert clusters == 50 and rows["adapted"].difference.value == pytest.approx(0.5, abs=0.2)


def test_the_report_has_every_number_and_a_picture(found):
    parts = sections(found, reference="control", level=0.95)
    assert [part.title for part in parts] == ["Against control", "phi", "loss", "terms"]
    table = parts[1].tables[0]
    assert [row[0] for row in table.rows] == ["base", "control", "adapted"]
    assert table.rows[1][2] == "–" and table.rows[2][2].startswith("+0.")
    assert b"<svg" in figures.svg(picture(found[0]))
    told = to_dict(found)["phi"]
    assert told["comparisons"][1]["verdict"] == "gain" and len(told["seeds"]["base"]) == 6
