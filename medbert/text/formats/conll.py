"""CoNLL columns: a token a line, its IOB2 (or BIOES) tag last, an empty line after a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from medbert.schema import InputError, Span
from medbert.text.notes import Note, Options, files, lines, name

_TAG = re.compile(r"O|[BIESUL]-\S+")


def read(path: Path, options: Options) -> Iterator[Note]:
    """Tokens are set apart by a blank, sentences by a line end; ``-DOCSTART-`` begins a note."""
    for file in files(path, "conll"):
        words: list[list[tuple[str, str]]] = [[]]
        number = 0
        for at, line in lines(file, options.encoding):
            cells = line.split()
            if cells and cells[0] == "-DOCSTART-":
                if any(words):
                    yield _note(words, f"{name(file, path)}-{number}")
                    number += 1
                words = [[]]
            elif cells:
                if len(cells) < 2 or not _TAG.fullmatch(cells[-1]):
                    raise InputError(f"{file}:{at}: not a token and a tag (O, B-NAME, I-NAME)")
                words[-1].append((cells[0], cells[-1]))
            elif words[-1]:
                words.append([])
        if any(words):
            yield _note(words, f"{name(file, path)}-{number}" if number else name(file, path))


def _note(sentences: Iterable[list[tuple[str, str]]], note_id: str) -> Note:
    pieces: list[str] = []
    spans: list[Span] = []
    at = 0
    for sentence in sentences:
        before = "O"  # the label of the token before
        for word, tag in sentence:
            kind, _, label = tag.partition("-")
            if kind in ("I", "E", "L") and label == before:
                spans[-1] = spans[-1]._replace(end=at + len(word))
            elif label:
                spans.append(Span(at, at + len(word), label))
            before = label
            pieces += [word, " "]
            at += len(word) + 1
        pieces[-1:] = ["\n"]
    return Note(note_id, "".join(pieces), spans=tuple(spans))
