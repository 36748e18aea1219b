"""Which documents make a sample with stated shares, and which patients train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from medbert.schema import SPLITS, InputError

_ROUNDS, _CLOSE, _MET = 500, 1e-6, 0.002


def chance(seed: int, *words: str) -> float:
    """The same number in [0, 1) for the same words, everywhere."""
    said = "\0".join((str(seed), *words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(said, digest_size=7).digest()) / 2**56


def split_of(patient: str, *, fractions: Sequence[float], seed: int) -> str:
    """Of train, tuning and held_out, in these ``fractions``."""
    edges = np.cumsum(fractions)
    return SPLITS[min(int(np.searchsorted(edges, chance(seed, patient), "right")), 2)]


def shares_kept(
    groups: Mapping[str, NDArray[np.str_]],
    words_N: NDArray[np.int64],
    quotas: Mapping[str, Mapping[str, float]],
    *,
    most_words: float | None = None,
) -> NDArray[np.float64]:
    """Of each document, the share of its like that stays: the largest sample in which the words of
    each group named in ``quotas`` (field -> value -> share) have that share.

    What is not named shares the rest as it is; within a group all other proportions stay (raking,
    Deming and Stephan 1940).

    Raises InputError: a named group has no document, shares do not add up to 1, or not all can be.
    """
    n = len(words_N)
    cell_N, margins = np.zeros(n, np.int64), []
    for field, shares in quotas.items():
        named = [*shares]
        value_N = np.full(n, len(named))
        for i, name in enumerate(named):
            value_N[groups[field] == name] = i
        margins.append((value_N, _targets(field, shares, value_N)))
        cell_N = cell_N * (len(named) + 1) + value_N
    cells, cell_N = np.unique(cell_N, return_inverse=True)
    had_C = np.bincount(cell_N, weights=words_N, minlength=len(cells)).astype(float)
    weight_C, first_C = had_C / max(had_C.sum(), 1), np.unique(cell_N, return_index=True)[1]
    for _ in range(_ROUNDS):
        before_C = weight_C
        for value_N, target_V in margins:
            value_C = value_N[first_C]
            now_V = np.bincount(value_C, weights=weight_C, minlength=len(target_V))
            weight_C = weight_C * (target_V / np.where(now_V, now_V, 1))[value_C]
        if np.abs(weight_C - before_C).max() < _CLOSE:
            break
    for field, (value_N, target_V) in zip(quotas, margins, strict=True):
        now_V = np.bincount(value_N[first_C], weights=weight_C, minlength=len(target_V))
        if np.abs(now_V - target_V).max() > _MET:
            raise InputError(f"quotas.{field}: no sample of these documents meets all quotas")
    wanted = weight_C > 0
    scale = (had_C[wanted] / weight_C[wanted]).min() if wanted.any() else 0.0
    if most_words is not None:
        scale = min(scale, most_words)
    return np.minimum(weight_C * scale / np.where(had_C, had_C, 1), 1.0)[cell_N]


def _targets(
    field: str, shares: Mapping[str, float], value_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    there = np.bincount(value_N, minlength=len(shares) + 1) > 0
    for name, here in zip(shares, there, strict=False):
        if not here and shares[name] > 0:
            raise InputError(f"quotas.{field}.{name}: no document of that {field} is left")
    rest = 1 - sum(shares.values())
    if rest < -_CLOSE or (rest > _CLOSE and not there[-1]):
        raise InputError(f"quotas.{field}: its shares add up to {1 - rest:.3g}, not to 1")
    return np.array([*shares.values(), max(rest, 0.0)])
