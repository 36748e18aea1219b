"""Bokmål, nynorsk, English or another language, from a small shipped model (``data/language.npz``).

A word's score for a language is the sum of the weights of its character n-grams (one to five, and
the whole word), hashed; a text's, the sum over its words. A logistic regression learnt the weights
(``benchmarks/language.py`` makes them again; sources and terms are in ``data/lists.md``).

A document has the language of all its words together, unless a quarter of it, in pieces of some
twenty words, clearly has another: then it is "mixed".
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIXED, TOO_SHORT, OTHER = "mixed", "too short", "other"
NAMED = ("nb", "nn", "en")  # the others are OTHER
BITS = 17  # 2**BITS buckets of n-grams

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_LONGEST = 5  # characters of an n-gram
_PIECE = 20  # words
_MIXED_SHARE = 0.25  # of the words of a document that another language has
_CLEARLY = 4.0  # log-odds by which a piece has another language than the document
_KNOWN_WORDS = 65_536  # whose scores are remembered, of 0.4 kB each


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def buckets(word: str) -> NDArray[np.int64]:
    """Where the weights of a word's n-grams are; one n-gram may be there twice."""
    marked = f"<{word}>"
    grams = [marked] + [
        f"{marked[i : i + n]}{n}"
        for n in range(1, _LONGEST + 1)
        for i in range(len(marked) - n + 1)
    ]
    return np.array([zlib.crc32(gram.encode()) & ((1 << BITS) - 1) for gram in grams], np.int64)


class Guess(NamedTuple):
    """``language``: one of NAMED, OTHER, MIXED or TOO_SHORT; ``shares``: of the words by piece."""

    language: str
    shares: dict[str, float]


class Languages:
    """``weights_BL`` (buckets, languages) are whole numbers, in units of ``unit``."""

    def __init__(
        self,
        names: Sequence[str],
        weights_BL: NDArray[np.int8],
        bias_L: NDArray[np.float32],
        *,
        unit: float,
    ) -> None:
        self.names, self.weights_BL, self.bias_L, self.unit = [*names], weights_BL, bias_L, unit
        self._word = lru_cache(_KNOWN_WORDS)(self._word_of)

    def __reduce__(self) -> Any:
        """For other processes: without what is remembered."""
        again = partial(type(self), unit=self.unit)
        return again, (self.names, self.weights_BL, self.bias_L)

    @classmethod
    @cache
    def shipped(cls) -> Languages:
        with files(__package__).joinpath("data", "language.npz").open("rb") as file:
            saved = np.load(file, allow_pickle=False)
            names = [str(name) for name in saved["names"]]
            return cls(names, saved["weights"], saved["bias"], unit=float(saved["unit"]))

    def scores(self, said: Iterable[str]) -> NDArray[Any]:
        """The log-odds of each language, of these words together (in lower case)."""
        sums_WL, grams_W = self._sums(said)
        return self._odds(sums_WL.sum(0), grams_W.sum())

    def _sums(self, said: Iterable[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Of each word: the sums of the weights of its n-grams, and how many it has."""
        known = [self._word(word) for word in said]
        sums_WL = np.array([one for one, _ in known], np.float32).reshape(-1, len(self.names))
        return sums_WL, np.array([n for _, n in known], np.int64)

    def _odds(self, sums: NDArray[np.float32], n_grams: NDArray[np.int64]) -> NDArray[Any]:
        return sums / np.sqrt(np.maximum(n_grams, 1), dtype=np.float32) + self.bias_L

    def _word_of(self, word: str) -> tuple[NDArray[np.float32], int]:
        at = buckets(word)
        return self.weights_BL[at].sum(0, dtype=np.int64).astype(np.float32) * self.unit, len(at)

    def of_sentence(self, text: str) -> str:
        """The likeliest of all ``names``, however short the text is."""
        return self.names[int(self.scores(words(text)).argmax())]

    def of(self, text: str, *, least: int = 8) -> Guess:
        """Of a document; ``least``: words, under which nothing is said."""
        said = words(text)
        if len(said) < least:
            return Guess(TOO_SHORT, {})
        sums_WL, grams_W = self._sums(said)
        whole = int(self._odds(sums_WL.sum(0), grams_W.sum()).argmax())
        starts = np.linspace(0, len(said), max(1, round(len(said) / _PIECE)) + 1).astype(int)[:-1]
        odds_PL = self._odds(
            np.add.reduceat(sums_WL, starts), np.add.reduceat(grams_W, starts)[:, None]
        )
        best_P = odds_PL.argmax(1)
        clear_P = odds_PL.max(1) - odds_PL[:, whole] >= _CLEARLY
        votes: Counter[str] = Counter()
        for best, n in zip(
            np.where(clear_P, best_P, whole), np.diff([*starts, len(said)]), strict=True
        ):
            votes[self.names[best]] += int(n)
        shares = {name: n / len(said) for name, n in votes.most_common()}
        first = next(iter(shares))
        return Guess(MIXED if 1 - shares[first] >= _MIXED_SHARE else first, shares)
