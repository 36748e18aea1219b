"""Synthea's CSV export (synthetichealth/synthea): a file per table, ids are UUIDs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, end_of_day, numbers, pick
from medbert.schema import (
    BIRTH,
    CODE,
    DATES,
    DEATH,
    NUMERIC_VALUE,
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

VOCABULARIES = {  # of the codes of a table, where the export has no column SYSTEM
    "conditions": "SNOMED",
    "procedures": "SNOMED",
    "medications": "RxNorm",
    "observations": "LOINC",
}
_SYSTEMS = {  # what a SYSTEM contains -> its vocabulary; any other one is kept as it is
    **{"snomed": "SNOMED", "rxnorm": "RxNorm", "loinc": "LOINC"},
    **{"icd-10-cm": "ICD10CM", "icd10": "ICD10CM", "icd-9-cm": "ICD9CM", "icd9": "ICD9CM"},
}
_KINDS = {
    **dict.fromkeys(("inpatient", "hospice", "snf"), "inpatient"),
    **dict.fromkeys(("emergency", "urgentcare"), "emergency"),
}
_PEOPLE = {"birth": "BIRTHDATE", "death": "DEATHDATE", "sex": "GENDER", "race": "RACE"}
_OF_EVENT = {SUBJECT_ID: "PATIENT", VISIT_ID: "ENCOUNTER", CODE: "CODE", "system": "SYSTEM"}
_COLUMNS = {
    "patients": {SUBJECT_ID: "Id", **_PEOPLE},
    "encounters": {
        **{SUBJECT_ID: "PATIENT", VISIT_ID: "Id"},
        **{"start": "START", "end": "STOP", "kind": "ENCOUNTERCLASS"},
    },
    "conditions": {**_OF_EVENT, TIME: "START"},
    "procedures": {**_OF_EVENT, TIME: "START"},
    "medications": {**_OF_EVENT, TIME: "START"},
    "observations": {**_OF_EVENT, TIME: "DATE", NUMERIC_VALUE: "VALUE"},
}
_TITLES = {CODE: "CODE", "system": "SYSTEM", "title": "DESCRIPTION"}
_CURE = "Is it Synthea's own CSV export, with its header line?"


@dataclass(frozen=True)
class Synthea:
    """Synthetic patients of Synthea: encounters are visits, and subjects are numbered by a hash.

    Conditions are SNOMED CT, findings about social life among them, and are known at the end of
    the day they start. Stays in hospices and nursing facilities count as inpatient, urgent care
    as emergency, other encounters as outpatient.

    Args:
        path: the folder of the CSV files.
        tables: which to read beside patients and encounters; absent ones are passed over.
    """

    path: str
    tables: Sequence[str] = tuple(VOCABULARIES)

    def read(self) -> Records:
        folder, needed = reading.existing(self.path), ("patients", "encounters")
        place = "the folder csv/ of Synthea's output"
        found = reading.chosen(folder, needed, self.tables, tuple(VOCABULARIES), place=place)
        parts = [Table(path.name, path, name) for name, path in found.items()]
        for part in parts:
            part.pick()
        metadata = {"name": "synthea", "time": DATES, "tables": list(found)}
        return Records(parts, metadata, resolve=partial(resolve, tables=parts[2:]))


@dataclass(frozen=True)
class Table(reading.FilePart):
    """A `Part`: one table."""

    table: str

    def pick(self) -> dict[str, str]:
        found, wanted = self.open().names(), _COLUMNS[self.table]
        if self.table == "procedures" and "start" not in map(str.casefold, found):
            wanted = wanted | {TIME: "DATE"}  # older exports
        return pick(found, wanted, file=self.name, cure=_CURE, optional=("system", "race"))

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        for block in self.open().blocks(self.pick(), findings):
            if self.table == "patients":
                yield Piece(_patients(block), names=block.names())
            elif self.table == "encounters":
                yield Piece(visits=_encounters(block))
            else:
                yield Piece(_events(block, vocabulary=VOCABULARIES[self.table]))


def _patients(block: Block) -> pa.Table:
    subject = block.subjects()
    columns: list[dict[str, pa.Array]] = [
        {TIME: block.times("birth"), CODE: pa.repeat(BIRTH, len(subject)), ROW: block.rows()},
        {TIME: _known(block, "death"), CODE: pa.repeat(DEATH, len(subject))},
        {CODE: pc.binary_join_element_wise(SEX, block.text("sex"), "//")},
    ]
    if "race" in block:
        columns.append({CODE: pc.binary_join_element_wise("RACE", block.text("race"), "//")})
    stated = [pa.table({SUBJECT_ID: subject, **said}).drop_null() for said in columns]
    return pa.concat_tables(stated, promote_options="default")


def _encounters(block: Block) -> pa.Table:
    kind = block.mapped("kind", lambda word: _KINDS.get(word.lower(), "outpatient"))
    columns = {SUBJECT_ID: block.subjects(), VISIT_ID: block.identifiers(VISIT_ID)}
    columns |= {"start": block.times("start"), "end": _known(block, "end")}
    return block.visits(columns | {"kind": kind})


def _events(block: Block, *, vocabulary: str) -> pa.Table:
    columns = {SUBJECT_ID: block.subjects(), VISIT_ID: block.identifiers(VISIT_ID)}
    columns |= {TIME: _known(block, TIME), CODE: _codes(block, vocabulary=vocabulary)}
    if NUMERIC_VALUE in block:  # answers and findings in words are values of observations too
        columns[NUMERIC_VALUE], _ = numbers(block.table[NUMERIC_VALUE])
    return block.timed(pa.table(columns))


def _known(block: Block, name: str) -> pa.ChunkedArray:
    """Times; a date alone counts from the end of its day."""
    times, length = block.times(name), pc.utf8_length(block.text(name))
    return pc.if_else(pc.equal(length, len("2019-03-31")), end_of_day(times), times)


def _codes(block: Block, *, vocabulary: str) -> pa.ChunkedArray:
    if "system" not in block:
        return block.codes(prefix=f"{vocabulary}/").cast(pa.string())
    codes = block.codes().cast(pa.string())
    each = block.mapped("system", _vocabulary).fill_null(vocabulary)
    return pc.binary_join_element_wise(each, codes, "/")


def _vocabulary(system: str) -> str:
    inside = (name for part, name in _SYSTEMS.items() if part in system.lower())
    return next(inside, system)


def resolve(codes: list[str], *, tables: Sequence[Table]) -> Resolved:
    """The codes as they are, and their titles; reads CODE and DESCRIPTION of all tables again."""
    titles: dict[str, str] = {}
    conditions: set[str] = set()
    for table in tables:
        file, optional = table.open(), ("system", "title")
        picked = pick(file.names(), _TITLES, file=table.name, cure=_CURE, optional=optional)
        for block in file.blocks(picked, Findings()):
            each = pa.table({CODE: _codes(block, vocabulary=VOCABULARIES[table.table])})
            named = block.text("title") if "title" in block else pa.nulls(len(each), pa.string())
            each = each.append_column("title", named).group_by(CODE).aggregate([("title", "min")])
            said = dict(zip(each[CODE].to_pylist(), each["title_min"].to_pylist(), strict=True))
            titles |= {c: min(t, titles.get(c, t)) for c, t in said.items() if c and t}
            conditions |= said.keys() if table.table == "conditions" else set()
    found = {code: titles[code] for code in codes if code in titles}
    return Resolved([*codes], found, conditions - {None})
