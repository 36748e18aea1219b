"""Subjects to train, tuning and held_out: made once, stored, shared by everything downstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.schema import SPLITS, SUBJECT_ID, SUBJECT_SPLITS, InputError


def places(ids: np.ndarray, *, fractions: Sequence[float], seed: int = 0) -> np.ndarray:
    """int8 place in SPLITS by a hash of the subject id: it stays when the extract grows.

    ``fractions`` are the shares of train, tuning and held_out and sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"splits.fractions must be three shares (train, tuning, held_out) that sum to 1, "
            f"not {list(fractions)}"
        )
    share = mixed(ids.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64))
    return np.searchsorted(np.cumsum(fractions)[:-1], share / 2.0**64, side="right").astype(np.int8)


def mixed(x: np.ndarray) -> np.ndarray:
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


def checked(splits: pa.Table, *, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted subject ids, and the place of each one's split in SPLITS; refuses doubt.

    Raises InputError for a subject listed twice or an unknown split name.
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
    order = {name: place for place, name in enumerate(SPLITS)}
    return distinct, np.array([order[name] for name in names[first]], np.int8)


def look_up(wanted: np.ndarray, ids: np.ndarray, places: np.ndarray, *, origin: str) -> np.ndarray:
    """The place of the split of each wanted subject; ``ids`` are sorted.

    Raises InputError for subjects without one.
    """
    place = np.clip(np.searchsorted(ids, wanted), 0, max(len(ids) - 1, 0))
    missing = len(wanted) if not len(ids) else int((ids[place] != wanted).sum())
    if missing:
        raise InputError(
            f"{origin}: {missing} of {len(wanted)} subjects with events have no split; "
            "add them, or leave splits out to have medbert assign all subjects"
        )
    return places[place]


def stored(path: Path, wanted: np.ndarray) -> np.ndarray:
    """``look_up`` in what ``prepare`` left of the splits given."""
    with np.load(path) as file:
        return look_up(wanted, file["ids"], file["places"], origin="subject splits")
