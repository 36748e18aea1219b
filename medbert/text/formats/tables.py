"""CSV and Parquet: a row a note, in columns that the user names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from medbert.schema import InputError
from medbert.text.notes import Note, Options, chosen, files, lines, note_of

_ROWS, _GROUP = 64, 512  # of a Parquet file at once: read, written
_BUFFER = 2**20  # bytes of a column at once: one group of rows may hold all the texts there are
_SEPARATORS = "\t;,|"


def read(path: Path, options: Options) -> Iterator[Note]:
    for table in files(path, "parquet" if any(path.rglob("*.parquet")) else "csv"):
        yield from (_parquet if table.suffix == ".parquet" else _csv)(table, options)


def _csv(file: Path, options: Options) -> Iterator[Note]:
    csv.field_size_limit(2**31 - 1)
    _, first = next(lines(file, options.encoding), (1, ""))
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(
        (line for _, line in lines(file, options.encoding)), delimiter=separator, strict=True
    )
    header: list[str] = next(reader, [])
    columns = chosen(header, options, where=str(file))
    while True:
        where = f"{file}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error:
            raise InputError(
                f"{where}: a quote that is opened here, or below, is not closed as it should be; "
                "double the quotes inside a text, or see whether the file is cut off"
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{where}: {len(cells)} columns, the header has {len(header)}; put texts with "
                f"{separator!r} or line ends in double quotes"
            )
        row: dict[str, Any] = dict(zip(header, cells, strict=True))
        if row.get("spans"):
            row["spans"] = _spans(row["spans"], where)
        yield note_of({**row, "spans": row.get("spans") or None}, columns, where=where)


def _spans(cell: str, where: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        raise InputError(f"{where}: the column spans is not JSON") from None


def _parquet(file: Path, options: Options) -> Iterator[Note]:
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            names = table.schema_arrow.names
            columns = chosen(names, options, where=str(file))
            wanted = [*columns.values(), *({"spans"} & {*names})]
            number = 0
            for batch in table.iter_batches(_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield note_of(row, columns, where=f"{file}: row {number}")
    except (pa.ArrowException, OSError):
        raise InputError(f"{file}: no whole Parquet file; write it again") from None


def write(notes: Iterable[Note], path: Path, options: Options) -> None:
    names = [options.column(field) for field in options.fields]
    rows = ([getattr(note, field) for field in options.fields] for note in notes)
    if path.suffix != ".parquet":
        with path.open("w", encoding="utf-8", newline="") as out:
            separator = "\t" if path.suffix == ".tsv" else ","
            writer = csv.writer(out, delimiter=separator, lineterminator="\n")
            writer.writerows(chain([names], rows))
        return
    kinds = {"time": pa.timestamp("us"), "text": pa.large_string()}
    of = [kinds.get(field, pa.string()) for field in options.fields]
    schema = pa.schema(list(zip(names, of, strict=True)))
    with parquet.ParquetWriter(path, schema) as made:
        while some := list(islice(rows, _GROUP)):
            values = [dict(zip(names, row, strict=True)) for row in some]
            made.write_table(pa.Table.from_pylist(values, schema=schema))
