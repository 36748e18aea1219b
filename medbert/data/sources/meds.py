"""MEDS folders, 0.4 and 0.3 (Medical-Event-Data-Standard/meds: ``data/**/*.parquet``)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.codes import canonical
from medbert.data.sources import reading
from medbert.data.visits import ADMISSION, DISCHARGE, from_events, known_at_discharge, row_name
from medbert.schema import (
    CODE,
    CODES,
    DATES,
    NUMERIC_VALUE,
    SPLITS,
    SUBJECT_ID,
    SUBJECT_SPLITS,
    TEXT_VALUE,
    TIME,
    VISIT_ID,
    InputError,
    Records,
)

logger = logging.getLogger(__name__)

VISIT_COLUMNS = (VISIT_ID, "hadm_id", "visit_occurrence_id")
_CURE = "Write it as MEDS 0.4 names it; the visit's column is source.visit_column"


@dataclass(frozen=True)
class Meds:
    """A MEDS folder; visits are rebuilt from its visit column and admission and discharge codes.

    Args:
        path: the folder that holds ``data/`` and ``metadata/``.
        admission, discharge: regular expressions of the codes that open and close a stay.
        visit_column: the column that names the visit; null: the first of visit_id, hadm_id and
            visit_occurrence_id in the data, and without any there are no visits.
        max_bad_share: share of stays that may end before they start.
    """

    path: str
    admission: str = ADMISSION
    discharge: str = DISCHARGE
    visit_column: str | None = None
    max_bad_share: float = 0.01

    def read(self) -> Records:
        folder = reading.existing(self.path)
        shards = sorted((folder / "data").glob("**/*.parquet"))
        if not shards:
            raise InputError(
                f"{folder}: no data/**/*.parquet in it; source.path is the MEDS folder itself, "
                "the one that holds data/ and metadata/"
            )
        tables = [self._shard(shard) for shard in shards]
        _check_subjects(tables, shards)
        starts = np.cumsum([0, *(table.num_rows for table in tables)])

        def locate(row: int) -> str:
            shard = int(np.searchsorted(starts, row, side="right")) - 1
            return f"{shards[shard].relative_to(folder)} {row_name(row - int(starts[shard]))}"

        events = pa.concat_tables(tables)
        visits, set_aside = from_events(
            events,
            file=str(folder),
            admission=self.admission,
            discharge=self.discharge,
            max_bad_share=self.max_bad_share,
            locate=locate,
        )
        coded = pc.is_valid(events[CODE])
        if uncoded := events.num_rows - pc.sum(coded).as_py():
            set_aside["no_code"] = uncoded
            events = events.filter(coded)
        if not events.num_rows:
            raise InputError(f"{folder}: no events in its {len(shards)} files; is it complete?")
        events, moved = known_at_discharge(events, visits)
        if set_aside:
            logger.warning("%s: set aside %s", folder, set_aside)
        metadata = _metadata(folder) | {"set_aside": set_aside, "moved_to_discharge": moved}
        return Records(events, visits, metadata, codes=_codes(folder), splits=_splits(folder))

    def _shard(self, shard: Path) -> pa.Table:
        found = reading.parquet_names(shard)
        wanted = {name: name for name in (SUBJECT_ID, TIME, CODE)}
        wanted |= {name: name for name in (NUMERIC_VALUE, TEXT_VALUE) if name in found}
        visit = self.visit_column or next((name for name in VISIT_COLUMNS if name in found), None)
        if visit is not None:
            wanted[VISIT_ID] = visit
        table = reading.read_parquet(
            shard, reading.pick(found, wanted, file=str(shard), cure=_CURE)
        )
        columns = {name: table[name] for name in table.column_names}
        columns[SUBJECT_ID] = _subjects(table, file=str(shard))
        columns[TIME] = reading.times(table[TIME], file=str(shard), name=TIME)
        columns[CODE] = canonical(reading.text(table[CODE]))
        if NUMERIC_VALUE in columns:
            columns[NUMERIC_VALUE], _ = reading.numbers(table[NUMERIC_VALUE])
        if VISIT_ID in columns:
            columns[VISIT_ID] = _visit_ids(table[VISIT_ID], file=str(shard), name=str(visit))
        return reading.as_events(columns)


def _subjects(table: pa.Table, *, file: str) -> pa.ChunkedArray:
    ids, own = reading.required_ids(table[SUBJECT_ID], file=file, name=SUBJECT_ID)
    if not own:
        raise InputError(
            f"{file}: column {SUBJECT_ID!r}: not whole numbers, as MEDS asks for; write the ids "
            "as int64, the same in data/ and metadata/"
        )
    return ids


def _visit_ids(column: pa.ChunkedArray, *, file: str, name: str) -> pa.ChunkedArray:
    ids, own = reading.identifiers(column)
    if not own:
        raise InputError(
            f"{file}: column {name!r}: not whole numbers; write the visits as int64, or name "
            "another column in source.visit_column"
        )
    return ids


def _check_subjects(tables: list[pa.Table], shards: list[Path]) -> None:
    distinct = [table[SUBJECT_ID].unique().to_numpy() for table in tables]
    owners = np.repeat(np.arange(len(shards)), [len(ids) for ids in distinct])
    order = np.argsort(np.concatenate(distinct), kind="stable")
    subjects = np.concatenate(distinct)[order]
    twice = np.flatnonzero(subjects[1:] == subjects[:-1])
    if len(twice):
        first, second = owners[order[twice[0] : twice[0] + 2]]
        raise InputError(
            f"{len(np.unique(subjects[twice]))} subjects are in more than one file (so in "
            f"{shards[first]} and {shards[second]}); MEDS keeps a subject's events in a single "
            "shard: write the shards again by subject, and look for a copied file"
        )


def _codes(folder: Path) -> pa.Table | None:
    path = folder / "metadata" / "codes.parquet"
    if not path.exists():
        return None
    wanted = {name: name for name in CODES.names}
    picked = reading.pick(reading.parquet_names(path), wanted, file=str(path), cure=_CURE)
    table = reading.read_parquet(path, picked)
    frame = pa.table(
        {
            CODE: canonical(reading.text(table[CODE])),
            "description": reading.text(table["description"]),
        }
    ).to_pandas()
    frame = frame.dropna(subset=[CODE]).groupby(CODE, as_index=False).first()
    return pa.Table.from_pandas(frame, CODES, preserve_index=False).replace_schema_metadata(None)


def _splits(folder: Path) -> pa.Table | None:
    path = folder / "metadata" / "subject_splits.parquet"
    if not path.exists():
        return None
    wanted = {name: name for name in SUBJECT_SPLITS.names}
    picked = reading.pick(reading.parquet_names(path), wanted, file=str(path), cure=_CURE)
    table = reading.read_parquet(path, picked)
    subjects, split = _subjects(table, file=str(path)), reading.text(table["split"])
    if twice := len(subjects) - len(subjects.unique()):
        raise InputError(
            f"{path}: column {SUBJECT_ID!r}: {twice} rows repeat a subject; a subject has one "
            "split: remove the others"
        )
    unknown = ~pc.is_in(split, pa.array(SPLITS)).to_numpy()
    if unknown.any():
        raise InputError(
            f"{path}: column 'split': {int(unknown.sum())} rows ({reading.rows(unknown)}) are "
            f"none of {', '.join(SPLITS)}; rename them so, or remove the file to split anew"
        )
    return pa.table([subjects, split], schema=SUBJECT_SPLITS)


def _metadata(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": folder.resolve().name, "time": DATES}
    path = folder / "metadata" / "dataset.json"
    if path.exists():
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            metadata["name"] = stated.get("dataset_name") or metadata["name"]
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a JSON object ({error}); mend or remove it") from error
        metadata["dataset"] = stated
    truth = folder / "truth" / "truth.parquet"
    if truth.exists():
        metadata["truth"] = str(truth)
    return metadata
