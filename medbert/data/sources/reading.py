"""Files opened and read in blocks, so that none has to fit into memory; damage is an InputError."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from medbert.data.sources.columns import Block
from medbert.schema import Findings, InputError, Piece

_BLOCK_BYTES, _BLOCK_ROWS = 1 << 25, 1 << 20
_TABLE = re.compile(r"[^._].*\.(parquet|(csv|tsv)(\.(gz|bz2|zst))?)", re.IGNORECASE)
_COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
MISSING = ("", "NULL", "NA", "NaN", "NaT", "\\N")


def existing(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{found}: no such file or folder; check source.path")
    return found


def stamp(path: Path) -> str:
    """Changes when the file does."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class FilePart:
    """What all `Part`s of one file have."""

    name: str
    path: Path

    @property
    def stamp(self) -> str:
        return stamp(self.path)

    def open(self) -> Delimited | Parquet:
        return open_file(self.path, file=self.name)


@dataclass(frozen=True)
class Delimited:
    """A CSV or TSV file (.gz, .bz2 and .zst too), or its bytes; every column read as text."""

    source: Path | bytes
    file: str
    separator: str = ","
    encoding: str = "utf-8"
    missing: Sequence[str] = ("",)
    quoted: bool = True  # false: a quotation mark is a character like others

    def names(self) -> list[str]:
        """The fields of the first line."""
        try:
            with self._open() as stream, io.TextIOWrapper(stream, self._codec, "replace") as text:
                names = next(csv.reader(text, delimiter=self.separator), [])
            if "\ufffd" in "".join(names):  # of later lines, whose columns are known, blocks tells
                raise UnicodeError
            return names
        except (OSError, UnicodeError, LookupError, csv.Error) as error:
            raise self._unreadable(error) from None

    def blocks(self, picked: Mapping[str, str], findings: Findings) -> Iterator[Block]:
        """The picked columns under our names; ``missing`` values are null."""
        columns = list(dict.fromkeys(picked.values()))
        row = 0
        try:
            with self._open() as stream:
                convert = pa.csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=list(self.missing),
                )
                read = pa.csv.ReadOptions(encoding=self.encoding, block_size=_BLOCK_BYTES)
                for batch in pa.csv.open_csv(stream, read, self._parsing(), convert):
                    found = {ours: batch[theirs] for ours, theirs in picked.items()}
                    yield Block(pa.table(found), self.file, row, picked, findings)
                    row += batch.num_rows
        except (pa.ArrowInvalid, OSError, UnicodeError, LookupError) as error:
            raise self._unreadable(error) from None  # Arrow quotes the line, which may identify
        findings.settle()

    @property
    def _codec(self) -> str:
        return "utf-8-sig" if self.encoding.lower() in ("utf-8", "utf8") else self.encoding

    def _open(self) -> pa.NativeFile:
        if isinstance(self.source, bytes):
            return pa.BufferReader(self.source)
        packed = _COMPRESSION.get(self.source.suffix.lower())  # Arrow's own detection minds case
        return pa.input_stream(str(self.source), compression=packed)

    def _parsing(self, **more: Any) -> pa.csv.ParseOptions:
        quote = '"' if self.quoted else False
        return pa.csv.ParseOptions(
            delimiter=self.separator, quote_char=quote, newlines_in_values=self.quoted, **more
        )

    def _unreadable(self, error: Exception) -> InputError:
        if isinstance(error, LookupError):
            return InputError(f"{self.file}: no encoding is called {self.encoding!r}")
        try:
            line = self._undecoded()
        except OSError:
            return InputError(
                f"{self.file}: the compressed file is truncated or not what its ending says; "
                "copy it again"
            )
        if isinstance(error, UnicodeError) or line:
            return InputError(
                f"{self.file}: {line or 'it'} is not {self.encoding}; set source.encoding to the "
                "file's own (latin-1 and cp1252 are common)"
            )
        ragged = self._ragged()
        if not ragged:
            kind = type(error).__name__
            return InputError(f"{self.file}: is empty or no delimited text ({kind}); export again")
        first = ragged[0]
        return InputError(
            f"{self.file}: row {first.number - 1} has {first.actual_columns} columns, the "
            f"header {first.expected_columns} ({len(ragged)} such rows); the file is truncated, "
            f"or a field holds an unquoted {self.separator!r}: export it again"
        )

    def _undecoded(self) -> str | None:
        """Reads the whole file; the first place that is no UTF-8, where that was expected."""
        header = b""
        with self._open() as stream:
            for number, line in enumerate(io.BufferedReader(stream)):
                if self._codec != "utf-8-sig":  # others may not even end a line in one byte
                    continue
                header = header or line
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    if not number:
                        return "line 1 (the header)"
                    fields = self._fields(line[: error.start])
                    name = self._fields(header)[len(fields) - 1 : len(fields)] or ["?"]
                    return f"line {number + 1} (row {number}), column {name[0]!r}"
        return None

    def _fields(self, line: bytes) -> list[str]:
        text = line.decode("utf-8-sig", errors="replace")
        return next(csv.reader([text], delimiter=self.separator), []) or [""]

    def _ragged(self) -> list[pa.csv.InvalidRow]:
        found: list[pa.csv.InvalidRow] = []

        def note(row: pa.csv.InvalidRow) -> str:
            found.append(row)
            return "skip"

        with contextlib.suppress(pa.ArrowInvalid, UnicodeError), self._open() as stream:
            read = pa.csv.ReadOptions(encoding=self.encoding, use_threads=False)
            pa.csv.read_csv(stream, read, self._parsing(invalid_row_handler=note))
        return found


