"""The documents of a corpus in the making, as rows without text: which stay, and in which split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from medbert.schema import HELD_OUT, InputError
from medbert.text.corpus.cleaning import CLEANED
from medbert.text.corpus.duplicates import counts_of, near_copies
from medbert.text.corpus.sampling import chance, shares_kept, split_of


def about(cleaned: list[Path]) -> pa.Table:
    """Of all documents, all but the texts."""
    names = [name for name in CLEANED.names if name != "text"]
    table = pa.concat_tables([parquet.read_table(file, columns=names) for file in cleaned])
    whose = pc.coalesce(
        table["patient_id"], pc.binary_join_element_wise("note ", table["note_id"], "")
    )
    return table.append_column("whose", whose.combine_chunks())


def left_out_of(cleaned: list[Path]) -> Counter[str]:
    total: Counter[str] = Counter()
    for file in cleaned:
        total.update(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
    return total


def signatures_of(cleaned: list[Path]) -> NDArray[np.uint32]:
    return np.concatenate([np.load(f.with_suffix(".npy"), mmap_mode="r") for f in cleaned])


class Kept:
    """Which documents stay, and why the others do not."""

    def __init__(self, table: pa.Table, left_out: Counter[str]) -> None:
        self.table, self.left_out = table, left_out
        self.mask_N = np.ones(len(table), bool)

    def only(self, mask: Any, reason: str) -> None:
        mask_N = np.asarray(mask)
        if lost := int((self.mask_N & ~mask_N).sum()):
            self.left_out[reason] += lost
        self.mask_N &= mask_N

    def near_copies(self, cleaned: list[Path], threshold: float | None) -> NDArray[np.int64]:
        """How many documents each stands for."""
        counts_N = np.ones(len(self.mask_N), np.int64)
        if threshold is not None:
            here = np.flatnonzero(self.mask_N)
            found = counts_of(near_copies(signatures_of(cleaned)[here], threshold=threshold))
            counts_N[here] = found
            self.only(counts_N > 0, "near copies")
        return counts_N

    def sample(
        self, quotas: Mapping[str, Mapping[str, float]], most_words: float | None, seed: int
    ) -> None:
        here = np.flatnonzero(self.mask_N)
        table = self.table.take(here)
        groups = {
            field: pc.cast(table[field], pa.string()).fill_null("unknown").to_numpy()
            for field in quotas
        }
        named = {f: {str(k): float(v) for k, v in shares.items()} for f, shares in quotas.items()}
        stays = shares_kept(groups, table["words"].to_numpy(), named, most_words=most_words)
        drawn = [
            chance(seed, site, note)
            for site, note in zip(
                table["site"].to_pylist(), table["note_id"].to_pylist(), strict=True
            )
        ]
        chosen_N = np.zeros(len(self.mask_N), bool)
        chosen_N[here[np.array(drawn) < stays]] = True
        self.only(chosen_N, "over its quota")


def splits_of(
    table: pa.Table, fractions: Sequence[float], seed: int, given: str | None
) -> NDArray[np.str_]:
    known: dict[str, str] = {}
    if given:
        try:
            there = parquet.read_table(given, columns=["subject_id", "split"])
        except (pa.ArrowException, OSError, KeyError):
            raise InputError(f"splits={given}: no Parquet of subject_id and split") from None
        who = pc.cast(there["subject_id"], pa.string()).to_pylist()
        known = dict(zip(who, there["split"].to_pylist(), strict=True))
    of: dict[str, str] = {}
    for whose in table["whose"].unique().to_pylist():
        of[whose] = known.get(whose) or split_of(whose, fractions=fractions, seed=seed)
    return np.array([of[whose] for whose in table["whose"].to_pylist()], dtype="U8")


def of_the_time(
    table: pa.Table, splits_N: NDArray[np.str_], held_out_from: str | None
) -> NDArray[np.bool_]:
    """Whether a document may be in its split: held_out from that time on, the others before it."""
    if held_out_from is None:
        return np.ones(len(table), bool)
    try:
        since = np.datetime64(held_out_from, "us")
    except ValueError:
        raise InputError(f"held_out_from={held_out_from}: not a date as in 2021-03-12") from None
    times_N = table["time"].to_numpy()
    late_N = ~np.isnat(times_N) & (times_N >= since)
    return np.where(splits_N == HELD_OUT, late_N, ~late_N)
