"""Notes in and out, streaming: ``read`` and ``write``, one small file for each format.

Errors name the file, the line and the cure. They never quote a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from medbert.schema import InputError, Span


class Note(NamedTuple):
    """A text and what is known of it; ``spans`` are its gold spans, where somebody marked them."""

    note_id: str
    text: str
    patient_id: str | None = None
    time: datetime | None = None
    kind: str | None = None
    language: str | None = None
    spans: tuple[Span, ...] | None = None
    site: str | None = None


FORMATS = {  # the file endings of each
    "brat": (".ann",),
    "i2b2": (".xml",),
    "conll": (".conll", ".iob", ".iob2", ".bio"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "text": (".txt",),
}
WRITTEN = ("text", "brat", "jsonl", "csv", "parquet")
COLUMNS = {  # what each field is called, where nobody says otherwise
    "note_id": ("note_id", "doc_id"),
    "text": ("text",),
    "patient_id": ("patient_id", "subject_id", "person_id"),
    "time": ("time",),
    "kind": ("kind",),
    "language": ("language",),
    "site": ("site",),
}


class Options(NamedTuple):
    """``columns``: field of a Note -> column or JSON key (None: as in COLUMNS); ``fields``: those
    that are written."""

    columns: Mapping[str, str | None] = {}
    encoding: str = "utf-8"
    fields: tuple[str, ...] = tuple(COLUMNS)

    def column(self, field: str) -> str:
        return self.columns.get(field) or field


def read(
    path: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str | None] | None = None,
    encoding: str = "utf-8",
    patient_pattern: str | None = None,
) -> Iterator[Note]:
    """Yields the notes of a file or of a folder and its folders, in the order of their names.

    ``columns`` names the columns (or JSON keys) of the fields of a Note that are called otherwise.
    ``patient_pattern``: a regular expression whose first group (or whole match) in the note id is
    the patient id. A file of a folder is called by its path below it, without the ending. Of a
    folder that ``medbert deidentify`` made, its notes are read.

    Raises:
        InputError: a file cannot be read; says which line and why.
    """
    path = _made(Path(path))
    columns = columns or {}
    if unknown := sorted(columns.keys() - COLUMNS.keys()):
        raise InputError(f"columns.{unknown[0]}: known are {', '.join(COLUMNS)}")
    try:
        patient = re.compile(patient_pattern) if patient_pattern else None
    except re.error as error:
        raise InputError(f"patient_pattern={patient_pattern}: {error}") from None
    options = Options(columns, "utf-8-sig" if encoding == "utf-8" else encoding)
    for note in _module(format_of(path, format)).read(path, options):
        if patient and (match := patient.search(note.note_id)):
            note = note._replace(patient_id=match[1] if match.re.groups else match[0])
        yield note


def write(
    notes: Iterable[Note],
    path: str | Path,
    *,
    format: str,
    columns: Mapping[str, str | None] | None = None,
    fields: Iterable[str] = ("note_id", "text"),
) -> None:
    """Writes a folder (text, brat) or one file, in one of WRITTEN; ``fields`` are the columns."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _module(format).write(notes, path, Options(columns or {}, fields=tuple(fields)))


def _made(path: Path) -> Path:
    found = sorted(path.glob("notes*")) if (path / "spans.jsonl").is_file() else []
    return found[0] if found else path


