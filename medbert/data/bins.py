"""Bins of numeric values: quantiles of each code, no bin of too few subjects.

Events come in blocks that are read twice: once for the distribution of each code's values, once for
who is in which bin. Neither depends on how the events are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_TENS = np.array([float(f"1e{n}") for n in range(50)])


class Block(NamedTuple):
    """Some events of training subjects; a subject is whole within one block.

    ``subject_T`` int64, by which subjects of this block are told apart; ``code_T`` int32 index into
    the codes; ``value_T`` float32 (NaN: none).
    """

    subject_T: np.ndarray
    code_T: np.ndarray
    value_T: np.ndarray


class Bins(NamedTuple):
    """The bins of one code: ``edges`` between them (float32, one less than bins), events and
    distinct subjects of each, and events and distinct subjects of the code without a value."""

    edges: np.ndarray
    counts: np.ndarray
    n_subjects: np.ndarray
    plain: tuple[int, int]


def fit(
    scan: Callable[[], Iterator[Block]], wanted: np.ndarray, *, bins: int, min_subjects: int
) -> dict[int, Bins]:
    """Bins of the codes ``wanted`` (a mask): up to ``bins`` of them, equally full where ties allow.

    Neighbouring bins of fewer than ``min_subjects`` distinct subjects are merged; a code whose
    values all end up together has none, and is not in the result.
    """
    edges = _quantiles(*_histogram(scan, wanted), n_codes=len(wanted), bins=bins)
    codes = np.flatnonzero(np.isfinite(edges).any(axis=1))
    counts, shared = _count(scan, codes, edges)
    found = {}
    for row, code in enumerate(codes.tolist()):
        n_bins = 1 + int(np.isfinite(edges[code]).sum())
        ranges = _merged(shared[row, :n_bins, :n_bins], min_subjects)
        if len(ranges) > 1:
            found[code] = Bins(
                edges=edges[code, [first - 1 for first, _ in ranges[1:]]],
                counts=np.array([counts[row, a:b].sum() for a, b in ranges]),
                n_subjects=np.array([_distinct(shared[row, a:b, a:b]) for a, b in ranges]),
                plain=(int(counts[row, bins]), int(shared[row, bins, bins])),
            )
    return found


def title(name: str, low: float, high: float) -> str:
    """
    >>> title("Creatinine", 1.2, 1.4)
    'Creatinine, 1.2 to 1.4'
    """
    if np.isnan(low):
        return f"{name}, below {high:g}"
    return f"{name}, {low:g} or more" if np.isnan(high) else f"{name}, {low:g} to {high:g}"


def bin_of(edges: np.ndarray, code_T: np.ndarray, value_T: np.ndarray) -> np.ndarray:
    """int32 bin, from 0, of each value in the row of ``edges`` that is its code's."""
    bin_T = np.zeros(len(code_T), np.int32)
    for edge in edges.T:  # a value belongs above an edge that it equals
        bin_T += value_T >= edge[code_T]
    return bin_T


