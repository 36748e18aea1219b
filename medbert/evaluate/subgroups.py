"""Is the model as good for everybody: discrimination and calibration by sex, age band, site, era.

What is returned is made to be passed on: cells of few subjects are hidden, and so are as many more
cells as it takes for the hidden ones not to follow from the totals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medbert.evaluate.intervals import Interval, bootstrap, ids_of
from medbert.evaluate.metrics import METRICS, check
from medbert.schema import InputError

UNKNOWN = "unknown"
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One category of one variable. ``rows``, ``subjects`` and ``positives`` (rows) are None where
    the cell is hidden, and its intervals NaN; they are NaN too where all rows have one label."""

    variable: str
    category: str
    rows: int | None
    subjects: int | None
    positives: int | None
    auroc: Interval
    observed_expected: Interval

    @property
    def hidden(self) -> bool:
        return self.rows is None


def subgroups(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: Mapping[str, ArrayLike | pd.Series | pd.Categorical],
    subject_ids: ArrayLike,
    *,
    seed: int,
    min_count: int = 10,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[Subgroup, ...]:
    """AUROC and observed/expected of every category of every variable, by bootstrap over subjects.

    ``groups`` maps a variable to the category of each row; rows without one are "unknown". The
    order is that of a pandas categorical, otherwise alphabetical. A cell is hidden where its
    subjects, those with a positive row or those with a negative row are fewer than ``min_count``;
    then the smallest others of the variable are, until two or more are hidden that together hold
    ``min_count`` of each. This covers one variable with its total, not one variable by another. An
    interval is of a category by itself: that two overlap is no test of their difference.
    """
    labels_N, probabilities_N = check(labels, probabilities)
    subject_N = ids_of(subject_ids, labels_N)
    positive_N, answers = labels_N == 1, []
    for variable, given in groups.items():
        masks = _masks(variable, given, labels_N.size)
        hidden = _hidden(masks, subject_N, positive_N, min_count)
        for category, mask_N in masks.items():
            found = {"auroc": Interval(), "observed_expected": Interval()}
            if category in hidden:
                answers.append(Subgroup(variable, category, None, None, None, **found))
                continue
            rows, positives = int(mask_N.sum()), int(positive_N[mask_N].sum())
            if 0 < positives < rows:
                metrics = {name: METRICS[name] for name in found}
                own = (each[mask_N] for each in (labels_N, probabilities_N, subject_N))
                boot = bootstrap(metrics, *own, seed=seed, n=n, level=level)
                found = {name: boot.interval("model", metric=name) for name in found}
            subjects = len(np.unique(subject_N[mask_N]))
            answers.append(Subgroup(variable, category, rows, subjects, positives, **found))
    return tuple(answers)


def _masks(variable: str, given: Any, rows: int) -> dict[str, Mask]:
    """Which rows each category has."""
    series = pd.Series(given).reset_index(drop=True)
    if len(series) != rows:
        raise InputError(f"subgroup {variable!r} has {len(series)} values for {rows} rows")
    names_N = series.astype(str).where(series.notna(), UNKNOWN).to_numpy(dtype=object)
    present = sorted(set(names_N))
    if isinstance(series.dtype, pd.CategoricalDtype):
        place = {str(name): index for index, name in enumerate(series.cat.categories)}
        present.sort(key=lambda name: place.get(name, math.inf))
    return {name: names_N == name for name in present}


def _hidden(masks: Mapping[str, Mask], subject_N: Any, positive_N: Mask, few: int) -> set[str]:
    def least(mask_N: Mask) -> int:
        sides = (mask_N, mask_N & positive_N, mask_N & ~positive_N)
        return min(len(np.unique(subject_N[side])) for side in sides)

    hidden = {name for name, mask_N in masks.items() if least(mask_N) < few}
    others = sorted(set(masks) - hidden, key=lambda name: (int(masks[name].sum()), name))
    for name in others if hidden else ():
        together_N = np.logical_or.reduce([masks[other] for other in hidden])
        if len(hidden) > 1 and least(together_N) >= few:
            break
        hidden.add(name)
    return hidden
