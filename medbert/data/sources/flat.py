"""One flat table of events (CSV, TSV, Parquet), whatever its columns are called."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data import visits
from medbert.data.codes import canonical, compiled, mask
from medbert.data.sources import reading
from medbert.schema import (
    BIRTH,
    CODE,
    DATES,
    DEATH,
    NUMERIC_VALUE,
    SEX,
    SUBJECT_ID,
    TEXT_VALUE,
    TIME,
    VISIT_ID,
    InputError,
    Records,
)

logger = logging.getLogger(__name__)

REQUIRED = (SUBJECT_ID, TIME, CODE)
OF_VISIT = (VISIT_ID, "visit_start", "visit_end", "visit_kind")
OPTIONAL = (*OF_VISIT, NUMERIC_VALUE, TEXT_VALUE, "sex", "birth", "death")
MISSING = ("", "NULL", "NA", "NaN", "NaT", "\\N")
_NEEDS = {"visit_start": VISIT_ID, "visit_end": "visit_start", "visit_kind": "visit_start"}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclass(frozen=True)
class Flat:
    """One event a row; columns beyond the event repeat what is known of its visit and person.

    Args:
        path: a .csv or .tsv (also .gz, .bz2, .zst) or .parquet file.
        columns: our names -> the file's, where they differ (case does not matter). Ours are
            subject_id, time, code; and, used where the file has them unless mapped to null:
            visit_id, visit_start, visit_end, visit_kind (inpatient, emergency, outpatient),
            numeric_value, text_value, sex, birth, death.
        code_prefix: put before every code, such as ``ICD10CM/``.
        time_format: of all times, as in strptime; null: ISO 8601.
        separator: null: a tab for .tsv, a comma otherwise.
        missing: the spellings of a missing value.
        static: regular expression of the codes that need no time. Other rows without one are set
            aside: a fact of unknown date would count as known from the first day on.
        admission, discharge: regular expressions of the codes that open and close a stay, for
            files without visit_start.
        max_bad_share: share of stays that may end before they start.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    code_prefix: str = ""
    time_format: str | None = None
    separator: str | None = None
    encoding: str = "utf-8"
    missing: Sequence[str] = MISSING
    static: str = "^(GENDER|RACE|ETHNICITY)//"
    admission: str = visits.ADMISSION
    discharge: str = visits.DISCHARGE
    max_bad_share: float = 0.01

    def read(self) -> Records:
        path = reading.existing(self.path)
        table = self._table(path)
        ids, own = reading.required_ids(
            table[SUBJECT_ID], file=self.path, name=self._name(SUBJECT_ID)
        )
        table = table.set_column(table.column_names.index(SUBJECT_ID), SUBJECT_ID, ids)
        events, set_aside = self._events(table)
        stays, bad = self._visits(table, events)
        usable, unusable = self._usable(events)
        people, unsure = self._people(table)
        set_aside |= bad | unusable | unsure
        if not usable.any():
            raise InputError(
                f"{path}: none of its {table.num_rows} rows has both a code and a time; "
                "check source.columns"
            )
        events = pa.concat_tables([people, events.filter(pa.array(usable))])
        events, moved = visits.known_at_discharge(events, stays)
        if set_aside:
            logger.warning("%s: set aside %s", path, set_aside)
        metadata = {
            "name": path.name.partition(".")[0],
            "time": DATES,
            "set_aside": set_aside,
            "moved_to_discharge": moved,
            "subject_ids": "as given" if own else "numbered in sorted order",
        }
        return Records(events, stays, metadata)

    def _table(self, path: Path) -> pa.Table:
        suffixes = [suffix.lower() for suffix in path.suffixes]
        separator = self.separator or ("\t" if ".tsv" in suffixes else ",")
        if len(separator) != 1:
            raise InputError(
                f"{path}: a separator is one character, not {separator!r}; set source.separator"
            )
        delimited = reading.Delimited(path, str(path), separator, self.encoding, self.missing)
        parquet = suffixes[-1:] == [".parquet"]
        found = reading.parquet_names(path) if parquet else delimited.names()
        cure = "If a column has another name, map ours to it in source.columns"
        picked = reading.pick(found, self._wanted(found), file=str(path), cure=cure)
        table = reading.read_parquet(path, picked) if parquet else delimited.read(picked)
        if not table.num_rows:
            raise InputError(f"{path}: no rows; is the export complete?")
        return table

    def _wanted(self, found: Sequence[str]) -> dict[str, str]:
        if strange := sorted(set(self.columns) - {*REQUIRED, *OPTIONAL}):
            raise InputError(
                f"source.columns: {', '.join(strange)} is none of our names, which are "
                f"{', '.join((*REQUIRED, *OPTIONAL))}; ours stand left of the file's"
            )
        there = {*REQUIRED, *(name.strip().casefold() for name in found)}
        named = {name: name for name in (*REQUIRED, *OPTIONAL) if name in there}
        differing = {ours: theirs for ours, theirs in self.columns.items() if theirs != ours}
        wanted = {ours: theirs for ours, theirs in (named | differing).items() if theirs}
        needs = {name: name for name in REQUIRED} | {n: _NEEDS[n] for n in _NEEDS if n in wanted}
        for name, needed in needs.items():
            if needed not in wanted:
                raise InputError(
                    f"{self.path}: {name!r} is of no use without a column for {needed!r}; "
                    f"name that one in source.columns, or map {name!r} to null"
                )
        return wanted

    def _name(self, ours: str) -> str:
        return self.columns.get(ours) or ours

    def _times(self, table: pa.Table, ours: str) -> pa.ChunkedArray:
        return reading.times(
            table[ours], file=self.path, name=self._name(ours), time_format=self.time_format
        )

    def _events(self, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        codes, set_aside = reading.text(table[CODE]), {}
        if self.code_prefix:
            codes = pc.binary_join_element_wise(self.code_prefix, codes, "")
        columns = {SUBJECT_ID: table[SUBJECT_ID], CODE: canonical(codes)}
        columns[TIME] = self._times(table, TIME)
        if NUMERIC_VALUE in table.column_names:
            columns[NUMERIC_VALUE], unread = reading.numbers(table[NUMERIC_VALUE])
            if unread:
                set_aside["numeric_value_not_a_number"] = unread
        if TEXT_VALUE in table.column_names:
            columns[TEXT_VALUE] = reading.text(table[TEXT_VALUE])
        if VISIT_ID in table.column_names:
            columns[VISIT_ID], _ = reading.identifiers(table[VISIT_ID])
        return reading.as_events(columns), set_aside

    def _usable(self, events: pa.Table) -> tuple[np.ndarray, dict[str, int]]:
        static = compiled(self.static)
        coded = pc.is_valid(events[CODE]).to_numpy()
        timed = pc.is_valid(events[TIME]).to_numpy()
        timed = timed | mask(events[CODE], lambda code: static.search(code) is not None)
        counts = {"no_code": int(np.sum(~coded)), "no_time": int(np.sum(coded & ~timed))}
        return coded & timed, {reason: count for reason, count in counts.items() if count}

    def _visits(self, table: pa.Table, events: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        if "visit_start" not in table.column_names:
            return visits.from_events(
                events,
                file=self.path,
                admission=self.admission,
                discharge=self.discharge,
                max_bad_share=self.max_bad_share,
            )
        rows = np.flatnonzero(pc.is_valid(events[VISIT_ID]).to_numpy())
        stated = events.select([SUBJECT_ID, VISIT_ID]).take(rows).to_pandas()
        start = self._times(table, "visit_start").to_numpy()
        stated["start"], stated["end"] = start[rows], np.datetime64("NaT", "us")
        if "visit_end" in table.column_names:
            stated["end"] = self._times(table, "visit_end").to_numpy()[rows]
        stated["kind"], stated["row"] = "unknown", rows
        if "visit_kind" in table.column_names:
            kinds = reading.text(table["visit_kind"].take(rows)).to_pandas().str.lower()
            stated["kind"] = kinds.where(kinds.isin(visits.KINDS), "unknown").to_numpy()
        found, agreed = _one_row_a_visit(stated)
        columns = (self._name("visit_start"), self._name("visit_end"))
        stays, set_aside = visits.settle(
            found,
            file=self.path,
            columns=columns,
            measured=agreed,
            max_bad_share=self.max_bad_share,
        )
        if not agreed.all():
            set_aside["visits_of_several_dates"] = int(np.sum(~agreed))
        return stays, set_aside

    def _people(self, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """Sex, birth and death as events, and how many subjects have two of one."""
        parts, unsure = [], {}
        for name in ("sex", "birth", "death"):
            if name not in table.column_names:
                continue
            if name == "sex":
                values = reading.text(table[name]).to_pandas()
                values = values.str.lower().map(_SEXES).fillna(values)
            else:
                values = self._times(table, name).to_pandas()
            said = pd.DataFrame({SUBJECT_ID: table[SUBJECT_ID].to_numpy(), name: values})
            each = said.dropna().groupby(SUBJECT_ID)[name].agg(["min", "max"])
            alike = each["min"] == each["max"]
            if not alike.all():
                unsure[f"conflicting_{name}"] = int(np.sum(~alike))
            parts.append(_once(each["min"] if name == "death" else each["min"][alike], name))
        return pa.concat_tables([reading.as_events({SUBJECT_ID: pa.array([])}), *parts]), unsure


def _once(values: pd.Series, name: str) -> pa.Table:
    columns = {SUBJECT_ID: pa.array(values.index, pa.int64())}
    if name == "sex":
        columns[CODE] = pa.array((f"{SEX}//" + values).astype(object), pa.string())
    else:
        columns[CODE] = pa.array([BIRTH if name == "birth" else DEATH] * len(values), pa.string())
        columns[TIME] = pa.array(values.to_numpy("datetime64[us]"))
    return reading.as_events(columns)


def _one_row_a_visit(stated: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """First start and last end of each visit, and whether all of its rows agree on them."""
    found = stated.groupby([SUBJECT_ID, VISIT_ID], as_index=False).agg(
        start=("start", "min"),
        end=("end", "max"),
        last_start=("start", "max"),
        first_end=("end", "min"),
        kind=("kind", "min"),  # "unknown" comes after all the others
        row=("row", "min"),
    )
    agreed = ~((found["last_start"] > found["start"]) | (found["first_end"] < found["end"]))
    brief = (found["kind"] == "outpatient") & found["end"].isna()
    found["end"] = found["end"].where(~brief, found["start"])
    return found, agreed