def format_of(path: Path, format: str = "auto") -> str:
    """The format of a file or folder by its name or by the files in it."""
    path = _made(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if format != "auto":
        if format not in FORMATS:
            raise InputError(f"format={format}: choose one of auto, {', '.join(FORMATS)}")
        return format
    below = [("", [], [path.name])] if path.is_file() else os.walk(path)
    endings = {os.path.splitext(name)[1].lower() for _, _, names in below for name in names}
    found = [name for name, known in FORMATS.items() if endings & {*known}]
    if not found or (len(found) > 1 and found != ["brat", "text"]):
        what = " and ".join(found) or "no notes in a known format"
        raise InputError(f"{path}: {what} in it; say format= ({', '.join(FORMATS)})")
    return found[0]


def where(number: int, path: str | Path, *, format: str = "auto", **how: Any) -> str:
    """The file of a note that ``read`` yields, from the note's number, and its number there."""
    format = format_of(Path(path), format)
    found = files(_made(Path(path)), format)
    notes = ((file, n) for file in found for n, _ in enumerate(read(file, format=format, **how), 1))
    return "{}, note {}".format(*next(islice(notes, number - 1, None)))


def _module(format: str) -> Any:
    name = "tables" if format in ("csv", "parquet") else format
    return import_module(f"medbert.text.formats.{name}")


def spans_found(
    path: str | Path, *, format: str = "auto", columns: Mapping[str, str | None] | None = None
) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """The spans of each note, by note id: of ``spans.jsonl`` (also in a folder) or of any notes."""
    from medbert.text.formats import jsonl

    path = Path(path)
    path = path / "spans.jsonl" if (path / "spans.jsonl").is_file() else path
    if format_of(path, format) == "jsonl":
        yield from jsonl.read_spans(path, Options(columns or {}))
    else:
        for note in read(path, format=format, columns=columns):
            yield note.note_id, note.spans or ()


# --- what the formats share ---------------------------------------------------------------------


def files(path: Path, format: str) -> Iterator[Path]:
    """The files of a format in a folder and its folders, sorted, hidden ones left out. In memory
    are only the names in one folder: a hospital has millions of notes."""
    found = iter([path]) if path.is_file() else _below(path, FORMATS[format])
    if (first := next(found, None)) is None:
        raise InputError(f"{path}: no {' or '.join(FORMATS[format])} file in it")
    yield first
    yield from found


def _below(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    for name in names:
        file = folder / name
        if file.suffix.lower() in endings and file.is_file():
            yield file
        elif file.is_dir() and not file.is_symlink():
            yield from _below(file, endings)


def name(file: Path, root: Path) -> str:
    """The note id of a file: its path below ``root``, without the ending."""
    below = file.relative_to(root) if root.is_dir() else Path(file.name)
    return below.with_suffix("").as_posix()


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def decoded(raw: bytes, encoding: str, *, where: str, line: int = 1) -> str:
    """``raw``, which begins at ``line`` of the file ``where``, as text."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        at = line + raw[: error.start].count(b"\n")
        raise InputError(
            f"{where}:{at}: not {encoding.removesuffix('-sig')} (byte {raw[error.start]:#04x}); "
            "say encoding= as it was written (latin-1, cp1252), or convert the file"
        ) from None
    except LookupError:
        raise InputError(f"encoding={encoding}: Python knows no such encoding") from None


def lines(file: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, ends kept."""
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                own = encoding if number == 1 else encoding.removesuffix("-sig")
                yield number, decoded(raw, own, where=str(file), line=number)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def chosen(known: Iterable[str], options: Options, *, where: str) -> dict[str, str]:
    """Field of a Note -> which of the ``known`` columns holds it."""
    known, found = list(known), {}
    for field, names in COLUMNS.items():
        named = options.columns.get(field)
        wanted = (named,) if named else names
        if there := [column for column in wanted if column in known]:
            found[field] = there[0]
        elif named or field in ("note_id", "text"):
            raise InputError(
                f"{where}: no column {' or '.join(wanted)}; say columns.{field}= "
                f"(there are {', '.join(known)})"
            )
    return found


def note_of(row: Mapping[str, Any], columns: Mapping[str, str], *, where: str) -> Note:
    """The note of a row of a table or of a JSON object; ``columns`` as ``chosen``."""
    given: dict[str, Any] = {field: row.get(column) for field, column in columns.items()}
    text = given["text"]
    if not isinstance(text, str) or given["note_id"] in (None, ""):
        raise InputError(f"{where}: no {'note id' if isinstance(text, str) else 'text'}")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: the text holds half a character (a lone surrogate)")
    for field in ("note_id", "patient_id", "kind", "language", "site"):
        given[field] = None if given.get(field) in (None, "") else str(given[field])
    given["time"] = _time(given.get("time"), where)
    spans = row.get("spans")
    return Note(**given, spans=None if spans is None else spans_of(spans, text, where=where))


def _time(value: Any, where: str) -> datetime | None:
    if value is None or value == "" or isinstance(value, datetime):
        return value or None
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        raise InputError(f"{where}: the time is not as in 2021-03-12T08:00 (ISO 8601)") from None


def spans_of(given: Any, text: str | None, *, where: str) -> tuple[Span, ...]:
    """Spans from ``{start, end, label, score, text}`` or ``[start, end, label, score]`` each."""
    spans = []
    for index, item in enumerate(given if isinstance(given, list | tuple) else [None]):
        if isinstance(item, list | tuple):
            item = dict(zip(("start", "end", "label", "score"), item, strict=False))
        try:
            score = item.get("score")
            start, end, label = int(item["start"]), int(item["end"]), str(item["label"])
            spans.append(Span(start, end, label, 1.0 if score is None else float(score)))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{where}: span {index + 1} needs the numbers start and end, and a label"
            ) from None
        if text is not None:
            check(spans[-1:], text, item.get("text"), where=f"{where}, span {index + 1}")
    return tuple(sorted(spans))


def check(parts: list[Span], text: str, covered: str | None, *, where: str) -> None:
    """That the parts of a span lie in the text, and cover what the annotation says they do."""
    for part in parts:
        if not 0 <= part.start < part.end <= len(text):
            raise InputError(
                f"{where}: {part.start}-{part.end} is not within the {len(text)} characters of its "
                "text; offsets count characters (not bytes) from 0, the end excluded"
            )
    marked = " ".join(text[part.start : part.end] for part in parts)
    if covered is not None and covered.split() != marked.split():
        raise InputError(
            f"{where}: {parts[0].start}-{parts[-1].end} does not hold what was marked; was the "
            "text, its encoding or its line ends changed after it was annotated?"
        )
