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
from functools import cache
from importlib.resources import files
from typing import NamedTuple

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
_KNOWN_WORDS = 500_000  # whose scores are remembered


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
        self._words: dict[str, tuple[NDArray[np.float32], int]] = {}

    @classmethod
    def shipped(cls) -> Languages:
        return _shipped()

    def scores(self, said: Iterable[str]) -> NDArray[np.float32]:
        """The log-odds of each language, of these words together (in lower case)."""
        total_L, n = np.zeros(len(self.names), np.float32), 0
        for word in said:
            sum_L, n_grams = self._word(word)
            total_L += sum_L
            n += n_grams
        return total_L / np.sqrt(max(n, 1), dtype=np.float32) + self.bias_L

    def _word(self, word: str) -> tuple[NDArray[np.float32], int]:
        if (known := self._words.get(word)) is not None:
            return known
        if len(self._words) >= _KNOWN_WORDS:
            self._words.clear()
        at = buckets(word)
        made = self.weights_BL[at].sum(0, dtype=np.int64).astype(np.float32) * self.unit, len(at)
        self._words[word] = made
        return made

    def of_sentence(self, text: str) -> str:
        """The likeliest of all ``names``, however short the text is."""
        return self.names[int(self.scores(words(text)).argmax())]

    def of(self, text: str, *, least: int = 8) -> Guess:
        """Of a document; ``least``: words, under which nothing is said."""
        said = words(text)
        if len(said) < least:
            return Guess(TOO_SHORT, {})
        whole = int(self.scores(said).argmax())
        edges = np.linspace(0, len(said), max(1, round(len(said) / _PIECE)) + 1).astype(int)
        votes: Counter[str] = Counter()
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            score_L = self.scores(said[start:end])
            best = int(score_L.argmax())
            clear = score_L[best] - score_L[whole] >= _CLEARLY
            votes[self.names[best if clear else whole]] += int(end - start)
        shares = {name: n / len(said) for name, n in votes.most_common()}
        first = next(iter(shares))
        return Guess(MIXED if 1 - shares[first] >= _MIXED_SHARE else first, shares)


@cache
def _shipped() -> Languages:
    with files(__package__).joinpath("data", "language.npz").open("rb") as file:
        saved = np.load(file, allow_pickle=False)
        return Languages(
            [str(name) for name in saved["names"]],
            saved["weights"],
            saved["bias"],
            unit=float(saved["unit"]),
        )
