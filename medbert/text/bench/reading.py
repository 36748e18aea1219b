"""What the tasks read: notes, texts a line each, tables; and how they are split."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medbert.schema import InputError
from medbert.text.corpus.plain import PlainText
from medbert.text.language import Languages
from medbert.text.notes import Note, read

T = TypeVar("T")


def notes(path: str | Path) -> list[Note]:
    """Notes in any format of ``text.notes``; of ``.txt`` and ``.txt.gz`` files a line is one."""
    path = Path(path)
    if path.is_file() and ".txt" in path.suffixes:
        return [Note(line.note_id, line.text) for line in PlainText(path).documents()]
    return list(read(path))


def by_line(given: Iterable[Note]) -> Iterator[Note]:
    """Each line of a note as a note of its own, with its spans."""
    for note in given:
        at = 0
        for number, line in enumerate(note.text.splitlines(keepends=True)):
            end = at + len(line)
            inside = [s for s in note.spans or () if at <= s.start and s.end <= end]
            spans = tuple(s._replace(start=s.start - at, end=s.end - at) for s in inside)
            if line.strip():
                yield note._replace(note_id=f"{note.note_id}-{number}", text=line, spans=spans)
            at = end


def table(path: str | Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV or TSV (or of a JSON list) by the columns ``names``. A file whose first
    line has none of them has no header, and its first columns are meant."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: no UTF-8 file") from None
    if path.suffix == ".json":
        rows = json.loads(text)
        if not rows or not all(name in rows[0] for name in names):
            raise InputError(f"{path}: not a list of objects with {', '.join(names)}")
        return [{name: str(row[name] or "") for name in names} for row in rows]
    first = text.partition("\n")[0]
    lines = list(csv.reader(text.splitlines(), delimiter=max("\t;,", key=first.count)))
    head = lines[0] if lines else []
    if set(names) <= {*head}:
        places, lines = [head.index(name) for name in names], lines[1:]
    elif set(names) & {*head} or len(head) < len(names):
        raise InputError(f"{path}: the columns {', '.join(names)} are needed; say columns=")
    else:
        places = list(range(len(names)))
    if short := next((i for i, row in enumerate(lines, 1) if row and len(row) <= max(places)), 0):
        raise InputError(f"{path}: row {short} has fewer columns than the first")
    return [{n: row[at] for n, at in zip(names, places, strict=True)} for row in lines if row]


def held_out(names: Iterable[str], share: float) -> np.ndarray:
    """Which of the names (N,) are test ones: the same ones every time, ``share`` of them."""
    at = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names]
    return np.array(at) < share


def parted(items: Sequence[T], names: Sequence[str], share: float) -> tuple[list[T], list[T]]:
    """What is to train on, and what to test on, by ``held_out``."""
    sides: tuple[list[T], list[T]] = [], []
    for item, is_test in zip(items, held_out(names, share), strict=True):
        sides[int(is_test)].append(item)
    return sides


def kept(path: str, found: Sequence[Any], least: int, what: str) -> None:
    if len(found) < least:
        raise InputError(f"{path}: {len(found)} {what}; at least {least} are needed")


def language_of(note: Note) -> str:
    return note.language or Languages.shipped().of(note.text).language
