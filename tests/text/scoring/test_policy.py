"""A policy decides what counts and where it ends, of both sides alike."""

import pytest

from medbert.schema import Span
from medbert.text.scoring.policy import CARD, SAFE_HARBOR, STRICT, LabelPolicy


def spans(text, *words):
    """(word, label) pairs, each where the word first stands."""
    return [Span(text.index(w), text.index(w) + len(w), label) for w, label in words]


def cut(text, policy, *words):
    return [text[s.start : s.end] for s in policy.apply(text, spans(text, *words))]


@pytest.mark.parametrize(
    ("text", "bare", "unit"),
    [
        ("er 41 år gammel", "41", "41 år gammel"),
        ("a 34-year-old man", "34", "34-year-old"),
        ("70yo M", "70", "70yo"),
        ("34 y/o", "34", "34 y/o"),
        ("en 56-åring", "56", "56-åring"),
        ("tenia 53 años", "53", "53 años"),
        ("alder 41, mann", "41", "41"),
    ],
)
def test_the_unit_of_an_age_is_in_or_out_whatever_was_marked(text, bare, unit):
    for marked in (bare, unit):
        assert cut(text, LabelPolicy(), (marked, "AGE")) == [bare]
        assert cut(text, LabelPolicy(age_unit=True), (marked, "AGE")) == [unit]


@pytest.mark.parametrize(
    ("age", "stays"),
    [
        ("89", True),
        ("90", False),
        ("fifty six", True),
        ("Eighty-nine", True),
        ("octogenarian", True),
        ("ninety", False),
        ("ninety-two", False),
        ("one hundred", False),
        ("nonagenarian", False),
        ("femtiseks", False),  # not known as a number: removed to be safe
    ],
)
def test_ages_under_90_may_stay_in_digits_and_in_words(age, stays):
    text = f"a {age} year old"
    assert cut(text, SAFE_HARBOR, (age, "AGE")) == ([] if stays else [age])
    assert cut(text, STRICT, (age, "AGE")) != []


@pytest.mark.parametrize(
    "text", ["by Dr. Hansen,", "by Dr.Hansen,", "by Prof. Dr. Hansen", "mrs Hansen"]
)
def test_titles_are_in_or_out_whatever_was_marked(text):
    whole = text.removeprefix("by ").rstrip(",")
    for marked in ("Hansen", whole):
        assert cut(text, LabelPolicy(), (marked, "NAME")) == ["Hansen"]
        assert cut(text, LabelPolicy(titles=True), (marked, "NAME")) == [whole]


def test_definition_drift_is_policy_and_no_error():
    text = "Ola Hansen, 41 år, sett av Dr. Moe onsdag 3. mai 2022."
    gold = spans(text, ("Ola", "NAME"), ("Hansen", "NAME"), ("41 år", "AGE"), ("Dr. Moe", "NAME"))
    gold += spans(text, ("onsdag 3. mai 2022", "DATE"))
    found = spans(
        text, ("Ola Hansen", "NAME"), ("41", "AGE"), ("Moe", "NAME"), ("3. mai 2022", "DATE")
    )
    assert {tuple(s[:3]) for s in gold}.isdisjoint(tuple(s[:3]) for s in found)
    for policy in (LabelPolicy(), CARD):
        ours, theirs = (policy.apply(text, side) for side in (gold, found))
        assert [s[:3] for s in ours] == [s[:3] for s in theirs]
    # An error stays one under every policy.
    ours, theirs = (LabelPolicy().apply(text, side) for side in (gold, found[1:]))
    assert len(ours) == len(theirs) + 1


def test_what_counts():
    text = (
        "in 2021, May 2021, on Wednesday, 89 and 90 years, in Ohio, near Columbus, Wednesday 3 May"
    )
    words = [("2021", "DATE:YEAR"), ("May 2021", "DATE"), ("Wednesday", "DATE:WEEKDAY")]
    words += [("89", "AGE"), ("90", "AGE"), ("Ohio", "LOCATION:REGION"), ("Columbus", "LOCATION")]
    assert cut(text, SAFE_HARBOR, *words) == ["May 2021", "90", "Columbus"]
    assert cut(text, STRICT, *words) == [
        "2021", "May 2021", "Wednesday", "89", "90 years", "Ohio", "Columbus"
    ]  # fmt: skip
    assert cut(text, CARD, *words) == ["2021", "May 2021", "89", "90"]
    assert cut(text, LabelPolicy(year_only=False), ("2021", "DATE")) == []


def test_a_weekday_before_a_date_follows_the_policy():
    text = "on Wednesday, 3 May he"
    marked = ("Wednesday, 3 May", "DATE")
    assert cut(text, LabelPolicy(), marked) == ["3 May"]
    assert cut(text, LabelPolicy(weekdays=True), marked) == ["Wednesday, 3 May"]


def test_parts_of_one_thing_are_joined_unless_told_not_to():
    text = "Ola Hansen\n\nKari, 3 May"
    words = [("Ola", "NAME"), ("Hansen", "NAME"), ("Kari", "NAME:PATIENT"), ("3 May", "DATE")]
    assert cut(text, LabelPolicy(), *words) == ["Ola Hansen", "Kari", "3 May"]
    assert cut(text, LabelPolicy(join=False), *words) == ["Ola", "Hansen", "Kari", "3 May"]


def test_ages_in_words_count_as_old_for_nothing_tells_they_are_not():
    assert cut("ninety-two", SAFE_HARBOR, ("ninety-two", "AGE")) == ["ninety-two"]


def test_applying_twice_changes_nothing():
    text = "Dr. Hansen, 41 år gammel, Wednesday 3 May 2021; Ola\nMoe"
    words = [("Dr. Hansen", "NAME"), ("41 år", "AGE"), ("Wednesday 3 May", "DATE")]
    for policy in (LabelPolicy(), STRICT, SAFE_HARBOR):
        once = policy.apply(text, spans(text, *words, ("Ola", "NAME"), ("Moe", "NAME")))
        assert policy.apply(text, once) == once
