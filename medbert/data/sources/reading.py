"""The door of the sources: files opened, columns found, values cast, or an InputError.

Messages give file, column and row, never a value from a record: it may identify a person.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from medbert.data.visits import row_name
from medbert.schema import EVENTS, SUBJECT_ID, InputError

_TIME = pa.timestamp("us")


def existing(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{found}: no such file or folder; check source.path")
    return found


def pick(
    found: Sequence[str], wanted: Mapping[str, str], *, file: str, cure: str
) -> dict[str, str]:
    """Our column names -> the file's own, found exactly or else whatever the case.

    Raises:
        InputError: a column is missing or there twice.
    """
    picked, missing = {}, []
    for ours, theirs in wanted.items():
        folded = theirs.strip().casefold()
        alike = [name for name in found if name == theirs]
        alike = alike or [name for name in found if name.strip().casefold() == folded]
        if len(alike) > 1:
            raise InputError(
                f"{file}: column {theirs!r} is there {len(alike)} times; rename all but one"
            )
        if alike:
            picked[ours] = alike[0]
        else:
            missing.append(theirs)
    if not missing:
        return picked
    lacking = f"{file}: no column {', '.join(map(repr, missing))}"
    if not picked:  # the first line may hold a patient, not names: do not show it
        raise InputError(
            f"{lacking}; none of the columns asked for is among the {len(found)} of its first "
            f"line. Is it the right file, with a header line and the right separator? {cure}"
        )
    raise InputError(f"{lacking}; found {', '.join(found)}. {cure}")


@dataclass(frozen=True)
class Delimited:
    """A CSV or TSV file (.gz, .bz2 and .zst too), or its bytes; every column read as text."""

    source: Path | bytes
    file: str
    separator: str = ","
    encoding: str = "utf-8"
    missing: Sequence[str] = ("",)

    def names(self) -> list[str]:
        """The fields of the first line."""
        try:
            with self._open() as stream, io.TextIOWrapper(stream, self._codec) as text:
                return next(csv.reader(text, delimiter=self.separator), [])
        except (OSError, UnicodeError, LookupError, csv.Error) as error:
            raise self._unreadable(error) from None

    def read(self, picked: Mapping[str, str]) -> pa.Table:
        """The picked columns under our names; ``missing`` values are null."""
        columns = list(dict.fromkeys(picked.values()))
        try:
            with self._open() as stream:
                table = pa.csv.read_csv(
                    stream,
                    read_options=pa.csv.ReadOptions(encoding=self.encoding),
                    parse_options=self._parsing(),
                    convert_options=pa.csv.ConvertOptions(
                        include_columns=columns,
                        column_types=dict.fromkeys(columns, pa.string()),
                        strings_can_be_null=True,
                        null_values=list(self.missing),
                    ),
                )
        except (pa.ArrowInvalid, OSError, UnicodeError, LookupError) as error:
            raise self._unreadable(error) from None  # Arrow quotes the line, which may identify
        if not table.num_rows:
            raise InputError(f"{self.file}: no rows below the header; is the export complete?")
        return pa.table({ours: table[theirs] for ours, theirs in picked.items()})

    @property
    def _codec(self) -> str:
        return "utf-8-sig" if self.encoding.lower() in ("utf-8", "utf8") else self.encoding

    def _open(self) -> pa.NativeFile:
        if isinstance(self.source, bytes):
            return pa.BufferReader(self.source)
        return pa.input_stream(str(self.source), compression="detect")

    def _parsing(self, **more: Any) -> pa.csv.ParseOptions:
        return pa.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True, **more)

    def _unreadable(self, error: Exception) -> InputError:
        if isinstance(error, LookupError):
            return InputError(f"{self.file}: no encoding is called {self.encoding!r}")
        try:
            with self._open() as stream:
                content = stream.read()
        except OSError:
            return InputError(
                f"{self.file}: the compressed file is truncated or not what its ending says; "
                "copy it again"
            )
        line, ragged = self._undecoded(content), self._ragged(content)
        if isinstance(error, UnicodeError) or line:
            return InputError(
                f"{self.file}: {line or 'it'} is not {self.encoding}; set source.encoding to the "
                "file's own (latin-1 and cp1252 are common)"
            )
        if not ragged:
            kind = type(error).__name__
            return InputError(f"{self.file}: is empty or no delimited text ({kind}); export again")
        first = ragged[0]
        return InputError(
            f"{self.file}: {row_name(first.number - 2)} has {first.actual_columns} columns, the "
            f"header {first.expected_columns} ({len(ragged)} such rows); the file is truncated, "
            f"or a field holds an unquoted {self.separator!r}: export it again"
        )

    def _undecoded(self, content: bytes) -> str | None:
        if self._codec != "utf-8-sig":  # other encodings may not even end a line in one byte
            return None
        for number, line in enumerate(content.split(b"\n")):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number + 1}"
        return None

    def _ragged(self, content: bytes) -> list[pa.csv.InvalidRow]:
        found: list[pa.csv.InvalidRow] = []

        def note(row: pa.csv.InvalidRow) -> str:
            found.append(row)
            return "skip"

        with contextlib.suppress(pa.ArrowInvalid, UnicodeError):
            pa.csv.read_csv(
                io.BytesIO(content),
                read_options=pa.csv.ReadOptions(encoding=self.encoding, use_threads=False),
                parse_options=self._parsing(invalid_row_handler=note),
            )
        return found


def parquet_names(path: Path) -> list[str]:
    with _parquet(path):
        return list(pq.read_schema(path).names)


def read_parquet(path: Path, picked: Mapping[str, str]) -> pa.Table:
    """The picked columns under our names, as they are stored."""
    with _parquet(path):
        table = pq.ParquetFile(path).read(columns=list(dict.fromkeys(picked.values())))
    return pa.table({ours: table[theirs] for ours, theirs in picked.items()})


def rows(selected: np.ndarray) -> str:
    """The first of the selected rows (a mask) in words.

    >>> rows(np.array([False, True, True]))
    'row 2, row 3'
    """
    found = np.flatnonzero(selected)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(map(row_name, found[:5].tolist())) + more


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as trimmed strings; null where nothing is left."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def identifiers(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """Ids as int64, and whether they are the file's own.

    Whole numbers stay as they are (``7.0``, pandas' way with gaps, is 7). If any id is not one,
    or two would become one (``7`` and ``007``), the ids become 1, 2, ... in their sorted order.
    """
    words = pc.replace_substring_regex(text(column), r"^(-?\d+)\.0+$", r"\1")
    try:
        ids = words.cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    else:
        if pc.count_distinct(ids).as_py() == pc.count_distinct(words).as_py():
            return ids, True
    distinct = np.sort(words.drop_null().unique().to_numpy(zero_copy_only=False).astype(str))
    places = pc.index_in(words, pa.array(distinct, pa.string()))
    return pc.add(places.cast(pa.int64()), 1), False


def required_ids(column: pa.ChunkedArray, *, file: str, name: str) -> tuple[pa.ChunkedArray, bool]:
    """``identifiers`` of a column in which none may be missing."""
    ids, own = identifiers(column)
    if ids.null_count:
        raise InputError(
            f"{file}: column {name!r}: {ids.null_count} of {len(ids)} rows have no id "
            f"({rows(pc.is_null(ids).to_numpy())}); every row must say whose it is: "
            "complete or remove them"
        )
    return ids, own


def times(
    column: pa.ChunkedArray, *, file: str, name: str, time_format: str | None = None
) -> pa.ChunkedArray:
    """A column as timestamp[us]; times with a zone become UTC.

    Text must follow ``time_format`` (strptime's), or ISO 8601 where none is given.
    """
    if pa.types.is_temporal(column.type):
        return column.cast(_TIME, safe=False)
    words = text(column)
    try:
        parsed = pd.to_datetime(
            words.to_pandas(), format=time_format or "ISO8601", errors="coerce", utc=True
        )
    except ValueError as error:
        raise InputError(f"time_format {time_format!r}: {error}") from error
    found = parsed.dt.tz_localize(None).to_numpy("datetime64[us]")
    bad = np.isnat(found) & pc.is_valid(words).to_numpy()
    if bad.any():
        form = f"in format {time_format!r}" if time_format else "in ISO 8601 (2019-03-31)"
        raise InputError(
            f"{file}: column {name!r}: {rows(bad)}: not a date {form}; {int(bad.sum())} of "
            f"{len(bad)} rows. Set source.time_format to the file's own, such as '%d.%m.%Y', and "
            "mend or empty what is no date"
        )
    return pa.chunked_array([pa.array(found, _TIME)])


def numbers(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """A column as float32, null where not finite; and how many texts in it are no number."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        found, unread = column.cast(pa.float64(), safe=False), 0
    else:
        words = text(column)
        parsed = pd.to_numeric(words.to_pandas(), errors="coerce").to_numpy(np.float64)
        unread = int(np.sum(np.isnan(parsed) & pc.is_valid(words).to_numpy()))
        found = pa.chunked_array([pa.array(parsed)])
    single = found.cast(pa.float32())
    return pc.if_else(pc.is_finite(single), single, pa.scalar(None, pa.float32())), unread


def as_events(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """EVENTS of the columns given; the others are null."""
    length = len(columns[SUBJECT_ID])
    return pa.table(
        [
            columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(length, field.type)
            for field in EVENTS
        ],
        schema=EVENTS,
    )


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({type(error).__name__}); it is truncated or "
            "another format: copy or export it again"
        ) from None
