"""Nested subsets: each in the next, the prevalence kept, both classes there, whole subjects."""

from __future__ import annotations

import numpy as np
import pytest

from medbert.evaluate.subsets import nested
from medbert.schema import InputError

SIZES = [20, 100, 300]


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Labels and subjects of 400 subjects with 1 to 4 rows; a tenth of them have the outcome."""
    random = np.random.default_rng(0)
    subject = np.repeat(np.arange(400) + 7, random.integers(1, 5, 400))
    label = (subject % 10 == 0) & (random.random(len(subject)) < 0.7)
    order = random.permutation(len(subject))
    return label[order], subject[order]


def test_each_subset_is_part_of_the_next_and_keeps_the_prevalence(rows):
    label, subject = rows
    share = len(np.unique(subject[label])) / 400
    subsets = nested(label, subject, sizes=SIZES, seed=3)
    for size, chosen in subsets.items():
        ids = np.unique(subject[chosen])
        assert len(ids) == size
        assert np.array_equal(np.flatnonzero(np.isin(subject, ids)), chosen)  # whole subjects
        assert len(np.unique(subject[chosen][label[chosen]])) == round(size * share)
    assert set(subsets[20]) < set(subsets[100]) < set(subsets[300])


def test_draws_differ_and_the_same_seed_is_the_same_draw(rows):
    one, other, again = (nested(*rows, sizes=[20], seed=s)[20].tolist() for s in (1, 2, 1))
    assert one == again != other


def test_small_subsets_hold_both_classes_and_as_many_as_asked_of_each(rows):
    label, subject = rows
    tiny = nested(label, subject, sizes=[1], seed=0)[1]
    assert label[tiny].any() and not label[tiny].all()
    five = nested(label, subject, sizes=[6, 400], seed=0, least=5)
    assert len(np.unique(subject[five[6]][label[five[6]]])) == 5
    assert len(np.unique(subject[five[6]])) == 10 and len(five[400]) == len(subject)


def test_more_than_there_are_is_refused(rows):
    with pytest.raises(InputError, match="subset of 401 subjects: there are 400"):
        nested(*rows, sizes=[401], seed=0)
