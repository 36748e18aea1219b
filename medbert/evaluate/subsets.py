"""Nested subsets of labelled subjects, for curves over the number of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medbert.schema import InputError


def nested(
    labels: ArrayLike,
    subject_ids: ArrayLike,
    *,
    sizes: Sequence[int],
    seed: int,
    least: int = 1,
) -> dict[int, NDArray[np.intp]]:
    """For each of ``sizes``, a number of subjects, the places of the rows that they have.

    Every subset is part of the next larger one. Subjects are drawn apart by whether they have a
    positive row: each subset has the share of such subjects that all of them have, but ``least`` of
    either kind (or all there are), even where that makes it larger than asked. Another ``seed`` is
    another draw.

    >>> labels = [1, 0, 0, 1, 0, 0, 0, 0]
    >>> {n: len(rows) for n, rows in nested(labels, range(8), sizes=[2, 4], seed=0).items()}
    {2: 2, 4: 4}
    """
    ids, subject_N = np.unique(np.asarray(subject_ids), return_inverse=True)
    positive_S = np.bincount(subject_N, weights=np.asarray(labels, float), minlength=len(ids)) > 0
    rng = np.random.default_rng(seed)
    kinds = [rng.permutation(np.flatnonzero(kind)) for kind in (positive_S, ~positive_S)]
    if too_large := [size for size in sizes if not 0 < size <= len(ids)]:
        raise InputError(f"a subset of {too_large[0]:,} subjects: there are {len(ids):,}")
    subsets = {}
    for size in sizes:
        n_positive = max(round(size * positive_S.mean()), least)
        chosen_S = np.zeros(len(ids), bool)
        for kind, n in zip(kinds, (n_positive, max(size - n_positive, least)), strict=True):
            chosen_S[kind[:n]] = True
        subsets[size] = np.flatnonzero(chosen_S[subject_N])
    return subsets
