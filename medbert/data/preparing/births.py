"""When subjects were born, as far as their records agree on it."""

from __future__ import annotations

import numpy as np

from medbert.data.preparing.spill import Columns
from medbert.schema import DAY_US, DAYS_PER_YEAR, STATIC

OLDEST_YEARS = 120


def agreed(births: Columns, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The birth of each of ``n`` subjects (STATIC: unknown, or stated differently); the subjects
    with several; and the place in ``births`` where each subject's is stated first.
    """
    first, last = np.full(n, np.iinfo(np.int64).max), np.full(n, STATIC)
    subject, time = births["subject"], births["time"]
    np.minimum.at(first, subject, time)
    np.maximum.at(last, subject, time)
    place = np.zeros(n, np.int64)
    place[subject[::-1]] = np.arange(len(subject))[::-1]
    return np.where(first == last, last, STATIC), np.flatnonzero(first < last), place


def out_of_life(
    birth: np.ndarray, subject: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which times lie before the day of the subject's birth, and which too long after it."""
    born = birth[subject]
    known = (born != STATIC) & (time != STATIC)
    early = known & (time < born // DAY_US * DAY_US)
    late = known & (time - np.where(known, born, time) > OLDEST_YEARS * DAYS_PER_YEAR * DAY_US)
    return early, late
