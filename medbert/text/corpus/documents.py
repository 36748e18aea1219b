"""A corpus is a folder of notes to train on; ``medbert corpus`` makes it, ``Corpus`` opens it.

    documents.parquet   one row a document, in the order of patients and then of time (DOCUMENTS)
    exchange/           what other sites may have: counts and keyed signatures, no text
    manifest.json       what is in it: counts, what was left out and why, settings, hashes
    gate.json           what ``medbert corpus gate`` found; absent until then

``documents.parquet`` holds what is trained on: paragraphs that a patient's earlier note has, near
copies of other documents and what the quotas leave out are gone. ``manifest.json``:

    documents, words, patients        counts
    splits                            {split: {documents, words, patients}}
    groups                            [{site, kind, language, year, documents, words}]
    dropped                           {reason: documents}; of paragraphs {paragraphs, characters}
    sha256                            of the documents: of their hashes, in their order
    notes                             of the notes that it was made of: {notes, sha256}
    settings                          as the verb was called

A patient is in one split. "unknown" stands for a site, kind or language that nobody gave; ``year``
is null where a note has no time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from medbert.schema import SPLITS, InputError

UNKNOWN = "unknown"

DOCUMENTS = pa.schema(
    [
        pa.field("note_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),  # null: nobody said, and the note is a patient's alone
        pa.field("site", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # nb, nn, en, other, mixed, too short
        pa.field("time", pa.timestamp("us")),
        pa.field("year", pa.int32()),
        pa.field("split", pa.string(), nullable=False),  # train, tuning, held_out
        pa.field("copies", pa.int32(), nullable=False),  # it and its near copies
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # of the text (UTF-8)
    ]
)
_ROWS = 256  # read at once


class Document(NamedTuple):
    """A row of ``documents.parquet``, with the fields of ``DOCUMENTS``."""

    note_id: str
    patient_id: str | None
    site: str
    kind: str
    language: str
    time: datetime | None
    year: int | None
    split: str
    copies: int
    text: str
    sha256: str


class Corpus:
    """A folder that ``medbert corpus`` made, read a few documents at a time.

    Raises InputError: it is none, or is damaged; says what to do.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = _json(self.folder / "manifest.json")
        if not (self.folder / "documents.parquet").is_file():
            raise InputError(f"{folder}: no documents.parquet; run medbert corpus again")

    @property
    def sha256(self) -> str:
        """Of all documents: what a model card says of what was trained on."""
        return self.manifest["sha256"]

    def documents(self, *, split: str | None = None) -> Iterator[Document]:
        """In the order of the file: a patient's documents follow each other by time."""
        for columns in self._columns(DOCUMENTS.names, split):
            yield from map(Document, *(columns[name] for name in DOCUMENTS.names))

    def texts(self, *, split: str | None = None) -> Iterator[str]:
        for columns in self._columns(["text"], split):
            yield from columns["text"]

    def table(self) -> pa.Table:
        """All but the texts, in memory."""
        names = [name for name in DOCUMENTS.names if name != "text"]
        return parquet.read_table(self.folder / "documents.parquet", columns=names)

    def _columns(self, names: Sequence[str], split: str | None) -> Iterator[dict[str, list[Any]]]:
        if split is not None and split not in SPLITS:
            raise InputError(f"split={split}: choose one of {', '.join(SPLITS)}")
        with parquet.ParquetFile(self.folder / "documents.parquet") as file:
            for batch in file.iter_batches(_ROWS, columns=list({*names, "split"})):
                if split:
                    batch = batch.filter(pc.equal(batch["split"], split))
                yield {name: batch[name].to_pylist() for name in names}


class Gate(NamedTuple):
    """What the gate found; ``sha256`` of its report stands in the card of what is trained."""

    passed: bool
    sha256: str
    report: dict[str, Any]


def gate_of(folder: str | Path) -> Gate | None:
    """The gate's finding on the corpus as it is; None: it was not asked.

    Raises InputError: it was asked of other documents.
    """
    file = Path(folder) / "gate.json"
    if not file.is_file():
        return None
    raw = file.read_bytes()
    report = _json(file)
    if report.get("corpus_sha256") != Corpus(folder).sha256:
        raise InputError(f"{file}: is of other documents; run medbert corpus gate again")
    return Gate(bool(report.get("passed")), hashlib.sha256(raw).hexdigest(), report)


def admitted(folder: str | Path, *, override: str | None = None) -> dict[str, Any]:
    """What a model card says of the gate: ``{state, sha256, reason}``; the door of training.

    ``override``: why training may start though the gate is not passed, in the user's words; the
    card quotes it. ``state``: passed, overridden.

    Raises InputError: the gate is not passed, and nobody overrides it.
    """
    gate = gate_of(folder)
    if gate and gate.passed:
        return {"state": "passed", "sha256": gate.sha256, "reason": None}
    if override:
        return {"state": "overridden", "sha256": gate and gate.sha256, "reason": override}
    why = "did not pass: see its gate.json" if gate else "was not asked whether it is de-identified"
    raise InputError(
        f"{folder}: the corpus {why}; run medbert corpus gate corpus={folder} gold=... found=..., "
        "or say why it may be trained on all the same: gate_override='...'"
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; is {file.parent} what medbert corpus made?") from None
    except ValueError:
        raise InputError(f"{file}: damaged; run the verb that made it again") from None
