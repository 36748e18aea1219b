"""brat standoff, as MEDDOCAN has it: ``a.txt`` beside ``a.ann``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from medbert.schema import InputError, Span
from medbert.text.formats.text import place
from medbert.text.notes import Note, Options, check, content, decoded, files, lines, name

_MARKED = re.compile(r"T\S*\t(\S+) (\d+ \d+(?:;\d+ \d+)*)(?:\t(.*))?")


def read(path: Path, options: Options) -> Iterator[Note]:
    """A note without an .ann file has no gold spans; a span in several parts becomes several."""
    folder = path if path.is_dir() else path.parent
    texts = {f.with_suffix("") for f in files(folder, "text")} if path.is_dir() else set()
    marked = {f.with_suffix("") for f in files(path, "brat")}
    for stem in sorted(texts | marked):
        file, marks = stem.with_name(stem.name + ".txt"), stem.with_name(stem.name + ".ann")
        if not file.is_file():
            raise InputError(f"{marks}: its text {file.name} is not beside it")
        text = decoded(content(file), options.encoding, where=str(file))
        spans = tuple(sorted(_spans(marks, text, options))) if stem in marked else None
        yield Note(name(file, folder), text, spans=spans)


def _spans(file: Path, text: str, options: Options) -> Iterator[Span]:
    for number, line in lines(file, options.encoding):
        if not line.startswith("T"):  # relations, attributes, notes of annotators
            continue
        if (match := _MARKED.fullmatch(line.rstrip("\r\n"))) is None:
            raise InputError(f"{file}:{number}: not as in `T1<tab>NAME 0 5<tab>text`")
        pairs = [pair.split() for pair in match[2].split(";")]
        parts = [Span(int(start), int(end), match[1]) for start, end in pairs]
        check(parts, text, match[3], where=f"{file}:{number}")
        yield from parts


def write(notes: Iterable[Note], path: Path, options: Options) -> None:
    for note in notes:
        place(path, note.note_id, ".txt").write_bytes(note.text.encode("utf-8"))
        marks = [
            f"T{number}\t{span.label} {span.start} {span.end}\t"
            + re.sub(r"\s", " ", note.text[span.start : span.end])
            for number, span in enumerate(note.spans or (), start=1)
        ]
        ann = "".join(mark + "\n" for mark in marks)
        place(path, note.note_id, ".ann").write_bytes(ann.encode("utf-8"))
