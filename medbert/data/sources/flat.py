"""One flat table of events (CSV, TSV, Parquet), whatever its columns are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.codes import compiled, mask
from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete, distinct, pick
from medbert.data.sources.visit_codes import ADMISSION, DISCHARGE, VisitCodes
from medbert.schema import (
    BIRTH,
    CODE,
    DATES,
    DEATH,
    KINDS,
    NUMERIC_VALUE,
    ROW,
    SEX,
    STATED_VISITS,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    InputError,
    Piece,
    Records,
)

REQUIRED = (SUBJECT_ID, TIME, CODE)
OF_VISIT = (VISIT_ID, "visit_start", "visit_end", "visit_kind")
OPTIONAL = (*OF_VISIT, NUMERIC_VALUE, "sex", "birth", "death")
_NEEDS = {"visit_start": VISIT_ID, "visit_end": "visit_start", "visit_kind": "visit_start"}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclass(frozen=True)
class Flat:
    """One event a row; columns beyond the event repeat what is known of its visit and person.

    Args:
        path: a .csv or .tsv (also .gz, .bz2, .zst) or .parquet file; or a folder or a glob of
            such files, of the same columns.
        columns: our names -> the file's, where they differ (case does not matter). Ours are
            subject_id, time, code; and, used where the file has them unless mapped to null:
            visit_id, visit_start, visit_end, visit_kind (inpatient, emergency, outpatient),
            numeric_value, sex, birth, death.
        code_prefix: put before every code, such as ``ICD10CM/``.
        time_format: of all times, as in strptime; null: ISO 8601.
        separator: null: a tab for .tsv, a comma otherwise.
        decimal: the decimal point of values that are text, such as a comma.
        missing: the spellings of a missing value.
        static: regular expression of the codes that need no time. Other rows without one are kept
            out: a fact of unknown date would count as known from the first day on.
        admission, discharge: regular expressions of the codes that open and close a stay, for
            files without visit_start.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    code_prefix: str = ""
    time_format: str | None = None
    separator: str | None = None
    decimal: str = "."
    encoding: str = "utf-8"
    missing: Sequence[str] = reading.MISSING
    static: str = "^(GENDER|RACE|ETHNICITY)//"
    admission: str = ADMISSION
    discharge: str = DISCHARGE

    def read(self) -> Records:
        if strange := sorted(set(self.columns) - {*REQUIRED, *OPTIONAL}):
            raise InputError(
                f"source.columns: {', '.join(strange)} is none of our names, which are "
                f"{', '.join((*REQUIRED, *OPTIONAL))}; ours stand left of the file's"
            )
        compiled(self.static)
        VisitCodes(admission=self.admission, discharge=self.discharge)  # refuses what is no pattern
        files = _files(self.path)
        root = Path(os.path.commonpath([file.parent for file in files]))
        parts = [File(file.relative_to(root).as_posix(), file, self) for file in files]
        place = Path(self.path).expanduser()
        name = (place.resolve() if place.exists() else root).name.partition(".")[0]
        return Records(parts, {"name": name, "time": DATES})


