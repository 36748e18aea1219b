"""MEDS folders, 0.4 and 0.3 (Medical-Event-Data-Standard/meds: ``data/**/*.parquet``)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete, pick
from medbert.data.sources.visit_codes import ADMISSION, DISCHARGE, VisitCodes
from medbert.schema import (
    CODE,
    CODES,
    DATES,
    NUMERIC_VALUE,
    PARENTS,
    ROW,
    SPLITS,
    SUBJECT_ID,
    SUBJECT_SPLITS,
    TIME,
    VISIT_ID,
    Findings,
    InputError,
    Piece,
    Records,
)

VISIT_COLUMNS = (VISIT_ID, "hadm_id", "visit_occurrence_id")
_CURE = "Write it as MEDS 0.4 names it; the visit's column is source.visit_column"


@dataclass(frozen=True)
class Meds:
    """A MEDS folder; its visits are what its visit column and its codes say of them.

    Admission and discharge codes in a visit state its start and its end and make it inpatient;
    ``VISIT//INPATIENT``, ``VISIT//EMERGENCY`` and ``VISIT//OUTPATIENT`` state the kind, and an
    outpatient visit lasts 0 days.

    Args:
        path: the folder that holds ``data/`` and ``metadata/``.
        admission, discharge: regular expressions of the codes that open and close a stay.
        visit_column: the column that names the visit; null: the first of visit_id, hadm_id and
            visit_occurrence_id in the data, and without any there are no visits.
    """

    path: str
    admission: str = ADMISSION
    discharge: str = DISCHARGE
    visit_column: str | None = None

    def read(self) -> Records:
        folder = reading.existing(self.path).absolute()
        VisitCodes(admission=self.admission, discharge=self.discharge)  # refuses what is no pattern
        files = sorted((folder / "data").glob("**/*.parquet"))
        if not files:
            raise InputError(
                f"{folder}: no data/**/*.parquet in it; source.path is the MEDS folder itself, "
                "the one that holds data/ and metadata/"
            )
        truth = folder / "truth" / "truth.parquet"
        return Records(
            [Shard(file.relative_to(folder).as_posix(), file, self) for file in files],
            _metadata(folder),
            codes=_codes(folder / "metadata" / "codes.parquet"),
            splits=_splits(folder / "metadata" / "subject_splits.parquet"),
            one_file_each=True,
            files={truth.name: str(truth)} if truth.exists() else {},
        )


@dataclass(frozen=True)
class Shard(reading.FilePart):
    """A `Part`: one file of the folder."""

    source: Meds

    @property
    def rows(self) -> int:
        return self._file().n_rows()

    def codes(self) -> Iterator[pa.DictionaryArray]:
        """The codes alone, which is much quicker than everything."""
        file = self._file()
        picked = pick(file.names(), {CODE: CODE}, file=self.name, cure=_CURE)
        yield from (block.codes() for block in file.blocks(picked, Findings(1.0)))

    def _file(self) -> reading.Parquet:
        return reading.Parquet(self.path, self.name, (CODE,))

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        file = self._file()
        found = file.names()
        wanted = {name: name for name in (SUBJECT_ID, TIME, CODE, NUMERIC_VALUE)}
        visit = self.source.visit_column
        if visit := visit or next((name for name in VISIT_COLUMNS if name in found), None):
            wanted[VISIT_ID] = visit
        picked = pick(found, wanted, file=self.name, cure=_CURE, optional={NUMERIC_VALUE})
        codes = VisitCodes(admission=self.source.admission, discharge=self.source.discharge)
        for block in file.blocks(picked, findings):
            columns = {SUBJECT_ID: block.subjects(), TIME: block.times(TIME)}
            columns |= {CODE: block.codes(), ROW: block.rows()}
            if NUMERIC_VALUE in block:
                columns[NUMERIC_VALUE] = block.numbers(NUMERIC_VALUE)
            if VISIT_ID in block:
                columns[VISIT_ID] = block.identifiers(VISIT_ID)
            events = pa.table(columns)
            if columns[TIME].null_count > block.table[TIME].null_count:  # no date is not: static
                static = pc.is_null(block.text(TIME))
                events = events.filter(pc.or_(static, pc.is_valid(columns[TIME])))
            events = complete(events)
            visits = codes.visits(events) if VISIT_ID in block else None
            yield Piece(events, visits, block.names())


def _codes(path: Path) -> pa.Table | None:
    if not path.exists():
        return None
    block = _whole(path, CODES.names, optional={PARENTS})
    frame = pa.table({CODE: block.text(CODE), "description": block.text("description")}).to_pandas()
    frame[PARENTS] = block.table[PARENTS].to_pylist() if PARENTS in block else None
    frame = frame.dropna(subset=[CODE]).groupby(CODE, as_index=False).first()
    return pa.Table.from_pandas(frame, CODES, preserve_index=False).replace_schema_metadata(None)


def _splits(path: Path) -> pa.Table | None:
    if not path.exists():
        return None
    block = _whole(path, SUBJECT_SPLITS.names)
    subjects, split = block.subjects(), block.text("split")
    if twice := len(subjects) - len(subjects.unique()):
        raise InputError(
            f"{path}: column {SUBJECT_ID!r}: {twice} rows repeat a subject; a subject has one "
            "split: remove the others"
        )
    block.findings.check(
        "unknown_split",
        pc.invert(pc.is_in(split, pa.array(SPLITS))).to_numpy(),
        where=block.where("split"),
        first_row=0,
        cure=f"Rename them to {', '.join(SPLITS)}, or remove the file to split anew",
    )
    return pa.table([subjects, split], schema=SUBJECT_SPLITS)


def _whole(path: Path, names: list[str], *, optional: Collection[str] = ()) -> Block:
    file = reading.open_file(path)
    wanted = {name: name for name in names}
    picked = pick(file.names(), wanted, file=str(path), cure=_CURE, optional=optional)
    return reading.whole(file, picked, Findings(max_bad_share=0))


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
    return metadata
