"""Nothing of what was found is left, nothing else is touched, and every place is known."""

from __future__ import annotations

import base64
import random
import re
import subprocess
import sys
from datetime import datetime

import pytest

from medbert.schema import InputError, Span
from medbert.text.redaction.redact import operators_of, redact, restored, sealed
from medbert.text.redaction.surrogates import Whose

KEY = b"a secret of more than sixteen bytes"
LABELS = ["NAME", "NAME:PATIENT", "AGE", "DATE", "ID:FNR", "LOCATION", "CONTACT", "ORGANISATION"]
SIGNS = "aæøÅßñéЖ中한ا1239٤²½ \t.,-'’@/:+_[]🙂\u0301\u200d\u00a0\u2028\n"
WHOSE = Whose(patient="17", note="n1", time=datetime(2020, 3, 31), language="nb")
DEFAULT = {
    "NAME": "surrogate",
    "LOCATION": "surrogate",
    "ORGANISATION": "surrogate",
    "ID": "surrogate",
    "CONTACT": "surrogate",
    "DATE": "shift",
    "AGE": "generalise",
}
OPERATORS = operators_of(DEFAULT, key=KEY)


def notes(n: int, *, signs: str = SIGNS) -> list[tuple[str, list[Span]]]:
    """Random texts with spans that touch, overlap and repeat, in no order."""
    draws, made = random.Random(5), []
    for _ in range(n):
        text = "".join(draws.choice([*signs, "\r\n"]) for _ in range(draws.randint(1, 60)))
        spans = []
        for _ in range(draws.randint(0, 6)):
            start = draws.randrange(len(text))
            end = min(len(text), start + draws.randint(1, 9))
            spans.append(Span(start, end, draws.choice(LABELS), draws.random()))
            if end < len(text) and draws.random() < 0.5:
                spans.append(Span(end, end + 1, draws.choice(LABELS)))
        draws.shuffle(spans)
        made.append((text, spans))
    return made


def found(text: str, *items: tuple[str, str]) -> list[Span]:
    """Spans of the items, in the order of the text."""
    spans, place = [], 0
    for words, label in items:
        start = text.index(words, place)
        place = start + len(words)
        spans.append(Span(start, place, label))
    return spans


def unmarked(text: str, spans: list[Span]) -> str:
    inside = {i for span in spans for i in range(span.start, span.end)}
    return "".join(sign for i, sign in enumerate(text) if i not in inside)


@pytest.mark.parametrize(
    "choice", ["tag", "mask", "hash", "generalise", "surrogate", "shift", None]
)
def test_every_span_is_replaced_and_nothing_else_is(choice):
    operators = OPERATORS if choice is None else operators_of({"*": choice}, key=KEY)
    for text, spans in notes(400):
        done = redact(text, spans, operators, whose=WHOSE)
        assert [placed.before for placed in done.spans] == spans
        after = [placed.after for placed in done.spans]
        assert unmarked(done.text, after) == unmarked(text, spans)
        assert [a[2:] for a in after] == [s[2:] for s in spans]
        if choice == "mask":
            assert all(set(done.text[a.start : a.end]) == {"X"} for a in after)
            assert len(done.text) == len(text)
        if choice == "tag":
            left = "".join(done.text[a.start : a.end] for a in after)
            assert set(re.findall(r"\[\w+\]", left)) <= {f"[{x.partition(':')[0]}]" for x in LABELS}
            assert not re.sub(r"\[[A-Z]+\]", "", left)


def test_no_letter_or_digit_of_a_span_stays_under_surrogates():
    """Private signs stand for letters that no list and no draw has: none may come through."""
    private = "ЖДЛфяшמאש中한字עαβγ"
    operators = operators_of({"*": "surrogate"}, key=KEY, strategy="markov")
    for text, spans in notes(300, signs=private + " ,.-1\n"):
        done = redact(text, spans, operators, whose=WHOSE)
        for _, after in done.spans:
            assert not set(done.text[after.start : after.end]) & set(private)


def test_spans_that_overlap_go_as_one():
    text = "Anna Berg Hansen, 12.03.2020"
    spans = [Span(0, 9, "NAME"), Span(5, 16, "NAME:PATIENT"), Span(18, 28, "DATE")]
    done = redact(text, spans, {"DATE": operators_of({"DATE": "keep"})["DATE"]})
    assert done.text == "[NAME], 12.03.2020"
    assert [placed.after[:2] for placed in done.spans] == [(0, 6), (0, 6), (8, 18)]
    mixed = redact(text, [Span(0, 9, "NAME"), Span(5, 20, "DATE")], OPERATORS, whose=WHOSE)
    assert mixed.text == "[DATE].03.2020"  # a surrogate for half of each would leave something
    kept = operators_of({"NAME": "keep", "DATE": "tag"})
    assert redact(text, [Span(0, 16, "NAME"), Span(9, 12, "DATE")], kept).text == (
        "[DATE], 12.03.2020"
    )


