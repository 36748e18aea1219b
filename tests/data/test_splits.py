from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from medbert.data import splits
from medbert.schema import InputError


def test_shares_are_kept_and_every_subject_has_one_split():
    table = splits.assign(np.arange(20_000), fractions=(0.7, 0.1, 0.2), seed=3)
    names, counts = np.unique(table["split"].to_numpy(zero_copy_only=False), return_counts=True)
    shares = dict(zip(names, counts / 20_000, strict=True))
    assert shares == pytest.approx({"train": 0.7, "tuning": 0.1, "held_out": 0.2}, abs=0.015)


def test_a_subject_keeps_its_split_when_the_extract_grows():
    few = splits.assign(np.arange(100), seed=1).to_pandas().set_index("subject_id")["split"]
    many = splits.assign(np.arange(5_000), seed=1).to_pandas().set_index("subject_id")["split"]
    assert (many[few.index] == few).all()


def test_another_seed_gives_other_splits():
    one, two = (splits.assign(np.arange(1_000), seed=s)["split"] for s in (1, 2))
    assert not one.equals(two)


def test_fractions_must_sum_to_one():
    with pytest.raises(InputError, match="sum to 1"):
        splits.assign(np.arange(5), fractions=(0.7, 0.1, 0.1))


def table_of(ids: list[int], names: list[str]) -> pa.Table:
    return pa.table({"subject_id": ids, "split": names})


def test_duplicate_subject_is_refused_without_naming_it():
    with pytest.raises(InputError, match=r"1 subjects are listed more than once .*row 3") as caught:
        splits.check(table_of([7001, 7002, 7001], ["train"] * 3), np.array([7001]), origin="f")
    assert "7001" not in str(caught.value)


def test_unknown_split_and_missing_subject_are_refused():
    with pytest.raises(InputError, match="unknown split 'test'"):
        splits.check(table_of([1], ["test"]), np.array([1]), origin="f")
    with pytest.raises(InputError, match="1 of 2 subjects with events have no split"):
        splits.check(table_of([1], ["train"]), np.array([1, 2]), origin="f")
