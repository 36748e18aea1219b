"""The shipped detector finds names that are on no list, and keeps off what it does not know."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("pycrfsuite")

from conftest import SHARED  # noqa: E402

from medbert.commands.deidentify import detectors  # noqa: E402
from medbert.schema import Span  # noqa: E402
from medbert.text.detectors import shipped as module  # noqa: E402
from medbert.text.detectors.shipped import Shipped, shipped  # noqa: E402
from medbert.text.lists import shipped as lists  # noqa: E402
from medbert.text.notes import Note  # noqa: E402
from medbert.text.scoring.measures import Scores  # noqa: E402
from medbert.text.scoring.policy import SAFE_HARBOR  # noqa: E402
from medbert.text.spans import coarse  # noqa: E402
from medbert.text.synthetic.writing import invent  # noqa: E402

ASQ = SHARED / "deid" / "asq_phi" / "all.jsonl"


@pytest.fixture(scope="module")
def alone():
    return Shipped(point="recall")


def test_names_on_no_list_are_found_by_what_stands_around_them(alone):
    named = found = 0
    known = lists().given | lists().surnames
    for note in invent(21, seed=77, wide=True, noise=0.1):
        covered = {i for span in alone.detect(note.text) for i in range(span.start, span.end)}
        for span in note.spans:
            words = note.text[span.start : span.end].casefold().split()
            if coarse(span.label) == "NAME" and not known & {*words}:
                named += 1
                found += covered.issuperset(range(span.start, span.end))
    assert named > 60 and found / named > 0.75


def test_other_languages_diseases_and_scores_are_let_be(alone):
    german = (
        "Die Patientin klagte über Schmerzen im Bauch und eine Schwellung der Leber, die nach der "
        "Gabe des Antibiotikums zurückging. Die Untersuchung der Lunge ergab keinen Befund, und "
        "der Blutdruck war bei der Entlassung im Bereich der Norm. Wir danken für die Zuweisung."
    )
    assert alone.detect(german) == []
    for said in ("a Framingham score of 4", "known Kawasaki disease", "Babinskis tegn negativt"):
        assert alone.detect(f"The patient has {said}.") == []


def test_ordinary_words_letters_and_drugs_of_a_dialogue_are_let_be():
    detector = detectors(trained="shipped", point="recall")
    said = (
        "Doctor: Good afternoon, young man. Are you taking the Allegra that I gave you?\n"
        "Patient: Okey. I take it, doctor. They're fine. It is called Zyprexa, I think.\n"
        "Guest_family: Sounds good. He speaks German, and he had an M R I in two thousand seven.\n"
        "Doctor: A little, doctor. I see. I gave him Coumadin at Christmas. Bye, Nurse!\n"
    )
    assert detector.detect(said) == []
    named = "Doctor: Good morning, I am Doctor Kirkland.\nPatient: I am Allegra Smith.\n"
    assert {named[s.start : s.end] for s in detector.detect(named)} == {"Kirkland", "Allegra Smith"}


def test_it_is_small_and_says_when_it_cannot_run(monkeypatch, caplog):
    folder = Path(str(files("medbert.text").joinpath("data", "detector")))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert shipped(point="recall") == []
    assert "pip install" in caplog.text
    assert detectors(trained="shipped", point="recall").detect("Dr. Hansen")


@pytest.mark.skipif(not ASQ.is_file(), reason="the ASQ-PHI queries are not here")
def test_torch_which_it_does_not_need_is_not_loaded():
    code = (
        "import sys; from medbert.commands.deidentify import detectors as d; "
        "d(trained='shipped', point='f1').detect('Ola sov.'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_queries_of_clinicians_never_trained_on():
    """Every third of them: token recall, and how many without PHI are touched."""
    detector, scores = detectors(trained="shipped", point="recall"), Scores(label=lambda _: "PHI")
    for n, line in enumerate(ASQ.read_text(encoding="utf-8").splitlines()[::3]):
        one = json.loads(line)
        gold = [Span(s["start"], s["end"], s["coarse"]) for s in one["spans"]]
        found = SAFE_HARBOR.apply(one["text"], detector.detect(one["text"]))
        scores.add(Note(str(n), one["text"]), gold, found)
    told = scores.to_dict()["all"]["all"]
    assert told["measures"]["token"]["recall"] > 0.95
    documents = told["documents"]
    assert documents["touched_of_these"] / documents["without_phi"] < 0.1
