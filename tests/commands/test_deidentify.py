"""From notes to clean notes and their score; whatever happens, no PHI where none may be."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import medbert
from medbert.commands.deidentify import _names, _plan
from medbert.commands.notes import parts
from medbert.schema import InputError, Span
from medbert.text.notes import Note, read, write

NAMES = ("Quistgaard", "Ødegård-Lie", "Bjørnholt")
TEXTS = {
    "p1/a": "Pasient Ola Quistgaard, f. 12.03.1950. Behandlet av dr. Kari Ødegård-Lie.\nBlodtrykk.",
    "p1/b": "Kontroll: Ola Quistgaard er stabil. Ring 915 00 111.",
    "p2/c": "Ingen funn. Marevan 2,5 mg.",
}
MARKED = {"p1/a": ("Ola Quistgaard", "12.03.1950", "Kari Ødegård-Lie"), "p1/b": ("Ola Quistgaard",)}
PHI = re.compile(r"Quistgaard|Ødegård|Bjørnholt|1950|915 00 111")
LABELS = {"12.03.1950": "DATE"}


def gold() -> list[Note]:
    return [
        Note(
            note_id,
            text,
            note_id[:2],
            spans=tuple(
                Span(text.index(p), text.index(p) + len(p), LABELS.get(p, "NAME"))
                for p in MARKED.get(note_id, ())
            ),
        )
        for note_id, text in TEXTS.items()
    ]


def i2b2(folder: Path) -> None:
    for note in gold():
        tags = "".join(
            f'<{s.label} start="{s.start}" end="{s.end}" text="{note.text[s.start : s.end]}"/>'
            for s in note.spans or ()
        )
        file = folder / f"{note.note_id}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<d><TEXT>{note.text}</TEXT><TAGS>{tags}</TAGS></d>", encoding="utf-8")


def conll(file: Path) -> None:
    with file.open("w", encoding="utf-8") as out:
        for note in gold():
            out.write("-DOCSTART- O\n\n" + "".join(f"{w} O\n" for w in note.text.split()) + "\n")


@pytest.fixture
def notes(tmp_path) -> Path:
    write(gold(), tmp_path / "notes", format="text")
    return tmp_path / "notes"


def run(notes: Path, out: Path, *words: str, **settings) -> dict:
    return medbert.deidentify(*words, in_=notes, out=out, **settings)


def everything(folder: Path) -> str:
    """All text below a folder, and the names of its files."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    return "\n".join(f"{f.name}\n{f.read_bytes().decode('utf-8', 'replace')}" for f in files)


@pytest.mark.parametrize(
    ("format", "made"),
    [
        ("text", "notes"),
        ("jsonl", "notes.jsonl"),
        ("csv", "notes.csv"),
        ("parquet", "notes.parquet"),
        ("brat", "notes"),
        ("i2b2", "notes"),
        ("conll", "notes"),
    ],
)
def test_every_format_comes_out_clean_in_its_own(tmp_path, format, made):
    given = tmp_path / ("in" if made == "notes" and format != "conll" else f"in.{format}")
    fields = ("note_id", "text", "patient_id")
    if format in ("i2b2", "conll"):
        {"i2b2": i2b2, "conll": conll}[format](given)
    else:
        write(gold(), given, format=format, fields=fields)
    summary = run(given, tmp_path / "out")
    assert summary["notes"] == 3 and summary["notes_failed"] == 0
    assert sum(n for label, n in summary["spans"].items() if label.startswith("NAME")) == 3
    clean = {note.note_id: note for note in read(tmp_path / "out" / made)}
    before = {note.note_id: note for note in read(given)}
    assert clean.keys() == before.keys() and len(clean) == 3
    texts = " ".join(note.text for note in clean.values())
    assert "[NAME]" in texts and "Blodtrykk" in texts and "Marevan" in texts
    assert [n.patient_id for n in clean.values()] == [n.patient_id for n in before.values()]
    assert not PHI.search(everything(tmp_path / "out") if format != "parquet" else texts)
    spans = [json.loads(line) for line in (tmp_path / "out" / "spans.jsonl").open()]
    for line in spans:
        for s in line["spans"]:
            old = before[line["note_id"]].text[s["start"] : s["end"]]
            new = clean[line["note_id"]].text[s["new_start"] : s["new_end"]]
            assert old.strip() and re.fullmatch(r"\[[A-Z]+\]", new)


