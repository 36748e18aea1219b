"""``medbert deidentify``: notes without the PHI that was found in them.

First what a detector finds in each note, then, with the names in all notes of a patient at hand,
the redaction. Nothing here logs or raises a word of a text; on disk, outside of ``in``, PHI is only
in the review that shows text, and then in a file that says so.
"""

from __future__ import annotations

import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from medbert.commands.notes.parts import Row, parts, processes, rows, run, withheld
from medbert.commands.notes.persons import Persons
from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import InputError, Span
from medbert.text.detectors.known import Known
from medbert.text.detectors.rules import Rules
from medbert.text.detectors.shipped import shipped
from medbert.text.detectors.thresholds import load_detector
from medbert.text.detectors.words import listed
from medbert.text.formats.text import can_be_a_file
from medbert.text.notes import COLUMNS, WRITTEN, Note, format_of, read, where, write
from medbert.text.redaction.redact import Operator, operators_of, redact, sealed
from medbert.text.redaction.shift import read_key
from medbert.text.redaction.surrogates import Whose
from medbert.text.spans import Detector, Ensemble, coarse, everywhere, merge

log = logging.getLogger(__name__)

_SURE = 0.7  # the least score of a name that is looked for in the other notes of the patient
_AGAIN = 0.9  # its score there
_BETWEEN = "\0"  # two names
_AROUND = 40  # characters to either side of an uncertain span, where text is shown
_AS_TEXT = {"conll": "text", "i2b2": "text"}  # formats that are only read
_ENDINGS = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet"}  # the others are folders
_FREE = ("workers", "review", "review_text", "review_below", "out_format")  # of unfinished work
_REVIEW, _TEXT_REVIEW = "review.jsonl", "review_CONTAINS_PHI.jsonl"


class Needed(NamedTuple):
    """By every process."""

    detector: Detector
    operators: Mapping[str, Operator]
    threshold: float
    known_columns: Mapping[str, str]
    back: bytes | None  # the key of the reversible map


