"""Dates move by a keyed number of days, in their own words, or not at all."""

from __future__ import annotations

import random
import re
from collections import Counter
from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest
from intervals import intervals_kept

from medbert.data.sources.columns import identifiers
from medbert.schema import InputError
from medbert.text.redaction.shift import Shift, read_key, subject_number
from medbert.text.redaction.written_dates import Dated, Known, is_relative, move, read

KEY = b"a secret of more than sixteen bytes"
NOTE = date(2020, 3, 31)

FORMATS = [  # language, as it is written, 35 days later
    ("nb", "12.03.2020", "16.04.2020"),
    ("nb", "2.3.2020", "6.4.2020"),
    ("nb", "12.3.20", "16.4.20"),
    ("nb", "12. 03. 2020", "16. 04. 2020"),
    ("nb", "12/3-20", "16/4-20"),
    ("nb", "12.03.-20", "16.04.-20"),
    ("nb", "120320", "160420"),
    ("nb", "12.03.", "16.04."),
    ("nb", "ons. 12.03.", "ons. 16.04."),
    ("nb", "onsdag 12. mars kl. 14:30", "onsdag 16. april kl. 14:30"),
    ("nn", "den 12. mars 2020", "den 16. april 2020"),
    ("nb", "12. des. 2019", "16. jan. 2020"),
    ("nb", "mars 2020", "april 2020"),
    ("nb", "i desember", "i januar"),
    ("nb", "12.-14. mars 2020", "16.-18. april 2020"),
    ("nb", "12/3-14/3", "16/4-18/4"),
    ("nb", "12.03.2020 - 14.03.2020", "16.04.2020 - 18.04.2020"),
    ("en", "2020-03-12", "2020-04-16"),
    ("en", "2020-03-12T14:30:00Z", "2020-04-16T14:30:00Z"),
    ("en", "20200312", "20200416"),
    ("en", "March 12, 2020", "April 16, 2020"),
    ("en", "Thursday, March 12, 2020", "Thursday, April 16, 2020"),
    ("en", "12th of March 2020", "16th of April 2020"),
    ("en", "June 28th, 2019", "August 2nd, 2019"),
    ("en", "12-Mar-2020", "16-Apr-2020"),
    ("en", "12MAR2020", "16APR2020"),
    ("en", "Mar 12", "Apr 16"),
    ("en", "March '20", "April '20"),
    ("en", "early May 2020", "early June 2020"),
    ("en", "12/2019", "01/2020"),
    ("en", "25/12/2019", "29/01/2020"),
    ("en-US", "3/2/20", "4/6/20"),
    ("en-US", "12/8/2019 2:30 pm", "1/12/2020 2:30 pm"),
    ("en-GB", "12/8/2019", "16/9/2019"),
    ("en", "2018-2019", "2018-2019"),
    ("de", "Mi, 11.03.20", "Mi, 15.04.20"),
    ("de", "12. März 2020", "16. April 2020"),
    ("es", "12 de marzo de 2020", "16 de abril de 2020"),
    ("es", "enero del 2003", "febrero del 2003"),
    ("da", "12. maj 2019", "16. juni 2019"),
    (None, "12.8.2019", "16.9.2019"),
    (None, "MARCH 2020", "APRIL 2020"),
]


@pytest.mark.parametrize(("language", "text", "later"), FORMATS)
def test_a_date_keeps_its_format_language_and_granularity(language, text, later):
    assert move(text, 35, known=Known(NOTE, language)) == later


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (None, "12/8"),
        ("en", "12/8/2019"),  # British or American
        ("en", "Mar-20"),  # a day or a year
        ("en", "2010-12"),  # a month or years
        (None, "200312"),
        ("en-US", "2/30"),
        ("nb", "30.02.2020"),
        ("nb", "30-02-2020"),
        (None, "2020-13-05"),
        ("en-US", "13/13/2020"),
        ("nb", "29.02.2019"),
        ("nb", "påske"),
        ("en", "Christmas Eve"),
        ("nb", "våren 2019"),
        ("en", "March 12 John Smith"),
        ("nb", "dd.mm.yyyy"),
    ],
)
def test_what_is_impossible_or_ambiguous_is_not_moved(language, text):
    for days in (-364, -35, 7, 364):
        assert move(text, days, known=Known(NOTE, language)) is None


