"""Where de-identification breaks: each a test, and the pipeline of model cards beside it."""

from __future__ import annotations

import re
from datetime import timedelta
from random import Random

import pytest

from medbert.commands.deidentify import detectors
from medbert.schema import Span
from medbert.text.detectors.rules import Rules
from medbert.text.notes import Note, read, write
from medbert.text.redaction.redact import operators_of, redact
from medbert.text.redaction.shift import Shift
from medbert.text.redaction.surrogates import Whose
from medbert.text.synthetic.writing import invent

KEY = b"a secret of more than sixteen bytes"
RULED = Rules()

# --- rules and lists ------------------------------------------------------------------------------

DATES = """2022-05-30|2022/5/30|2022.05.30|30.05.2022|30.5.22|05/30/2022|5/30/22|30-05-2022|5-30-22
May 30, 2022|May 30th, 2022|May 30th 2022|May 30|Feb 2nd 2021|Jan 20th '23|Sept 1st, 2023
Oct. 13th, 2022|30 May 2022|30th of May 2022|17-Feb-2023|12th April 2022|03MAY2022|May 2022
May of 2022|Mar 2008|3. mai 2022|3. mai|03. desember 2017|31. Mai 2020|12 okt. 2019|12.08.-19
3.5-2022|1. oktober -22|3. März 2022|14. Januar 2022|3 de mayo de 2022|10 de enero
03/2008|2012-10"""


def dates_in(text: str) -> list[str]:
    return [text[s.start : s.end] for s in RULED.detect(text) if s.label.startswith("DATE")]


@pytest.mark.parametrize("date", DATES.replace("\n", "|").split("|"))
@pytest.mark.parametrize(
    "around", ["seen on {}, and again", "({})", "Dato: {} kl 10", "Innlagt {}"]
)
def test_dates_as_they_are_written(date, around):
    assert len(DATES.replace("\n", "|").split("|")) >= 30
    assert [one.rstrip(".") for one in dates_in(around.format(date))] == [date]


@pytest.fixture(scope="module")
def detector():
    return detectors(trained=None, point="recall")


def covered(text: str, spans: list[Span]) -> str:
    """What is left: a star for every character of a span."""
    inside = {i for span in spans for i in range(span.start, span.end)}
    return "".join("*" if i in inside else sign for i, sign in enumerate(text))


@pytest.mark.parametrize(
    ("text", "phi"),
    [
        # words that are names or dates elsewhere
        ("He may walk. Dr. May saw him in May.", "May|May"),
        ("Ms. June Summers may be seen in June 2021.", "June Summers|June 2021"),
        ("Hope for recovery; Mrs. Hope Young is better.", "Hope Young"),
        ("Clinic on Wednesday 3 May 2022.", "3 May 2022"),
        ("Dag Moe kom fredag, og hver dag er bedre.", "Dag Moe"),
        # an initial for half of the name
        ("Seen by Anna S. today", "Anna S."),
        ("J. Smith called.", "J. Smith"),
        ("Pas. Kari N. angir smerter", "Kari N."),
        # without capitals
        ("pt john smith seen w/ cough", "john smith"),
        ("pasienten kari hansen har feber", "kari hansen"),
        ("dr. hansen orientert", "hansen"),
        ("JOHN SMITH, 56 y/o", "JOHN SMITH|56"),
        # broken over lines, and glued
        ("fnr 010190\n00083 og", "010190\n00083"),
        ("MRN: 48-\n2291-77 noted", "48-\n2291-77"),
        ("Født 12.03.\n1962 i byen", "12.03.\n1962"),
        ("pasientOla Nordmann sov", "Ola Nordmann"),
        ("12.03.2020kl14", "12.03.2020"),
        ("Dr.Hansen ringte", "Hansen"),
        ("MRN4482291", "4482291"),
        ("tlf.91234567", "91234567"),
        # national numbers that do not add up
        ("fnr 01019000084", "01019000084"),
        ("personnummer 320199 12345", "320199 12345"),
        ("SSN 000-12-3456", "000-12-3456"),
        ("NHS no 943 476 5870", "943 476 5870"),
    ],
)
def test_what_is_easily_missed(detector, text, phi):
    left = covered(text, detector.detect(text))
    place = 0
    for words in phi.split("|"):
        start = text.index(words, place)
        place = start + len(words)
        assert not re.search(r"\w", left[start:place]), left


@pytest.mark.parametrize(
    "text",
    [
        "He may go home. It will be fine, and the hope is good.",
        "You may sit; the rose and the young drake will sing.",
        "Wells score 4, Apgar 9, Babinski negative, Crohn's disease.",
    ],
)
def test_ordinary_words_stay(detector, text):
    assert covered(text, detector.detect(text)) == text


def test_a_wrong_check_digit_lowers_the_score_and_hides_nothing():
    right, wrong = RULED.detect("fnr 010190 00083"), RULED.detect("fnr 010190 00084")
    assert [s.end - s.start for s in right] == [s.end - s.start for s in wrong] == [12]
    assert right[0].score > wrong[0].score
    assert RULED.detect("fnr: 01019000084\n") and RULED.detect("98430148234")


