"""Leaks between what a model is given and what it is asked: each check takes arrays.

A check returns a ``Finding``, or None where all is well. Suffixes here: N rows, S subjects,
T codes, V visits, K columns of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import bdtrc, chdtrc
from scipy.stats import rankdata

from medbert.evaluate.leaks.findings import Finding, Mask, finding, of_rows
from medbert.evaluate.metrics import Array
from medbert.schema import DAY_US

_WEEKS = (7, 14, 21, 28)  # days: the same day of the week, and nearly the same season
_CROWD = 100  # visits on a day, and a twentieth of all: the first or last day of an extract
_SHARED = 3  # subjects with one rare set of codes; more, and it is a common order
_CHANCE, _LIMIT, _FEW = 0.001, 0.95, 10  # p values, AUROCs and rows from which a check speaks


def rows_of_subjects(
    subject: NDArray[Any], time: NDArray[np.int64], labels: Mask, split: NDArray[Any]
) -> list[Finding | None]:
    """Subjects in two splits, rows that are there twice, and labels that contradict each other."""
    rows = pd.DataFrame({"subject": subject, "time": time, "label": labels, "split": split})
    pairs = rows[["subject", "split"]].drop_duplicates()
    torn = pairs[pairs.duplicated("subject", keep=False)]
    twice = rows.duplicated(["subject", "time"], keep=False).to_numpy()
    same = rows[twice].groupby(["subject", "time"])["label"].transform("nunique") == 1
    contradicting = twice.copy()
    contradicting[twice] = ~same
    return [
        finding("subjects_in_two_splits", torn["subject"].nunique()),
        of_rows("duplicate_rows", twice & ~contradicting, split),
        of_rows("contradicting_labels", contradicting, split),
    ]


def time_order(
    time: NDArray[np.int64],
    split: NDArray[Any],
    *,
    birth: NDArray[np.int64],
    death: NDArray[np.int64],
    end: int,
) -> Finding | None:
    """Rows outside the life of their subject, a day of leeway at its ends, or after ``end``.

    Microseconds; an unknown ``birth`` is the smallest integer and an unknown ``death`` the largest.
    """
    masks = {
        "before birth": time + DAY_US < birth,
        "after death": time - DAY_US >= death,
        "after the end of the records": time > end,
    }
    return of_rows("time_order", masks, split)


def twins(key_S: NDArray[np.uint64], eligible_S: Mask, split_S: NDArray[Any]) -> Mask:
    """Subjects with the same key as one of another split; ``key_S`` is a hash of a record."""
    who = np.flatnonzero(eligible_S)
    frame = pd.DataFrame({"key": key_S[who], "split": split_S[who]})
    frame = frame[frame.duplicated("key", keep=False)]
    splits = frame.drop_duplicates()["key"].value_counts()
    found = np.zeros(len(key_S), bool)
    found[who[frame.index[frame["key"].map(splits) > 1]]] = True
    return found


def near_identical_visits(
    code_T: NDArray[np.uint64],
    visit_T: NDArray[np.int64],
    *,
    day_V: NDArray[np.int64],
    subject_V: NDArray[np.int64],
    split_V: NDArray[Any],
) -> Finding | None:
    """Visits on one day, of subjects in different splits, that differ in one code at most (added,
    missing or exchanged), where there are more of them than chance explains.

    ``code_T``: hashes of the distinct codes of each visit, visits in order (``visit_T``). A set
    that more than three subjects share, whatever the day, is a common order and is left out, and
    so is a day with a twentieth of all visits, such as the first of an extract. What is left may
    still meet by chance: as often on one day as 1 to 4 weeks apart, by the visits of those days.
    """
    if not len(code_T):
        return None
    first_V = np.searchsorted(visit_T, np.arange(len(day_V)))
    whole_V = np.add.reduceat(code_T, first_V)  # modulo 2**64: a hash of the set
    key = np.concatenate([whole_V, whole_V[visit_T] - code_T])  # and of each set of all but one
    sets = pd.DataFrame({"key": key, "visit": np.concatenate([np.arange(len(day_V)), visit_T])})
    sets = sets[sets.duplicated("key", keep=False)]
    sets = sets.assign(subject=subject_V[sets["visit"]])
    subjects = sets.drop_duplicates(["key", "subject"])["key"].value_counts()
    sharing = sets["key"].map(subjects)
    sets = sets[(sharing > 1) & (sharing <= _SHARED)]
    met = sets.merge(sets, on="key").query("subject_x < subject_y")
    pairs = met[["visit_x", "visit_y"]].drop_duplicates().to_numpy()
    volume = np.bincount(day_V - day_V.min()).astype(np.float64)
    volume[volume > max(_CROWD, len(day_V) / 20)] = 0
    quiet_V = volume[day_V - day_V.min()] > 0
    pairs = pairs[quiet_V[pairs].all(axis=1) & (split_V[pairs[:, 0]] != split_V[pairs[:, 1]])]
    apart = np.abs(day_V[pairs[:, 0]] - day_V[pairs[:, 1]])
    same, others = int((apart == 0).sum()), int(np.isin(apart, _WEEKS).sum())
    if not same or bdtrc(same - 1, same + others, _same_day(volume)) >= _CHANCE:
        return None
    mask = np.isin(np.arange(len(day_V)), pairs[apart == 0])
    return of_rows("near_identical_visits", mask, split_V)


def _same_day(volume: Array) -> float:
    """Of the pairs of visits on one day or weeks apart, the share on one day, by visits a day."""
    same = float(volume @ np.maximum(volume - 1, 0)) / 2
    apart = sum(float(volume[:-lag] @ volume[lag:]) for lag in _WEEKS if lag < len(volume))
    return same / max(same + apart, 1.0)


def aurocs(values: Any, labels: Mask) -> Array:
    """AUROC of each column of a sparse matrix (N, K) of values >= 0, ties counted half.

    >>> aurocs(sparse.csr_matrix([[0, 1], [0, 0], [2, 1], [1, 0]]), np.array([0, 0, 1, 1], bool))
    array([1. , 0.5])
    """
    entries = sparse.coo_matrix(values)
    kept = entries.data > 0
    column, value, label = entries.col[kept], entries.data[kept], labels[entries.row[kept]]
    order = np.lexsort((value, column))
    column, value, label = column[order], value[order], label[order].astype(np.float64)
    n_columns, positives = values.shape[1], float(labels.sum())
    negatives = len(labels) - positives
    zero_positive = positives - np.bincount(column, weights=label, minlength=n_columns)
    zero_negative = negatives - np.bincount(column, weights=1 - label, minlength=n_columns)
    wins = zero_positive * zero_negative / 2
    if len(column):
        new = (column[1:] != column[:-1]) | (value[1:] != value[:-1])
        first = np.flatnonzero(np.r_[True, new])
        of = column[first]
        positive, negative = np.add.reduceat(label, first), np.add.reduceat(1 - label, first)
        before = np.cumsum(negative) - negative
        start = np.r_[0, np.flatnonzero(of[1:] != of[:-1]) + 1]
        before -= np.repeat(before[start], np.diff(np.r_[start, len(of)]))
        below = zero_negative[of] + before + negative / 2
        wins += np.bincount(of, weights=positive * below, minlength=n_columns)
    return wins / (positives * negatives)


def single_feature(
    blocks: Mapping[str, tuple[Any, Sequence[str]]],
    dense: Mapping[str, Array],
    labels: Mask,
) -> Finding | None:
    """Columns that alone tell the labels with an AUROC above ``_LIMIT``, either way round.

    ``blocks``: sparse (N, K) values >= 0 and their K names, by what they measure; ``dense``: (N,),
    NaN where unknown. A column needs ``_FEW`` rows that have it, and as many of each class.
    """
    measured = [(f" ({kind})", *block, labels) for kind, block in blocks.items()]
    for name, values in dense.items():
        known = ~np.isnan(values)
        ranks = sparse.csr_matrix(rankdata(values[known])[:, None])
        measured.append(("", ranks, [name], labels[known]))
    found: dict[str, tuple[float, str]] = {}
    for kind, matrix, names, outcome in measured:
        if min(outcome.sum(), (~outcome).sum()) < _FEW:
            continue
        areas = aurocs(matrix, outcome)
        strength = np.maximum(areas, 1 - areas)
        for k in np.flatnonzero((strength > _LIMIT) & (matrix.getnnz(axis=0) >= _FEW)).tolist():
            text = f"{names[k]}{kind}: AUROC {areas[k]:.3f}"
            found[names[k]] = max(found.get(names[k], (0.0, "")), (float(strength[k]), text))
    details = [text for _, text in sorted(found.values(), reverse=True)]
    return finding("single_feature", len(found), details=details[:10])


def prevalence_differs(
    labels: Mask, subject: NDArray[Any], split: NDArray[Any], *, alpha: float = _CHANCE
) -> Finding | None:
    """Chi-square test that splits are drawn from one population; subjects are drawn, not rows.

    The score test of equal prevalence: the excess of positives of each subject over the overall
    share, compared between splits as if subjects had been dealt to them at random (the Wald test
    is too eager in a small split). p below ``alpha`` is a finding.
    """
    rows = pd.DataFrame({"split": split, "subject": subject, "y": labels.astype(float), "n": 1.0})
    of_subject = rows.groupby(["split", "subject"])[["y", "n"]].sum()
    excess = of_subject["y"] - labels.mean() * of_subject["n"]
    in_split = excess.groupby("split").agg(["sum", "count"])
    between = float((in_split["sum"] ** 2 / in_split["count"]).sum())
    variance = float((excess**2).sum()) / max(len(excess) - 1, 1)
    if len(in_split) < 2 or not variance:
        return None
    p = float(chdtrc(len(in_split) - 1, between / variance))
    if p >= alpha:
        return None
    details = [
        f"{name}: {100 * of_split['y'].mean():.1f}%"
        for name, of_split in rows.groupby("split")
        if _FEW <= of_split["y"].sum() <= len(of_split) - _FEW
    ]
    return finding("prevalence_differs", len(rows), details=[*details, f"p = {p:.1g}"])
