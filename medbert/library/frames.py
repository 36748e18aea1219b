"""Cohorts as people hold them in memory: checked, as one pandas frame, and found in a store."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medbert.commands.encoders.cohort_rows import refuse
from medbert.data.store import Store
from medbert.schema import PREDICTION_TIME, SUBJECT_ID, InputError

KEYS = [SUBJECT_ID, PREDICTION_TIME]
_WHERE = "cohort"  # what messages call it, where a file would have a name
_EXACT = 2**53  # up to here a float is one whole number


def cohort_frame(X: Any) -> pd.DataFrame:
    """``subject_id`` (int64) and ``prediction_time`` (datetime64[us]), then the other columns of X
    as they are; the rows, their order and a pandas index are those of X.

    X is a frame of pandas, polars, pyarrow or anything else that speaks Arrow, a structured array,
    or an array of two columns, in that order. Times are dates, datetimes without a time zone, or
    ISO 8601. Raises InputError, in one line, for a column that is missing or a value that is none.
    """
    frame = _frame(X)
    for name in KEYS:
        if (found := list(frame.columns).count(name)) != 1:
            in_index = name in frame.index.names
            cure = "it is in the index: call reset_index()" if in_index else "one is needed"
            there = ", ".join(map(str, frame.columns[:10]))
            raise InputError(f"{_WHERE}: {found} columns {name} (there are: {there}); {cure}")
    if not len(frame):
        raise InputError(f"{_WHERE}: no rows; at least one subject at one time is needed")
    checked = frame[[*KEYS, *(name for name in frame.columns if name not in KEYS)]].copy()
    checked[SUBJECT_ID] = _ids(frame[SUBJECT_ID])
    checked[PREDICTION_TIME] = _times(frame[PREDICTION_TIME])
    return checked


def store_rows(records: Store, cohort: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the store and times in microseconds of a ``cohort_frame``.

    Raises InputError if the store lacks a subject.
    """
    rows = records.rows_of(cohort[SUBJECT_ID].to_numpy())
    cure = "drop them, or prepare a store that has their records"
    refuse(_WHERE, SUBJECT_ID, rows < 0, f"are of subjects that {records.folder} lacks", cure)
    return rows, cohort[PREDICTION_TIME].to_numpy().astype("datetime64[us]").view(np.int64)


def in_html(told: Mapping[str, str]) -> str:
    """A line for each, as a notebook shows it; by itself it would set words to the right."""
    left = 'style="text-align: left"'
    rows = (f"<tr><th>{k}</th><td {left}>{escape(v)}</td></tr>" for k, v in told.items())
    return f"<table>{''.join(rows)}</table>"


def _frame(X: Any) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return X
    if hasattr(X, "__arrow_c_stream__"):
        return pa.table(X).to_pandas()
    if isinstance(X, np.ndarray) and X.dtype.names:
        return pd.DataFrame(X)
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == len(KEYS):
        return pd.DataFrame(X, columns=KEYS)
    shape = f" of shape {X.shape}" if hasattr(X, "shape") else ""
    raise InputError(
        f"{_WHERE}: a {type(X).__name__}{shape} is no cohort; give a frame (pandas, polars, "
        f"pyarrow) with the columns {', '.join(KEYS)}"
    )


def _ids(column: pd.Series) -> np.ndarray:
    empty = column.isna().to_numpy()
    refuse(_WHERE, SUBJECT_ID, empty, "have none", "fill them or drop them")
    dated = column.dtype.kind in "mM"
    numbers = column.map(lambda _: np.nan) if dated else pd.to_numeric(column, errors="coerce")
    values = numbers.to_numpy(dtype=None if numbers.dtype.kind in "iu" else np.float64)
    with np.errstate(invalid="ignore"):
        bad = ~(values < 2**63) if values.dtype.kind == "u" else np.zeros(len(values), bool)
        if values.dtype.kind == "f":
            bad = ~((values % 1 == 0) & (np.abs(values) < _EXACT))
    cure = "ids are whole numbers; subjects/ of the store tells them, where its source had names"
    refuse(_WHERE, SUBJECT_ID, bad, f"are no int64 ({column.dtype})", cure)
    return values.astype(np.int64)


def _times(column: pd.Series) -> np.ndarray:
    empty = column.isna().to_numpy()
    refuse(_WHERE, PREDICTION_TIME, empty, "have none", "fill them or drop them")
    zone = "carry a time zone"
    local = "records have none: give the local time, with .dt.tz_localize(None)"
    number = np.full(len(column), column.dtype.kind in "iufcb")
    if column.dtype == object:
        number = column.map(lambda value: isinstance(value, Number)).to_numpy(bool)
    cure = "say what they count: pandas.to_datetime(..., unit=...)"
    refuse(_WHERE, PREDICTION_TIME, number, "are numbers, not times", cure)
    try:
        times = pd.to_datetime(column, errors="coerce", format="ISO8601")
        mixed = getattr(times.dt, "tz", None) is not None
    except ValueError:
        mixed = True
    refuse(_WHERE, PREDICTION_TIME, np.full(len(column), mixed), zone, local)
    bad = times.isna().to_numpy()
    refuse(_WHERE, PREDICTION_TIME, bad, "are no times", "give dates, datetimes or ISO 8601")
    return times.to_numpy().astype("datetime64[us]")
