"""Tables of the OMOP CDM 5.3 and 5.4 (ohdsi.github.io/CommonDataModel) as events and visits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete, end_of_day, pick
from medbert.schema import (
    BIRTH,
    CODE,
    DEATH,
    NUMERIC_VALUE,
    ROW,
    SEX,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    Piece,
)

EVENT_TABLES = {  # name: what its concept columns and what its time columns begin with
    "condition_occurrence": ("condition", "condition_start"),
    "procedure_occurrence": ("procedure", "procedure"),
    "drug_exposure": ("drug", "drug_exposure_start"),
    "measurement": ("measurement", "measurement"),
    "observation": ("observation", "observation"),
    "device_exposure": ("device", "device_exposure_start"),
}
TABLES = ("visit_occurrence", "death", *EVENT_TABLES)

# Standard concepts of the Visit domain; what is local or rarer is named in the setting ``kinds``.
VISIT_CONCEPTS = {
    # with the emergency room before it; hospital; psychiatric, rehabilitation; intensive care;
    # isolation; critical care; cardiac care; nursery; hospice; hospital
    "inpatient": (9201, 262, 8717, 8971, 8920, 32037, 32760, 581379, 581383, 581384, 38004311)
    + (38004515,),
    # emergency room of a hospital; its critical care; observation room
    "emergency": (9203, 8870, 581381, 581385),
    # ambulatory clinic, surgical center; outpatient hospital; urgent care; office; home;
    # telehealth; laboratory; pharmacy; independent clinic; health examination
    "outpatient": (9202, 38004207, 8883, 8756, 8782, 8940, 581477, 581476, 5083, 32036, 581458)
    + (8716, 32693, 581479, 581380),
}
_SEXES = {8507: f"{SEX}//M", 8532: f"{SEX}//F"}
CURE = "Columns are expected as the OMOP CDM 5.3 and 5.4 name them"
_EITHER = (("date", "datetime"), ("start_date", "start_datetime"), ("standard", "source", "value"))
UNRESOLVED = "OMOP/"
CONDITION = "OMOP/condition/"  # the same of a condition, until it is resolved


class Table(Protocol):
    """Rows of a table of the CDM, wherever they are."""

    @property
    def name(self) -> str: ...
    @property
    def stamp(self) -> str: ...
    def names(self) -> list[str]: ...
    def blocks(self, picked: Mapping[str, str], findings: Findings) -> Iterator[Block]: ...


@dataclass(frozen=True)
class TablePart:
    """A `Part`: the rows of one table, in one file or database."""

    name: str
    table: str
    rows: Table
    vocabulary: str
    kinds: Mapping[int, str]  # by visit_concept_id

    @property
    def stamp(self) -> str:
        return self.rows.stamp

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        makers: dict[str, Callable[[Block], Piece]] = {"person": _person, "death": _death}
        makers["visit_occurrence"] = partial(_visits, kinds=self.kinds)
        events = partial(_events, table=self.table, vocabulary=self.vocabulary)
        make = makers.get(self.table, events)
        picked = self._picked()
        for block in self.rows.blocks(picked, findings):
            yield make(block)

    def _picked(self) -> dict[str, str]:
        found, wanted = self.rows.names(), _columns(self.table)
        required = {SUBJECT_ID, "gender", "year", "concept"}
        required |= {VISIT_ID} if self.table == "visit_occurrence" else set()
        how: dict[str, Any] = {"file": self.name, "cure": CURE}
        picked = pick(found, wanted, optional=wanted.keys() - required, **how)
        for names in _EITHER:
            if names[0] in wanted and not picked.keys() & set(names):
                pick(found, {names[0]: wanted[names[0]]}, **how)
        return picked


def _columns(table: str) -> dict[str, str]:
    """Our names of a table's columns -> the CDM's."""
    columns = {SUBJECT_ID: "person_id"}
    if table == "person":
        columns |= {"gender": "gender_concept_id", "birth": "birth_datetime"}
        columns |= {name: f"{name}_of_birth" for name in ("year", "month", "day")}
        return columns | {"race": "race_source_value", "race_concept": "race_concept_id"}
    if table == "death":
        return columns | {"date": "death_date", "datetime": "death_datetime"}
    columns[VISIT_ID] = "visit_occurrence_id"
    if table == "visit_occurrence":
        ends = ("start_datetime", "start_date", "end_datetime", "end_date")
        return columns | {"concept": "visit_concept_id"} | {name: f"visit_{name}" for name in ends}
    word, begun = EVENT_TABLES[table]
    columns |= {"source": f"{word}_source_concept_id", "standard": f"{word}_concept_id"}
    columns |= {"value": f"{word}_source_value", NUMERIC_VALUE: "value_as_number"}
    return columns | {"date": f"{begun}_date", "datetime": f"{begun}_datetime"}


def _person(block: Block) -> Piece:
    """Birth, and sex and race without a time."""
    subjects, static = block.subjects(), pa.nulls(len(block.table), pa.timestamp("us"))
    facts = [
        (pa.array(np.repeat(BIRTH, len(block.table))), _births(block)),
        (_chosen(block.identifiers("gender"), _SEXES), static),
    ]
    races = [_words(block, "race")] if "race" in block else []
    if "race_concept" in block:
        races.append(_concepts(block, "race_concept").cast(pa.string()))
    if races:
        facts.append((pc.binary_join_element_wise("RACE", pc.coalesce(*races), "//"), static))
    rows, events = block.rows(), []
    for code, time in facts:
        told = pa.table({SUBJECT_ID: subjects, CODE: code, TIME: time, ROW: rows})
        events.append(told.filter(pc.is_valid(told[TIME])) if time is not static else told)
    return Piece(complete(pa.concat_tables(events)), names=block.names())


def _births(block: Block) -> pa.ChunkedArray:
    """The birth, or the first moment it can have been; null without a year."""
    parts = {name: np.ones(len(block.table)) for name in ("year", "month", "day")}
    parts |= {name: block.numbers(name).to_numpy() for name in parts if name in block}
    whole = {name: np.floor(np.nan_to_num(values, nan=0)) for name, values in parts.items()}
    year, month, day = (whole[name].astype(np.int64) for name in parts)
    month[(month < 1) | (month > 12)], day[(day < 1) | (day > 31)] = 1, 1
    first = (np.clip(year, 1, 9999) - 1970).astype("datetime64[Y]").astype("datetime64[M]")
    first = first + (month - 1)
    born = first.astype("datetime64[D]") + (day - 1)
    born = np.where(born.astype("datetime64[M]") == first, born, first.astype("datetime64[D]"))
    known = (year >= 1) & (year <= 9999)
    found = pa.chunked_array([pa.array(born.astype("datetime64[us]"), mask=~known)])
    if "birth" in block:
        found = pc.coalesce(block.times("birth"), found)
    block.note("no_birth", pc.is_null(found).to_numpy(), "year")
    return found


def _death(block: Block) -> Piece:
    codes = pa.array(np.repeat(DEATH, len(block.table)))
    return Piece(_timed(block, {SUBJECT_ID: block.subjects(), CODE: codes}))


def _events(block: Block, *, table: str, vocabulary: str) -> Piece:
    columns = {SUBJECT_ID: block.subjects()}
    columns[CODE] = _codes(block, EVENT_TABLES[table][0].upper(), vocabulary)
    if VISIT_ID in block:
        columns[VISIT_ID] = _concepts(block, VISIT_ID)
    if NUMERIC_VALUE in block:
        columns[NUMERIC_VALUE] = block.numbers(NUMERIC_VALUE)
    return Piece(_timed(block, columns))


def _codes(block: Block, word: str, vocabulary: str) -> pa.DictionaryArray:
    """``OMOP/<concept_id>`` of the concept preferred, else ``<word>//<source value>``."""
    order = ("source", "standard") if vocabulary == "source" else ("standard", "source")
    concepts = pc.coalesce(
        *[_concepts(block, name) for name in order if name in block]
        or [pa.chunked_array([pa.nulls(len(block.table), pa.int64())])]
    )
    encoded = concepts.combine_chunks().dictionary_encode()
    numbers, names = encoded.indices, pc.cast(encoded.dictionary, pa.string())
    mark = CONDITION if word == "CONDITION" else UNRESOLVED
    names = pc.binary_join_element_wise(mark, names, "")
    if concepts.null_count and "value" in block:
        values = pc.if_else(pc.is_null(concepts), _words(block, "value"), None)
        spelt = values.combine_chunks().dictionary_encode()
        numbers = pc.coalesce(numbers, pc.add(spelt.indices, pa.scalar(len(names), pa.int32())))
        others = pc.binary_join_element_wise(word, spelt.dictionary, "//")
        names = pa.concat_arrays([names, others])
    column = next(name for name in ("value", *order) if name in block)
    block.note("no_code", numbers.is_null().to_numpy(zero_copy_only=False), column)
    return pa.DictionaryArray.from_arrays(numbers, names)


