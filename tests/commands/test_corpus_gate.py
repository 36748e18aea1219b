"""The gate: a corpus with PHI in it is not trained on, nor one of which nothing is shown."""

from __future__ import annotations

import hashlib
import random
from datetime import datetime
from pathlib import Path

import pytest

import medbert
from medbert.schema import InputError, Span
from medbert.text.corpus.documents import admitted, gate_of
from medbert.text.corpus.gating import design_effect
from medbert.text.notes import COLUMNS, Note, write

FINDINGS = (
    "blodtrykk",
    "puls",
    "temperatur",
    "hoste",
    "feber",
    "smerter",
    "kvalme",
    "utslett",
    "svimmel",
)
NAMES = ("Ola Nordli", "Kari Hansen", "Nils Berge", "Anne Solheim", "Per Johansen", "Liv Dahl")


def notes(n: int = 24) -> list[Note]:
    """Two sites and kinds, each note with a name, a number and a telephone."""
    draw, made = random.Random(0), []
    for i in range(n):
        said = " og ".join(draw.sample(FINDINGS, 4))
        number = f"{draw.randrange(10, 28):02}{draw.randrange(1, 13):02}{draw.randrange(50, 99)}"
        phi = [draw.choice(NAMES), f"{number} {draw.randrange(10000, 99999)}"]
        phi.append(
            f"+47 9{draw.randrange(10, 99)} {draw.randrange(10, 99)} {draw.randrange(100, 999)}"
        )
        text, spans = "", []
        for before, label, word in zip(
            ("Pasient ", " fødselsnummer ", " tlf. "), ("NAME", "ID", "CONTACT"), phi, strict=True
        ):
            text += before
            spans.append(Span(len(text), len(text) + len(word), label))
            text += word
        text += f". Pasienten har {said} i dag og klarer seg ellers fint hjemme."
        group = {"site": ("North", "South")[i % 2], "kind": ("nursing", "discharge")[i // 2 % 2]}
        time = datetime(2020, 1, 1 + i)
        made.append(Note(f"n{i}", text, f"p{i}", time, spans=tuple(spans), language="nb", **group))
    return made


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gold.jsonl, notes.jsonl (as they are), clean/ (tags), other/ (surrogates); their corpora."""
    folder = tmp_path_factory.mktemp("gate")
    fields = tuple(COLUMNS)
    write(notes(), folder / "gold.jsonl", format="jsonl", fields=fields)
    bare = [note._replace(spans=None) for note in notes()]
    write(bare, folder / "notes.jsonl", format="jsonl", fields=fields)
    (folder / "key").write_text("a secret of some length, for these tests")
    given = {"in_": str(folder / "notes.jsonl"), "overwrite": True}
    medbert.deidentify(**given, out=str(folder / "clean"))
    medbert.deidentify(
        "operators=surrogate", f"operators.key={folder / 'key'}", **given, out=str(folder / "other")
    )
    sources = {"raw": "notes.jsonl", "clean_corpus": "clean", "other_corpus": "other"}
    for out, source in sources.items():
        medbert.corpus(in_=str(folder / source), out=str(folder / out), near=None)
    return folder


def gate(there: Path, corpus: str, *words: str, found: str = "clean") -> dict:
    return medbert.corpus_gate(
        *words,
        corpus=str(there / corpus),
        gold=str(there / "gold.jsonl"),
        found=str(there / found),
        recall=0.8,
    )


def test_a_de_identified_corpus_passes_and_its_report_is_hashed(there):
    report = gate(there, "clean_corpus")
    assert report["passed"] and len(report["labelled"]) == 4
    for row in report["labelled"]:
        assert (row["labelled"], row["spans"], row["missed"]) == (6, 18, 0)
        assert row["recall_at_least"] == pytest.approx(0.05 ** (1 / 18))  # Clopper and Pearson
    raw = (there / "clean_corpus" / "gate.json").read_bytes()
    told = admitted(there / "clean_corpus")
    assert told["state"] == "passed" and told["sha256"] == hashlib.sha256(raw).hexdigest()
    assert b"Nordli" not in raw


def test_surrogates_that_were_put_in_are_no_leak(there):
    report = gate(there, "other_corpus", found="other")
    assert report["passed"]
    assert not gate(there, "other_corpus", found="clean")["passed"]  # who put these names there?


def test_a_corpus_with_phi_in_it_is_blocked_however_well_others_were_cleaned(there):
    report = gate(there, "raw")
    assert not report["passed"] and all(row["passed"] for row in report["labelled"])
    assert all(row["with_phi"] == 6 and not row["passed"] for row in report["residual"])
    with pytest.raises(InputError, match="did not pass"):
        admitted(there / "raw")
    told = admitted(there / "raw", override="a test")
    assert told["state"] == "overridden" and told["reason"] == "a test" and told["sha256"]


def test_what_was_not_labelled_or_too_little_does_not_pass(there, tmp_path):
    some = [note for note in notes() if note.site == "North" or note.note_id in ("n1", "n3")]
    write(some, tmp_path / "gold.jsonl", format="jsonl", fields=tuple(COLUMNS))
    report = medbert.corpus_gate(
        corpus=str(there / "clean_corpus"),
        gold=str(tmp_path / "gold.jsonl"),
        found=str(there / "clean"),
        recall=0.8,
        sample=1,
    )
    why = {(row["site"], row["why"]) for row in report["labelled"]}
    assert why == {("North", None), ("South", "too few labelled notes to show it")}
    report = medbert.corpus_gate(corpus=str(there / "clean_corpus"), sample=1)
    assert {row["why"] for row in report["labelled"]} == {"no labelled note"}
    assert not gate_of(there / "clean_corpus").passed


def test_misses_that_come_together_widen_the_bound():
    assert design_effect([(5, 1)] * 20) == 1.0  # spread evenly: never below 1
    assert design_effect([(5, 5)] * 4 + [(5, 0)] * 16) == pytest.approx(5.26, abs=0.01)


def test_a_gate_of_other_documents_does_not_open(there):
    gate(there, "clean_corpus")
    medbert.corpus(
        in_=str(there / "notes.jsonl"), out=str(there / "third"), fractions=[0.8, 0.1, 0.1]
    )
    (there / "third" / "gate.json").write_bytes((there / "clean_corpus/gate.json").read_bytes())
    with pytest.raises(InputError, match="other documents"):
        admitted(there / "third")
