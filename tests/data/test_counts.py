from __future__ import annotations

import numpy as np
import pytest
from conftest import records_of

from medbert.data.counts import ROLLED_UP, count_codes, first_of_cases
from medbert.schema import BIRTH

EVENTS = [
    (1, None, "GENDER//F"),
    (1, "1950-01-01", BIRTH),
    (1, "2005-01-01", "A"),
    (1, "2009-06-01", "A"),
    (1, "2011-01-01", "B"),
    (2, None, "GENDER//M"),
    (2, "2009-01-02", "B"),
]


def micros(text: str) -> int:
    return int(np.datetime64(text, "us").astype(np.int64))


def test_counts_by_window_know_nothing_later(make_store):
    store = make_store(records_of(EVENTS))
    until = np.array([micros("2010-01-01")] * 2)
    counts = count_codes(store, np.array([0, 1]), until=until, window_days=[None, 365])
    got = dict(zip(counts.names, counts.codes.toarray().T.tolist(), strict=True))
    assert got["A"] == [2, 0] and got["A (last 365 d)"] == [1, 0]
    assert got["B"] == [0, 1] and got["B (last 365 d)"] == [0, 1]
    assert counts.female.tolist() == [1.0, 0.0]
    assert counts.age[0] == pytest.approx(60, abs=0.01) and np.isnan(counts.age[1])


def test_order_only_data_uses_whole_histories_and_the_age_band(make_store):
    events = [(1, "1970-01-01T00:00:02", "AGE//[70-80)", 75.0, None), (1, "1970-01-02", "B")]
    store = make_store(records_of(events, time="order"))
    counts = count_codes(
        store, np.array([0]), until=np.array([micros("1971-01-01")]), window_days=[None, 365]
    )
    assert counts.age.tolist() == [75.0] and len(counts.names) == 2


def test_roll_ups_count_what_is_below_and_repeat_no_group(make_store):
    events = [
        (1, "2009-01-01", "ICD10CM/I50.1"),
        (1, "2009-02-01", "ICD10CM/I50.9"),
        (1, "2009-03-01", "ICD10CM/I50.9"),
        (2, "2009-01-01", "ICD10CM/I50.9"),
        (2, "2009-02-01", "ICD10CM/E11.9"),
    ]
    store = make_store(records_of(events))
    counts = count_codes(
        store,
        np.array([0, 1]),
        until=np.array([micros("2010-01-01"), micros("2009-01-15")]),
        window_days=[None, 330],
        roll_up=True,
    )
    got = dict(zip(counts.names, counts.codes.toarray().T.tolist(), strict=True))
    above = {name: column for name, column in got.items() if name.endswith(ROLLED_UP)}
    assert above == {f"ICD10CM/I50{ROLLED_UP}": [3, 1]}  # E11 has one code below: nothing new
    assert counts.sets == {"first window": 3, "all windows": 6, "all windows and roll-ups": 7}
    one = counts.at(np.array([1]))
    assert one.codes.toarray().tolist() == counts.codes.toarray()[1:].tolist()


def test_of_the_codes_of_a_disease_one_is_the_first(make_store):
    events = [
        *[(1, "2009-01-01", "A"), (1, "2009-01-01", "B"), (1, "2009-01-01", "B")],
        *[(2, "2009-01-01", "A"), (2, "2009-06-01", "A"), (2, "2009-06-01", "B")],
        *[(3, "2009-01-01", "B"), (3, "2015-01-01", "A"), (4, "2009-01-01", "other")],
    ]
    store = make_store(records_of(events))
    asked = np.array([store.vocabulary.codes.index(code) for code in "AB"])
    shares = dict(first_of_cases(store, asked))
    assert shares[0] == shares[90] == pytest.approx(3 / 4), "B beside A, in one of three"
    assert shares[180] == shares[1095] == pytest.approx(3 / 5), "151 days later, in another"
    (other,) = set(dict(first_of_cases(store, asked[:1])).values())
    assert other == 1, "a lone code is always the first"
    store.split_of_row[:] = "held_out"
    assert {*dict(first_of_cases(store, asked)).values()} == {1}, "nobody to learn it from"


def test_without_dates_visits_are_counted(make_store):
    events = [
        *[(1, "1970-01-02", "A", None, 1), (1, "1970-01-02", "B", None, 1)],
        *[(2, "1970-01-02", "A", None, 1), (2, "1970-01-03", "B", None, 2)],
    ]
    visits = [(1, 1, None, None, "inpatient", None)]
    visits += [(2, visit, None, None, "inpatient", None) for visit in (1, 2)]
    store = make_store(records_of(events, visits=visits, time="order"))
    asked = np.array([store.vocabulary.codes.index(code) for code in "AB"])
    shares = dict(first_of_cases(store, asked))
    assert shares[0] == pytest.approx(2 / 3) and shares[1] == pytest.approx(2 / 4)