def _timed(block: Block, columns: dict[str, Any]) -> pa.Table:
    """The rows that have a subject, a code and a time."""
    times = _known(_moments(block))
    told = pa.table(columns | {TIME: times})
    untimed = pc.and_(pc.is_valid(told[CODE]), pc.is_null(times))
    block.note("no_time", untimed.to_numpy(), "date" if "date" in block else "datetime")
    return complete(told.filter(pc.is_valid(times)) if times.null_count else told)


def _visits(block: Block, *, kinds: Mapping[int, str]) -> Piece:
    subjects, visits = block.subjects(), _concepts(block, VISIT_ID)
    kind = _chosen(block.identifiers("concept"), kinds)
    block.note("visits_of_unknown_kind", kind.is_null().to_numpy(zero_copy_only=False), "concept")
    kind = kind.fill_null("unknown")
    start, end = _moments(block, "start_"), _moments(block, "end_")
    brief = pc.and_(pc.equal(kind, "outpatient"), pc.is_null(end))
    end = pc.if_else(brief, start, end)
    # To the last second of the day it ended in, a stay would seem longer than it was.
    days = pc.days_between(start, end).cast(pa.float32())
    told = {SUBJECT_ID: subjects, VISIT_ID: visits, "start": start, "end": _known(end)}
    told |= {"kind": kind, "length_of_stay": pc.if_else(_day_only(end), days, None)}
    return Piece(visits=block.visits(told))


