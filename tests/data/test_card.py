"""The card counts what is there, says what to change, and gives nobody away."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import EVERY_CODE, records_of

import medbert.data
from medbert.data.card import Shown, describe, totals
from medbert.data.card.sentences import DONE
from medbert.data.card.totals import Tally
from medbert.schema import BIRTH, CODES, HELD_OUT, TRAIN, TUNING

RARE = "RARE//known-to-one"
DATA = Path(medbert.data.__file__).parent


def cohort(n: int = 60):
    """``n`` subjects seen in 2014 (ICD-9) and 2016 (ICD-10); one has a rare code, in 1999."""
    events, visits = [], []
    for i in range(n):
        first, last = 10 * i + 1, 10 * i + 2
        events += [
            (i, None, "GENDER//F" if i % 3 else "GENDER//M"),
            (i, f"{1920 + i}-01-01", BIRTH),
            (i, "2014-02-01T08:00", "ICD9CM/250.00", None, first),
            (i, "2014-02-01T09:00", "LOINC/4548-4", 7.5, first),
            (i, "2016-05-01T10:00", "ICD10CM/E11.9", None, last),
        ]
        days = 10 if i < 20 else 2
        visits += [
            (i, first, "2014-02-01", f"2014-02-{1 + days:02d}", "inpatient", None),
            (i, last, "2016-05-01", "2016-05-01", "outpatient", None),
        ]
    return records_of([*events, (7, "1999-06-01T10:00", RARE)], visits=visits)


@pytest.fixture
def store(make_store):
    return make_store(cohort())


def says(card, word: str) -> list[str]:
    return [one["says"] for one in card["advice"] if word in one["says"]]


def rows(card, table: str, of: str) -> dict:
    """The rows of a table of the card by their first column."""
    return {row[of]: row for row in card[table]}


def test_it_counts_what_is_there(store):
    card = describe(store, min_count=1)
    facts, spreads = card["facts"], rows(card, "spreads", "name")
    assert facts["subjects"] == 60 and facts["share_birth_unknown"] == 0
    assert facts["events"] == store.info["counts"]["events"]
    assert facts["visits"] == store.info["counts"]["visits"] == 121
    sexes = {"Female": 40, "Male": 20, "Other": 0, "Unknown": 0}
    assert {row["sex"]: row["subjects"] for row in card["sexes"]} == sexes
    assert spreads["Codes of a subject"]["50%"] == 4  # sex, two codes and one
    assert facts["stays"] == 60 and facts["share_stays_of_unknown_length"] == 0
    assert facts["share_stays_prolonged"] == pytest.approx(1 / 3, abs=1e-4)
    stays = spreads["Length of stay (days)"]
    assert (
        stays["50%"] == 2
        and stays["edges"][0] == 2
        and stays["bars"][0] == 40
        and sum(stays["bars"]) == 60
    )
    assert spreads["Codes of a visit"]["n"] == 121
    ages = spreads["Age at the first event (years)"]
    assert ages["n"] == 60 and 60 < ages["mean"] < 70
    assert json.loads(json.dumps(card)) == card


def test_code_systems_change_over_the_years(store):
    card = describe(store)
    calendar = card["calendar"]
    assert calendar["years"] == [2014, 2016] and calendar["subjects"] == [60, 60]
    assert calendar["systems"]["ICD9CM"] == [60, 0] and calendar["systems"]["ICD10CM"] == [0, 60]
    assert any("ICD9CM ends in 2014" in text for text in says(card, "icd9_to_icd10"))


def test_rare_codes_and_years_are_not_told_nor_any_file(store):
    card = describe(store)
    assert card["calendar"]["years_withheld"] == 1
    text = json.dumps(card)
    assert "RARE" not in text and "1999" not in text and "handmade.csv" not in text
    assert {row["code"] for row in card["top_codes"]} == {
        "ICD9CM/250.00", "LOINC/4548-4", "ICD10CM/E11.9", "GENDER//F", "GENDER//M",
    }  # fmt: skip
    assert '"RARE' in json.dumps(describe(store, min_count=1))


def numbers_in(value: object, name: str = "") -> list[tuple[str, int]]:
    if isinstance(value, dict):
        return [found for key, inside in value.items() for found in numbers_in(inside, key)]
    if isinstance(value, list):
        return [found for inside in value for found in numbers_in(inside, name)]
    return [(name, value)] if isinstance(value, int) else []


@pytest.mark.parametrize("min_count", [10, 7])
def test_every_count_is_a_multiple_of_the_smallest_one(store, min_count):
    card = describe(store, min_count=min_count)
    free = {"min_count", "max_tokens", "prolonged_days", "tokens", "codes"}
    free |= {"edges", "years", "years_withheld"}
    counts = [n for name, n in numbers_in(card) if name not in free]
    assert len(counts) > 50 and not [n for n in counts if n % min_count]


def test_what_is_withheld_of_a_whole_cannot_be_worked_out():
    shown = Shown(10)
    for small in range(1, 10):  # the same parts are shown, whatever the small one is
        assert [shown(n) for n in (57, small, 40)] == [60, None, 40]
        assert shown.share(small, 1000) is None and shown.share(1000 - small, 1000) in (0.99, 1)
    assert shown(0) == 0 and shown(9, subjects=12) == 10 and shown(900, subjects=9) is None
    assert shown.share(0, 100) == 0 and shown.share(50, 100) == 0.5 and shown.share(0, 0) is None


def test_no_bar_and_no_quantile_speaks_of_few(store):
    spreads = [row for row in describe(store, min_count=10)["spreads"] if row["bars"]]
    assert len(spreads) >= 4
    for row in spreads:
        assert {n for n in row["bars"] if n} <= set(range(10, 1000, 10))
        assert len(row["edges"]) == len(row["bars"]) + 1 and sum(row["bars"]) <= row["n"] + 30
        for name, value in row.items():
            if name.endswith("%") and value is not None:
                q = float(name[:-1]) / 100
                assert min(q, 1 - q) * row["n"] >= 10 - 1e-6


def test_the_size_of_the_pieces_read_changes_nothing(store, monkeypatch):
    whole = describe(store)
    monkeypatch.setattr(totals, "CHUNK_EVENTS", 17)
    assert describe(store) == whole


def test_findings_say_what_was_done_and_never_where(make_store):
    events = [(i, "2015-01-01", "A/1", None, i) for i in range(30)]
    back = [(i, i, "2015-01-02", "2015-01-01", "inpatient", None) for i in range(30)]
    card = describe(make_store(records_of(events * 2, visits=back)))
    found = rows(card, "findings", "reason")
    assert found["discharge_before_admission"] == {
        "reason": "discharge_before_admission",
        "done": "end and length of stay taken as unknown",
        "count": 30,
    }
    assert found["duplicate_events_dropped"]["count"] == 30
    assert "handmade" not in json.dumps(card["findings"])
    assert says(card, "50% of the events were repeats") and says(card, "of unknown length")


NOTED = r'(?:note|check|_count|_note\w*)\(\s*(?:findings, )?"(\w+)"'
REASONS = {  # patterns of reasons in the source, and what the card puts before them
    NOTED: "",
    r'for reason, \w+ in \(\("(\w+)"': "",
    r', \("(\w+)", late\)\)': "",
    r'"(parent|gem_\w+)"': "recoding_",  # recode.py
    r'(?m) \["(\w+)"\](?= if|$)': "recoding_",  # codebook.py
}


def test_every_reason_that_the_package_gives_says_what_was_done():
    sources = [file.read_text(encoding="utf-8") for file in DATA.rglob("*.py")]
    found = {
        prefix + reason
        for pattern, prefix in REASONS.items()
        for text in sources
        for reason in re.findall(pattern, text)
    }
    found |= {f"other_{what}_of_a_subject" for what in ("gender", "race")}  # of an f-string
    found -= {"unknown_split"}  # stops everything
    for known in ("born_after_visit", "age_over_120", "recoding_no_code", "recoding_gem_no_map"):
        assert known in found
    assert len(found) >= 30
    assert not found - DONE.keys()


def test_recoded_codes_are_told_with_their_events(make_store, tmp_path):
    gem = tmp_path / "gem.txt"
    gem.write_text("25000 E119 10000\n", encoding="utf-8")
    events = [(i, "2015-01-01", code) for i in range(30) for code in ("ICD9CM/25000", "ICD9CM/486")]
    found = rows(
        describe(make_store(records_of(events), icd9_to_icd10=str(gem))), "findings", "reason"
    )
    assert found["recoding_gem"]["count"] == 30 and found["recoding_gem"]["codes"] == 1
    assert found["recoding_gem_no_map"]["done"].startswith("stays ICD-9")


def test_records_without_dates_have_no_calendar(make_store):
    events = [(i, f"1970-01-0{k}", "A/1", None, None) for i in range(30) for k in (1, 2)]
    card = describe(make_store(records_of(events, time="order")))
    assert card["calendar"] is None and says(card, "no dates")
    assert "Age at the first event (years)" not in rows(card, "spreads", "name")


def test_small_splits_and_long_histories_are_pointed_out(make_store):
    events = [
        (i, f"2015-01-01T{k // 60:02d}:{k % 60:02d}", f"A/{k % 7}")
        for i in range(30)
        for k in range(70)
    ]
    places = [TUNING] * 4 + [HELD_OUT] * 10 + [TRAIN] * 16
    splits = pa.table({"subject_id": pa.array(range(30), pa.int64()), "split": places})
    card = describe(make_store(records_of(events), splits=splits), max_tokens=50)
    assert [row["subjects"] for row in card["splits"]] == [20, None, 10]
    assert says(card, "tuning (few or none)")
    assert says(card, "100% of the subjects have more than 50")
    assert card["facts"]["share_longer"] == 1


def test_unknown_codes_are_shown_by_system_and_split(make_store):
    events = [(i, "2015-01-01", "A/common") for i in range(40)]
    events += [(i, "2015-01-02", f"B/{i}") for i in range(40)]
    card = describe(make_store(records_of(events), vocabulary=replace(EVERY_CODE, min_subjects=2)))
    assert card["facts"]["share_unknown"] == 0.5
    assert {s["system"]: s["share_unknown"] for s in card["systems"]} == {"A": 0, "B": 1}
    assert says(card, "most in B 100%")


def test_a_code_that_is_known_by_its_values_only_is_not_unknown(make_store):
    events = [(i, "2015-01-01", "LOINC/1", float(i)) for i in range(60)]
    store = make_store(records_of(events), vocabulary=replace(EVERY_CODE, value_bins=2))
    assert "LOINC/1" not in store.vocabulary.codes
    card = describe(store)
    assert card["facts"]["share_unknown"] == 0 == card["facts"]["share_rolled_up"]


def test_codes_that_roll_up_are_counted(make_store):
    events = [(i, "2015-01-01", f"ICD10CM/E11.{i % 6}") for i in range(60)]
    rule = replace(EVERY_CODE, min_subjects=30, roll_up=True)
    facts = describe(make_store(records_of(events), vocabulary=rule))["facts"]
    assert facts["share_rolled_up"] == 1 and facts["share_unknown"] == 0


def test_a_title_that_the_vocabulary_lacks_is_that_of_the_dataset(make_store):
    events = [(i, "2015-01-01", "A/1") for i in range(30)]
    old = make_store(records_of(events), name="old")
    titled = records_of(events)._replace(
        codes=pa.table([["A/1"], ["A title"], pa.nulls(1, CODES.types[2])], schema=CODES)
    )
    new = make_store(titled, vocabulary=old.vocabulary, name="new")
    assert pq.read_table(new.folder / "vocabulary.parquet")["title"].null_count == len(
        new.vocabulary
    )
    assert [row["title"] for row in describe(new)["top_codes"]] == ["A title"]
    assert [row["title"] for row in describe(old)["top_codes"]] == [None]


def test_a_good_dataset_gets_no_advice(make_store):
    events = [
        (i, f"201{k}-01-01", f"A/{k}", None, 10 * i + k) for i in range(900) for k in range(1, 5)
    ]
    births = [(i, "1950-01-01", BIRTH) for i in range(900)]
    visits = [
        (i, 10 * i + k, f"201{k}-01-01", f"201{k}-01-{2 + 8 * (k == 4):02d}", "inpatient", None)
        for i in range(900)
        for k in range(1, 5)
    ]
    records = records_of(events + births, visits=visits)
    store = make_store(records, fractions=(0.5, 0.25, 0.25), memory_gb=1.0)
    assert describe(store)["advice"] == []


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_and_bars_are_those_of_the_values(seed):
    values = np.random.default_rng(seed).poisson(20, 997)
    tally = Tally("Subjects")
    for part in np.array_split(values, 7):
        tally.add(part)
    spread = Shown(1).spread("Codes", tally)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        assert spread[f"{q:.0%}"] == np.quantile(values, q, method="inverted_cdf")
    assert spread["mean"] == pytest.approx(values.mean(), abs=0.01)
    assert spread["edges"][-1] is None and sum(spread["bars"]) == 997
    for (left, right), count in zip(pairwise(spread["edges"]), spread["bars"], strict=True):
        assert count == ((values >= left) & (values < (right or 10**9))).sum()


def test_the_last_bar_that_is_shown_says_where_it_ends():
    tally = Tally("Subjects")
    tally.add(np.array([0] * 46 + [1] * 46 + [2] * 8))
    assert Shown(10).spread("Visits", tally)["edges"] == [0, 1, 2]
    tally.add(np.array([2] * 20))
    assert Shown(10).spread("Visits", tally)["edges"] == [0, 1, 2, None]
