"""The token store: one row per subject in memory-mapped Arrow files that any tool can open.

A store folder holds

    data/0.arrow ...         a row per subject: its events and visits as lists, in time order
    codes.parquet            every code of the dataset; the row number is the list entry above
    vocabulary.parquet       the codes that are tokens (``codes.parquet`` says which token each is)
    subject_splits.parquet   train, tuning, held_out
    labels/*.parquet         outcomes that the source itself states
    dataset.json             source, counts, hashes, code version

A store is as private as the records it came from; what leaves a hospital is the encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data import splits as subject_splits
from medbert.data.visits import Stays
from medbert.data.vocabulary import Tokens, Vocabulary
from medbert.schema import CODE, DATES, DAY_US, KINDS, STATIC, SUBJECT_ID, InputError

FORMAT = 2


class History(NamedTuple):
    """Events and visits of B subjects laid end to end; times in microseconds since 1970.

    ``code_T`` indexes ``Store.codes``; ``token_T`` is the vocabulary id or NO_TOKEN; ``time_T`` is
    STATIC for static events; ``visit_T`` counts visits of the subject from 1 (0: none);
    ``stay_V`` in days, NaN where unknown; ``end_V`` is STATIC where unknown.
    """

    code_T: np.ndarray
    token_T: np.ndarray
    time_T: np.ndarray
    value_T: np.ndarray
    visit_T: np.ndarray
    offsets_B1: np.ndarray
    birth_B: np.ndarray
    start_V: np.ndarray
    end_V: np.ndarray
    stay_V: np.ndarray
    kind_V: np.ndarray
    visit_offsets_B1: np.ndarray


class Store:
    """Opens a store folder; nothing is read until it is asked for."""

    window_days: int | None = None  # see ``recent``

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = _read_info(self.folder)
        self.vocabulary = Vocabulary.load(self.folder)
        if self.vocabulary.sha256 != self.info["vocabulary_sha256"]:
            raise InputError(
                f"{self.folder}/vocabulary.parquet is the vocabulary of another dataset (its hash "
                "differs from dataset.json); run `medbert prepare` again"
            )
        codes = pq.read_table(self.folder / "codes.parquet")
        self.codes: list[str] = codes[CODE].to_pylist()
        self.token_of_code = codes["token"].to_numpy()
        tokens = Tokens(self.token_of_code, None, None)
        if self.vocabulary.rule.value_bins:
            tokens = self.vocabulary.tokens(self.codes, {})._replace(plain=self.token_of_code)
        self._tokens = tokens
        self._shards = [_open_shard(self.folder / "data", shard) for shard in self.info["shards"]]
        self._first = np.cumsum([0] + [shard.num_rows for shard in self._shards])
        self.subject_ids = np.concatenate([s[SUBJECT_ID].to_numpy() for s in self._shards])
        splits = subject_splits.read(self.folder / "subject_splits.parquet")
        if not np.array_equal(splits[SUBJECT_ID].to_numpy(), self.subject_ids):
            raise InputError(
                f"{self.folder}/subject_splits.parquet: not the subjects of this store; run "
                "`medbert prepare` again"
            )
        self.split_of_row = splits["split"].to_numpy(zero_copy_only=False)

    def __repr__(self) -> str:
        events, codes = self.info["counts"]["events"], len(self.vocabulary)
        return f"Store({len(self):,} subjects, {events:,} events, a vocabulary of {codes:,} tokens)"

    def __len__(self) -> int:
        return len(self.subject_ids)

    @property
    def time(self) -> str:
        """DATES, or ORDER where times are ordinals without meaning between them."""
        return self.info["time"]

    @property
    def end(self) -> int:
        """The last time of any event, in microseconds: nothing was observed after it."""
        return self.info["end"]

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the subjects of a split."""
        return np.flatnonzero(self.split_of_row == split)

    def rows_of(self, subject_ids: np.ndarray) -> np.ndarray:
        """Row numbers of subjects; -1 for a subject that the store does not have."""
        by_id = self._by_id
        place = np.searchsorted(self.subject_ids, subject_ids, sorter=by_id)
        row = by_id[np.clip(place, 0, len(self) - 1)]
        return np.where(self.subject_ids[row] == subject_ids, row, -1)

    @cached_property
    def _by_id(self) -> np.ndarray:
        return np.argsort(self.subject_ids)

    @cached_property
    def _columns(self) -> list[_Gathered]:
        return [_numpy_columns(shard) for shard in self._shards]

    def recent(self, days: int | None) -> Store:
        """The same store, whose histories begin ``days`` before ``until`` (None: at their first
        event): an observation window, for all that reads it. Raises InputError without dates."""
        if days is not None and (days <= 0 or self.time != DATES):
            cause = "must be more than 0 days" if days <= 0 else "needs dates; the store has none"
            raise InputError(f"{self.folder}: an observation window of {days} days {cause}")
        other = copy(self)
        other.window_days = days
        return other

    def history(self, rows: np.ndarray, *, until: np.ndarray | None = None) -> History:
        """What is known of the subjects at ``rows`` up to and including the times ``until``.

        This is the only place where records are read, and the only one where the future is cut
        off. ``until`` is microseconds per row, or None for whole records (pretraining, and the
        outcomes that labels are made of). A stay that has not ended by then, or whose end is
        unknown, has no known length. In an observation window (``recent``) static events and birth
        stay; visits that were over before it are gone, and the others are counted anew.
        """
        rows = np.asarray(rows, dtype=np.int64)
        shard_B = np.searchsorted(self._first, rows, side="right") - 1
        order = np.argsort(shard_B, kind="stable")
        parts = [
            _gather(self._columns[shard], rows[order][shard_B[order] == shard] - self._first[shard])
            for shard in (np.unique(shard_B) if len(rows) else [0])
        ]
        events, visits, birth_B = _in_order(parts, order)
        if until is not None:
            until = np.asarray(until, dtype=np.int64)
            events = events.kept(events.columns["time_T"] <= events.each(until))
            visits = visits.kept(visits.columns["start_V"] <= visits.each(until))
            if self.window_days is not None:
                events, visits = _since(events, visits, until - self.window_days * DAY_US)
            end_V, stay_V = visits.columns["end_V"], visits.columns["stay_V"]
            ended_V = (end_V != STATIC) & (end_V <= visits.each(until))
            visits.columns["stay_V"] = np.where(ended_V, stay_V, np.float32(np.nan))
            visits.columns["end_V"] = np.where(ended_V, end_V, STATIC)
        event_T, visit_V = events.columns, visits.columns
        visit_V["kind_V"] = np.asarray(self.info["visit_kinds"], dtype=object)[visit_V["kind_V"]]
        return History(
            **event_T,
            token_T=self._tokens.of(event_T["code_T"], event_T["value_T"]),
            offsets_B1=events.offsets,
            birth_B=birth_B,
            **visit_V,
            visit_offsets_B1=visits.offsets,
        )


