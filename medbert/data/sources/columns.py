"""Columns of a block of rows: found by name, cast, and their dirt noted.

Messages give file, column and row, never a value from a record: it may identify a person.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medbert.schema import (
    CODE,
    DAY_US,
    ROW,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    InputError,
    row_names,
)

_TIME = pa.timestamp("us")
_WHOLE = r"^-?(0|[1-9]\d{0,18})(\.0+)?$"
_ZONE = r"\d[+-]\d\d:?\d\d$"  # Z alone says no more than the rest of the column


def pick(
    found: Sequence[str],
    wanted: Mapping[str, str],
    *,
    file: str,
    cure: str,
    optional: Collection[str] = (),
) -> dict[str, str]:
    """Our column names -> the file's own, found exactly or else whatever the case.

    Raises:
        InputError: a column is there twice, or missing and not ``optional`` (ours).
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
        elif ours not in optional:
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
class Block:
    """Some rows of a file under our names, from ``first_row`` on; dirt goes to ``findings``.

    ``columns``: our names -> the file's, for messages. ``first_row`` is null where rows have no
    numbers, as in a database.
    """

    table: pa.Table
    file: str
    first_row: int | None
    columns: Mapping[str, str]
    findings: Findings

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def where(self, name: str) -> str:
        return f"{self.file}: column {self.columns[name]!r}"

    def rows(self) -> pa.Array:
        if self.first_row is None:
            return pa.nulls(len(self.table), pa.int64())
        return pa.array(np.arange(len(self.table), dtype=np.int64) + self.first_row)

    def text(self, name: str) -> pa.ChunkedArray:
        return text(self.table[name])

    def note(self, reason: str, bad: np.ndarray, name: str) -> None:
        """Notes the rows of the mask ``bad``, whose fault is in the column ``name`` (ours)."""
        where = self.where(name)
        if self.first_row is not None:
            where += f": {row_names(np.flatnonzero(bad) + self.first_row)}"
        self.findings.note(reason, bad.sum(), where)

    def numbers(self, name: str, *, decimal: str = ".") -> pa.ChunkedArray:
        """float32, null where not finite; texts that are no number are noted."""
        found, unread = numbers(self.table[name], decimal=decimal)
        self.note("not_a_number", unread, name)
        return found

    def codes(self, *, prefix: str = "") -> pa.DictionaryArray:
        """Trimmed codes; rows without one are noted, and the caller leaves them out."""
        found = dictionary(self.table[CODE])
        self.note("no_code", found.is_null().to_numpy(zero_copy_only=False), CODE)
        words = pc.binary_join_element_wise(prefix, found.dictionary, "") if prefix else None
        return pa.DictionaryArray.from_arrays(found.indices, words) if prefix else found

    def mapped(self, name: str, word: Callable[[str], str | None]) -> pa.Array:
        """What ``word`` makes of each text, asked once for each distinct one."""
        found = dictionary(self.table[name])
        return pa.array(map(word, found.dictionary.to_pylist()), pa.string()).take(found.indices)

    def visits(self, columns: dict[str, Any]) -> pa.Table:
        """``columns`` as STATED_VISITS; rows without a visit id are noted and left out."""
        self.note("no_visit_id", pc.is_null(columns[VISIT_ID]).to_numpy(), VISIT_ID)
        return complete(pa.table(columns | {ROW: self.rows()}), names=(SUBJECT_ID, VISIT_ID))

    def times(self, name: str, *, time_format: str | None = None) -> pa.ChunkedArray:
        """timestamp[us]; null where missing or, noted, where it is no date (see ``times``)."""
        found, bad, zoned = times(self.table[name], time_format=time_format)
        form = f"in format {time_format!r}" if time_format else "in ISO 8601 (2019-03-31)"
        self.findings.check(
            "not_a_date",
            bad,
            where=self.where(name),
            first_row=self.first_row,
            cure=f"Dates are expected {form}: set source.time_format to the file's own, such as "
            "'%d.%m.%Y', and mend or empty what is no date",
        )
        self.findings.note("times_with_a_zone_read_as_utc", zoned, self.where(name))
        return found

    def timed(self, events: pa.Table) -> pa.Table:
        """``complete`` events that have a time; rows without one are noted."""
        lost = pc.is_null(events[TIME])
        self.note("no_time", pc.and_(lost, pc.is_null(self.text(TIME))).to_numpy(), TIME)
        return complete(events.filter(pc.invert(lost)))

    def identifiers(self, name: str) -> pa.ChunkedArray:
        return identifiers(self.table[name])

    def subjects(self, name: str = SUBJECT_ID) -> pa.ChunkedArray:
        """Subject ids; rows without one are noted, and the caller leaves them out."""
        ids = identifiers(self.table[name])
        self.findings.check(
            "no_subject",
            pc.is_null(ids).to_numpy(),
            where=self.where(name),
            first_row=self.first_row,
            cure="Every row must say whose it is: complete or remove them",
        )
        return ids

    def names(self, name: str = SUBJECT_ID) -> pa.Table | None:
        """``Piece.names``: subjects whose own ids are no whole numbers; None: there are none."""
        if pa.types.is_integer(self.table[name].type):
            return None
        words = text(self.table[name]).unique().drop_null()
        strange = words.filter(pc.invert(pc.match_substring_regex(words, _WHOLE)))
        if not len(strange):
            return None
        return pa.table({SUBJECT_ID: identifiers(pa.chunked_array([strange])), "name": strange})


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as trimmed strings; null where nothing is left."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """``text``, dictionary-encoded; quick where the column is so already."""
    if not pa.types.is_dictionary(column.type):
        return text(column).combine_chunks().dictionary_encode()
    encoded = column.combine_chunks()
    words = text(pa.chunked_array([encoded.dictionary])).combine_chunks()
    if words.null_count or pc.count_distinct(words).as_py() < len(words):
        return words.take(encoded.indices).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, words)


def identifiers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as int64, each by itself, so that an id stays the same whatever else is read.

    Whole numbers stay as they are (``7.0``, pandas' way with gaps, is 7). Any other id, ``007``
    too, becomes 2**62 or more by a hash (BLAKE2b).

    >>> identifiers(pa.chunked_array([["7", "7.0", "007", None]])).to_pylist()
    [7, 7, 8025550046627891858, None]
    """
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    encoded = text(column).combine_chunks().dictionary_encode()
    distinct = encoded.dictionary
    whole = pc.match_substring_regex(distinct, _WHOLE)
    if pc.all(whole).as_py() is not False:
        with contextlib.suppress(pa.ArrowInvalid):  # more than 64 bits
            numbers = pc.replace_substring_regex(distinct, r"\.0+$", "").cast(pa.int64())
            return pa.chunked_array([numbers.take(encoded.indices)])
    ids = pa.array(map(_identifier, distinct.to_pylist()), pa.int64())
    return pa.chunked_array([ids.take(encoded.indices)])


