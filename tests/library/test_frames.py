from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import records_of

from medbert.library.frames import cohort_frame, store_rows
from medbert.schema import InputError

COHORT = pd.DataFrame(
    {
        "age": [40, 50, 60],
        "prediction_time": pd.to_datetime(
            ["2020-01-01 09:00", "2021-02-03 04:05", "2019-01-01 00:00"]
        ),
        "subject_id": [7, 5, 7],
    },
    index=["a", "b", "a"],
)


@pytest.mark.parametrize(
    "given",
    [
        COHORT,
        pl.from_pandas(COHORT),
        pl.from_pandas(COHORT).with_columns(pl.col("prediction_time").cast(pl.Datetime("ms"))),
        pa.Table.from_pandas(COHORT),
        COHORT.to_records(index=False),
        COHORT[["subject_id", "prediction_time"]].to_numpy(),
        COHORT.astype({"prediction_time": "datetime64[ns]", "subject_id": "Int64"}),
        COHORT.astype({"prediction_time": str, "subject_id": float}),
        COHORT.convert_dtypes(dtype_backend="pyarrow"),
        COHORT.astype({"prediction_time": object, "subject_id": object}),
        COHORT.astype({"subject_id": "category"}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_any_frame_becomes_the_same_one(given):
    frame = cohort_frame(given)
    assert frame.dtypes.iloc[0] == np.int64 and frame.dtypes.iloc[1] == "datetime64[us]"
    assert list(frame.columns[:2]) == ["subject_id", "prediction_time"]
    for name in ("subject_id", "prediction_time"):
        assert list(frame[name]) == list(COHORT[name])
    if hasattr(given, "columns"):
        assert list(frame["age"]) == [40, 50, 60]


def test_the_cohort_given_keeps_its_index_and_is_not_changed():
    given = COHORT.astype({"subject_id": float})
    before = given.copy()
    assert cohort_frame(given).index.equals(COHORT.index)
    pd.testing.assert_frame_equal(given, before)


def test_dates_are_midnights_and_ids_are_exact():
    largest = 2**63 - 1
    frame = cohort_frame(np.array([[largest, date(2020, 5, 1)]], dtype=object))
    assert frame["subject_id"].item() == largest
    assert frame["prediction_time"].item() == pd.Timestamp("2020-05-01")


UTC1 = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (COHORT.drop(columns="subject_id"), "0 columns subject_id .there are: age, prediction_ti"),
        (COHORT.set_index("subject_id"), "in the index: call reset_index"),
        (COHORT[["subject_id", *COHORT]], "2 columns subject_id"),
        (COHORT[:0], "no rows"),
        (COHORT.assign(subject_id=[7.0, 5.5, 7.0]), "subject_id: 1 of 3 .*no int64.*row 2"),
        (COHORT.assign(subject_id=[7, None, 7]), "subject_id: 1 of 3 rows have none .row 2.*fill"),
        (COHORT.assign(subject_id=["x", "y", "7"]), "subject_id: 2 of 3 .*row 1, row 2"),
        (COHORT.assign(subject_id=[2.0**60, 1, 1]), "subject_id: 1 of 3 .*no int64"),
        (COHORT.assign(subject_id=np.array([2**63, 1, 1], np.uint64)), "1 of 3 .*no int64"),
        (COHORT.assign(subject_id=COHORT["prediction_time"]), "subject_id: 3 of 3 .*datetime64"),
        (COHORT.assign(prediction_time=[1, 2, 3]), "prediction_time: 3 of 3 .*numbers.*unit="),
        (COHORT.assign(prediction_time=["2020-01-01", None, "x"]), "prediction_time: 1 .*row 2"),
        (
            COHORT.assign(prediction_time=["2020-01-01", "y", "x"]),
            "2 of 3 .*no times.*row 2, row 3",
        ),
        (
            COHORT.assign(prediction_time=COHORT["prediction_time"].dt.tz_localize("UTC")),
            "time zone",
        ),
        (COHORT.assign(prediction_time=[datetime(2020, 1, 1, tzinfo=UTC1)] * 3), "tz_localize"),
        (np.ones((3, 2)), "prediction_time: 3 of 3 .*numbers"),
        (np.ones((3, 4)), r"ndarray of shape \(3, 4\) is no cohort"),
        ([[7, "2020-01-01"]], "a list is no cohort"),
        (pl.from_pandas(COHORT).lazy(), "a LazyFrame is no cohort"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_in_one_line(given, words):
    with pytest.raises(InputError, match=words) as caught:
        cohort_frame(given)
    assert "\n" not in str(caught.value)


def test_subjects_are_found_in_the_order_of_the_cohort(make_store):
    store = make_store(records_of([(s, "2020-01-01", "A") for s in (5, 6, 7)]))
    rows, until = store_rows(store, cohort_frame(COHORT))
    assert list(store.subject_ids[rows]) == [7, 5, 7]
    assert list(until.view("datetime64[us]")) == list(COHORT["prediction_time"])
    lacking = COHORT.assign(subject_id=[7, 99, 98])
    with pytest.raises(InputError, match="2 of 3 rows are of subjects that .* lacks .row 2, row 3"):
        store_rows(store, cohort_frame(lacking))
