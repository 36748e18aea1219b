"""The table that Med-BERT itself is trained from (ZhiGroup/Med-BERT): one diagnosis a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete, distinct, end_of_day, pick
from medbert.schema import (
    CODE,
    DATES,
    DAY_US,
    RANK,
    ROW,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    InputError,
    Piece,
    Records,
)

_COLUMNS = {SUBJECT_ID: "patient_id", "start": "vadate", TIME: "vddate", CODE: "diag"}
# Order within a visit, the most important first, and how many values of each rank apart; the last
# of these is also that of rows without one. Their product is what int16 holds.
_ORDER = {"poa": 32, "third_party_ind": 3, "diagnosis_priority": 341}
_CURE = "Med-BERT's columns are patient_id, vadate, vddate, diag: rename yours so"


@dataclass(frozen=True)
class MedBertTable:
    """Diagnoses with the dates of admission and discharge; visits are the days of discharge.

    As in Med-BERT, everything that a patient was discharged with on one day is one visit, and its
    codes come in ascending order of ``poa`` (present on admission), ``third_party_ind`` (recorded
    before billed only) and ``diagnosis_priority``, all three optional; rows without one come last.
    Diagnoses are known at the end of the day of discharge. A stay of a day or more is inpatient,
    the kind of others is unknown; its length is the days between the two dates.

    Args:
        path: the file, or a folder of such files (.tsv, .csv, .parquet; also .gz).
        time_format: of both dates, as in strptime; null: ISO 8601.
    """

    path: str
    separator: str = "\t"
    time_format: str | None = None
    encoding: str = "utf-8"

    def read(self) -> Records:
        path = reading.existing(self.path)
        files = list(reading.tables(path).values()) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: no .tsv, .csv or .parquet file in it; check source.path")
        parts = [Table(file.name, file, self) for file in files]
        for part in parts:
            part.pick()
        metadata = {"name": path.resolve().name.partition(".")[0], "time": DATES}
        return Records(parts, metadata, own_visit_ids=False)


@dataclass(frozen=True)
class Table(reading.FilePart):
    """A `Part`: one file."""

    source: MedBertTable

    def open(self) -> reading.Delimited | reading.Parquet:
        source = self.source
        return reading.open_file(
            self.path,
            file=self.name,
            dictionary=(CODE,),
            separator=source.separator,
            encoding=source.encoding,
        )

    def pick(self) -> dict[str, str]:
        wanted = _COLUMNS | {name: name for name in _ORDER}
        return pick(self.open().names(), wanted, file=self.name, cure=_CURE, optional=_ORDER)

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        for block in self.open().blocks(self.pick(), findings):
            yield self._piece(block)

    def _piece(self, block: Block) -> Piece:
        admitted = block.times("start", time_format=self.source.time_format)
        discharged = block.times(TIME, time_format=self.source.time_format)
        first, last = (_days(times) for times in (admitted, discharged))
        days = pc.subtract(last, first)
        ids = {SUBJECT_ID: block.subjects(), VISIT_ID: last}
        end, nothing = end_of_day(discharged), pa.scalar(None, pa.int64())
        events = pa.table({**ids, TIME: end, CODE: block.codes(), RANK: _rank(block)})
        stays = {
            "start": admitted,
            "end": end,
            "kind": pc.if_else(pc.greater(days, 0), "inpatient", "unknown"),
            "length_of_stay": pc.if_else(pc.less(days, 0), nothing, days).cast(pa.float32()),
            ROW: block.rows(),
        }
        visits = complete(pa.table({**ids, **stays}), names=(SUBJECT_ID, VISIT_ID))
        return Piece(block.timed(events), distinct(visits), block.names())


def _days(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Days since 1970, whatever the time of day."""
    return pc.floor(pc.divide(times.cast(pa.int64()).cast(pa.float64()), DAY_US)).cast(pa.int64())


def _rank(block: Block) -> pa.Array:
    """The place of each row's code in its visit, as one number."""
    rank = np.zeros(len(block.table), np.int64)
    for name, size in _ORDER.items():
        value = np.full(len(rank), np.nan)
        if name in block:
            value = block.numbers(name).to_numpy()
        rank = rank * size + np.nan_to_num(value, nan=size - 1).clip(0, size - 1).astype(np.int64)
    return pa.array(rank.astype(np.int16))