def test_what_the_person_table_knows_is_found(tmp_path):
    table = {"patient_id": [1, 1, 2], "surname": ["Knall", "Perle", "Lampe"], "pincode": ["x"] * 3}
    parquet.write_table(pa.table(table), tmp_path / "persons.parquet")
    (tmp_path / "persons.csv").write_text("patient_id,surname\n1,Knall\n1,Perle\n2,Lampe\n")
    text = "Samtale med knall og Perle om lampe."
    write([Note("1-1", text), Note("3-1", text)], tmp_path / "in", format="text")
    for file, more in (("persons.csv", ()), ("persons.parquet", ("+known_columns.pincode=''",))):
        known = {"known": tmp_path / file, "overwrite": True}
        run(tmp_path / "in", tmp_path / "out", r"patient_pattern='^(\d+)-'", *more, **known)
        clean = (tmp_path / "out" / "notes" / "1-1.txt").read_text()
        assert not re.search("(?i)knall|perle", clean) and "Samtale" in clean and "lampe" in clean
        assert "knall" in (tmp_path / "out" / "notes" / "3-1.txt").read_text()
    with pytest.raises(InputError, match="pincode"):
        run(tmp_path / "in", tmp_path / "other", known=tmp_path / "persons.parquet")
    (tmp_path / "persons.csv").write_text(f'patient_id,name\n1,"{NAMES[0]}\n')
    with pytest.raises(InputError, match="no CSV or Parquet") as caught:
        run(tmp_path / "in", tmp_path / "other", known=tmp_path / "persons.csv")
    assert NAMES[0] not in str(caught.value)


def test_uncertain_spans_are_queued_without_text_unless_asked(notes, tmp_path):
    run(notes, tmp_path / "out", review=True, review_below=0.96, threshold=0.9)
    lines = [json.loads(line) for line in (tmp_path / "out" / "review.jsonl").open()]
    assert lines and all(line["score"] < 0.96 for line in lines)
    assert {line["redacted"] for line in lines} <= {True, False}
    assert all(line["redacted"] == (line["score"] >= 0.9) for line in lines)
    assert "CONTAINS_PHI" not in everything(tmp_path / "out")
    run(notes, tmp_path / "shown", review_text=True, review_below=0.96)
    shown = tmp_path / "shown" / "review_CONTAINS_PHI.jsonl"
    assert "PHI" in json.loads(shown.read_text().splitlines()[0])["warning"]
    assert PHI.search(shown.read_text())
    shown.unlink()
    assert not PHI.search(everything(tmp_path / "shown"))


def test_surrogates_and_shifted_dates_with_a_key_and_the_way_back(tmp_path):
    (tmp_path / "key").write_text("a" * 32)
    given = [Note("1", TEXTS["p1/a"], "p", medbert_time("2020-05-01T08:30"), None, "nb")]
    fields = ("note_id", "text", "patient_id", "time", "language")
    write(given, tmp_path / "in.csv", format="csv", fields=fields)
    key = ("operators=surrogate", f"operators.key={tmp_path / 'key'}")
    run(tmp_path / "in.csv", tmp_path / "out", *key, reversible=True)
    (clean,) = read(tmp_path / "out" / "notes.csv")
    assert not PHI.search(everything(tmp_path / "out")) and "[NAME]" not in clean.text
    days = (clean.time - given[0].time).days
    written = re.search(r"\d\d\.\d\d\.\d{4}", clean.text)[0]
    moved = medbert_time("-".join(reversed(written.split(".")))) - medbert_time("1950-03-12")
    assert days and days == moved.days and clean.time.hour == 8
    assert (tmp_path / "out" / "reversible_map.txt").read_text().count("\n") == 1
    run(tmp_path / "in.csv", tmp_path / "tagged")
    assert next(read(tmp_path / "tagged" / "notes.csv")).time is None
    assert "2020" not in everything(tmp_path / "tagged" / ".").replace("2026", "")
    with pytest.raises(InputError, match=r"needs a secret"):
        run(tmp_path / "in.csv", tmp_path / "none", "operators=surrogate")


def medbert_time(text: str):
    from datetime import datetime

    return datetime.fromisoformat(text)


# --- nothing leaks --------------------------------------------------------------------------------


class Breaks:
    """A detector that fails on some notes, with the text in its message."""

    def __init__(self, **_: object) -> None: ...

    def detect(self, text: str) -> list[Span]:
        if "Quistgaard" in text:
            raise ValueError(f"cannot read {text!r}")
        return [Span(0, 2, "NAME")]


