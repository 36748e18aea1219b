"""What the leakage checks find: names, what each means, its cure, and whether it stops a run.

Findings count; they name no subject.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from medbert.schema import InputError

ERROR, WARNING, NOT_CHECKED = "error", "warning", "not checked"
Mask = NDArray[np.bool_]


class Check(NamedTuple):
    """One kind of leak: what is counted, what it means, what to do."""

    severity: str
    unit: str
    meaning: str
    cure: str


CHECKS = {
    "codes_after_index": Check(
        ERROR,
        "rows",
        "what a model is given of a row holds something later than its prediction time",
        "read histories with Store.history(until=prediction_time), and count features there too",
    ),
    "outcome_in_history": Check(
        ERROR,
        "rows",
        "the outcome's own codes are in the history, so the row is no new onset",
        "exclude rows with the outcome at or before the prediction time (washout)",
    ),
    "held_out_in_pretraining": Check(
        ERROR,
        "subjects",
        "the encoder or its vocabulary has seen subjects it is to be judged on",
        "use one store and its splits for both, or pretrain again without these subjects",
    ),
    "duplicate_subjects": Check(
        ERROR,
        "subjects",
        "a subject of another split has the same codes at the same times",
        "merge the records of one person before `medbert prepare`",
    ),
    "near_identical_visits": Check(
        WARNING,
        "visits",
        "a subject of another split has all but one of the same rare set of codes on the same day",
        "look for encounters stored twice, or linked (mother and child); keep them in one split",
    ),
    "single_feature": Check(
        ERROR,
        "features",
        "one feature alone tells the outcome: it may be its consequence, or part of its definition",
        "see when the code is recorded; exclude it, or widen the gap; allow it if it is known then",
    ),
    "prevalence_differs": Check(
        WARNING,
        "rows",
        "the outcome is more frequent in one split than in another, beyond chance",
        "assign splits by a hash of the subject; do not sample one of them",
    ),
    "subjects_in_two_splits": Check(
        ERROR,
        "subjects",
        "rows of one subject are in several splits",
        "split by subject, not by row",
    ),
    "duplicate_rows": Check(
        WARNING,
        "rows",
        "a subject has several rows with one prediction time: they count more than once",
        "keep one row for each subject and prediction time",
    ),
    "contradicting_labels": Check(
        ERROR,
        "rows",
        "a subject has both labels at one prediction time",
        "settle which label is meant, or drop these rows",
    ),
    "time_order": Check(
        ERROR,
        "rows",
        "the prediction time is before birth, after death or after the end of the records",
        "look at the clock, the time zone and the dates of the labels",
    ),
}


@dataclass(frozen=True)
class Finding:
    """``count`` things of a kind (``unit``), and how many by split where splits differ.

    ``details`` say where to look: names of codes or of kinds of time, never of subjects.
    """

    name: str
    severity: str
    count: int
    unit: str
    meaning: str
    cure: str
    by_split: Mapping[str, int]
    details: tuple[str, ...] = ()

    def to_dict(self, *, min_count: int) -> dict[str, Any]:
        """As written: counts from 1 to ``min_count`` - 1 become None, and with one of them all
        counts by split, for their difference to the total would tell it."""
        hidden = any(0 < n < min_count for n in self.by_split.values())
        by_split = dict.fromkeys(self.by_split) if hidden else dict(self.by_split)
        count = None if 0 < self.count < min_count else self.count
        return {**asdict(self), "count": count, "by_split": by_split, "details": [*self.details]}


def finding(
    name: str, count: int, *, by_split: Mapping[str, int] | None = None, details: Sequence[str] = ()
) -> Finding | None:
    """The finding of this name, or None where nothing was counted."""
    check = CHECKS[name]
    return (
        Finding(name, *check[:1], count, *check[1:], by_split or {}, (*details,)) if count else None
    )


def not_checked(name: str, why: str, *, cure: str) -> Finding:
    """What could not be looked for."""
    return Finding(name, NOT_CHECKED, 0, CHECKS[name].unit, why, cure, {})


def of_rows(name: str, found: Mask | Mapping[str, Mask], split: NDArray[Any]) -> Finding | None:
    """Counts the items of a mask (or of any of several named ones) by ``split``, one per item."""
    masks = found if isinstance(found, Mapping) else {"": found}
    mask = np.logical_or.reduce([*masks.values()])
    splits, counts = np.unique(split[mask].astype(str), return_counts=True)
    by_split = dict(zip(splits.tolist(), counts.tolist(), strict=True))
    details = [kind for kind, which in masks.items() if kind and which.any()]
    return finding(name, int(mask.sum()), by_split=by_split, details=details)


def refuse(found: Sequence[Finding], *, allow: Collection[str], where: str) -> None:
    """Raises InputError where an error stands that is not allowed by name, or no check has it."""
    if unknown := sorted(set(allow) - set(CHECKS)):
        raise InputError(f"allow: {unknown[0]!r} is no finding; known are {', '.join(CHECKS)}")
    standing = [f for f in found if f.severity == ERROR and f.name not in allow]
    if standing:
        names = ", ".join(f.name for f in standing)
        raise InputError(
            f"{names}: {standing[0].meaning}; see {where}, mend it, or say "
            f"allow=[{','.join(f.name for f in standing)}] if it is meant"
        )


def rich_table(found: Sequence[Finding], *, min_count: int) -> Table:
    """For the terminal: worst first, small counts withheld."""
    if not found:
        nothing = Table.grid()
        nothing.add_row("No leak found")
        return nothing
    table = Table(title="Leaks" if any(f.count for f in found) else "No leak found")
    for column in ("finding", "severity", "count", "what it means", "what to do"):
        table.add_column(column, justify="right" if column == "count" else "left")
    rank = (ERROR, WARNING, NOT_CHECKED)
    for each in sorted(found, key=lambda f: rank.index(f.severity)):
        count = f"<{min_count}" if 0 < each.count < min_count else f"{each.count:,}"
        told = "" if each.severity == NOT_CHECKED else f"{count} {each.unit}"
        more = "".join(f"\n{detail}" for detail in each.details)
        table.add_row(each.name, each.severity, told, each.meaning + more, each.cure)
    return table
