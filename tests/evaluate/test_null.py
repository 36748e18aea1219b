"""Where nothing is to be found, nothing is found: levels and coverage, a smaller number of times.

The whole of it is ``benchmarks/null_tests.py``, and so is the simulation.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "null_tests.py"


@pytest.fixture(scope="module")
def script() -> dict:
    names = runpy.run_path(str(SCRIPT))
    names["subjects"].__globals__["RESAMPLES"] = 100
    return names


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_the_true_auc(script: dict, clustered: bool) -> None:
    held = np.mean([script["covers"](seed, clustered=clustered) for seed in range(150)])
    assert 0.88 <= held <= 0.99


def test_drawing_rows_of_a_subject_apart_would_not_cover(script: dict) -> None:
    held = np.mean([script["covers"](s, clustered=True, by_rows=True) for s in range(100)])
    assert held < 0.88


def test_shuffled_labels_give_one_half(script: dict) -> None:
    held = np.mean([script["shuffled"](seed, clustered=True) for seed in range(150)])
    assert 0.88 <= held <= 0.99


def test_equal_models_are_found_different_as_often_as_promised(script: dict) -> None:
    level = np.mean([script["rejects"](seed, clustered=False) for seed in range(1000)])
    assert 0.035 <= level <= 0.065
    level = np.mean([script["rejects"](seed, clustered=True) for seed in range(200)])
    assert 0.01 <= level <= 0.10


def test_a_model_does_not_differ_from_itself(script: dict) -> None:
    assert all(script["identical"](seed) for seed in range(10))
