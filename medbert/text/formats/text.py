"""A folder of .txt files, one a note."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from medbert.schema import InputError
from medbert.text.notes import Note, Options, content, decoded, files, name


def read(path: Path, options: Options) -> Iterator[Note]:
    for file in files(path, "text"):
        yield Note(name(file, path), decoded(content(file), options.encoding, where=str(file)))


def write(notes: Iterable[Note], path: Path, options: Options) -> None:
    for note in notes:
        place(path, note.note_id, ".txt").write_bytes(note.text.encode("utf-8"))


def place(folder: Path, note_id: str, ending: str) -> Path:
    """Where a note's file stands; its folder is made."""
    if not can_be_a_file(note_id):
        raise InputError(f"{folder}: a note id cannot be the name of a file; write jsonl or csv")
    file = folder / f"{note_id}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def can_be_a_file(note_id: str) -> bool:
    """Whether a note id names a file below a folder, not beside it."""
    way = PurePath(note_id)
    return not way.is_absolute() and ".." not in way.parts and "\0" not in note_id
