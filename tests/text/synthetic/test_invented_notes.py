"""Invented notes: offsets, variety, and that they can be made again."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import medbert
from medbert.text.ids import adds_up
from medbert.text.notes import read
from medbert.text.spans import LABELS, coarse
from medbert.text.synthetic.casting import grammar
from medbert.text.synthetic.writing import LANGUAGES, invent

SHIPPED = Path(__file__).resolve().parents[3] / "data_synthetic" / "notes"


@pytest.fixture(scope="module")
def notes():
    return [*invent(60, seed=5, wide=True, noise=0.4)]


def test_spans_are_in_order_and_hold_what_their_label_says(notes):
    labels, kinds = Counter(), Counter(note.kind for note in notes)
    for note in notes:
        end = 0
        for span in note.spans:
            assert end <= span.start < span.end <= len(note.text)
            end = span.end
            words = note.text[span.start : span.end]
            assert words == words.strip() and coarse(span.label) in LABELS
            labels[coarse(span.label)] += 1
            if span.label in ("AGE", "DATE:YEAR"):
                assert words.isdigit()
            if span.label == "ID:FNR":
                assert adds_up("FNR", words) and words[2] in "89"
    assert set(labels) == set(LABELS) and len(kinds) == 10
    assert not any("{" in note.text or "[" in note.text for note in notes)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_slot_of_a_grammar_has_something_to_stand_there(language):
    words, known = grammar(language), set()
    sections = [
        s.rstrip("?").partition("*")[0] for kind in words["kinds"].values() for s in kind.split()
    ]
    assert set(sections) <= set(words)
    for name, options in words.items():
        some = options.values() if isinstance(options, dict) else [options]
        known |= (
            {slot for o in some for slot in re.findall(r"\{([\w.]+)\}", str(o))}
            if name != "forms"
            else set()
        )
    made = {note.note_id: note for note in invent(9, seed=2)}  # none raises KeyError
    assert made and len(known) > 40


def test_the_shipped_notes_can_be_made_again(tmp_path):
    made = medbert.synthesize_notes(out=str(tmp_path / "notes"))
    assert (made / "notes.jsonl").read_bytes() == (SHIPPED / "notes.jsonl").read_bytes()
    notes = [*read(SHIPPED)]
    assert len({note.patient_id for note in notes}) == 80 and len({n.site for n in notes}) == 6
    assert {note.language for note in notes} == {*LANGUAGES}
    times = [(note.patient_id, note.time) for note in notes]
    assert times == sorted(times)
