"""Visits: rebuilt from events, their length of stay, and when their diagnoses become known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.codes import compiled, is_diagnosis, mask
from medbert.schema import CODE, DAY_US, SUBJECT_ID, TIME, VISIT_ID, VISITS, InputError

ADMISSION, DISCHARGE = "^HOSPITAL_ADMISSION", "^HOSPITAL_DISCHARGE"
KINDS = ("inpatient", "emergency", "outpatient")  # the strongest first
BAD_STAY = "discharge_before_admission"

_KEYS = [SUBJECT_ID, VISIT_ID]


def row_name(row: int) -> str:
    """What messages call a row of a file: counted from 1, below the header."""
    return f"row {row + 1}"


def from_events(
    events: pa.Table,
    *,
    file: str,
    admission: str = ADMISSION,
    discharge: str = DISCHARGE,
    max_bad_share: float = 0.01,
    locate: Callable[[int], str] = row_name,
) -> tuple[pa.Table, dict[str, int]]:
    """The VISITS that events with a visit_id belong to, and the counts of stays set aside.

    A visit with an admission code is inpatient, from its first admission to its last discharge
    (end null: none known). ``VISIT//INPATIENT``, ``VISIT//EMERGENCY`` and ``VISIT//OUTPATIENT``
    name the kind of the others; an outpatient visit ends where it starts and lasts 0 days. Any
    other visit spans its first to last event, and its length of stay is unknown.

    Args:
        events: EVENTS in the order of the source.
        file: the source's name in messages.
        admission, discharge: regular expressions of codes.
        max_bad_share: see ``settle``.
        locate: what messages call the i-th event (from 0).
    """
    found = _spans(events, admission=admission, discharge=discharge)
    found["inpatient"] |= found["admitted"]
    found["kind"] = np.select([found[kind] for kind in KINDS], KINDS, default="unknown")
    stay, brief = found["kind"] == "inpatient", found["kind"] == "outpatient"
    found["start"] = found["start"].where(stay, found["first"]).fillna(found["first"])
    found["end"] = found["end"].where(stay, found["last"].where(~brief, found["start"]))
    return settle(
        found,
        file=file,
        columns=("time of the admission code", "time of the discharge code"),
        measured=stay | brief,
        max_bad_share=max_bad_share,
        locate=locate,
    )


def settle(
    visits: pd.DataFrame,
    *,
    file: str,
    columns: tuple[str, str],
    measured: pd.Series | None = None,
    max_bad_share: float = 0.01,
    locate: Callable[[int], str] = row_name,
) -> tuple[pa.Table, dict[str, int]]:
    """VISITS with their length of stay (end - start, in days), by subject and start.

    A stay that ends before it starts gets neither an end nor a length, and is counted.

    Args:
        visits: the columns of VISITS without length_of_stay, and ``row``, where each was read
            (from 0).
        file, columns: the file, and its columns of the start and the end, for messages.
        measured: which visits have a stated end, hence a length; by default all.
        max_bad_share: share of stays with both ends known that may end before they start.
        locate: what messages call a row.

    Raises:
        InputError: more stays than ``max_bad_share`` end before they start.
    """
    visits = visits.copy()
    for name in ("start", "end"):
        visits[name] = visits[name].astype("datetime64[us]")
    bad = (visits["end"] < visits["start"]).to_numpy()
    timed = int(visits[["start", "end"]].notna().all(axis=1).sum())
    if bad.sum() > max_bad_share * timed:
        first = np.sort(visits["row"].to_numpy()[bad])[:5].astype(np.int64)
        named = ", ".join(map(locate, first.tolist()))
        raise InputError(
            f"{file}: {int(bad.sum())} of {timed} visits end before they start ({columns[0]} and "
            f"{columns[1]}; first at {named}), more than max_bad_share={max_bad_share}. The two "
            "are probably swapped: exchange them, or raise max_bad_share to read such visits "
            "with an unknown length of stay"
        )
    visits.loc[bad, "end"] = pd.NaT
    seconds = (visits["end"] - visits["start"]).dt.total_seconds()
    visits["length_of_stay"] = seconds * 1e6 / DAY_US
    if measured is not None:
        visits["length_of_stay"] = visits["length_of_stay"].where(measured)
    visits = visits.sort_values([SUBJECT_ID, "start", VISIT_ID], kind="stable")
    table = pa.Table.from_pandas(visits[VISITS.names], schema=VISITS, preserve_index=False)
    return table.replace_schema_metadata(None), {BAD_STAY: int(bad.sum())} if bad.any() else {}


def known_at_discharge(events: pa.Table, visits: pa.Table) -> tuple[pa.Table, int]:
    """EVENTS with no diagnosis of a visit known before its end, sorted; and how many were moved.

    The diagnoses of a stay are settled and billed at discharge, so they get the later of their
    own time and the end of their visit, where it is known.
    """
    inside = pc.is_valid(events[VISIT_ID]).to_numpy()
    rows = np.flatnonzero(inside & is_diagnosis(events[CODE]))
    stays = events.select(_KEYS).take(rows).to_pandas()
    ends = visits.select([*_KEYS, "end"]).to_pandas()
    end = stays.merge(ends, how="left", on=_KEYS, validate="m:1")["end"].to_numpy("datetime64[us]")
    time = events[TIME].to_numpy().astype("datetime64[us]")
    before = time[rows]
    time[rows] = np.fmax(before, end)  # the other one, where one of the two is missing
    moved = int(np.sum((time[rows] != before) & ~np.isnat(time[rows])))
    column = pa.array(time, events.schema.field(TIME).type)
    return sort_events(events.set_column(events.schema.get_field_index(TIME), TIME, column)), moved


def sort_events(events: pa.Table) -> pa.Table:
    """Events by subject, the static ones first, then by time; otherwise in the order given."""
    subject = events[SUBJECT_ID].to_numpy()
    time = events[TIME].to_numpy().astype("datetime64[us]").view(np.int64)  # null is the least
    step, later = np.diff(subject), time[1:] >= time[:-1]
    if np.all((step > 0) | ((step == 0) & later)):
        return events
    return events.take(np.lexsort((time, subject)))


def _spans(events: pa.Table, *, admission: str, discharge: str) -> pd.DataFrame:
    """First and last time of each visit's events, admissions (start) and discharges (end)."""
    rows = np.flatnonzero(pc.is_valid(events[VISIT_ID]).to_numpy())
    inside = events.select([SUBJECT_ID, TIME, CODE, VISIT_ID]).take(rows)
    time, codes = inside[TIME], inside[CODE]
    admitted, discharged = _matching(codes, admission), _matching(codes, discharge)
    columns = {
        SUBJECT_ID: inside[SUBJECT_ID],
        VISIT_ID: inside[VISIT_ID],
        "first": time,
        "last": time,
        "start": _where(admitted, time),
        "end": _where(discharged, time),
        "row": _where(discharged, pa.array(rows)),
        "admitted": pa.array(admitted),
    }
    columns |= {kind: pa.array(_matching(codes, f"^VISIT//{kind.upper()}")) for kind in KINDS}
    smallest = [(name, "min") for name in ("first", "start", "row")]
    largest = [(name, "max") for name in ("last", "end", "admitted", *KINDS)]
    found = pa.table(columns).group_by(_KEYS).aggregate(smallest + largest).to_pandas()
    found.columns = [name.removesuffix("_min").removesuffix("_max") for name in found.columns]
    return found


def _matching(codes: pa.ChunkedArray, pattern: str) -> np.ndarray:
    expression = compiled(pattern)
    return mask(codes, lambda code: expression.search(code) is not None)


def _where(keep: np.ndarray, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.if_else(pa.array(keep), values, pa.scalar(None, values.type))
