"""The map stage: each part of a source, its rows cut into buckets by a hash of the subject.

A part becomes a folder, whole or not there at all:

    events-*.arrow   one record batch per piece, ordered by bucket; a file per set of columns
    visits.arrow, births.arrow, names.arrow   the same for what is rarer than events
    *.offsets.npy    (pieces, BUCKETS + 1): where each bucket starts in each batch
    codes.arrow      the codes in the order of their local numbers, and their events
    part.json        what was found wrong

Where no subject is in two parts and a part fits into memory, there is nothing to cut: only its
codes are counted, and its shard is made from the part itself (``direct``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.splits import mixed
from medbert.schema import (
    BIRTH,
    CODE,
    KINDS,
    NUMERIC_VALUE,
    RANK,
    ROW,
    STATIC,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    Part,
    Piece,
)

BUCKETS = 4096
NO_VISIT = np.iinfo(np.int64).min
_SALT = np.uint64(0xD1B54A32D192ED03)  # buckets must not follow the splits, a hash of the id too

Columns = dict[str, np.ndarray]


class SpillJob(NamedTuple):
    """``direct``: only the codes are wanted; the part is read again when its shard is made."""

    part: Part
    folder: Path
    max_bad_share: float
    direct: bool


def bucket_of(subject_ids: np.ndarray) -> np.ndarray:
    """uint16 bucket of each subject."""
    return (mixed(subject_ids.view(np.uint64) ^ _SALT) >> np.uint64(52)).astype(np.uint16)


def spill(job: SpillJob) -> int:
    """Reads a part to the end and returns its number of events; done before: nothing is read."""
    if not job.folder.exists():
        work = job.folder.with_name(job.folder.name + ".tmp")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        findings = Findings(job.max_bad_share)
        columns, writer = PieceColumns(), _Writer(work)
        if job.direct:
            for codes in job.part.codes():  # type: ignore[attr-defined]
                columns.number(codes)
        else:
            for piece in job.part.pieces(findings):
                for name, rows in columns.of(piece):
                    writer.write(name, rows)
            findings.settle()
        writer.close(columns)
        found = {"events": int(columns.code_events.sum()), "findings": findings.to_dict()}
        (work / "part.json").write_text(json.dumps(found), encoding="utf-8")
        work.rename(job.folder)
    return json.loads((job.folder / "part.json").read_text(encoding="utf-8"))["events"]


class PieceColumns:
    """Turns the pieces of a part into numpy columns; codes get numbers of the part's own."""

    def __init__(self, codes: Sequence[str] = ()) -> None:
        self.code_numbers = {code: i for i, code in enumerate(codes)}
        self.code_events = np.zeros(0, np.int64)

    def of(self, piece: Piece) -> Iterator[tuple[str, Columns]]:
        """Kinds of rows and their columns: events-..., births, visits, names."""
        if piece.events is not None and piece.events.num_rows:
            events, births = self._events(piece.events)
            yield "events-" + "-".join(list(events)[3:]), events
            yield "births", births
        if piece.visits is not None:
            yield "visits", _stated(piece.visits)
        if piece.names is not None:
            names = piece.names["name"].to_numpy(zero_copy_only=False)
            yield "names", {"subject": piece.names[SUBJECT_ID].to_numpy(), "name": names}

    def _events(self, table: pa.Table) -> tuple[Columns, Columns]:
        """The events but births, with those optional columns that hold anything; the births."""
        code, births = self.number(table[CODE])
        subject, time = table[SUBJECT_ID].to_numpy(), _microseconds(table, TIME)
        columns = {"subject": subject, "time": time, "code": code}
        for name, column, kind, empty in (
            ("value", NUMERIC_VALUE, np.float32, np.nan),
            ("visit", VISIT_ID, np.int64, NO_VISIT),
            ("rank", RANK, np.int16, 0),
        ):
            if column in table.column_names and table[column].null_count < table.num_rows:
                columns[name] = _filled(table, column, kind, empty)
        if births is None:
            return columns, {}
        found = {"subject": subject, "time": time, "row": _filled(table, ROW, np.int64, -1)}
        found = {name: values[births] for name, values in found.items()}
        return {name: values[~births] for name, values in columns.items()}, found

    def number(
        self, column: pa.ChunkedArray | pa.DictionaryArray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """int32 local number of each event's code, and which events are births (None: none)."""
        column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        encoded = column.unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        distinct, numbers = encoded.dictionary.to_pylist(), self.code_numbers
        local = np.array([numbers.setdefault(c, len(numbers)) for c in distinct], np.int32)
        code = local[encoded.indices.drop_null().to_numpy(zero_copy_only=False)]
        counted = np.bincount(code, minlength=len(numbers))
        counted[: len(self.code_events)] += self.code_events
        self.code_events = counted
        births = None if BIRTH not in distinct else code == numbers[BIRTH]
        return code, births


class _Writer:
    """Writes the columns of a part, cut into buckets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[pa.RecordBatchFileWriter, list[np.ndarray]]] = {}

    def write(self, name: str, columns: Columns) -> None:
        if not columns or not len(columns["subject"]):
            return
        bucket = bucket_of(columns["subject"])
        order = np.argsort(bucket, kind="stable")
        batch = pa.record_batch({key: pa.array(v[order]) for key, v in columns.items()})
        if name not in self.files:
            path = str(self.folder / f"{name}.arrow")
            self.files[name] = pa.ipc.new_file(path, batch.schema), []
        file, offsets = self.files[name]
        file.write_batch(batch)
        offsets.append(np.searchsorted(bucket[order], np.arange(BUCKETS + 1)))

    def close(self, columns: PieceColumns) -> None:
        for name, (file, offsets) in self.files.items():
            file.close()
            np.save(self.folder / f"{name}.offsets.npy", np.stack(offsets))
        names = pa.array(columns.code_numbers, pa.string())
        codes = {CODE: names, "events": columns.code_events}
        with pa.ipc.new_file(str(self.folder / "codes.arrow"), pa.table(codes).schema) as file:
            file.write_table(pa.table(codes))


def _stated(table: pa.Table) -> Columns:
    """STATED_VISITS as numpy columns; ``kind`` is its place in KINDS."""
    if "kind" in table.column_names:
        kinds = pc.index_in(table["kind"], pa.array(KINDS))
        table = table.set_column(table.column_names.index("kind"), "kind", kinds)
    return {
        "subject": table[SUBJECT_ID].to_numpy(),
        "visit": table[VISIT_ID].to_numpy(),
        "start": _microseconds(table, "start"),
        "end": _microseconds(table, "end"),
        "kind": _filled(table, "kind", np.int8, KINDS.index("unknown")),
        "stay": _filled(table, "length_of_stay", np.float32, np.nan),
        "row": _filled(table, ROW, np.int64, -1),
    }


def _filled(table: pa.Table, name: str, kind: type, empty: float) -> np.ndarray:
    """A column as numpy, with ``empty`` for null and where there is none."""
    if name not in table.column_names:
        return np.full(table.num_rows, empty, kind)
    column = table[name]
    if column.null_count:
        column = column.cast(pa.from_numpy_dtype(kind)).fill_null(empty)
    return column.to_numpy().astype(kind, copy=False)


def _microseconds(table: pa.Table, name: str) -> np.ndarray:
    """A column as int64 microseconds since 1970, STATIC for null and where there is none."""
    if name not in table.column_names:
        return np.full(table.num_rows, STATIC)
    return table[name].cast(pa.timestamp("us")).to_numpy().view(np.int64)
