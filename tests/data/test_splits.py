from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from medbert.data import splits
from medbert.schema import InputError


def test_shares_are_kept_and_every_subject_has_one_split():
    places = splits.places(np.arange(20_000), fractions=(0.7, 0.1, 0.2), seed=3)
    assert np.bincount(places) / 20_000 == pytest.approx([0.7, 0.1, 0.2], abs=0.015)


def test_a_subject_keeps_its_split_when_the_extract_grows():
    few = splits.places(np.arange(50, 100), fractions=(0.7, 0.1, 0.2), seed=1)
    many = splits.places(np.arange(5_000), fractions=(0.7, 0.1, 0.2), seed=1)
    assert (many[50:100] == few).all()


def test_another_seed_gives_other_splits():
    one, two = (splits.places(np.arange(999), fractions=(0.7, 0.1, 0.2), seed=s) for s in (1, 2))
    assert (one != two).any()


def test_fractions_must_sum_to_one():
    with pytest.raises(InputError, match="sum to 1"):
        splits.places(np.arange(5), fractions=(0.7, 0.1, 0.1))


def table_of(ids: list[int], names: list[str]) -> pa.Table:
    return pa.table({"subject_id": ids, "split": names})


def test_splits_made_elsewhere_are_looked_up():
    ids, places = splits.checked(table_of([9, 2, 5], ["held_out", "train", "tuning"]), origin="f")
    assert splits.look_up(np.array([5, 9]), ids, places, origin="f").tolist() == [1, 2]


def test_duplicate_subject_is_refused_without_naming_it():
    with pytest.raises(InputError, match=r"1 subjects are listed more than once .*row 3") as caught:
        splits.checked(table_of([7001, 7002, 7001], ["train"] * 3), origin="f")
    assert "7001" not in str(caught.value)


def test_unknown_split_and_missing_subject_are_refused():
    with pytest.raises(InputError, match="unknown split 'test'"):
        splits.checked(table_of([1], ["test"]), origin="f")
    ids, places = splits.checked(table_of([1], ["train"]), origin="f")
    with pytest.raises(InputError, match="1 of 2 subjects with events have no split"):
        splits.look_up(np.array([1, 2]), ids, places, origin="f")
