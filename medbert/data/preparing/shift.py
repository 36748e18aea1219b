"""Records whose times are moved, each subject's by its own number of days, as they are read.

The notes of the same patients move alike (``text/redaction/shift.py``, which also says what
shifted dates are not: HIPAA Safe Harbor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.schema import (
    DATES,
    DAY_US,
    PREDICTION_TIME,
    STATIC,
    SUBJECT_ID,
    TIME,
    Findings,
    InputError,
    Part,
    Piece,
    Records,
)

_TIMES = (TIME, "start", "end", PREDICTION_TIME)
Days = Callable[[int], int]


def shifted(records: Records, days: Days, *, told: Mapping[str, Any]) -> Records:
    """The same records, those of a subject ``days`` of it later. ``told`` (max_days, fingerprint)
    is for ``dataset.json``. Files that would be copied as they are stay out.

    Raises InputError where the source has no dates.
    """
    if records.metadata["time"] != DATES:
        raise InputError("shift.key: this source has an order but no dates, so nothing to shift")
    return records._replace(
        parts=[_ShiftedPart(part, days, told["fingerprint"]) for part in records.parts],
        labels={name: _moved(table, days) for name, table in records.labels.items()},
        metadata=records.metadata | {"shift": dict(told)},
        files={},
    )


def certain_end(latest: int, metadata: Mapping[str, Any]) -> int:
    """The time (microseconds) up to which every subject is observed. The ``latest`` in a store may
    have moved by max_days one way, and the end of a subject's records by as much the other way."""
    most = metadata.get("shift", {}).get("max_days", 0)
    return latest if latest == STATIC else latest - 2 * most * DAY_US


@dataclass(frozen=True)
class _ShiftedPart:
    """A `Part`; what a source's own parts can do besides (``rows``, ``codes``), it can too."""

    part: Part
    days: Days
    fingerprint: str

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def stamp(self) -> str:
        return f"{self.part.stamp} {self.fingerprint}"

    @property
    def rows(self) -> int | None:
        return getattr(self.part, "rows", None)

    def codes(self) -> Iterator[pa.DictionaryArray]:
        yield from self.part.codes()  # type: ignore[attr-defined]

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        for piece in self.part.pieces(findings):
            events, visits = (t and _moved(t, self.days) for t in (piece.events, piece.visits))
            yield Piece(events, visits, piece.names)


def _moved(table: pa.Table, days: Days) -> pa.Table:
    """Null stays null."""
    ids, place = np.unique(table[SUBJECT_ID].to_numpy(), return_inverse=True)
    by = np.array([days(subject) for subject in ids.tolist()], np.int64)[place] * DAY_US
    for i, column in enumerate(table.schema):
        if column.name in _TIMES:
            moved = pc.add(table[i].cast(pa.timestamp("us")), pa.array(by, pa.duration("us")))
            table = table.set_column(i, column.with_type(moved.type), moved)
    return table