_EVENT_COLUMNS = {f"{name}_T": name for name in ("code", "time", "value", "visit")}
_VISIT_COLUMNS = {f"{name}_V": f"visit_{name}" for name in ("start", "end", "stay", "kind")}


class _Ragged(NamedTuple):
    """Named columns of items laid end to end, and where each subject starts."""

    columns: dict[str, np.ndarray]
    offsets: np.ndarray

    def each(self, value_B: np.ndarray) -> np.ndarray:
        """The value of the subject of each item."""
        return np.repeat(value_B, np.diff(self.offsets))

    def take(self, rows: np.ndarray) -> _Ragged:
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        out = np.concatenate([[0], np.cumsum(lengths)])
        index = np.arange(out[-1]) + np.repeat(self.offsets[rows] - out[:-1], lengths)
        return _Ragged({name: column[index] for name, column in self.columns.items()}, out)

    def kept(self, keep: np.ndarray) -> _Ragged:
        before = np.concatenate([[0], np.cumsum(keep)])
        columns = {name: column[keep] for name, column in self.columns.items()}
        return _Ragged(columns, before[self.offsets])


_Gathered = tuple[_Ragged, _Ragged, np.ndarray]  # events, visits, birth


def _gather(shard: _Gathered, rows: np.ndarray) -> _Gathered:
    events, visits, birth_B = shard
    return events.take(rows), visits.take(rows), birth_B[rows]


def _in_order(parts: list[_Gathered], order: np.ndarray) -> _Gathered:
    """Joins what was gathered shard by shard and puts the subjects back where they were asked."""
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(order, kind="stable")
    events, visits, births = zip(*parts, strict=True)
    return _join(events).take(back), _join(visits).take(back), np.concatenate(births)[back]


def _join(parts: Sequence[_Ragged]) -> _Ragged:
    names = parts[0].columns
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return _Ragged(columns, np.concatenate([[0], np.cumsum(lengths)]))