BREAKS, SLOW = (f"detector._target_=test_deidentify.{name}" for name in ("Breaks", "Slow"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_note_that_breaks_the_detector_is_left_out_and_not_quoted(
    notes, tmp_path, workers, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    summary = run(notes, tmp_path / "out", BREAKS, workers=workers)
    assert (summary["notes"], summary["notes_failed"]) == (3, 2)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").open()]
    assert [line["note_id"] for line in failed] == ["p1/a", "p1/b"]
    assert re.fullmatch(r"ValueError at test_deidentify\.py:\d+", failed[0]["error"])
    assert [f.name for f in (tmp_path / "out" / "notes").rglob("*.txt")] == ["c.txt"]
    said = everything(tmp_path / "out") + caplog.text + "".join(capfd.readouterr())
    assert "2 notes failed" in said and not PHI.search(said)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.jsonl", f'{{"note_id": "1", "text": "{NAMES[0]}"}}\n{{"note_id": "2", "te{NAMES[0]}'),
        ("a.csv", f'note_id,text\n1,"{NAMES[0]}\n'),
        ("a.xml", f"<d><TEXT>{NAMES[0]}"),
        ("a.conll", f"{NAMES[0]} B-NAME\n{NAMES[0]}\n"),
        ("a.jsonl", f'{{"note_id": 1, "text": "{NAMES[0]}"}}\n' * 2),
    ],
)
def test_broken_files_are_refused_before_anything_is_made(tmp_path, file, content, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as caught:
        run(tmp_path / file, tmp_path / "out")
    said = str(caught.value)
    assert file in said or "note 2" in said
    assert not PHI.search(said + caplog.text + "".join(capfd.readouterr()))
    assert not list(tmp_path.glob("out*"))


def test_an_id_that_comes_again_in_another_file_is_told_with_both_places(tmp_path, monkeypatch):
    for name, ids in (("a", "123"), ("b", "425")):
        notes = [Note(note_id, TEXTS["p2/c"]) for note_id in ids]
        write(notes, tmp_path / "in" / f"{name}.jsonl", format="jsonl")
    for number in (hash, lambda _: 1):  # ids may differ though their hashes do not
        monkeypatch.setattr("medbert.commands.deidentify.hash", number, raising=False)
        message = r"b\.jsonl, note 2 has the id of \S*a\.jsonl, note 2; ids must differ"
        with pytest.raises(InputError, match=message):
            run(tmp_path / "in", tmp_path / "out")
        assert run(tmp_path / "in" / "a.jsonl", tmp_path / "a", overwrite=True)["notes"] == 3


def test_a_note_that_was_read_leaves_only_a_number(tmp_path):
    n, text = 30_000, "Ingen funn."
    source = partial(lambda: (Note(f"ward-{i:09}", text) for i in range(n)))
    tracemalloc.start()
    assert _plan(source, {}, in_files=False)[:2] == (n // parts._NOTES, ["note_id", "text"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000 + 40 * n, "bytes; an id as a string in a set takes 130"


def test_names_are_kept_of_patients_with_several_notes(tmp_path):
    whose = ("a", "b", "b", "c", None, "b")
    notes = [note._replace(patient_id=who) for note, who in zip(gold() * 2, whose, strict=True)]
    found = [{"spans": [(*span[:3], 0.9) for span in note.spans]} for note in notes]
    (tmp_path / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert _names(iter(notes), tmp_path, 0.0) == {"b": "Ola Quistgaard"}
    assert _names(iter(notes), tmp_path, 0.95) == {"b": ""}


def test_on_the_command_line_an_error_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text(f'note_id,text\n1,"{NAMES[0]}\n')
    words = ["deidentify", f"in={tmp_path / 'a.csv'}", f"out={tmp_path / 'out'}"]
    code = "from medbert.commands.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and said.startswith("medbert deidentify: ")
    assert "a.csv:2" in said and said.count("\n") == 1 and not PHI.search(said)


def test_notes_are_never_overwritten(notes, tmp_path):
    for out in (notes, notes / "clean", tmp_path):
        with pytest.raises(InputError, match="a folder of its own"):
            run(notes, out, overwrite=True)
    assert len(list(read(notes))) == 3


def test_an_unforeseen_error_is_raised_without_its_message(notes, tmp_path, monkeypatch):
    def breaks(*_: object) -> None:
        raise ValueError(TEXTS["p1/a"])

    monkeypatch.setattr("medbert.commands.deidentify._names", breaks)
    with pytest.raises(RuntimeError, match=r"ValueError at test_deidentify\.py:\d+") as caught:
        run(notes, tmp_path / "out")
    assert not PHI.search(str(caught.value)) and caught.value.__suppress_context__


# --- killed and taken up --------------------------------------------------------------------------


class Slow(Breaks):
    """Finds the first word; slow enough to be caught at work."""

    def detect(self, text: str) -> list[Span]:
        time.sleep(0.02)
        return [Span(0, text.index(" "), "NAME", 0.6)]


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_NOTES", 2)
    many = [Note(f"{i:02}", f"{NAMES[i % 3]} sover {i}") for i in range(20)]
    write(many, tmp_path / "in.jsonl", format="jsonl")
    first = tmp_path / "out.partial" / "work" / "finding" / "0000001.jsonl"
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(tmp_path / "in.jsonl", tmp_path / "out", SLOW)
    )
    process.start()
    while not first.exists():
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out").exists()
    assert not PHI.search(everything(tmp_path / "out.partial"))
    done, part = [], parts._part
    monkeypatch.setattr(
        parts, "_part", lambda file, *more: [done.append(file), part(file, *more)][1]
    )
    with pytest.raises(InputError, match=r"other settings \(threshold\)"):
        run(tmp_path / "in.jsonl", tmp_path / "out", SLOW, threshold=0.5)
    run(tmp_path / "in.jsonl", tmp_path / "out", SLOW)
    assert len(done) < 20 and first not in done, "a finished part is not done again"
    monkeypatch.undo()
    run(tmp_path / "in.jsonl", tmp_path / "whole", SLOW)
    for name in ("notes.jsonl", "spans.jsonl", "summary.json"):
        whole = (tmp_path / "whole" / name).read_text()
        assert (tmp_path / "out" / name).read_text() == whole


def test_unfinished_work_is_not_mixed_with_other_notes(notes, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medbert.commands.deidentify._names", stop)
    with pytest.raises(KeyboardInterrupt):
        run(notes, tmp_path / "out")
    monkeypatch.undo()
    (notes / "p2" / "c.txt").write_text("Noe annet.")
    with pytest.raises(InputError, match=r"unfinished work with other settings \(notes\)"):
        run(notes, tmp_path / "out")
    assert (tmp_path / "out.partial" / "work" / "finding").is_dir()


# --- the score ------------------------------------------------------------------------------------


def test_score_of_what_was_found(tmp_path, capsys):
    write(gold(), tmp_path / "gold.jsonl", format="jsonl", fields=("note_id", "text", "patient_id"))
    (tmp_path / "terms.txt").write_text("blodtrykk\nmarevan\n")
    found = [note._replace(spans=note.spans[1:]) for note in gold()]
    write(found, tmp_path / "found", format="brat")
    settings = {"gold": tmp_path / "gold.jsonl", "found": tmp_path / "found"}
    told = medbert.score_deid(**settings, terms=tmp_path / "terms.txt", out=tmp_path / "score")
    whole = told["policies"]["as_annotated"]["all"]["all"]
    assert whole["documents"]["leaking"] == 2 and whole["documents"]["with_phi"] == 2
    assert whole["documents"]["without_phi"] == 1 and whole["documents"]["clinical_terms"] == 2
    assert whole["patients"] == {**whole["patients"], "with_phi": 1, "leaking": 1}
    assert whole["measures"]["strict typed"]["recall"] == pytest.approx(2 / 4)
    assert json.loads((tmp_path / "score" / "score.json").read_text()) == told
    out = everything(tmp_path / "score") + capsys.readouterr().out
    assert not PHI.search(out) and "Xxx Xxxxxxxxxx" in out and "without a leak" in out
    medbert.score_deid(**settings, show_text=True, out=tmp_path / "shown")
    shown = (tmp_path / "shown" / "errors.html").read_text()
    assert PHI.search(shown) and "protected health information" in shown


def test_policies_show_what_is_definition_and_what_is_error(tmp_path):
    text = "Kvinne, 41 år, sov."
    write([Note("1", text, spans=(Span(8, 13, "Alder"),))], tmp_path / "g.jsonl", format="jsonl")
    (tmp_path / "f.jsonl").write_text('{"doc_id": "1", "spans": [[8, 10, "AGE"]]}\n')
    told = medbert.score_deid(
        "+labels.Alder=AGE",
        gold=tmp_path / "g.jsonl",
        found=tmp_path / "f.jsonl",
        out=tmp_path / "score",
    )
    strict = {
        name: groups["all"]["all"]["measures"]["strict typed"]["f1"]
        for name, groups in told["policies"].items()
    }
    assert strict == {"as_annotated": 0.0, "core": 1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": "9", "spans": []}', "no note of"),
        ('{"doc_id": "1"}', "no spans"),
        ('{"doc_id": "1", "spans": [[0, 400, "NAME"]]}', r"number 1 of gold: 0-400 is not within"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, line, message):
    write([Note("1", NAMES[0], spans=())], tmp_path / "g.jsonl", format="jsonl")
    (tmp_path / "f.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        medbert.score_deid(
            gold=tmp_path / "g.jsonl", found=tmp_path / "f.jsonl", out=tmp_path / "s"
        )
    assert NAMES[0] not in str(caught.value)
