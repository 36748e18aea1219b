"""The documents of a corpus in the making, as rows without text: which stay, and in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from medbert.commands.output.artefacts import read_json
from medbert.schema import HELD_OUT, InputError
from medbert.text.corpus.cleaning import CLEANED
from medbert.text.corpus.duplicates import counts_of, near_copies
from medbert.text.corpus.sampling import chance, shares_kept, split_of


class Kept:
    """Which of the documents that were ``cleaned`` stay, and why the others do not; ``table`` has
    all of them, without their texts."""

    def __init__(self, cleaned: list[Path]) -> None:
        names = [name for name in CLEANED.names if name != "text"]
        table = pa.concat_tables([parquet.read_table(file, columns=names) for file in cleaned])
        nobody = pc.binary_join_element_wise("note ", table["note_id"], "")
        whose = pc.coalesce(table["patient_id"], nobody).combine_chunks()
        self.table, self.cleaned = table.append_column("whose", whose), cleaned
        self.mask_N, self.left_out = np.ones(len(table), bool), Counter[str]()
        for file in cleaned:
            self.left_out.update(read_json(file.with_suffix(".json")))

    def signatures(self) -> NDArray[np.uint32]:
        return np.concatenate([np.load(f.with_suffix(".npy"), mmap_mode="r") for f in self.cleaned])

    def only(self, mask: Any, reason: str) -> None:
        mask_N = np.asarray(mask)
        if lost := int((self.mask_N & ~mask_N).sum()):
            self.left_out[reason] += lost
        self.mask_N &= mask_N

    def near_copies(self, threshold: float | None) -> NDArray[np.int64]:
        """How many documents each stands for."""
        counts_N = np.ones(len(self.mask_N), np.int64)
        if threshold is not None:
            here = np.flatnonzero(self.mask_N)
            found = counts_of(near_copies(self.signatures()[here], threshold=threshold))
            counts_N[here] = found
            self.only(counts_N > 0, "near copies")
        return counts_N

    def sample(
        self, quotas: Mapping[str, Mapping[str, float]], most_words: float | None, seed: int
    ) -> None:
        if not quotas and not most_words:
            return
        here = np.flatnonzero(self.mask_N)
        table = self.table.take(here)
        groups = {
            field: pc.cast(table[field], pa.string()).fill_null("unknown").to_numpy()
            for field in quotas
        }
        named = {f: {str(k): float(v) for k, v in shares.items()} for f, shares in quotas.items()}
        stays = shares_kept(groups, table["words"].to_numpy(), named, most_words=most_words)
        named_by = (table[name].to_pylist() for name in ("site", "note_id"))
        drawn = [chance(seed, *names) for names in zip(*named_by, strict=True)]
        chosen_N = np.zeros(len(self.mask_N), bool)
        chosen_N[here[np.array(drawn) < stays]] = True
        self.only(chosen_N, "over its quota")


def splits_given(path: str) -> pa.Table:
    """``subject_id`` and ``split`` of a Parquet file made elsewhere."""
    try:
        return parquet.read_table(path, columns=["subject_id", "split"])
    except (pa.ArrowException, OSError, KeyError):
        raise InputError(f"splits={path}: no Parquet of subject_id and split") from None


def splits_of(
    table: pa.Table, fractions: Sequence[float], seed: int, given: str | None
) -> NDArray[np.str_]:
    known: dict[str, str] = {}
    if given:
        there = splits_given(given)
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
