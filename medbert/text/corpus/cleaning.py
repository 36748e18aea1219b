"""From notes in any order to the documents of each patient in the order of time, cleaned.

Notes are put into files by patient first, so that all of a patient's notes are together and only
those of one file are ever in memory; each file is then cleaned by itself, in any process.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from medbert.schema import InputError
from medbert.text.corpus.documents import DOCUMENTS, UNKNOWN
from medbert.text.corpus.duplicates import Paragraphs, Signatures, stacked, words
from medbert.text.language import TOO_SHORT, Languages
from medbert.text.notes import Note

WORDS = pa.field("words", pa.int32(), nullable=False)
CLEANED = pa.schema([f for f in DOCUMENTS if f.name not in ("split", "copies")] + [WORDS])

_VAGUE = ("no", "nor", "unknown", "und", "")  # says no language that is told apart here


class Rules(NamedTuple):
    """``identify``: the language of notes without one ("missing"), of "all" or of "none"."""

    site: str | None  # of notes that have none
    identify: str
    min_words: int
    key: bytes  # of the signatures


def sort_into(folder: Path, notes: Iterable[Note], *, n_files: int) -> Iterator[int]:
    """Writes the notes into ``n_files`` files by patient; yields 1 for each. The last thing written
    is ``notes.json``: how many, and their hash.
    """
    digest, count = hashlib.sha256(), 0
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / f"{i:05}.jsonl").open("w", encoding="utf-8"))
            for i in range(n_files)
        ]
        for note in notes:
            row = {name: value for name, value in note._asdict().items() if name != "spans"}
            line = json.dumps(row, default=str) + "\n"
            digest.update(line.encode())
            whose = hashlib.blake2b(_whose(note).encode("utf-8", "surrogatepass"), digest_size=8)
            files[int.from_bytes(whose.digest()) % n_files].write(line)
            count += 1
            yield 1
    told = json.dumps({"notes": count, "sha256": digest.hexdigest()})
    (folder / "notes.json").write_text(told + "\n", encoding="utf-8")


def clean_file(file: Path, made: Path, rules: Rules) -> int:
    """Writes ``made`` (CLEANED), its signatures (.npy) and what was left out (.json) beside it, and
    returns how many notes were read."""
    notes = [*_notes(file)]
    twice = [key for key, n in Counter((n.site, n.note_id) for n in notes).items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} note ids stand for several notes; ids must differ in a site"
        )
    left_out: Counter[str] = Counter()
    rows, signatures, sign = [], [], Signatures(rules.key)
    for note in _without_repeats(notes, left_out):
        n_words = words(note.text)
        if n_words < rules.min_words:
            left_out["too short"] += 1
            continue
        rows.append(_row(note, n_words, rules))
        signatures.append(sign.of(note.text))
    np.save(made.with_suffix(".npy"), stacked(signatures))
    made.with_suffix(".json").write_text(json.dumps(left_out), encoding="utf-8")
    part = made.with_suffix(".part")
    parquet.write_table(pa.Table.from_pylist(rows, schema=CLEANED), part, row_group_size=1024)
    part.replace(made)
    return len(notes)


def _notes(file: Path) -> Iterator[Note]:
    with file.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            time = datetime.fromisoformat(row["time"]).replace(tzinfo=None) if row["time"] else None
            yield Note(**{**row, "time": time})


def _without_repeats(notes: list[Note], left_out: Counter[str]) -> Iterator[Note]:
    """By patient and time, without paragraphs that the patient's earlier notes have."""

    def order(note: Note) -> tuple[Any, ...]:
        return _whose(note), note.time is not None, note.time or 0, note.site or "", note.note_id

    for _, own in groupby(sorted(notes, key=order), _whose):
        paragraphs = Paragraphs()
        for note in own:
            text = paragraphs.new(note.text).strip()
            if note.text.strip() and not text:
                left_out["repeats an earlier note"] += 1
            else:
                yield note._replace(text=text)
        left_out["paragraphs"] += paragraphs.dropped
        left_out["paragraph characters"] += paragraphs.characters


def _whose(note: Note) -> str:
    return note.patient_id or f"note {note.note_id}"


def _row(note: Note, n_words: int, rules: Rules) -> dict[str, Any]:
    given = note.language or ""
    vague = given.lower() in _VAGUE
    if rules.identify == "all" or (rules.identify == "missing" and vague):
        language = Languages.shipped().of(note.text).language
        if language == TOO_SHORT and not vague:
            language = given
    else:
        language = given or UNKNOWN
    return {
        "note_id": note.note_id,
        "patient_id": note.patient_id,
        "site": note.site or rules.site or UNKNOWN,
        "kind": note.kind or UNKNOWN,
        "language": language,
        "time": note.time,
        "year": note.time and note.time.year,
        "text": note.text,
        "sha256": hashlib.sha256(note.text.encode()).hexdigest(),
        "words": n_words,
    }