def _moments(block: Block, of: str = "") -> pa.ChunkedArray:
    """The datetime, else the date; null where there is neither."""
    columns = [f"{of}{name}" for name in ("datetime", "date") if f"{of}{name}" in block]
    if not columns:
        return pa.chunked_array([pa.nulls(len(block.table), pa.timestamp("us"))])
    found = block.times(columns[0])
    if found.null_count and len(columns) > 1:
        found = pc.coalesce(found, block.times(columns[1]))
    return found


def _day_only(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.floor_temporal(times, unit="day"), times)


def _known(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Days without a time of day end: what happened in one is not known before."""
    return pc.if_else(_day_only(times), end_of_day(times), times)


def _concepts(block: Block, name: str) -> pa.ChunkedArray:
    """Ids; null for 0, which means none in the CDM."""
    ids = block.identifiers(name)
    return pc.if_else(pc.equal(ids, 0), pa.scalar(None, pa.int64()), ids)


def _words(block: Block, name: str) -> pa.ChunkedArray:
    """Texts; null where they spell a missing value, in Parquet and databases too."""
    words = block.text(name)
    missing = pc.is_in(words, value_set=pa.array(reading.MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), words)


def _chosen(ids: pa.ChunkedArray, words: Mapping[int, Any]) -> pa.Array:
    """The word of each id; null where there is none."""
    places = pc.index_in(ids.combine_chunks(), value_set=pa.array(list(words), pa.int64()))
    return pa.array(list(words.values()), pa.string()).take(places)
