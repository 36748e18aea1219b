"""Records to a token store: sort, drop exact repeats, number the visits, encode, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data import splits as subject_splits
from medbert.data import visits
from medbert.data.store import FORMAT, STATIC
from medbert.data.vocabulary import Rule, Vocabulary, fit
from medbert.schema import (
    BIRTH,
    CODE,
    CODES,
    DAY_US,
    DEATH,
    NO_TOKEN,
    NUMERIC_VALUE,
    SPLITS,
    SUBJECT_ID,
    TIME,
    TRAIN,
    UNK,
    VISIT_ID,
    InputError,
    Records,
)

_NO_VISIT = np.iinfo(np.int64).min


def write_store(
    records: Records,
    folder: Path,
    *,
    vocabulary: Rule | Vocabulary,
    splits: pa.Table | None,
    fractions: Sequence[float],
    seed: int,
    shard_subjects: int,
) -> dict[str, Any]:
    """Writes a store into the existing, empty ``folder`` and returns what ``dataset.json`` says.

    A ``Rule`` fits a vocabulary on the training subjects; a ``Vocabulary`` (an encoder's) is used
    as it is. ``splits`` go before the source's own, and those before a hash of the subject id.
    """
    events, stays, changed = _sorted_tables(records)
    subject_ids = np.unique(events[SUBJECT_ID])
    given = records.splits if splits is None else splits
    assigned = subject_splits.assign(subject_ids, fractions=fractions, seed=seed)
    chosen = subject_splits.check(
        assigned if given is None else given, subject_ids, origin="subject splits"
    )

    codes, titles = list(events[CODE].cat.categories), _titles(records)
    counts = _count(events, train=chosen["split"].to_numpy(zero_copy_only=False) == TRAIN)
    if isinstance(vocabulary, Rule):
        vocabulary = fit(codes, **counts, titles=titles, rule=vocabulary)
    tokens = vocabulary.encode(codes)

    vocabulary.save(folder / "vocabulary.parquet")
    pq.write_table(chosen, folder / "subject_splits.parquet")
    _write_codes(folder / "codes.parquet", codes, tokens=tokens, titles=titles, **counts)
    _write_labels(folder / "labels", records)
    shards = _write_shards(folder / "data", events, stays, subject_ids, shard_subjects)

    info = {
        "format": FORMAT,
        "medbert": version("medbert"),
        "time": records.metadata["time"],
        "end": int(events[TIME].max()),
        "vocabulary_sha256": vocabulary.sha256,
        "visit_kinds": list(stays["kind"].cat.categories),
        "counts": {
            "subjects": len(subject_ids),
            **{f"subjects_{s}": chosen["split"].to_pylist().count(s) for s in SPLITS},
            "events": len(events),
            **changed,
            "visits": len(stays),
            "codes": len(codes),
            "vocabulary": len(vocabulary),
            **_tokens(tokens[events[CODE].cat.codes]),
        },
        "source": records.metadata,
        "shards": shards,
    }
    (folder / "dataset.json").write_text(json.dumps(info, indent=2, default=str), "utf-8")
    return info


def _sorted_tables(records: Records) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Events and visits in the order of the store, and counts of what was changed on the way."""
    if not len(records.events):
        raise InputError("the source has no events; check source.path and the column names")
    known, moved = visits.known_at_discharge(records.events, records.visits)
    read = _events_frame(known)
    events = read.drop_duplicates().reset_index(drop=True)
    stays = _numbered(_with_day_visits(events, _visits_frame(records.visits)))
    events["visit"] = _ordinal(events, stays)
    changed = {
        "duplicate_events_dropped": len(read) - len(events),
        "diagnoses_moved_to_discharge": moved,
    }
    return events, stays, changed


def _tokens(token_T: np.ndarray) -> dict[str, float]:
    inputs = token_T[token_T != NO_TOKEN]
    unknown = float((inputs == UNK).mean()) if len(inputs) else 0.0
    return {"tokens": len(inputs), "unknown_share": round(unknown, 6)}


def _events_frame(events: pa.Table) -> pd.DataFrame:
    """Events by subject, static first, then by time, otherwise in the order of the source."""
    code = events[CODE].combine_chunks().dictionary_encode()
    frame = pd.DataFrame(
        {
            SUBJECT_ID: events[SUBJECT_ID].to_numpy(),
            TIME: _microseconds(events[TIME]),
            CODE: pd.Categorical.from_codes(code.indices.to_numpy(), code.dictionary.to_pylist()),
            NUMERIC_VALUE: events[NUMERIC_VALUE].to_numpy(zero_copy_only=False),
            VISIT_ID: events[VISIT_ID].fill_null(_NO_VISIT).to_numpy(),
        }
    )
    return frame.iloc[np.lexsort((frame[TIME], frame[SUBJECT_ID]))]


def _microseconds(times: pa.ChunkedArray) -> np.ndarray:
    return times.to_numpy().astype("datetime64[us]").view(np.int64)


def _visits_frame(visits: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(
        {
            SUBJECT_ID: visits[SUBJECT_ID].to_numpy(),
            VISIT_ID: visits[VISIT_ID].to_numpy(),
            "start": _microseconds(visits["start"]),
            "end": _microseconds(visits["end"]),
            "kind": visits["kind"].to_numpy(zero_copy_only=False),
            "stay": visits["length_of_stay"].to_numpy(zero_copy_only=False).astype(np.float32),
        }
    )


def _with_day_visits(events: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    """Puts timed events outside any visit into one visit per calendar day, of unknown length.

    Birth and death are no visits. Fills ``visit_id`` of ``events`` in place and returns ``stays``
    with the new visits.
    """
    no_visit = [c for c in events[CODE].cat.categories if c.startswith((BIRTH, DEATH))]
    timed = (events[VISIT_ID] == _NO_VISIT) & (events[TIME] != STATIC)
    outside = (timed & ~events[CODE].isin(no_visit)).to_numpy()
    loose = events.loc[outside, [SUBJECT_ID, TIME]]
    day = loose.groupby([SUBJECT_ID, loose[TIME] // DAY_US], sort=False)
    new_id = min(0, stays[VISIT_ID].min() if len(stays) else 0) - 1 - day.ngroup()
    events.loc[outside, VISIT_ID] = new_id
    first = loose.assign(**{VISIT_ID: new_id}).groupby([SUBJECT_ID, VISIT_ID], sort=False)[TIME]
    days = first.min().rename("start").reset_index()
    days = days.assign(end=STATIC, kind="day", stay=np.float32(np.nan))
    return pd.concat([stays, days[list(stays)]], ignore_index=True) if len(days) else stays


def _numbered(stays: pd.DataFrame) -> pd.DataFrame:
    """Visits in time order, with their ``ordinal`` in the subject from 1."""
    stays = stays.sort_values([SUBJECT_ID, "start", VISIT_ID], ignore_index=True)
    stays["kind"] = pd.Categorical(stays["kind"])
    stays["ordinal"] = stays.groupby(SUBJECT_ID).cumcount().astype(np.int32) + np.int32(1)
    return stays


def _ordinal(events: pd.DataFrame, stays: pd.DataFrame) -> np.ndarray:
    """The ordinal of each event's visit; 0 for events outside any."""
    keys = [SUBJECT_ID, VISIT_ID]
    ordinal = events[keys].merge(stays[[*keys, "ordinal"]], how="left", on=keys)["ordinal"]
    lost = ordinal.isna() & (events[VISIT_ID].to_numpy() != _NO_VISIT)
    if lost.any():
        raise InputError(
            f"{int(lost.sum())} events name a visit_id that the visit table does not have for "
            "their subject; a visit belongs to one subject: check the visit_id column"
        )
    return ordinal.fillna(0).astype(np.int32).to_numpy()


def _count(events: pd.DataFrame, *, train: np.ndarray) -> dict[str, np.ndarray]:
    """Events and distinct subjects of each code among training subjects (``train`` per subject)."""
    subject = np.unique(events[SUBJECT_ID], return_inverse=True)[1]
    code = events[CODE].cat.codes.to_numpy().astype(np.int64)
    n_codes = len(events[CODE].cat.categories)
    inside = train[subject]
    pairs = np.unique(subject[inside] * n_codes + code[inside])
    return {
        "counts": np.bincount(code[inside], minlength=n_codes),
        "n_subjects": np.bincount(pairs % n_codes, minlength=n_codes),
    }


def _titles(records: Records) -> dict[str, str]:
    if records.codes is None:
        return {}
    table = records.codes.select(CODES.names)
    pairs = zip(table[CODE].to_pylist(), table["description"].to_pylist(), strict=True)
    return {code: title for code, title in pairs if title}


def _write_codes(
    path: Path,
    codes: list[str],
    *,
    tokens: np.ndarray,
    titles: dict[str, str],
    counts: np.ndarray,
    n_subjects: np.ndarray,
) -> None:
    columns = {
        CODE: pa.array(codes, pa.string()),
        "token": pa.array(tokens, pa.int32()),
        "train_count": pa.array(counts, pa.int64()),
        "train_subjects": pa.array(n_subjects, pa.int64()),
        "title": pa.array([titles.get(code) for code in codes], pa.string()),
    }
    pq.write_table(pa.table(columns), path)


def _write_labels(folder: Path, records: Records) -> None:
    for name, table in records.labels.items():
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")


def _write_shards(
    folder: Path,
    events: pd.DataFrame,
    stays: pd.DataFrame,
    subject_ids: np.ndarray,
    shard_subjects: int,
) -> list[dict[str, Any]]:
    """One Arrow file per ``shard_subjects`` subjects, one record batch each; what was written."""
    folder.mkdir()
    births = events[events[CODE] == BIRTH].groupby(SUBJECT_ID)[TIME].min()
    birth = births.reindex(subject_ids).fillna(STATIC).astype(np.int64).to_numpy()
    shards = []
    for k, first in enumerate(range(0, len(subject_ids), shard_subjects)):
        ids = subject_ids[first : first + shard_subjects]
        batch = _record_batch(events, stays, ids, birth[first : first + shard_subjects])
        file = folder / f"{k}.arrow"
        with pa.ipc.new_file(str(file), batch.schema) as writer:
            writer.write_batch(batch)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": file.name, "bytes": file.stat().st_size, "sha256": digest})
    return shards


def _record_batch(
    events: pd.DataFrame, stays: pd.DataFrame, ids: np.ndarray, birth: np.ndarray
) -> pa.RecordBatch:
    event_offsets, event = _spans(events, ids)
    visit_offsets, visit = _spans(stays, ids)

    def lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    kind = stays["kind"].cat
    kinds = pa.DictionaryArray.from_arrays(
        pa.array(kind.codes[visit], pa.int8()), pa.array(kind.categories, pa.string())
    )
    value = pa.array(events[NUMERIC_VALUE].to_numpy()[event], pa.float32())
    columns = {
        SUBJECT_ID: pa.array(ids, pa.int64()),
        "birth": _timestamps(birth),
        "code": lists(event_offsets, pa.array(events[CODE].cat.codes[event], pa.int32())),
        "time": lists(event_offsets, _timestamps(events[TIME].to_numpy()[event])),
        "value": lists(event_offsets, value),
        "visit": lists(event_offsets, pa.array(events["visit"].to_numpy()[event], pa.int32())),
        "visit_start": lists(visit_offsets, _timestamps(stays["start"].to_numpy()[visit])),
        "visit_end": lists(visit_offsets, _timestamps(stays["end"].to_numpy()[visit])),
        "visit_stay": lists(visit_offsets, pa.array(stays["stay"].to_numpy()[visit])),
        "visit_kind": lists(visit_offsets, kinds),
    }
    return pa.record_batch(columns)


def _spans(frame: pd.DataFrame, ids: np.ndarray) -> tuple[np.ndarray, slice]:
    """Where each of the sorted ``ids`` begins and ends in a frame sorted by subject."""
    subject = frame[SUBJECT_ID].to_numpy()
    first, last = np.searchsorted(subject, ids), np.searchsorted(subject, ids, side="right")
    begin = first[0] if len(ids) else 0
    return np.append(first, last[-1:]) - begin, slice(begin, int(last[-1]) if len(ids) else 0)


def _timestamps(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds.view("datetime64[us]"))  # the smallest integer is NaT, so null