@pytest.mark.parametrize(
    "text",
    ["yesterday", "3 days ago", "120 days ago", "POD 2", "last Wednesday", "next week", "i går"]
    + ["for 3 uker siden", "neste onsdag", "hace 3 días", "vor zwei Wochen", "kl. 14:30", "14:30"],
)
def test_relative_expressions_and_times_stay(text):
    assert is_relative(text) and move(text, 35) == text


@pytest.mark.parametrize(
    "text", ["12.03", "ons. 12.03.", "2020", "March", "day 12.03", "mar", "on 3"]
)
def test_a_date_is_not_taken_for_a_relative_expression(text):
    assert not is_relative(text)


WRITERS = {
    "%d.%m.%Y": "nb",
    "%d/%m/%y": "en-GB",
    "%m/%d/%Y": "en-US",
    "%Y-%m-%d": None,
    "%Y%m%d": "en",
    "%d %B %Y": "en",
    "%b %d, %Y": "en",
    "%A, %B %d, %Y": "en",
    "%d-%b-%y": "en",
    "%a %d.%m.%Y": "en-GB",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_moving_a_written_date_writes_the_moved_date(writer):
    """Against strftime, over leap years and ends of years; also by days that change the weekday."""
    draws = random.Random(writer)
    for _ in range(150):
        day = date(1999, 1, 1) + timedelta(draws.randrange(8500))
        days = draws.randint(-364, 364)
        note = day + timedelta(draws.randint(-200, 2000))
        old, new = day.strftime(writer), (day + timedelta(days)).strftime(writer)
        moved = move(old, days, known=Known(note, WRITERS[writer]))
        assert moved is not None
        if " " in writer and "%d." not in writer:  # "12 March" does not say: 5 or 05 March
            moved, new = (re.sub(r"\b0", "", text) for text in (moved, new))
        if "%b" in writer and day.month == 5:  # "May" is short and long
            moved, new = (re.sub(r"([A-Z][a-z]{2})[a-z]*", r"\1", text) for text in (moved, new))
        assert moved == new


def test_years_and_centuries_come_from_the_note():
    assert read("28. desember", known=Known(date(2020, 1, 5), "nb")) == (date(2019, 12, 28), "day")
    assert read("3/2", known=Known(date(2019, 12, 28), "nb")) == (date(2020, 2, 3), "day")
    assert read("12.03.35", known=Known(NOTE, "nb")) == (date(1935, 3, 12), "day")
    assert read("12.03.21", known=Known(NOTE, "nb")) == (date(2021, 3, 12), "day")
    # without a note, a day and month move where leap years make no difference
    assert move("12. mars", 7, known=Known(language="nb")) == "19. mars"
    assert move("25. februar", 7, known=Known(language="nb")) is None
    assert move("25. februar", 7, known=Known(NOTE, "nb")) == "3. mars"


def test_leap_days_count():
    leap, common = Known(date(2020, 3, 1), "nb"), Known(date(2021, 3, 1), "nb")
    assert move("29. februar", 7, known=leap) == "7. mars"
    assert move("29. februar", 7, known=Known(date(2022, 7, 1), "nb")) is None
    assert (move("28.02.", 7, known=leap), move("28.02.", 7, known=common)) == ("06.03.", "07.03.")


def test_a_date_that_tells_an_age_over_89_is_not_moved():
    assert move("12.03.1931", 7, known=Known(NOTE, "nb")) == "19.03.1931"
    assert move("12.03.1930", 7, known=Known(NOTE, "nb")) is None
    assert move("1929", 7, known=Known(NOTE, "nb")) is None


def test_weekdays_move_where_the_days_are_no_weeks():
    assert move("Wednesday", 8) == "Thursday" and move("neste onsdag", -1) == "neste tirsdag"
    assert move("Thu 12 Mar 2020", 8) == "Fri 20 Mar 2020"


# --- the key --------------------------------------------------------------------------------------


def test_the_days_are_weeks_never_none_and_spread_evenly():
    shift = Shift(key=KEY)
    days = Counter(shift.days(patient) for patient in range(20_000))
    assert set(days) == {7 * k for k in range(-52, 53) if k}
    assert max(days.values()) < 2 * min(days.values())  # 192 expected of each
    other = Shift(key=KEY[::-1])
    assert sum(shift.days(p) == other.days(p) for p in range(1000)) < 30  # 10 expected
    few = Shift(key=KEY, max_days=10, step=3)
    assert {few.days(p) for p in range(200)} == {-9, -6, -3, 3, 6, 9}


def test_a_patients_id_is_the_same_in_notes_and_records():
    words = ["7", "7.0", " 7 ", "007", "-3", "0", "A-17", "æ", str(2**63), str(2**63 - 1), "1e3"]
    ids = identifiers(pa.chunked_array([words])).to_pylist()
    assert [subject_number(word) for word in words] == ids
    assert [subject_number(number) for number in ids] == ids
    shift = Shift(key=KEY)
    assert [shift.days(word) for word in words] == [shift.days(number) for number in ids]


def test_the_key_stays_out_of_sight(tmp_path, monkeypatch):
    shift = Shift(key=KEY)
    for text in (repr(shift), repr(shift.days), str(shift.told)):
        assert KEY.decode() not in text and KEY.hex() not in text
    assert shift.told != Shift(key=KEY[::-1]).told
    (tmp_path / "key").write_bytes(KEY + b"\n")
    monkeypatch.setenv("MEDBERT_KEY", KEY.decode())
    assert read_key(str(tmp_path / "key")) == read_key("env:MEDBERT_KEY") == KEY
    assert Shift.of(key=None) is None and Shift.of(key="env:MEDBERT_KEY") == shift
    for where in (
        "d41d8cd98f00b204e9800998ecf8427e",
        "env:NOT_SET_ANYWHERE",
        str(tmp_path),
        "x" * 999,
    ):
        with pytest.raises(InputError) as error:
            read_key(where)
        assert where not in str(error.value)
    (tmp_path / "short").write_text("secret")
    with pytest.raises(InputError, match="fewer than 16 bytes"):
        read_key(str(tmp_path / "short"))
    with pytest.raises(InputError, match="at most max_days"):
        Shift(key=KEY, max_days=3)


# --- the audit ------------------------------------------------------------------------------------


def lives(days: dict[str, int]) -> tuple[dict, dict]:
    """Events with clock times over a change to summer time, and a note that mentions dates."""
    before, after = {}, {}
    for patient, by in days.items():
        events = [datetime(2020, 3, 28, 23, 30), datetime(2020, 3, 29, 4, 15), datetime(2021, 1, 1)]
        texts = ["12.03.2020", "28. februar", "mars 2019", "2015", "i går"]
        later = [move(text, by, known=Known(NOTE, "nb")) for text in texts]
        new_note = NOTE + timedelta(by)
        before[patient] = [*events, *(read(t, known=Known(NOTE, "nb")) for t in texts)]
        after[patient] = [event + timedelta(by) for event in events]
        after[patient] += [read(t, known=Known(new_note, "nb")) for t in later]
    return before, after


def test_the_audit_finds_all_intervals_kept_and_counts_what_was_not_read():
    shift = Shift(key=KEY)
    before, after = lives({str(p): shift.days(p) for p in range(60)})
    found = intervals_kept(before, after)
    assert found.intervals == found.kept == 60 * 10  # five days of each, two by two
    assert (found.coarse, found.coarse_moved) == (120, 0)
    assert found.unparsed == 60 and not found.all_kept  # "yesterday" is no date
    without = [{p: dates[:-1] for p, dates in of.items()} for of in (before, after)]
    assert intervals_kept(*without).all_kept


def test_the_audit_sees_a_day_too_many():
    before, after = lives({"a": 70, "b": -7})
    after["a"][1] += timedelta(days=1)
    found = intervals_kept(before, after)
    assert found.kept == found.intervals - 4 and not found.all_kept
    before, after = lives({"a": 70})
    after["a"][5] = Dated(after["a"][5].day + timedelta(days=62), "month")
    assert intervals_kept(before, after).coarse_moved == 1
    with pytest.raises(ValueError, match="same patients"):
        intervals_kept(before, {})
    with pytest.raises(ValueError):
        intervals_kept(before, {"a": after["a"][1:]})
