"""MIMIC-IV as PhysioNet publishes it: the tables of ``hosp/`` (.csv or .csv.gz)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete, end_of_day, pick
from medbert.schema import (
    BIRTH,
    CODE,
    DATES,
    DEATH,
    NUMERIC_VALUE,
    RANK,
    ROW,
    SEX,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    Piece,
    Records,
    Resolved,
)

TABLES = ("diagnoses_icd", "procedures_icd", "prescriptions", "labevents")
_IDS = {SUBJECT_ID: "subject_id", VISIT_ID: "hadm_id"}
_ICD = {CODE: "icd_code", "version": "icd_version"}
_COLUMNS = {
    "patients": {
        **{SUBJECT_ID: "subject_id", "sex": "gender", "year": "anchor_year"},
        **{"age": "anchor_age", "death": "dod"},
    },
    "admissions": {
        **_IDS,
        **{"start": "admittime", "end": "dischtime", "death": "deathtime", "race": "race"},
        **{"kind": "admission_type", "place": "discharge_location"},
    },
    "diagnoses_icd": {**_IDS, RANK: "seq_num", **_ICD},
    "procedures_icd": {**_IDS, RANK: "seq_num", **_ICD, TIME: "chartdate"},
    "prescriptions": {**_IDS, TIME: "starttime", CODE: "drug"},
    "labevents": {
        **_IDS,
        **{TIME: "charttime", CODE: "itemid", NUMERIC_VALUE: "valuenum", "unit": "valueuom"},
    },
    "d_icd_diagnoses": {**_ICD, "title": "long_title"},
    "d_icd_procedures": {**_ICD, "title": "long_title"},
    "d_labitems": {CODE: "itemid", "title": "label"},
}
_DIAGNOSES, _PROCEDURES = ("ICD9CM/", "ICD10CM/"), ("ICD9PROC/", "ICD10PCS/")
_CURE = "Is it MIMIC-IV's own table, whole and with its header line?"


@dataclass(frozen=True)
class MimicIV:
    """Hospital stays of MIMIC-IV, with diagnoses, procedures, prescriptions and laboratory values.

    Diagnoses carry no time in MIMIC-IV and are known at discharge; dates without a time count from
    the end of the day. A subject is born on January 1 of ``anchor_year - anchor_age`` (an age over
    89 is published as 91), and dies at the first ``deathtime`` of an admission, else at the end of
    the day ``dod``; race is that of the first admission that states one.

    Args:
        path: the folder that holds ``hosp/``, or ``hosp/`` itself.
        tables: which to read beside patients and admissions; absent ones are passed over.
    """

    path: str
    tables: Sequence[str] = TABLES

    def read(self) -> Records:
        folder = reading.existing(self.path)
        folder = folder / "hosp" if (folder / "hosp").is_dir() else folder
        needed = ("patients", "admissions")
        place = "MIMIC-IV's folder, the one that holds hosp/, or hosp/ itself"
        found = reading.chosen(folder, needed, self.tables, TABLES, place=place)
        parts = [Table(path.name, path, name, found["admissions"]) for name, path in found.items()]
        for part in parts:
            _pick(part.open(), part.table)
        metadata = {"name": "mimic-iv", "time": DATES, "tables": list(found)}
        return Records(parts, metadata, resolve=partial(resolve, tables=reading.tables(folder)))


@dataclass(frozen=True)
class Table(reading.FilePart):
    """A `Part`: one table; ``admissions`` is the file of those."""

    table: str
    admissions: Path

    @property
    def stamp(self) -> str:
        return f"{reading.stamp(self.path)} {reading.stamp(self.admissions)}"

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        stays, file = _stays(self.admissions, reading.stamp(self.admissions)), self.open()
        if self.table == "admissions":
            told = [_deaths(stays), _races(stays)]
            yield Piece(pa.concat_tables(told, promote_options="default"))
        for block in file.blocks(_pick(file, self.table), findings):
            if self.table == "patients":
                yield Piece(_patients(block, stays), names=block.names())
            elif self.table == "admissions":
                yield _admissions(block)
            else:
                yield Piece(_events(block, stays, table=self.table))


def _pick(file: reading.Delimited | reading.Parquet, table: str) -> dict[str, str]:
    return pick(file.names(), _COLUMNS[table], file=file.file, cure=_CURE, optional=("race",))


@lru_cache(maxsize=1)
def _stays(path: Path, stamp: str) -> pa.Table:
    """The admissions; some 40 MB for all of MIMIC-IV. Their own part notes their dirt."""
    file = reading.open_file(path, file=path.name)
    block = reading.whole(file, _pick(file, "admissions"), Findings(max_bad_share=1.0))
    columns = {name: block.identifiers(name) for name in (SUBJECT_ID, VISIT_ID)}
    columns |= {name: block.times(name) for name in ("start", "end", "death")}
    nothing = pa.nulls(len(block.table), pa.string())
    return pa.table(columns | {"race": block.text("race") if "race" in block else nothing})


def _deaths(stays: pa.Table) -> pa.Table:
    died = stays.select([SUBJECT_ID, "death"]).drop_null()
    first = died.group_by(SUBJECT_ID, use_threads=False).aggregate([("death", "min")])
    codes = pa.repeat(DEATH, len(first))
    return pa.table({SUBJECT_ID: first[SUBJECT_ID], TIME: first["death_min"], CODE: codes})


def _races(stays: pa.Table) -> pa.Table:
    said = stays.select([SUBJECT_ID, "start", "race"]).drop_null()
    said = said.sort_by([("start", "ascending"), ("race", "ascending")])
    first = said.group_by(SUBJECT_ID, use_threads=False).aggregate([("race", "first")])
    codes = pc.binary_join_element_wise("RACE", first["race_first"], "//")
    return pa.table({SUBJECT_ID: first[SUBJECT_ID], CODE: codes})


def _patients(block: Block, stays: pa.Table) -> pa.Table:
    """Births, sexes, and the deaths outside of the hospital."""
    subject, age = block.subjects(), block.numbers("age")
    oldest = pc.greater(age, 89).fill_null(False).to_numpy()
    block.note("age_over_89_published_as_91", oldest, "age")
    years = pc.subtract(block.numbers("year"), age).to_numpy()
    unknown = np.isnan(years)
    born = np.where(unknown, 0, years - 1970).astype(np.int64).astype("datetime64[Y]")
    in_hospital = pc.is_in(subject, value_set=stays.filter(pc.is_valid(stays["death"]))[SUBJECT_ID])
    never = pa.scalar(None, pa.timestamp("us"))
    birth = pa.array(born.astype("datetime64[us]"), mask=unknown)
    death = pc.if_else(in_hospital, never, end_of_day(block.times("death")))
    facts: list[dict[str, pa.Array]] = [
        {TIME: birth, CODE: pa.repeat(BIRTH, len(subject)), ROW: block.rows()},
        {CODE: pc.binary_join_element_wise(SEX, block.text("sex"), "//")},
        {TIME: death, CODE: pa.repeat(DEATH, len(subject))},
    ]
    stated = [pa.table({SUBJECT_ID: subject, **fact}).drop_null() for fact in facts]
    return pa.concat_tables(stated, promote_options="default")


def _admissions(block: Block) -> Piece:
    """The stays, and the codes that open and close them."""
    ids = {SUBJECT_ID: block.subjects(), VISIT_ID: block.identifiers(VISIT_ID)}
    start, end = block.times("start"), block.times("end")
    kind = pa.repeat("inpatient", len(start))
    visits = block.visits({**ids, "start": start, "end": end, "kind": kind})
    events = []
    for prefix, moment, name in (("ADMISSION", start, "kind"), ("DISCHARGE", end, "place")):
        said = pc.fill_null(block.text(name), "UNK")
        codes = pc.binary_join_element_wise(f"HOSPITAL_{prefix}", said, "//")
        events.append(pa.table({**ids, TIME: moment, CODE: codes}))
    return Piece(complete(pa.concat_tables(events), names=(SUBJECT_ID, TIME)), visits)


def _events(block: Block, stays: pa.Table, *, table: str) -> pa.Table:
    columns = {SUBJECT_ID: block.subjects(), VISIT_ID: block.identifiers(VISIT_ID)}
    if RANK in block:
        columns[RANK] = block.numbers(RANK).cast(pa.int16(), safe=False)
    if table == "diagnoses_icd":
        return _diagnoses(block, columns, stays)
    columns[TIME] = block.times(TIME)
    if table == "procedures_icd":
        columns |= {TIME: end_of_day(columns[TIME]), CODE: _icd(block, _PROCEDURES)}
    elif table == "prescriptions":
        columns[CODE] = block.codes(prefix="DRUG//")
    else:
        unit = pc.fill_null(block.text("unit"), "UNK")
        items = block.codes(prefix="LAB//").cast(pa.string())
        columns[CODE] = pc.binary_join_element_wise(items, unit, "//")
        columns[NUMERIC_VALUE] = block.numbers(NUMERIC_VALUE)
    return block.timed(pa.table(columns))


def _diagnoses(block: Block, columns: Mapping[str, pa.ChunkedArray], stays: pa.Table) -> pa.Table:
    """Diagnoses at the discharge of their stay; those of stays that are not known are noted."""
    place = pc.index_in(columns[VISIT_ID], value_set=stays[VISIT_ID], skip_nulls=True)
    block.note("unknown_admission", pc.is_null(place).to_numpy(), VISIT_ID)
    end = stays["end"].take(place)
    block.note("no_time", pc.and_(pc.is_valid(place), pc.is_null(end)).to_numpy(), VISIT_ID)
    events = pa.table({**columns, TIME: end, CODE: _icd(block, _DIAGNOSES)})
    return complete(events.filter(pc.is_valid(end)))


def _icd(block: Block, systems: tuple[str, str]) -> pa.ChunkedArray:
    """Codes with the system of their ICD version before them."""
    version = pc.index_in(block.text("version"), value_set=pa.array(["9", "10"]))
    codes = block.codes().cast(pa.string())
    block.note("unknown_icd_version", pc.is_null(version).to_numpy(), "version")
    return pc.binary_join_element_wise(pa.array(systems).take(version), codes, "")


def resolve(codes: list[str], *, tables: Mapping[str, Path]) -> Resolved:
    """The codes as they are, and the titles that MIMIC's dictionaries have for them."""
    titles: dict[str, str] = {}
    systems_of = {"d_icd_diagnoses": _DIAGNOSES, "d_icd_procedures": _PROCEDURES}
    for table in (name for name in (*systems_of, "d_labitems") if name in tables):
        file = reading.open_file(tables[table], file=tables[table].name)
        block = reading.whole(file, _pick(file, table), Findings())
        lab = pc.binary_join_element_wise("LAB", block.text(CODE), "//")
        known = _icd(block, systems_of[table]) if table in systems_of else lab
        pairs = zip(known.to_pylist(), block.text("title").to_pylist(), strict=True)
        titles |= {code: title for code, title in pairs if code and title}
    found = {code: titles.get("//".join(code.split("//")[:2])) for code in codes}  # without unit
    return Resolved([*codes], {code: title for code, title in found.items() if title})
