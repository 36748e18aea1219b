"""Rare codes that together, under a code above them, are shared by enough subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medbert.data.bins import Block
from medbert.data.codes import ancestors
from medbert.data.preparing.order import distinct_subjects

if TYPE_CHECKING:
    from medbert.data.vocabulary import Rule


class Gained(NamedTuple):
    """What rolled up into a code: events, and distinct subjects."""

    events: int
    n_subjects: int


def roll_up(
    codes: Sequence[str],
    *,
    loose: np.ndarray,
    binned: np.ndarray,
    kept: Mapping[str, object],
    parents: Mapping[str, Sequence[str]],
    rule: Rule,
    scan: Callable[[], Iterator[Block]],
) -> dict[str, Gained]:
    """Code -> what it gains from the codes that are ``loose`` (a mask: too rare by themselves).

    Each loose code goes to the first of itself and the codes above it that is ``kept``, or that
    ``rule.min_subjects`` distinct subjects use by what goes there; the rest goes nowhere. Values of
    ``binned`` codes (a mask) have a token already: only their events without one are taken.

    It begins with every code above as a candidate, and gives up those with too few from the
    deepest level up; what was there goes on. A code that is held can only gain by that, and so the
    result is what ``Vocabulary.encode`` does with these very codes.
    """
    rare = np.flatnonzero(loose)
    lines = [[codes[i], *ancestors(codes[i], parents)] for i in rare.tolist()]
    names = list(dict.fromkeys(name for line in lines for name in line))
    number = {name: i for i, name in enumerate(names)}
    alive = {name for name, ok in zip(names, rule.admits(names), strict=True) if ok} | {*kept}
    level_N = np.array([0 if n in kept else 1 + len(ancestors(n, parents)) for n in names])
    subject_P, code_P, count_P = _pairs(scan, loose, binned)
    place_P = np.searchsorted(rare, code_P)

    def homes() -> np.ndarray:
        first = (next((number[name] for name in line if name in alive), -1) for line in lines)
        return np.fromiter(first, np.int64, len(lines))[place_P]

    for level in sorted({*level_N.tolist()} - {0}, reverse=True):
        home_P = homes()
        here_P = (home_P >= 0) & (level_N[home_P] == level)
        n_subjects = distinct_subjects(subject_P[here_P], home_P[here_P], len(names))
        too_few = np.flatnonzero((level_N == level) & (n_subjects < rule.min_subjects))
        alive -= {names[i] for i in too_few}
    home_P = homes()
    placed = home_P >= 0
    n_subjects = distinct_subjects(subject_P[placed], home_P[placed], len(names))
    count = np.bincount(home_P[placed], weights=count_P[placed], minlength=len(names))
    return {names[i]: Gained(int(count[i]), int(n_subjects[i])) for i in np.flatnonzero(n_subjects)}


def _pairs(
    scan: Callable[[], Iterator[Block]], loose: np.ndarray, binned: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subject (from 0), code and number of events, of every subject with a loose code."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    n_subjects = 0
    for block in scan():
        here = loose[block.code_T] & (~binned[block.code_T] | np.isnan(block.value_T))
        ids, subject = np.unique(block.subject_T[here], return_inverse=True)
        key = subject * len(loose) + block.code_T[here]
        pair, count = np.unique(key, return_counts=True)
        parts.append((n_subjects + pair // len(loose), pair % len(loose), count))
        n_subjects += len(ids)
    subject_P, code_P, count_P = (np.concatenate(column) for column in zip(*parts, strict=True))
    return subject_P, code_P, count_P
