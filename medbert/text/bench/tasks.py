"""What a text model is asked to do, and how well it did: the one protocol of the benchmark.

A task answers in counts per test item (entities found, right answers, nats and characters). Every
measure is a function of their sums, so that items may be drawn again without asking the model
again. Suffixes: N test items, K counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Measure(NamedTuple):
    """``of`` makes values (...) of sums (..., K); NaN where there is nothing to measure."""

    name: str
    higher: bool  # is better
    of: Callable[[Array], Array]


class Items(NamedTuple):
    """Of N test items: what belongs together and is drawn together, and groups to look at apart
    (``{"language": (N,) names}``)."""

    cluster_N: NDArray[Any]
    groups: Mapping[str, NDArray[Any]]


class Task(Protocol):
    """``measures``: the first one is judged. ``seeded``: a seed changes what is answered."""

    seeded: bool

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    def items(self) -> Items: ...

    def run(self, model: Path, *, seed: int) -> Array:
        """The counts (N, K) of a Hugging Face folder, fine-tuned where the task asks for it; a seed
        stands for the labelled items and for the training, the same ones for every model."""
        ...

    def beside(self, *, seed: int) -> dict[str, Array]:
        """The same counts of what needs no model, by name."""
        ...


def ratio(name: str, top: int, bottom: int, *, higher: bool = True, scale: float = 1.0) -> Measure:
    """One count by another.

    >>> accuracy = ratio("accuracy", 0, 1)
    >>> float(accuracy.of(np.array([3.0, 4.0])))
    0.75
    """

    def of(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return scale * sums[..., top] / sums[..., bottom]

    return Measure(name, higher, of)


def f1(name: str = "F1") -> Measure:
    """Of counts in triples (hits, gold, found): the mean over triples that have any gold.

    >>> float(f1().of(np.array([2.0, 4.0, 2.0])).round(3))
    0.667
    """

    def of(sums: Array) -> Array:
        hits, gold, found = (sums[..., i::3] for i in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.where(gold > 0, 2 * hits / (gold + found), np.nan)
            return np.nansum(each, axis=-1) / (gold > 0).sum(axis=-1)

    return Measure(name, True, of)


def correlation(name: str = "correlation") -> Measure:
    """Pearson's, of the counts (1, x, y, xx, yy, xy)."""

    def of(sums: Array) -> Array:
        n, x, y, xx, yy, xy = np.moveaxis(sums[..., :6], -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))

    return Measure(name, True, of)
