"""What is written twice: paragraphs within a patient exactly, documents across patients nearly.

Documents are near copies where the sets of their five-word shingles overlap (Jaccard) by
``threshold`` or more, as their MinHash signatures estimate it (Broder 1997). Candidates come from
locality-sensitive hashing: documents that agree in all rows of a band. Nothing here grows with the
square of the documents: within a band, a document is compared with the first of its kind and with
its predecessor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # words
BANDS, ROWS = 24, 5  # at a Jaccard of .8 all but 1 in 10,000 pairs become candidates
VALUES = BANDS * ROWS  # of a signature

_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")
_FEW_WORDS = 5  # a paragraph of fewer is a heading or a phrase: it may be said again
_KNOWN_WORDS = 500_000  # whose hashes are remembered
_AT_ONCE = 1024  # shingles times VALUES in memory; pairs compared

Signature = NDArray[np.uint32]  # VALUES of them


class Paragraphs:
    """Those of one patient, so far; ask it of the notes in the order of time."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.dropped = self.characters = 0

    def new(self, text: str) -> str:
        """The text without the lines of five words or more that an earlier note (or this one) has,
        but for blanks and case."""
        kept = []
        for line in text.splitlines(keepends=True):
            words = line.casefold().split()
            if len(words) >= _FEW_WORDS:
                key = blake2b(" ".join(words).encode(), digest_size=8).digest()
                if key in self._seen:
                    self.dropped += 1
                    self.characters += len(line)
                    continue
                self._seen.add(key)
            kept.append(line)
        return "".join(kept)


class Signatures:
    """Makes MinHash signatures; those of one ``key`` can be compared.

    Digits count alike, so that copies that differ in dates and values are near. With a secret key,
    nobody else can try out which words a signature may be of.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = blake2b(key, digest_size=32).digest()
        numbers = np.random.default_rng(int.from_bytes(self._key)).integers(
            1 << 63, size=(2, VALUES), dtype=np.uint64
        )
        self._factor, self._more = numbers[0] | np.uint64(1), numbers[1]
        self._power = self._factor[0] ** np.arange(SHINGLE, dtype=np.uint64)
        self._hash = lru_cache(_KNOWN_WORDS)(self._hash_of)

    def of(self, text: str) -> Signature:
        """Of a text that has no word: all ones."""
        words_W = np.array([*map(self._hash, _WORD.findall(text.casefold()))], np.uint64)
        if len(words_W) > SHINGLE:
            windows_SK = np.lib.stride_tricks.sliding_window_view(words_W, SHINGLE)
            words_W = np.unique((windows_SK * self._power).sum(1, dtype=np.uint64))
        elif len(words_W):
            words_W = (words_W * self._power[: len(words_W)]).sum(keepdims=True, dtype=np.uint64)
        least = np.full(VALUES, 2**32 - 1, np.uint32)
        for at in range(0, len(words_W), _AT_ONCE):
            mixed = words_W[at : at + _AT_ONCE, None] * self._factor + self._more
            np.minimum(least, (mixed >> np.uint64(32)).astype(np.uint32).min(0), out=least)
        return least

    def _hash_of(self, word: str) -> int:
        said = _DIGIT.sub("0", word).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(said, digest_size=8, key=self._key).digest())


def alike(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The Jaccard overlap, estimated, of rows of signatures."""
    return (a == b).mean(-1)


def near_copies(signatures_NV: NDArray[np.uint32], *, threshold: float) -> NDArray[np.int64]:
    """Of which earlier row each is a near copy; -1: of none, and then it is kept. No row is called
    the copy of one that is not kept. ``signatures_NV`` may be on disk.
    """
    n = len(signatures_NV)
    of_N = np.full(n, -1, np.int64)
    if n < 2:
        return of_N
    found = [_pairs(signatures_NV, band, threshold=threshold) for band in range(BANDS)]
    pairs = np.unique(np.concatenate(found), axis=0)  # by the later one, then by the earlier
    for later, earlier in pairs.tolist():
        if of_N[later] < 0 and of_N[earlier] < 0:
            of_N[later] = earlier
    return of_N


def _pairs(signatures_NV: NDArray[np.uint32], band: int, *, threshold: float) -> NDArray[np.int64]:
    """(later, earlier) rows that agree in a band and overlap by the threshold."""
    rows_NR = np.ascontiguousarray(signatures_NV[:, band * ROWS : (band + 1) * ROWS])
    key_N = _mixed(rows_NR)
    order = np.argsort(key_N, kind="stable")
    same = key_N[order[1:]] == key_N[order[:-1]]
    group = np.concatenate([[0], np.cumsum(~same)])
    first = order[np.flatnonzero(np.r_[True, ~same])][group]
    later, before = order[1:][same], order[:-1][same]
    candidates = np.stack([np.r_[later, later], np.r_[before, first[1:][same]]], 1)
    candidates = np.unique(candidates, axis=0) if len(candidates) else candidates
    kept = [
        some[alike(signatures_NV[some[:, 0]], signatures_NV[some[:, 1]]) >= threshold]
        for some in np.array_split(candidates, len(candidates) // (64 * _AT_ONCE) + 1)
    ]
    return np.concatenate(kept).astype(np.int64)


def _mixed(rows_NR: NDArray[np.uint32]) -> NDArray[np.uint64]:
    key_N = np.zeros(len(rows_NR), np.uint64)
    for column_N in rows_NR.T:
        key_N = (key_N ^ column_N.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key_N ^= key_N >> np.uint64(29)
    return key_N


def counts_of(of_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows each stands for, itself too; 0: it is a near copy of another."""
    kept = of_N < 0
    counts_N = np.bincount(of_N[~kept], minlength=len(of_N)) + 1
    return np.where(kept, counts_N, 0)


def words(text: str) -> int:
    return len(_WORD.findall(text))


def stacked(signatures: Sequence[Signature]) -> NDArray[np.uint32]:
    return np.stack(signatures) if signatures else np.zeros((0, VALUES), np.uint32)