def _since(events: _Ragged, visits: _Ragged, since: np.ndarray) -> tuple[_Ragged, _Ragged]:
    """Only the items after ``since`` (one per subject), and static ones; the first visit that goes
    on after it, or that has such an event, becomes number 1."""
    event_T, visit_V = events.columns, visits.columns
    row_T, row_V = (ragged.each(np.arange(len(since))) for ragged in (events, visits))
    late_T = event_T["time_T"] > since[row_T]
    late_V = np.maximum(visit_V["start_V"], visit_V["end_V"]) > since[row_V]
    number_V = np.arange(len(row_V)) - visits.offsets[row_V] + 1
    first, inside_T = np.diff(visits.offsets) + 1, late_T & (event_T["visit_T"] > 0)
    np.minimum.at(first, row_V[late_V], number_V[late_V])
    np.minimum.at(first, row_T[inside_T], event_T["visit_T"][inside_T])
    events = events.kept(late_T | (event_T["time_T"] == STATIC))
    visit_T = events.columns["visit_T"]
    lost_T = events.each(first - 1).astype(visit_T.dtype)
    events.columns["visit_T"] = np.where(visit_T > 0, visit_T - lost_T, visit_T)
    return events, visits.kept(number_V >= first[row_V])


# --- files --------------------------------------------------------------------------------------


def write_subjects(
    file: Path, ids: np.ndarray, birth: np.ndarray, events: dict[str, np.ndarray], stays: Stays
) -> dict[str, Any]:
    """A row per subject; events and visits, sorted by subject, as lists. Returns what
    ``dataset.json`` says of the file."""
    edges = np.arange(len(ids) + 1)
    event_offsets = pa.array(np.searchsorted(events["subject"], edges), pa.int32())
    visit_offsets = pa.array(np.searchsorted(stays.subject, edges), pa.int32())
    value = events.get("value", np.full(len(events["code"]), np.nan, np.float32))
    kinds = pa.DictionaryArray.from_arrays(pa.array(stays.kind, pa.int8()), pa.array(KINDS))
    lists = pa.ListArray.from_arrays
    batch = pa.record_batch(
        {
            SUBJECT_ID: pa.array(ids, pa.int64()),
            "birth": _timestamps(birth),
            "code": lists(event_offsets, pa.array(events["code"], pa.int32())),
            "time": lists(event_offsets, _timestamps(events["time"])),
            "value": lists(event_offsets, pa.array(value, pa.float32())),
            "visit": lists(event_offsets, pa.array(events["visit"], pa.int32())),
            "visit_start": lists(visit_offsets, _timestamps(stays.start)),
            "visit_end": lists(visit_offsets, _timestamps(stays.end)),
            "visit_stay": lists(visit_offsets, pa.array(stays.stay, pa.float32())),
            "visit_kind": lists(visit_offsets, kinds),
        }
    )
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with file.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": digest}


def _timestamps(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds.view("datetime64[us]"))  # the smallest integer is NaT, so null


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        raise InputError(f"{file}: not found, so {folder} is no store; make one: medbert prepare")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); run `medbert prepare` again") from error
    if info.get("format") != FORMAT:
        raise InputError(
            f"{file}: store format {info.get('format')!r}, this medbert reads {FORMAT}; "
            "run `medbert prepare` again"
        )
    return info


def _open_shard(folder: Path, shard: dict[str, Any]) -> pa.RecordBatch:
    file = folder / shard["file"]
    cure = "the file is truncated or damaged; run `medbert prepare` again"
    try:
        if file.stat().st_size != shard["bytes"]:
            raise InputError(
                f"{file}: {file.stat().st_size} bytes where dataset.json says {shard['bytes']}: "
                + cure
            )
        return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: {cure} ({error})") from error


def _numpy_columns(batch: pa.RecordBatch) -> _Gathered:
    """Views of a shard's memory map; nothing is copied."""

    def ragged(names: dict[str, str]) -> _Ragged:
        columns = {ours: _numpy(batch[name].values) for ours, name in names.items()}
        return _Ragged(columns, batch[next(iter(names.values()))].offsets.to_numpy())

    return ragged(_EVENT_COLUMNS), ragged(_VISIT_COLUMNS), _numpy(batch["birth"])


def _numpy(array: pa.Array) -> np.ndarray:
    if pa.types.is_timestamp(array.type):
        # numpy spells a null time as the smallest integer, which is STATIC
        return array.to_numpy(zero_copy_only=False).view(np.int64)
    return (array.indices if pa.types.is_dictionary(array.type) else array).to_numpy()
