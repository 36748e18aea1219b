"""What several verbs ask of rows that models are judged on: features, groups, the true risk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.commands.encoders.classifier import Rows
from medbert.data import synthetic
from medbert.data.counts import Counts
from medbert.data.store import Store
from medbert.evaluate.baselines import Features
from medbert.schema import (
    BOOLEAN_VALUE,
    DATES,
    DECISION,
    PREDICTION_TIME,
    PROBABILITY,
    SUBJECT_ID,
    InputError,
)

_AGES = (0, 18, 40, 50, 60, 70, 80, 200)  # edges of the bands
_ERA = 4  # years


def features(counts: Counts) -> Features:
    """What baselines see."""
    return Features(counts.codes, np.column_stack([counts.age, counts.female]), counts.sets)


def groups(records: Store, rows: Rows, counts: Counts) -> dict[str, Any]:
    """Variable -> category of each row, null where unknown."""
    names = [f"{low}-{high - 1}" for low, high in zip(_AGES, _AGES[1:], strict=False)]
    names[0], names[-1] = f"under {_AGES[1]}", f"{_AGES[-2]} or more"
    found = {
        "sex": pd.Series(counts.female).map({1.0: "women", 0.0: "men"}),
        "age": pd.cut(counts.age, _AGES, right=False, labels=names),
    }
    if records.time == DATES:
        first = rows.until.view("datetime64[us]").astype("datetime64[Y]").astype(int) + 1970
        first = first // _ERA * _ERA
        found["era"] = [f"{year} to {year + _ERA - 1}" for year in first]
    return found


def oracle(records: Store, task: Mapping[str, Any], rows: Rows) -> np.ndarray | None:
    """The best that could be said of each row by its record, where the records are invented and
    the outcome is simulated."""
    file = records.folder / "truth.parquet"
    if not file.is_file() or task.get("truth") is None:
        return None
    truth = pq.read_table(file)
    if "care" not in truth.column_names:
        raise InputError(
            f"{file}: no column care; these lives were invented by an earlier medbert: make them "
            "again with `medbert synthesize` and `medbert prepare`"
        )
    return synthetic.record_risk(
        truth,
        subject_id=records.subject_ids[rows.rows],
        prediction_time=rows.until.view("datetime64[us]"),
        history=records.history(rows.rows, until=rows.until),
        codes=records.codes,
        outcome=task["truth"],
        gap_days=task["outcome"]["gap_days"],
        window_days=task["outcome"]["window_days"],
    )


def write_predictions(path: Path, records: Store, rows: Rows, probability: np.ndarray) -> None:
    """In the schema of meds-evaluation: both predicted columns, the probability as float64."""
    probabilities = pa.array(probability, pa.float64())
    columns = {DECISION: probability >= 0.5, PROBABILITY: probabilities}
    pq.write_table(labelled(records, rows, columns), path)


def labelled(records: Store, rows: Rows, columns: Mapping[str, Any]) -> pa.Table:
    """One line per row: subject, prediction time, label; then the columns, such as the
    probabilities of each model."""
    keys = {
        SUBJECT_ID: pa.array(records.subject_ids[rows.rows], pa.int64()),
        PREDICTION_TIME: pa.array(rows.until.view("datetime64[us]")),
        BOOLEAN_VALUE: pa.array(rows.labels),
    }
    return pa.table({**keys, **columns})
