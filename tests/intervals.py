"""What a shift of dates does to the intervals between them; it knows nothing of the key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from medbert.text.redaction.written_dates import Dated

_SLACK = {"day": timedelta(0), "month": timedelta(days=31), "year": timedelta(days=366)}


class Intervals(NamedTuple):
    """What became of the intervals between the dates of each patient, two by two.

    ``coarse`` counts months and years, ``coarse_moved`` those of them that lie further from the
    patient's other dates than before by more than their unit. ``unparsed`` dates were not read, or
    not as fine, before or after.
    """

    intervals: int = 0
    kept: int = 0
    coarse: int = 0
    coarse_moved: int = 0
    unparsed: int = 0

    @property
    def all_kept(self) -> bool:
        return self.kept == self.intervals and not self.coarse_moved and not self.unparsed


def intervals_kept(
    before: Mapping[Hashable, Sequence[Dated | datetime | None]],
    after: Mapping[Hashable, Sequence[Dated | datetime | None]],
) -> Intervals:
    """Compares the dates of every patient (events, notes, what notes mention: see ``read``; None:
    not read) with the same dates after the shift. Knows nothing of the key.

    Raises ValueError where the two are not of the same patients and dates.
    """
    if before.keys() != after.keys():
        raise ValueError("before and after are not of the same patients")
    total = Counter[str]()
    for patient, olds in before.items():
        moved: dict[str, Counter[timedelta]] = {unit: Counter() for unit in _SLACK}
        for old, new in zip(map(_dated, olds), map(_dated, after[patient]), strict=True):
            if old[1] is None or old[1] != new[1]:
                total["unparsed"] += 1
            else:
                moved[old[1]][new[0] - old[0]] += 1
        exact, coarse = moved.pop("day"), sum(moved.values(), Counter())
        usual = max(exact or coarse or [timedelta(0)], key=lambda by: (exact or coarse)[by])
        n = exact.total()
        total["intervals"] += n * (n - 1) // 2
        total["kept"] += sum(k * (k - 1) // 2 for k in exact.values())
        total["coarse"] += coarse.total()
        for unit, of in moved.items():
            total["coarse_moved"] += sum(
                k for by, k in of.items() if abs(by - usual) > _SLACK[unit]
            )
    return Intervals(**total)


def _dated(when: Dated | datetime | None) -> tuple[datetime, str | None]:
    if when is None:
        return datetime.min, None
    if isinstance(when, datetime):
        return when, "day"
    return datetime.combine(when.day, datetime.min.time()), when.unit
