"""A subgroup is its rows alone, and what is hidden does not follow from what is shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medbert.evaluate.metrics import auroc, observed_expected
from medbert.evaluate.subgroups import Subgroup, subgroups
from medbert.schema import InputError


def cohort(sizes: dict[str, int], *, rate: float = 0.4) -> tuple[np.ndarray, np.ndarray, list]:
    rng = np.random.default_rng(0)
    names = [name for name, size in sizes.items() for _ in range(size)]
    labels = np.concatenate([np.arange(size) < rate * size for size in sizes.values()])
    return labels, np.clip(0.3 * labels + 0.7 * rng.random(len(names)), 0, 1), names


def run(sizes: dict[str, int], **options: object) -> dict[str, Subgroup]:
    labels, risk, names = cohort(sizes)
    subjects = np.arange(len(names))
    cells = subgroups(labels, risk, {"site": names}, subjects, seed=0, n=20, **options)
    return {cell.category: cell for cell in cells}


def test_a_subgroup_is_its_rows_alone() -> None:
    labels, risk, names = cohort({"a": 100, "b": 80})
    sex = np.where(np.arange(180) % 2, "F", "M")
    cells = subgroups(labels, risk, {"site": names, "sex": sex}, np.arange(180), seed=0, n=50)
    assert [(cell.variable, cell.category) for cell in cells] == [
        ("site", "a"),
        ("site", "b"),
        ("sex", "F"),
        ("sex", "M"),
    ]
    inside = np.array(names) == "b"
    cell = cells[1]
    assert (cell.rows, cell.subjects, cell.positives) == (80, 80, labels[inside].sum())
    assert cell.auroc.value == pytest.approx(auroc(labels[inside], risk[inside]))
    ratio = observed_expected(labels[inside], risk[inside])
    assert cell.observed_expected.value == pytest.approx(ratio)
    assert cell.auroc.low < cell.auroc.value < cell.auroc.high


def test_few_are_hidden_and_so_is_what_would_give_them_away() -> None:
    cells = run({"a": 200, "b": 60, "c": 90, "d": 12})
    assert {name for name, cell in cells.items() if cell.hidden} == {"d", "b"}
    gone = cells["d"]
    assert (gone.rows, gone.subjects, gone.positives) == (None, None, None)
    assert np.isnan([gone.auroc.value, gone.observed_expected.high]).all()
    two = run({"a": 200, "b": 90, "c": 5, "d": 5})  # together still few
    assert {name for name, cell in two.items() if cell.hidden} == {"b", "c", "d"}
    enough = run({"a": 200, "b": 90, "c": 20, "d": 20})
    assert {name for name, cell in enough.items() if cell.hidden} == {"c", "d"}
    assert not any(cell.hidden for cell in run({"a": 200, "b": 60}).values())


def test_few_positives_and_few_subjects_are_few() -> None:
    labels, risk, names = cohort({"a": 200, "b": 200, "c": 200}, rate=0.5)
    labels[np.flatnonzero(np.array(names) == "c")[:91]] = False  # nine positives are left
    cells = subgroups(labels, risk, {"site": names}, np.arange(600), seed=0, n=20)
    assert [cell.hidden for cell in cells].count(True) == 2 and cells[2].hidden
    subjects = np.where(np.array(names) == "b", -1 - np.arange(600) % 8, np.arange(600))
    labels, risk, names = cohort({"a": 200, "b": 200, "c": 200}, rate=0.5)
    cells = subgroups(labels, risk, {"site": names}, subjects, seed=0, n=20)
    assert cells[1].hidden  # two hundred rows of eight subjects


def test_unknown_is_a_category_and_the_order_is_that_of_the_bands() -> None:
    labels, risk, names = cohort({"x": 100, "y": 100, "z": 100})
    band = pd.Categorical(
        [{"x": "<50", "y": "50-69", "z": None}[name] for name in names],
        categories=["<50", "50-69", "70+"],
    )
    cells = subgroups(labels, risk, {"age": band}, np.arange(300), seed=0, n=20)
    assert [cell.category for cell in cells] == ["<50", "50-69", "unknown"]
    assert sum(cell.rows or 0 for cell in cells) == 300


def test_refuses_in_words() -> None:
    labels, risk, _ = cohort({"a": 50})
    with pytest.raises(InputError, match="'sex' has 2 values for 50 rows"):
        subgroups(labels, risk, {"sex": ["F", "M"]}, np.arange(50), seed=0)
    with pytest.raises(InputError, match="49 subject ids for 50 rows"):
        subgroups(labels, risk, {}, np.arange(49), seed=0)