@dataclass(frozen=True)
class Parquet:
    """A Parquet file; ``dictionary`` columns come dictionary-encoded, which is much faster."""

    source: Path
    file: str
    dictionary: Sequence[str] = ()

    def names(self) -> list[str]:
        with self._errors():
            return list(pq.read_schema(self.source).names)

    def n_rows(self) -> int:
        with self._errors():
            return pq.read_metadata(self.source).num_rows

    def blocks(self, picked: Mapping[str, str], findings: Findings) -> Iterator[Block]:
        """The picked columns under our names, as they are stored."""
        columns = list(dict.fromkeys(picked.values()))
        coded = [picked[name] for name in self.dictionary if name in picked]
        row = 0
        with self._errors(), pq.ParquetFile(self.source, read_dictionary=coded) as file:
            for batch in file.iter_batches(batch_size=_BLOCK_ROWS, columns=columns):
                found = {ours: batch[theirs] for ours, theirs in picked.items()}
                yield Block(pa.table(found), self.file, row, picked, findings)
                row += batch.num_rows
        findings.settle()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{self.file}: cannot be read as Parquet ({type(error).__name__}); it is "
                "truncated or another format: copy or export it again"
            ) from None


def open_file(
    path: Path,
    *,
    file: str | None = None,
    dictionary: Sequence[str] = (),
    separator: str | None = None,
    encoding: str = "utf-8",
    missing: Sequence[str] = MISSING,
) -> Delimited | Parquet:
    """A Parquet file or a delimited one by its ending; by default a tab separates a .tsv."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        return Parquet(path, file or str(path), dictionary)
    separator = separator or ("\t" if ".tsv" in suffixes else ",")
    if len(separator) != 1:
        raise InputError(
            f"{path}: a separator is one character, not {separator!r}; set source.separator"
        )
    return Delimited(path, file or str(path), separator, encoding, missing)


def data_files(place: Path) -> list[Path]:
    """The delimited and Parquet files below a folder; or the file itself, if it is one."""
    inside = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path for path in inside if _TABLE.fullmatch(path.name) and path.is_file()]


def tables(folder: Path) -> dict[str, Path]:
    """The delimited and Parquet files of a folder by name, lower-case and without endings."""
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; source.path is the one that holds the tables")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if _TABLE.fullmatch(p.name)):
        name = path.name.lower().partition(".")[0]
        if name in found:
            raise InputError(
                f"{folder}: {found[name].name} and {path.name} are the same table; remove one"
            )
        found[name] = path
    return found


def chosen(
    folder: Path, needed: Sequence[str], wanted: Sequence[str], known: Sequence[str], *, place: str
) -> dict[str, Path]:
    """The files of the tables ``needed``, and of those ``wanted`` that are there.

    Raises InputError for tables that are not ``known``; ``place``: what source.path should be.
    """
    if strange := sorted(set(wanted) - set(known)):
        raise InputError(f"source.tables: {', '.join(strange)} is none of {', '.join(known)}")
    found = tables(folder)
    if lacking := [name for name in needed if name not in found]:
        raise InputError(
            f"{folder}: no {' and no '.join(lacking)} (.csv or .csv.gz) in it; source.path is "
            + place
        )
    there = [name for name in known if name in wanted and name in found]
    return {name: found[name] for name in (*needed, *there)}


def whole(file: Delimited | Parquet, picked: Mapping[str, str], findings: Findings) -> Block:
    """All rows of a small file."""
    blocks = [block.table for block in file.blocks(picked, findings)]
    blocks = blocks or [pa.table({name: pa.nulls(0) for name in picked})]
    return Block(pa.concat_tables(blocks), file.file, 0, picked, findings)


@dataclass(frozen=True)
class InMemory:
    """A `Part` of tables that are already there."""

    name: str
    piece: Piece
    stamp: str = ""

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        yield self.piece
