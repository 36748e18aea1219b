"""y: its two classes, and the subjects that are kept back to choose on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_consistent_length, column_or_1d

from medbert.data.store import Store
from medbert.schema import TUNING, InputError


def two_classes(y: Any, cohort: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and for each row of the cohort whether it is of the second.

    Raises ValueError for any other y, in the words that scikit-learn asks for.
    """
    if y is None:
        raise InputError("this classifier requires y to be passed, but the target y is None")
    values = column_or_1d(y, warn=True)
    check_consistent_length(cohort, values)
    kind = type_of_target(values, input_name="y", raise_unknown=True)
    if kind != "binary":
        raise InputError(f"Only binary classification is supported. The target is {kind}.")
    classes, which = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"y has one class only ({classes[0]}); give rows with and without it")
    return classes, which == 1


def kept_back(
    records: Store, rows: np.ndarray, outcome: np.ndarray, share: float | None, *, seed: int
) -> np.ndarray:
    """Mask of the rows (of the store) of a ``share`` of their subjects, those who ever have the
    outcome and those who never do alike; None: of those that are tuning in the store.

    Raises InputError if either part would have one class only.
    """
    if share is None:
        mask = records.split_of_row[rows] == TUNING
    else:
        subjects, place = np.unique(rows, return_inverse=True)
        ever = np.bincount(place, outcome) > 0
        random, kept = np.random.default_rng(seed), np.zeros(len(subjects), bool)
        for some in (ever, ~ever):
            mine = random.permutation(np.flatnonzero(some))
            kept[mine[: max(1, round(share * len(mine)))]] = True
        mask = kept[place]
    for part in (mask, ~mask):
        if outcome[part].all() or not outcome[part].any():
            raise InputError(
                f"validation_fraction={share}: {mask.sum()} of {len(rows)} rows would be kept back "
                "to choose on, and there or in the rest is one class only; give more subjects of "
                "each class"
            )
    return mask
