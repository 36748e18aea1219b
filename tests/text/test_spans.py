"""Spans of several detectors become one list, in whole words, everywhere a name stands."""

import random

import pytest

from medbert.schema import Span
from medbert.text.detectors.rules import Rules
from medbert.text.detectors.words import listed
from medbert.text.spans import (
    Ensemble,
    coarse,
    consistent,
    everywhere,
    grown,
    merge,
)


def texts(text, spans):
    return [text[s.start : s.end] for s in spans]


def test_merging_loses_no_character_and_leaves_no_overlap():
    draw = random.Random(0)
    for _ in range(300):
        spans = []
        for _ in range(draw.randint(0, 8)):
            start = draw.randint(0, 30)
            label = draw.choice(["NAME", "NAME:PATIENT", "ID:SSN", "DATE"])
            spans.append(
                Span(start, start + draw.randint(1, 9), label, draw.choice([0.4, 0.6, 0.9]))
            )
        merged = merge(spans)
        assert all(a.end <= b.start for a, b in zip(merged, merged[1:], strict=False))
        assert {i for s in merged for i in range(s.start, s.end)} == {
            i for s in spans for i in range(s.start, s.end)
        }
        assert merge(merged) == merged
        for s in merged:
            same = [o for o in spans if o.label == s.label and o.start < s.end and s.start < o.end]
            assert s.score in {o.score for o in same}


def test_the_longer_gives_the_label_and_of_equals_the_surer():
    unit, name = Span(0, 20, "LOCATION", 0.6), Span(4, 9, "NAME", 0.9)
    assert merge([name, unit]) == [unit]
    assert merge([unit, unit._replace(label="NAME", score=0.7)])[0].label == "NAME"


def test_a_label_may_have_a_finer_kind():
    assert coarse("ID:SSN") == "ID" and coarse("NAME") == "NAME"


@pytest.mark.parametrize(
    ("text", "span", "whole"),
    [
        ("of Johannes Smith", (3, 7, "NAME"), "Johannes"),
        ("den 12.03.2020kl 10", (4, 14, "DATE"), "12.03.2020"),
        ("MRN 12345AB", (4, 8, "ID"), "12345AB"),
        ("is Anna S. here", (2, 9, "NAME"), "Anna S."),
        ("is Anna. Here", (3, 8, "NAME"), "Anna"),
        (" ,. ", (0, 4, "NAME"), ""),
    ],
)
def test_no_half_of_a_word_stays(text, span, whole):
    grew = grown(text, Span(*span))
    assert text[grew.start : grew.end] == whole


def test_a_name_found_once_is_found_everywhere():
    text = (
        "John Smith, 60. Mr Smith's wife called; SMITH was out. J. Smith, Smith-Jones and john s.; "
        "Johns blood. Smithers stays."
    )
    spans = consistent(text, [Span(0, 10, "NAME", 0.9)])
    assert texts(text, spans) == [
        "John Smith",
        "Smith",
        "SMITH",
        "J. Smith",
        "Smith-Jones",
        "john",
        "Johns",
    ]


def test_ordinary_words_are_not_taken_for_a_name_found_before():
    text = "Will May came. He will rest in may. May rest. We saw Will, and May too. Will rest."
    spans = consistent(text, [Span(0, 8, "NAME", 0.9)])
    assert texts(text, spans) == ["Will May", "Will", "May"]


def test_numbers_found_once_are_found_again_and_doubtful_names_are_not():
    text = "MRN A-55123. Ref a-55123 / A-55123, A-551234. Perhaps Tor. Tor igjen."
    spans = consistent(text, [Span(4, 11, "ID", 0.9), Span(54, 57, "NAME", 0.4)])
    assert texts(text, spans) == ["A-55123", "A-55123", "Tor"]


def test_names_of_one_note_are_found_in_another():
    note = "ringte Ås, og Karis mor"
    assert texts(note, everywhere(["Kari Aas"], note)) == ["Ås", "Karis"]


class Fixed:
    def __init__(self, *spans):
        self.spans = list(spans)

    def detect(self, text):
        return self.spans


def test_an_ensemble_is_a_detector_of_whole_words():
    text = "Pasienten Torhild og torhild; x"
    half = Ensemble([Fixed(Span(10, 13, "NAME", 0.9)), Fixed(Span(28, 29, "NAME", 0.9))])
    assert texts(text, half.detect(text)) == ["Torhild", "torhild"]
    assert Ensemble([half, Fixed()]).detect(text) == half.detect(text)


def test_rules_and_lists_together_leave_little_of_a_note():
    text = """Pasient: Timian Rømo
Fnr: 030562
00124  Tlf:91234567
Kona Berit ringte 3/5-22 (12.03.2020kl 10). Timian, 94 år, bor i Storgata 5, 0450 Oslo.
Rømos lege Dr.Hansen ved Førde sentralsjukehus."""
    left = list(text)
    for span in Ensemble([Rules(), *listed()]).detect(text):
        left[span.start : span.end] = "_" * (span.end - span.start)
    for gone in (
        "Timian",
        "Rømo",
        "0305",
        "00124",
        "9123",
        "Berit",
        "3/5",
        "94",
        "Storg",
        "Oslo",
        "Hans",
    ):
        assert gone not in "".join(left)
    for stays in ("Pasient:", "ringte", " år", "kl 10", "lege"):
        assert stays in "".join(left)