# --- properties, over invented notes --------------------------------------------------------------


@pytest.fixture(scope="module")
def notes() -> list[Note]:
    return [*invent(6, seed=11, wide=True, noise=0.5)]


def test_no_character_of_a_detected_span_is_left(detector, notes):
    for choice in ("tag", "mask", "hash"):
        operators = operators_of({"*": choice}, key=KEY)
        for note in notes:
            found = detector.detect(note.text)
            done = redact(note.text, found, operators)
            outside = covered(note.text, found).replace("*", "")
            assert covered(done.text, [new for _, new in done.spans]).replace("*", "") == outside
            for old, new in done.spans:
                words, said = note.text[old.start : old.end], done.text[new.start : new.end]
                assert said != words and (len(words) < 4 or words not in said)


def test_shifted_dates_keep_their_intervals_to_the_day(notes):
    """Whole dates of gold, written as the rest of the note: all move by the days of the patient."""
    from medbert.text.redaction.written_dates import Known
    from medbert.text.redaction.written_dates import read as dated

    days = Shift(key=KEY).days
    operators = operators_of({"DATE": "shift"}, key=KEY)
    n = 0
    for note in notes:
        whose = Whose(note.patient_id, note.note_id, note.time, note.language)
        known = Known(note.time.date(), note.language)
        later = Known((note.time + timedelta(days(note.patient_id))).date(), note.language)
        gold = [span for span in note.spans if span.label == "DATE"]
        done = redact(note.text, gold, operators, whose=whose)
        for old, new in done.spans:
            before = dated(note.text[old.start : old.end], known=known)
            after = dated(done.text[new.start : new.end], known=later)
            if before and after and before.unit == after.unit == "day":
                assert (after.day - before.day).days == days(note.patient_id)
                n += 1
            elif before and before.unit == "day":
                assert after is None, "12/8 can be read in two ways; moved right or a tag"
    assert n > 50


def test_a_name_found_once_is_gone_from_all_notes_of_the_patient(tmp_path):
    import medbert

    texts = ["Pasient: Ola Bjørnholt, f. 1.2.1960.", "bjørnholt sov godt.", "OLA B. spiste lite."]
    given = [Note(str(i), text, "p") for i, text in enumerate(texts)]
    given.append(Note("other", "bjørnholt sov godt.", "q"))
    write(given, tmp_path / "in.jsonl", format="jsonl", fields=("note_id", "text", "patient_id"))
    medbert.deidentify(in_=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out"))
    clean = {note.note_id: note.text for note in read(tmp_path / "out" / "notes.jsonl")}
    for n in "012":
        assert not re.search(r"bjørnholt|\bola\b", clean[n], re.IGNORECASE)
    assert "bjørnholt" in clean["other"], "another patient's name is no name there"


# --- a tagger, and the pipeline of model cards ----------------------------------------------------


@pytest.fixture(scope="module")
def tagger():
    pytest.importorskip("transformers")
    import tiny_bert

    return tiny_bert.taught()


@pytest.fixture(scope="module")
def pipeline(tagger, tmp_path_factory):
    import tiny_bert

    folder = tmp_path_factory.mktemp("detector")
    tagger.save(folder)
    return tiny_bert.pipeline(folder)


def leaks(text: str, start: int, end: int, found: list[dict]) -> bool:
    covered = {i for entity in found for i in range(entity["start"], entity["end"])}
    return not covered.issuperset(range(start, end))


def test_a_name_over_several_pieces_is_one_and_the_pipeline_splits_it(tagger, pipeline):
    import tiny_bert

    random = Random(2)
    split = 0
    for _ in range(20):
        text = f"patient {tiny_bert.name(random)} was seen"
        start, end = 8, 14
        assert tiny_bert.texts(text, tagger.detect(text)) == [(text[start:end], "NAME")]
        split += leaks(text, start, end, pipeline(text))
    assert split, "the pipeline leaves part of a name behind"


def test_phi_behind_the_longest_input_is_found_and_the_pipeline_is_blind_to_it(tagger, pipeline):
    import tiny_bert

    text = tiny_bert.filled(tiny_bert.PIECES) + "Hagbad was seen"  # its first piece is number 513
    start = text.index("Hagbad")
    assert tiny_bert.texts(text, tagger.detect(text)) == [("Hagbad", "NAME")]
    assert leaks(text, start, start + 1, pipeline(text)), "not even its first letter is read"


def test_phi_at_the_border_of_a_window_is_found_whole(tagger):
    import tiny_bert

    borders = [end for _, end in tagger.windows(1500)][:2]
    for border in borders:
        for shift in range(-7, 3):
            text = tiny_bert.filled(border + shift) + "Hagbad " + tiny_bert.filled(600)
            assert tiny_bert.texts(text, tagger.detect(text)) == [("Hagbad", "NAME")], (
                border,
                shift,
            )
