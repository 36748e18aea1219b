"""OMOP CDM 5.3 and 5.4 as a folder of files (ohdsi.github.io/CommonDataModel).

Everything but where the rows come from also serves a database (postgres.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, pick, text
from medbert.data.sources.omop_tables import (
    CONDITION,
    CURE,
    TABLES,
    UNRESOLVED,
    VISIT_CONCEPTS,
    Table,
    TablePart,
)
from medbert.schema import DATES, KINDS, Findings, InputError, Records, Resolved

logger = logging.getLogger(__name__)

ALL_TABLES = ("person", *TABLES, "concept", "cdm_source")


@dataclass(frozen=True, kw_only=True)
class Cdm:
    """What sources of the OMOP CDM share, wherever their tables are; see `Omop`."""

    vocabulary: str = "source"
    tables: Sequence[str] | None = None
    kinds: Mapping[int, str] | None = None

    def records(self, found: Mapping[str, Sequence[Table]], *, place: str) -> Records:
        """The records of the tables ``found``; ``place``: what to say where there is no person."""
        chosen, kinds = TABLES if self.tables is None else self.tables, self.kinds or {}
        for setting, given, known in (
            ("vocabulary", {self.vocabulary}, ("source", "standard")),
            ("tables", set(chosen), TABLES),
            ("kinds", set(kinds.values()), KINDS[:4]),
        ):
            if strange := sorted(given - set(known)):
                raise InputError(f"source.{setting}: {strange} is none of {', '.join(known)}")
        if not found["person"]:
            raise InputError(f"{place}; check source.path")
        if not found["concept"]:
            logger.warning(
                "there is no concept table: codes stay OMOP/<concept_id>, and no task finds them "
                "by their names; export it too, or name its place in the source's settings"
            )
        by_concept = {concept: kind for kind, ids in VISIT_CONCEPTS.items() for concept in ids}
        by_concept |= {int(concept): kind for concept, kind in kinds.items()}
        metadata = {"name": "OMOP", "time": DATES, "vocabulary": self.vocabulary}
        parts = [
            TablePart(rows.name, table, rows, self.vocabulary, by_concept)
            for table in ("person", *dict.fromkeys(chosen))
            for rows in found[table]
        ]
        persons = (part for part in parts if part.table == "person")
        if not any(piece.events for part in persons for piece in part.pieces(Findings(1.0))):
            raise InputError(f"{parts[0].name}: no persons in it; is the export complete?")
        metadata |= _described(found["cdm_source"])
        return Records(parts, metadata, resolve=partial(resolve, concepts=found["concept"]))


@dataclass(frozen=True)
class Omop(Cdm):
    """A folder of person, visit_occurrence, condition_occurrence ... as .csv or .tsv (also .gz,
    .bz2, .zst) or .parquet, or each a folder of such files; all but person may be absent.

    A code is the source concept, else the standard concept, as ``<vocabulary_id>/<concept_code>``,
    else the source value as ``CONDITION//<value>``. What is known by its day only (a date, or a
    time of exactly midnight) is known when the day ends.

    Args:
        path: the folder.
        vocabulary: ``source`` or ``standard``: the concepts that are preferred. An encoder of
            one is of little use on the other.
        tables: the tables to read, beside person; null: all of ``TABLES``.
        kinds: visit_concept_id -> kind (inpatient, emergency, outpatient, unknown), for concepts
            that are local, or where a site means another kind by a standard one.
        vocabulary_path: a folder with a concept table (as from Athena) beside the one in ``path``.
    """

    path: str
    vocabulary_path: str | None = None
    encoding: str = "utf-8"

    def read(self) -> Records:
        folder = reading.existing(self.path).absolute()
        found = self._files(folder)
        if self.vocabulary_path is not None:
            more = self._files(reading.existing(self.vocabulary_path))["concept"]
            if not more:
                place = self.vocabulary_path
                raise InputError(f"{place}: no table 'concept' in it; check source.vocabulary_path")
            found["concept"] += more
        place = f"{folder}: no table 'person' in it (person.csv, .tsv, .parquet or a folder)"
        return self.records(found, place=place)

    def _files(self, folder: Path) -> dict[str, list[Table]]:
        """The files of each table; a folder holds shards."""
        if not folder.is_dir():
            raise InputError(f"{folder}: is a file; source.path is the folder of all tables")
        found: dict[str, list[Table]] = {name: [] for name in ALL_TABLES}
        for entry in sorted(folder.iterdir()):
            table = entry.name.partition(".")[0].lower()
            files = reading.data_files(entry) if table in found else []
            if files and found[table]:
                raise InputError(
                    f"{folder}: {found[table][0].name} and {entry.name} are both the table "
                    f"{table}; remove or rename one"
                )
            for file in files:
                name = file.relative_to(folder).as_posix()
                found[table].append(TableFile(name, file, self.encoding, table == "concept"))
        return found


@dataclass(frozen=True)
class TableFile(reading.FilePart):
    """A `Table` in a file; ``athena``: tab-separated, it does not quote, whatever its ending."""

    encoding: str
    athena: bool = False

    def names(self) -> list[str]:
        return self._file().names()

    def blocks(self, picked: Mapping[str, str], findings: Findings) -> Iterator[Block]:
        return self._file().blocks(picked, findings)

    def _file(self) -> reading.Delimited | reading.Parquet:
        file = reading.open_file(self.path, file=self.name, encoding=self.encoding)
        if isinstance(file, reading.Delimited):
            tabs = file.separator == "\t" or "\t" in "".join(file.names())
            separator = "\t" if tabs else file.separator
            file = replace(file, separator=separator, quoted=not (tabs and self.athena))
        return file


def _described(tables: Sequence[Table]) -> dict[str, Any]:
    """What cdm_source says of the data set."""
    names = ("cdm_source_abbreviation", "cdm_source_name", "cdm_version", "vocabulary_version")
    for table in tables:
        wanted = {name: name for name in names}
        picked = pick(table.names(), wanted, file=table.name, cure=CURE, optional=names)
        for block in table.blocks(picked, Findings()) if picked else ():
            for row in pa.table({name: block.text(name) for name in picked}).to_pylist():
                said = {name: row[name] for name in names if row.get(name)}
                short = said.pop(names[0], None)
                full = said.pop(names[1], None)
                return said | ({"name": short or full} if short or full else {})
    return {}


def resolve(codes: list[str], *, concepts: Sequence[Table]) -> Resolved:
    """``OMOP/<concept_id>`` as ``<vocabulary_id>/<concept_code>``, where the concept is known, and
    the titles of these; other codes stay. Conditions are diagnoses, whatever their vocabulary. The
    concept table is read once and never held."""
    start = len(UNRESOLVED)
    plain = [code.replace(CONDITION, UNRESOLVED, 1) for code in codes]
    wanted = {int(code[start:]): code for code in plain if code.startswith(UNRESOLVED)}
    ids = pa.array(list(wanted), pa.int64())
    meant: dict[str, str] = {}
    titles: dict[str, str] = {}
    words = ("vocabulary_id", "concept_code", "concept_name")
    columns = {name: name for name in ("concept_id", *words)}
    for table in concepts:
        picked = pick(table.names(), columns, file=table.name, cure=CURE)
        for block in table.blocks(picked, Findings()):
            found = block.identifiers("concept_id")
            used = pc.is_in(found, value_set=ids)
            kept = block.table.filter(used)
            said = [text(kept[name]).to_pylist() for name in words]
            kept_ids = found.filter(used).to_pylist()
            for concept, system, code, title in zip(kept_ids, *said, strict=True):
                if system and code:
                    meant[wanted[concept]] = f"{system}/{code}"
                    titles |= {f"{system}/{code}": title} if title else {}
    if concepts and (unknown := len(wanted) - len(meant)):
        logger.warning(
            "%s of the %s concepts used are not in the concept table and stay OMOP/<concept_id>; "
            "complete it with the vocabularies from Athena (see the source's settings)",
            unknown,
            len(wanted),
        )
    found = [meant.get(code, code) for code in plain]
    marks = (CONDITION, "CONDITION//")
    diagnoses = {to for code, to in zip(codes, found, strict=True) if code.startswith(marks)}
    return Resolved(found, titles, diagnoses)
