"""Which tokens are hidden, and what is shown instead: single words, spans, at a rate that may
change as training goes on. All of it a function of a random generator that the caller seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medbert.schema import InputError


class Free(NamedTuple):
    """The tokens of a row that may be hidden: begins_F, whether a word begins; piece_F, whose."""

    begins_F: np.ndarray
    piece_F: np.ndarray


class Hidden(NamedTuple):
    """place_M: which of the free tokens. unit_M: tokens of a unit are replaced alike."""

    place_M: np.ndarray
    unit_M: np.ndarray


class Words:
    """Single tokens or ``whole_words``, a share ``rate`` of all; [0.3, 0.15] falls linearly from
    the first to the second over the training. Each token is replaced on its own.

    ``next_sentence``: whether training also asks which sentences follow each other. ``progress``:
    how much of training is done, 0 to 1.
    """

    def __init__(
        self,
        *,
        rate: float | Sequence[float] = 0.15,
        whole_words: bool = False,
        next_sentence: bool = False,
    ) -> None:
        self.rate, self.whole_words, self.next_sentence = _rates(rate), whole_words, next_sentence

    def rate_at(self, progress: float) -> float:
        first, last = self.rate
        return first + (last - first) * min(max(progress, 0.0), 1.0)

    def choose(self, free: Free, random: np.random.Generator, *, progress: float) -> Hidden:
        n = len(free.begins_F)
        wanted = _budget(n, self.rate_at(progress), random)
        if not self.whole_words:
            place_M = np.sort(random.permutation(n)[:wanted])
            return Hidden(place_M, np.arange(wanted))
        begins_F = free.begins_F | (np.diff(free.piece_F, prepend=-1) != 0)
        word_F = np.cumsum(begins_F) - 1
        size_W = np.bincount(word_F, minlength=1)
        order_W = random.permutation(len(size_W))
        before_W = np.cumsum(size_W[order_W]) - size_W[order_W] / 2
        chosen_W = np.zeros(len(size_W), bool)
        chosen_W[order_W[before_W < wanted]] = True
        place_M = np.flatnonzero(chosen_W[word_F])
        return Hidden(place_M, np.arange(len(place_M)))


class Spans(Words):
    """Runs of tokens of geometric length (mean 1 / ``p``, at most ``longest``) within a piece,
    until the budget is spent; a run is replaced as a whole (as in LTG-BERT)."""

    def __init__(
        self,
        *,
        rate: float | Sequence[float] = 0.15,
        p: float = 1 / 3,
        longest: int = 10,
        next_sentence: bool = False,
    ) -> None:
        super().__init__(rate=rate, next_sentence=next_sentence)
        self.p, self.longest = p, longest

    def choose(self, free: Free, random: np.random.Generator, *, progress: float) -> Hidden:
        n = len(free.begins_F)
        left = _budget(n, self.rate_at(progress), random)
        unit_F = np.full(n, -1)
        number = 0
        while left:
            start = int(random.integers(n))
            size = min(int(random.geometric(self.p)), self.longest, left)
            within = (unit_F[start : start + size] < 0) & (
                free.piece_F[start : start + size] == free.piece_F[start]
            )
            size = len(within) if within.all() else int(within.argmin())
            unit_F[start : start + size] = number
            left, number = left - size, number + 1
        place_M = np.flatnonzero(unit_F >= 0)
        return Hidden(place_M, unit_F[place_M])


class Replacement:
    """Hidden tokens as they are shown: ``masked`` of them (share) as the mask, ``other`` as any
    ordinary token, the rest as they are."""

    def __init__(
        self, *, mask: int, ordinary: np.ndarray, masked: float = 0.8, other: float = 0.1
    ) -> None:
        self.mask, self.ordinary, self.masked, self.other = mask, ordinary, masked, other

    def __call__(
        self, token_M: np.ndarray, unit_M: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        fate_M = random.random(int(unit_M.max(initial=-1)) + 1)[unit_M]
        other_M = self.ordinary[random.integers(len(self.ordinary), size=len(token_M))]
        shown_M = np.where(fate_M < self.masked + self.other, other_M, token_M)
        return np.where(fate_M < self.masked, self.mask, shown_M)


def _budget(n: int, rate: float, random: np.random.Generator) -> int:
    """How many of ``n`` tokens: Binomial, at least one where there is one."""
    return max(int(random.binomial(n, rate)), min(n, 1))


def _rates(rate: float | Sequence[float]) -> tuple[float, float]:
    ends = tuple(map(float, rate)) if isinstance(rate, Sequence) else (float(rate),) * 2
    if len(ends) != 2 or not all(0 < end <= 0.9 for end in ends):
        raise InputError(f"rate={rate}: a share between 0 and 0.9, or two: [first, last]")
    return ends[0], ends[1]