@dataclass(frozen=True)
class File(reading.FilePart):
    """A `Part`: one file."""

    source: Flat

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        source = self.source
        file = reading.open_file(
            self.path,
            file=self.name,
            dictionary=(CODE, "visit_kind", "sex"),
            separator=source.separator,
            encoding=source.encoding,
            missing=source.missing,
        )
        found = file.names()
        cure = "If a column has another name, map ours to it in source.columns"
        picked = pick(found, self._wanted(found), file=self.name, cure=cure)
        codes = VisitCodes(admission=source.admission, discharge=source.discharge)
        for block in file.blocks(picked, findings):
            subjects = block.subjects()
            for name in ("sex", "birth", "death"):
                if name in block:
                    yield Piece(self._people(block, subjects, name))
            events, visits = self._events(block, subjects), None
            if "visit_start" in block:
                visits = self._visits(block, subjects)
            elif VISIT_ID in block:
                visits = codes.visits(events)
            yield Piece(events, visits, block.names())

    def _wanted(self, found: Sequence[str]) -> dict[str, str]:
        there = {*REQUIRED, *(name.strip().casefold() for name in found)}
        named = {name: name for name in (*REQUIRED, *OPTIONAL) if name in there}
        differing = {o: theirs for o, theirs in self.source.columns.items() if theirs != o}
        wanted = {ours: theirs for ours, theirs in (named | differing).items() if theirs}
        needs = {name: name for name in REQUIRED} | {n: _NEEDS[n] for n in _NEEDS if n in wanted}
        for name, needed in needs.items():
            if needed not in wanted:
                raise InputError(
                    f"{self.name}: {name!r} is of no use without a column for {needed!r}; "
                    f"name that one in source.columns, or map {name!r} to null"
                )
        return wanted

    def _events(self, block: Block, subjects: pa.ChunkedArray) -> pa.Table:
        codes, times = block.codes(prefix=self.source.code_prefix), self._times(block, TIME)
        columns = {SUBJECT_ID: subjects, TIME: times, CODE: codes, ROW: block.rows()}
        if NUMERIC_VALUE in block:
            columns[NUMERIC_VALUE] = block.numbers(NUMERIC_VALUE, decimal=self.source.decimal)
        if VISIT_ID in block:
            columns[VISIT_ID] = block.identifiers(VISIT_ID)
        events = pa.table(columns)
        if times.null_count:
            static = compiled(self.source.static)
            lost = pc.is_null(times).to_numpy() & codes.is_valid().to_numpy(zero_copy_only=False)
            lost &= ~mask(codes, lambda code: static.search(code) is not None)
            block.note("no_time", lost & pc.is_null(block.text(TIME)).to_numpy(), TIME)
            events = events.filter(pa.array(~lost))
        return complete(events)

    def _visits(self, block: Block, subjects: pa.ChunkedArray) -> pa.Table:
        """STATED_VISITS, each statement once."""
        nothing = pa.nulls(len(subjects))
        start = self._times(block, "visit_start")
        end = self._times(block, "visit_end") if "visit_end" in block else nothing
        kind = _kinds(block) if "visit_kind" in block else nothing.cast(pa.string())
        brief = pc.and_(pc.equal(kind, "outpatient"), pc.is_null(end)).fill_null(False)
        columns = {
            SUBJECT_ID: subjects,
            VISIT_ID: block.identifiers(VISIT_ID),
            "start": start,
            "end": pc.if_else(brief, start, end),
            "kind": kind,
            "length_of_stay": nothing,
            ROW: block.rows(),
        }
        stated = complete(pa.table(columns), names=(SUBJECT_ID, VISIT_ID))
        return distinct(stated.cast(STATED_VISITS))

    def _people(self, block: Block, subjects: pa.ChunkedArray, name: str) -> pa.Table:
        """Each birth, death or sex that the rows state of a subject, once."""
        columns = {SUBJECT_ID: subjects, ROW: block.rows()}
        if name == "sex":
            said = block.mapped(name, lambda word: _SEXES.get(word.lower(), word))
            columns[CODE] = pc.binary_join_element_wise(SEX, said, "//")
        else:
            columns[TIME] = said = self._times(block, name)
            columns[CODE] = pa.repeat(BIRTH if name == "birth" else DEATH, len(subjects))
        stated = pa.table(columns)
        return distinct(stated.filter(pc.and_(pc.is_valid(subjects), pc.is_valid(said))))

    def _times(self, block: Block, name: str) -> pa.ChunkedArray:
        return block.times(name, time_format=self.source.time_format)


def _files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_dir():
        files = reading.data_files(place)
    else:
        found = sorted(map(Path, glob.glob(str(place), recursive=True)))
        files = [file for file in found if file.is_file()] or [place]
    if not files:
        raise InputError(f"{place}: no .csv, .tsv or .parquet file in it; check source.path")
    return [reading.existing(file).absolute() for file in files]


def _kinds(block: Block) -> pa.Array:
    """Kinds of visits; the words that are none of ours are noted."""
    ours = {kind: kind for kind in KINDS[:3]}
    kinds = block.mapped("visit_kind", lambda word: ours.get(word.lower()))
    unknown = pc.and_(pc.is_valid(block.text("visit_kind")), kinds.is_null())
    block.note("unknown_visit_kind", unknown.to_numpy(), "visit_kind")
    return kinds