def _histogram(
    scan: Callable[[], Iterator[Block]], wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code, value (three digits) and number of events, sorted by code and value."""
    names, kinds = ("code", "value", "n"), (pa.int32(), pa.float32(), pa.int64())
    total = pa.schema(zip(names, kinds, strict=True)).empty_table()
    for block in scan():
        here = wanted[block.code_T] & np.isfinite(block.value_T)
        value = _three_digits(block.value_T[here]) + np.float32(0)  # no -0
        one = np.ones(len(value), np.int64)
        total = pa.concat_tables([total, pa.table([block.code_T[here], value, one], names)])
        total = total.group_by(["code", "value"], use_threads=False).aggregate([("n", "sum")])
        total = total.rename_columns(names)
    total = total.sort_by([("code", "ascending"), ("value", "ascending")])
    code, value, count = (column.to_numpy() for column in total.columns)
    return code.astype(np.int64), value, count


def _three_digits(value_T: np.ndarray) -> np.ndarray:
    """float32 rounded to three significant decimal digits: an edge is then nobody's exact value,
    reads well, and a code has few distinct ones."""
    wide_T = value_T.astype(np.float64)
    size_T = np.abs(wide_T)
    unit_T = np.floor(np.log10(np.where(size_T > 0, size_T, 1))).astype(np.int64) - 2
    up_T, down_T = _TENS[np.maximum(-unit_T, 0)], _TENS[np.maximum(unit_T, 0)]
    return (np.rint(wide_T * up_T / down_T) * down_T / up_T).astype(np.float32)


def _quantiles(
    code_H: np.ndarray, value_H: np.ndarray, count_H: np.ndarray, *, n_codes: int, bins: int
) -> np.ndarray:
    """(n_codes, bins - 1) float32 edges, filled up with inf.

    Edge q is the least value with at least q/bins of the code's events below it: never the least of
    all, and no edge twice.
    """
    total_C = np.bincount(code_H, weights=count_H, minlength=n_codes).astype(np.int64)
    before_C = np.cumsum(total_C) - total_C
    below_H = np.cumsum(count_H) - count_H - before_C[code_H]
    level_H = below_H * bins // total_C[code_H]
    rises = np.flatnonzero((np.diff(code_H) == 0) & (np.diff(level_H) > 0)) + 1
    code_E = code_H[rises]
    edges = np.full((n_codes, bins - 1), np.inf, np.float32)
    edges[code_E, np.arange(len(code_E)) - np.searchsorted(code_E, code_E)] = value_H[rises]
    return edges


def _count(
    scan: Callable[[], Iterator[Block]], codes: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of ``codes``: events per bin (n, S), and subjects (n, S, S) that are in bin i
    (diagonal), or in bin i and next in bin j (i < j). The last of the S bins is "no value"."""
    n, no_value = len(codes), edges.shape[1] + 1
    slots = no_value + 1
    row_of = np.full(len(edges), -1)
    row_of[codes] = np.arange(n)
    counts, shared = np.zeros(n * slots, np.int64), np.zeros(n * slots * slots, np.int64)
    for block in scan() if n else ():
        here = np.flatnonzero(row_of[block.code_T] >= 0)
        code_T, value_T = block.code_T[here], block.value_T[here]
        bin_T = np.where(np.isnan(value_T), no_value, bin_of(edges, code_T, value_T))
        place_T = row_of[code_T] * slots + bin_T
        counts += np.bincount(place_T, minlength=len(counts))
        subject_T = np.unique(block.subject_T[here], return_inverse=True)[1]
        key_T = subject_T * (n * slots) + place_T
        used = np.unique(key_T, return_counts=True)[0]  # which sorts; without counts it hashes
        owner, slot = used // slots, used % slots  # owner: a subject with a code
        row = owner % n
        once = (row * slots + slot) * slots + slot
        again = np.flatnonzero(np.diff(owner) == 0)
        pairs = (row[again] * slots + slot[again]) * slots + slot[again + 1]
        shared += np.bincount(np.concatenate([once, pairs]), minlength=len(shared))
    return counts.reshape(n, slots), shared.reshape(n, slots, slots)


def _distinct(shared: np.ndarray) -> int:
    """Subjects in any of some neighbouring bins: each counts once for every bin it is in, and off
    once for every step from one of its bins to the next."""
    return int(2 * np.trace(shared) - shared.sum())


def _merged(shared: np.ndarray, min_subjects: int) -> list[tuple[int, int]]:
    """Ranges (first, behind the last) of bins, from below, of at least ``min_subjects`` each."""
    ranges: list[tuple[int, int]] = []
    first = 0
    for stop in range(1, len(shared) + 1):
        if _distinct(shared[first:stop, first:stop]) >= min_subjects:
            ranges.append((first, stop))
            first = stop
    if ranges:  # what is left over joins the last
        ranges[-1] = (ranges[-1][0], len(shared))
    return ranges