@withheld
def deidentify(
    *,
    in_: str,
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    patient_pattern: str | None,
    detector: Detector,
    operators: Mapping[str, Any],
    known: str | None,
    known_columns: Mapping[str, str],
    threshold: float,
    workers: int,
    review: bool,
    review_text: bool,
    review_below: float,
    reversible: bool,
    out_format: str | None,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``out`` (notes, spans.jsonl, summary.json) and returns the summary."""
    given, made = Path(in_).resolve(), Path(out).resolve()
    if given.is_relative_to(made) or made.is_relative_to(given):
        raise InputError(f"out={out}: a folder of its own is needed, neither in nor around {in_}")
    source = partial(read, in_, format=format, columns=columns, encoding=encoding)
    source = partial(source, patient_pattern=patient_pattern)
    persons = Persons.read(known, columns.get("patient_id"))
    Known.of(dict.fromkeys(persons.columns), columns=known_columns)  # refuses what tells nothing
    key = read_key(operators["key"]) if operators["key"] else None
    if reversible and key is None:
        raise InputError("reversible=true needs a secret: operators.key=PATH or env:NAME")
    operators = operators_of(**{**operators, "key": key})
    needed = Needed(detector, operators, threshold, known_columns, key if reversible else None)
    read_as = format_of(Path(in_), format)
    written = out_format or _AS_TEXT.get(read_as, read_as)
    if written not in WRITTEN:
        raise InputError(f"out_format={written}: choose one of {', '.join(WRITTEN)}")
    n_parts, fields, digest = _plan(source, operators, in_files=written not in _ENDINGS)
    settings = {**settings, "notes": digest}
    with artefact(out, overwrite=overwrite, settings=settings, free=_FREE) as folder:
        redacted = _in_parts(source, persons, needed, n_parts, folder / "work", workers)
        below = review_below if review or review_text else 0.0
        with _Beside(folder, below, text=review_text, spans_in_notes=written == "brat") as told:
            clean = told.clean(zip(source(), redacted, strict=True))
            place = folder / f"notes{_ENDINGS.get(written, '')}"
            write(clean, place, format=written, columns=columns, fields=fields)
        write_json(folder / "summary.json", told.summary())
    shutil.rmtree(Path(out) / "work")
    if failed := told.counts["notes_failed"]:
        log.warning("%d notes failed and are left out; see %s/failed.jsonl", failed, out)
    if n := told.counts["spans_to_review"]:
        log.info("%d spans to review: %s/%s", n, out, _TEXT_REVIEW if review_text else _REVIEW)
    log.info("made %s; next: medbert score deid gold=... found=%s out=score/", out, out)
    return told.summary()


def detectors(*, trained: str | None, point: str) -> Detector:
    """Rules and word lists, and beside them a trained detector: "shipped", or a folder's."""
    more: list[Detector] = []
    if trained == "shipped":
        more = shipped(point=point)
    elif trained:
        more = [load_detector(trained, point=point)]
    return Ensemble([Rules(), *listed(), *more])


def _plan(
    source: partial[Iterator[Note]], operators: Mapping[str, Operator], *, in_files: bool
) -> tuple[int, list[str], str]:
    """Reads all notes once before hours of work: what is broken is known at the door, and
    unfinished work is not taken up with other notes. Returns how many parts they have, their
    fields that are written, and their digest."""
    ids = array("q")  # hashes: the ids of millions of notes would fill the memory
    known, digest, n_parts = {"note_id", "text"}, blake2b(digest_size=8), 0
    for some in parts(source()):
        n_parts += 1
        for note in some:
            ids.append(hash(note.note_id))
            if in_files and not can_be_a_file(note.note_id):
                raise InputError(f"note {len(ids)}: its id is no file name; out_format=jsonl?")
            known |= {field for field in COLUMNS if getattr(note, field) is not None}
            digest.update(repr(note).encode())
    _differ(ids, source)
    if _moved(datetime(2020, 1, 1), operators, Whose(note="1")) is None:
        known -= {"time"}
    return n_parts, [field for field in COLUMNS if field in known], digest.hexdigest()


def _differ(ids: array[int], source: partial[Iterator[Note]]) -> None:
    """Refuses two notes of one id; only where two hashes are one are the ids themselves read."""
    hash_N = np.sort(np.array(ids, np.int64))
    twice = set(hash_N[1:][hash_N[1:] == hash_N[:-1]].tolist())
    first: dict[str, int] = {}
    for n, note in enumerate(source() if twice else (), start=1):
        if hash(note.note_id) in twice and first.setdefault(note.note_id, n) != n:
            both = (where(k, *source.args, **source.keywords) for k in (n, first[note.note_id]))
            raise InputError("{} has the id of {}; ids must differ".format(*both))


def _in_parts(
    source: Callable[[], Iterator[Note]],
    persons: Persons,
    needed: Needed,
    n_parts: int,
    folder: Path,
    workers: int,
) -> Iterator[Row]:
    """What became of each note."""
    found, redacted = folder / "finding", folder / "redacting"
    with processes(workers, needed) as submit:
        go = partial(run, submit, n_parts=n_parts, ahead=2 * workers if workers > 1 else 0)
        go(_find, ((some, persons.of(some)) for some in parts(source())), found)
        names, had = _names(source(), found, needed.threshold), rows(found)
        beside = (
            (some, [(next(had), names.get(note.patient_id or "", "")) for note in some])
            for some in parts(source())
        )
        go(_redact, beside, redacted)
    return rows(redacted)


def _find(needed: Needed, note: Note, person: Mapping[str, Any] | None) -> Row:
    """``person``: what is known of the patient."""
    detector = needed.detector
    if person:
        detector = Ensemble([detector, Known.of(person, columns=needed.known_columns)])
    found = detector.detect(note.text)
    return {"spans": [(s.start, s.end, s.label, float(s.score)) for s in found]}


def _names(notes: Iterable[Note], found: Path, threshold: float) -> dict[str, str]:
    """Of each patient with several notes, those found in all of them; held in memory only, and so
    in one word a patient, which takes a tenth of a set of words."""
    names: dict[str, str] = {}
    once: set[str] = set()
    for note, row in zip(notes, rows(found), strict=True):
        if not (who := note.patient_id):
            continue
        (once.discard if who in names else once.add)(who)
        had = {*filter(None, names.setdefault(who, "").split(_BETWEEN))}
        here = {
            note.text[start:end]
            for start, end, label, score in row.get("spans", ())
            if coarse(label) == "NAME" and score >= max(_SURE, threshold)
        }
        if not here <= had:
            names[who] = _BETWEEN.join(sorted(here | had))
    for who in once:
        del names[who]
    return names


def _redact(needed: Needed, note: Note, found: Row, joined: str) -> Row:
    if "failed" in found:
        return found
    names = tuple(joined.split(_BETWEEN)) if joined else ()
    again = everywhere(names, note.text, score=max(_AGAIN, needed.threshold)) if names else []
    spans = merge([*(Span(*span) for span in found["spans"]), *again])
    taken = [span for span in spans if span.score >= needed.threshold]
    whose = Whose(note.patient_id, note.note_id, note.time, note.language, names=names)
    redacted = redact(note.text, taken, needed.operators, whose=whose)
    back = needed.back and sealed(note.note_id, note.text, redacted, key=needed.back).decode()
    return {
        "text": redacted.text,
        "time": note.time and _moved(note.time, needed.operators, whose),
        "spans": redacted.spans,
        "left": [span for span in spans if span.score < needed.threshold],
        "back": back,
    }


def _moved(time: datetime, operators: Mapping[str, Operator], whose: Whose) -> str | None:
    """The time of a note as a date in its text would be; None: not a time any more."""
    said = time.isoformat()
    new = redact(said, [Span(0, len(said), "DATE")], operators, whose=whose).text
    try:
        return datetime.fromisoformat(new).isoformat()
    except ValueError:
        return None


class _Beside(ExitStack):
    """Writes what stands beside the notes, and counts. Spans with a score under ``below`` are for
    review, with the text around them if ``text``."""

    def __init__(self, folder: Path, below: float, *, text: bool, spans_in_notes: bool) -> None:
        super().__init__()
        self.folder, self.below, self.text, self.keep = folder, below, text, spans_in_notes
        self._files: dict[str, TextIO] = {}
        self.counts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()

    def clean(self, notes: Iterable[tuple[Note, Row]]) -> Iterator[Note]:
        """The redacted notes, without those of which something failed."""
        for note, row in notes:
            self.counts["notes"] += 1
            if "failed" in row:
                self.counts["notes_failed"] += 1
                self._line("failed.jsonl", {"note_id": note.note_id, "error": row["failed"]})
                continue
            self._spans(note, row)
            if row["back"]:
                self._write("reversible_map.txt", row["back"])
            after = tuple(Span(*new) for _, new in row["spans"]) if self.keep else None
            time = datetime.fromisoformat(row["time"]) if row["time"] else None
            yield note._replace(text=row["text"], time=time, spans=after)

    def _spans(self, note: Note, row: Row) -> None:
        spans = [
            {**Span(*old)._asdict(), "new_start": new[0], "new_end": new[1]}
            for old, new in row["spans"]
        ]
        self._line("spans.jsonl", {"note_id": note.note_id, "spans": spans})
        self.labels.update(span["label"] for span in spans)
        self.counts["notes_with_phi"] += bool(spans)
        both = [*((old, True) for old, _ in row["spans"]), *((old, False) for old in row["left"])]
        for old, redacted in both:
            if (span := Span(*old)).score < self.below:
                self._review(note, {**span._asdict(), "redacted": redacted})

    def _review(self, note: Note, span: Row) -> None:
        self.counts["spans_to_review"] += 1
        line = {"note_id": note.note_id, **span}
        self._line(_REVIEW, line)
        if self.text:
            if _TEXT_REVIEW not in self._files:
                self._line(_TEXT_REVIEW, {"warning": "the lines below hold PHI"})
            around = note.text[max(0, span["start"] - _AROUND) : span["end"] + _AROUND]
            self._line(_TEXT_REVIEW, {**line, "text": around})

    def _line(self, name: str, value: Row) -> None:
        self._write(name, json.dumps(value, ensure_ascii=False))

    def _write(self, name: str, line: str) -> None:
        if name not in self._files:
            file = (self.folder / name).open("w", encoding="utf-8")
            self._files[name] = self.enter_context(file)
        self._files[name].write(line + "\n")

    def summary(self) -> Row:
        counts = ("notes", "notes_failed", "notes_with_phi", "spans_to_review")
        return {**{name: self.counts[name] for name in counts}, "spans": dict(self.labels)}
