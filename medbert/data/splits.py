"""Subjects to train, tuning and held_out: made once, stored, shared by everything downstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.schema import SPLITS, SUBJECT_ID, SUBJECT_SPLITS, InputError


def assign(
    subject_ids: np.ndarray, *, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> pa.Table:
    """Splits by a hash of the subject id: a subject keeps its split when the extract grows.

    ``fractions`` are the shares of train, tuning and held_out and sum to 1.

    >>> table = assign(np.arange(1000), seed=1)
    >>> table.equals(assign(np.arange(1000), seed=1))
    True
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"splits.fractions must be three shares (train, tuning, held_out) that sum to 1, "
            f"not {list(fractions)}"
        )
    ids = np.unique(np.asarray(subject_ids, dtype=np.int64))
    share = _mix(ids.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64))
    place = np.searchsorted(np.cumsum(fractions)[:-1], share / 2.0**64, side="right")
    return pa.table([ids, np.array(SPLITS)[place]], schema=SUBJECT_SPLITS)


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser (Steele 2014): an even hash of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def read(path: str | Path) -> pa.Table:
    """A Parquet file of ``subject_id, split`` made elsewhere (MEDS subject_splits)."""
    try:
        return pq.read_table(path).select(SUBJECT_SPLITS.names).cast(SUBJECT_SPLITS)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: not a Parquet file with columns {SUBJECT_SPLITS.names} ({error})"
        ) from error


def check(splits: pa.Table, subject_ids: np.ndarray, *, origin: str) -> pa.Table:
    """The split of every one of ``subject_ids``, ordered by subject; refuses doubt.

    Raises InputError for a subject listed twice, an unknown split name, or subjects without one.
    """
    ids = splits[SUBJECT_ID].to_numpy()
    names = splits["split"].to_numpy(zero_copy_only=False)
    distinct, first = np.unique(ids, return_index=True)
    if len(distinct) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise InputError(
            f"{origin}: {len(ids) - len(distinct)} subjects are listed more than once (first "
            f"repeat at row {row + 1}); a subject belongs to exactly one split: keep one row each"
        )
    if unknown := sorted(set(names) - set(SPLITS)):
        raise InputError(f"{origin}: unknown split {unknown[0]!r}; use one of {list(SPLITS)}")
    wanted = np.unique(subject_ids)
    place = np.clip(np.searchsorted(distinct, wanted), 0, max(len(distinct) - 1, 0))
    missing = len(wanted) if not len(distinct) else int((distinct[place] != wanted).sum())
    if missing:
        raise InputError(
            f"{origin}: {missing} of {len(wanted)} subjects with events have no split; "
            "add them, or leave splits out to have medbert assign all subjects"
        )
    return pa.table([wanted, names[first][place]], schema=SUBJECT_SPLITS)
