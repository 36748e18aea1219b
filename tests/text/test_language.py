from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from medbert.text.language import Languages

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "norwegian" / "ud"
NB = "Pasienten ble innlagt i går kveld etter et fall hjemme, og hun kjenner ikke smerter i dag."
NN = "Pasienten vart innlagd i går kveld etter eit fall heime, og ho kjenner ikkje smerter i dag."
EN = "The patient was admitted last night after a fall at home, and she has no pain today."
DE = "Die Patientin wurde gestern Abend nach einem Sturz zu Hause aufgenommen und ist schmerzfrei."


def test_languages_of_documents():
    known = Languages.shipped()
    for text, language in ((NB, "nb"), (NN, "nn"), (EN, "en"), (DE, "other")):
        assert known.of(text).language == language
        assert known.of(text.upper()).language == language
        assert known.of(f"{text}\n{text}").language == language
    assert known.of(f"{NB} {NB}\n{NN} {NN}").language == "mixed"
    assert known.of("Ingen merknader.").language == "too short"
    assert known.of("12,5 mg x 2; 120/80").language == "too short"
    assert known.of("Hun har ikke vondt.", least=2).language == "nb"


def test_few_words_are_remembered_and_none_travels(monkeypatch):
    known = Languages.shipped()
    expected = [known.of(text) for text in (NB, NN, EN, DE)]
    monkeypatch.setattr("medbert.text.language._KNOWN_WORDS", 3)
    other = pickle.loads(pickle.dumps(known))
    assert [other.of(text) for text in (NB, NN, EN, DE)] == expected
    assert other._word.cache_info().currsize == 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="UD Norwegian is not beside this checkout")
@pytest.mark.parametrize(("name", "language"), [("bokmaal", "nb"), ("nynorsk", "nn")])
def test_sentences_that_were_not_trained_on(name, language):
    lines = (SHARED / f"no_{name}-ud-test.conllu").read_text(encoding="utf-8").splitlines()
    texts = [line[9:] for line in lines if line.startswith("# text = ")]
    known = Languages.shipped()
    long = [text for text in texts if len(text.split()) >= 8]
    for some, least in ((texts, 0.93), (long, 0.98)):
        assert sum(known.of_sentence(text) == language for text in some) / len(some) > least