def _identifier(word: str) -> int:
    whole = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?", word)
    if whole and -(2**63) <= int(whole[1]) < 2**63:
        return int(whole[1])
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 1 << 62


def times(
    column: pa.ChunkedArray, *, time_format: str | None = None
) -> tuple[pa.ChunkedArray, np.ndarray, int]:
    """A column as timestamp[us]; a mask of what is no date; how many times with a zone became UTC.

    Text must follow ``time_format`` (strptime's), or ISO 8601 where none is given.
    """
    nothing_bad = np.zeros(len(column), bool)
    if pa.types.is_temporal(column.type):
        has_zone = getattr(column.type, "tz", None) is not None
        count = len(column) - column.null_count if has_zone else 0
        return column.cast(_TIME, safe=False), nothing_bad, count
    words = text(column)
    if time_format is None:
        with contextlib.suppress(pa.ArrowInvalid):  # the quick way, where every row is plain ISO
            return words.cast(_TIME), nothing_bad, 0
    try:
        parsed = pd.to_datetime(
            words.to_pandas(), format=time_format or "ISO8601", errors="coerce", utc=True
        )
    except ValueError as error:
        raise InputError(f"time_format {time_format!r}: {error}") from error
    found = parsed.dt.tz_localize(None).to_numpy("datetime64[us]")
    bad = np.isnat(found) & pc.is_valid(words).to_numpy()
    zoned = pc.sum(pc.match_substring_regex(words, _ZONE)).as_py() or 0
    return pa.chunked_array([pa.array(found, _TIME)]), bad, zoned


def end_of_day(days: pa.ChunkedArray) -> pa.ChunkedArray:
    """The last second of the day of each time: when what is known by date is surely known."""
    since = pc.fill_null(days.cast(pa.int64()), 0).to_numpy()
    last = since // DAY_US * DAY_US + DAY_US - 1_000_000
    return pa.chunked_array([pa.array(last, mask=pc.is_null(days).to_numpy()).cast(_TIME)])


def numbers(column: pa.ChunkedArray, *, decimal: str = ".") -> tuple[pa.ChunkedArray, np.ndarray]:
    """A column as float32, null where not finite; and a mask of the texts that are no number."""
    unread = np.zeros(len(column), bool)
    kinds = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal
    if any(is_kind(column.type) for is_kind in kinds):
        found = column.cast(pa.float64(), safe=False)
    else:
        words = text(column)
        if decimal != ".":  # then 1.234 may be a thousand or an error
            words = pc.replace_substring(pc.replace_substring(words, ".", "?"), decimal, ".")
        parsed = pd.to_numeric(words.to_pandas(), errors="coerce").to_numpy(np.float64)
        unread = np.isnan(parsed) & pc.is_valid(words).to_numpy()
        found = pa.chunked_array([pa.array(parsed)])
    single = found.cast(pa.float32(), safe=False)
    return pc.if_else(pc.is_finite(single), single, pa.scalar(None, pa.float32())), unread


def complete(rows: pa.Table, *, names: Sequence[str] = (SUBJECT_ID, CODE)) -> pa.Table:
    """The events that have a subject and a code, or the rows that have all of ``names``."""
    there = np.logical_and.reduce([pc.is_valid(rows[name]).to_numpy() for name in names])
    return rows if there.all() else rows.filter(pa.array(there))


def distinct(rows: pa.Table) -> pa.Table:
    """The rows that differ in more than ROW, each with its first one."""
    names = rows.column_names
    keys = [name for name in names if name != ROW]
    found = rows.group_by(keys, use_threads=False).aggregate([(ROW, "min")])
    return found.rename_columns([*keys, ROW]).select(names)
