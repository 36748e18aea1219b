"""JSON lines: one object a note, ``{note_id, text, spans: [{start, end, label, score}]}``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medbert.schema import InputError, Span
from medbert.text.notes import Note, Options, chosen, files, lines, note_of, spans_of


def read(path: Path, options: Options) -> Iterator[Note]:
    for where, row in rows(path, options):
        yield note_of(row, chosen(row, options, where=where), where=where)


def read_spans(path: Path, options: Options) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """As ``read``, where texts are not needed."""
    for where, row in rows(path, options):
        names = chosen({**row, options.column("text"): ""}, options, where=where)
        if "spans" not in row:
            raise InputError(f"{where}: no spans; is this what a detector found?")
        yield str(row[names["note_id"]]), spans_of(row["spans"] or (), None, where=where)


def rows(path: Path, options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and line, and the object that stands there."""
    for file in files(path, "jsonl"):
        for number, line in lines(file, options.encoding):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                at = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
                raise InputError(
                    f"{file}:{number}: not whole JSON{at}; one object a line is expected: is the "
                    "file cut off, or printed over several lines?"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{file}:{number}: not a JSON object such as {{note_id, text}}")
            yield f"{file}:{number}", row


def write(notes: Iterable[Note], path: Path, options: Options) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for note in notes:
            row = {options.column(field): getattr(note, field) for field in options.fields}
            if note.spans is not None:
                row["spans"] = [span._asdict() for span in note.spans]
            out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