def test_spans_that_touch_stay_two():
    spans = [Span(0, 4, "NAME"), Span(4, 14, "DATE")]
    assert redact("Anna12.03.2020", spans, {}).text == "[NAME][DATE]"


def test_the_finest_label_chooses_the_operator():
    text = "Anna and Ola and Oslo"
    spans = found(text, ("Anna", "NAME:PATIENT"), ("Ola", "NAME:CLINICIAN"), ("Oslo", "LOCATION"))
    choices = {"NAME:CLINICIAN": "keep", "NAME": "tag", "*": "mask"}
    assert redact(text, spans, operators_of(choices)).text == "[NAME] and Ola and XXXX"
    assert redact(text, spans, {}).text == "[NAME] and [NAME] and [LOCATION]"


@pytest.mark.parametrize("span", [(3, 3), (5, 4), (-1, 2), (2, 99)])
def test_a_span_that_is_not_in_the_text_is_refused_without_quoting_it(span):
    with pytest.raises(InputError, match=r"note n1: span 2 is") as error:
        redact("Anna", [Span(0, 1, "NAME"), Span(*span, "NAME")], {}, whose=WHOSE)
    assert "Anna" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("89", "AGE", "89"),
        ("90", "AGE", "90+"),
        ("94 år", "AGE", "90+ år"),
        ("94-year-old", "AGE", "90+-year-old"),
        ("101yo", "AGE", "90+yo"),
        ("1932", "AGE", "90+"),
        ("90+", "AGE", "90+"),
        ("96 months", "AGE", "[AGE]"),
        ("8 months", "AGE", "8 months"),
        ("41 år gammel", "AGE", "41 år gammel"),
        ("ninety-four", "AGE", "[AGE]"),
        ("41 Hansen", "AGE", "[AGE]"),
        ("12.03.2019", "DATE", "2019"),
        ("mars 2019", "DATE", "2019"),
        ("12.03.1929", "DATE", "[DATE]"),
        ("1929", "DATE", "[DATE]"),
        ("30.02.2019", "DATE", "[DATE]"),
        ("i går", "DATE", "i går"),
        ("Oslo", "LOCATION", "[LOCATION]"),
    ],
)
def test_generalise(text, label, said):
    operators = operators_of({"*": "generalise"})
    assert redact(text, [Span(0, len(text), label)], operators, whose=WHOSE).text == said


def test_dates_of_all_notes_of_a_patient_move_alike_and_of_others_otherwise():
    text = "12.03.2019"
    spans = [Span(0, 10, "DATE")]

    def moved(**whose: str | None) -> str:
        return redact(text, spans, OPERATORS, whose=WHOSE._replace(**whose)).text

    assert moved() == moved(note="n2") == moved(patient="17.0") != moved(patient="18")
    assert moved(patient=None) == moved(patient=None) != moved(patient=None, note="n2")
    assert moved(patient=None, note="") == "[DATE]"
    assert {moved(patient=str(p)) for p in range(40)} & {text} == set()


def test_hashes_are_keyed_and_the_same_for_the_same_words():
    text = "Anna  Berg, ANNA BERG, Ola"
    spans = found(text, ("Anna  Berg", "NAME"), ("ANNA BERG", "NAME:PATIENT"), ("Ola", "NAME"))
    first, second, third = redact(text, spans, operators_of({"*": "hash"}, key=KEY)).text.split(
        ", "
    )
    assert first == second != third and re.fullmatch(r"\[NAME:[0-9a-f]{10}\]", first)
    assert first not in redact(text, spans, operators_of({"*": "hash"}, key=KEY[::-1])).text


def test_choices_are_checked_and_secrets_asked_for():
    with pytest.raises(InputError, match="NAME=scramble: choose one of tag, mask"):
        operators_of({"NAME": "scramble"})
    for choice in ("hash", "shift", "surrogate"):
        with pytest.raises(InputError, match="needs a secret: key=PATH or env:NAME"):
            operators_of({"NAME": choice})
    assert KEY.decode() not in repr(OPERATORS["NAME"])


def test_the_way_back_is_encrypted():
    for text, spans in notes(60):
        done = redact(text, spans, OPERATORS, whose=WHOSE)
        line = sealed("note-of-7-March", text, done, key=KEY)
        assert restored(line + b"\n", done.text, key=KEY) == ("note-of-7-March", text)
        assert b"\n" not in line and b"note-of-7-March" not in base64.urlsafe_b64decode(line)
    for wrong in (KEY[::-1], KEY + b"x"):
        with pytest.raises(InputError, match="of another key, or damaged"):
            restored(line, done.text, key=wrong)
    with pytest.raises(InputError, match="damaged"):
        restored(line[:-9], done.text, key=KEY)


def test_redacting_needs_no_cryptography():
    code = "import sys, medbert.text.redaction.redact; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
