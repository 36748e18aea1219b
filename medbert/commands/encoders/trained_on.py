"""Who an encoder was trained on: whether subjects that it is to be judged on were among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medbert.commands.output.artefacts import read_json
from medbert.data.splits import mixed, places
from medbert.data.store import Store
from medbert.data.vocabulary import Vocabulary
from medbert.evaluate.leaks.findings import Finding, not_checked, of_rows
from medbert.model import checkpoint
from medbert.schema import HELD_OUT, NO_TOKEN, SPLITS, STATIC, TRAIN, TUNING, InputError

TRAINED_ON = "trained_on"  # in config.json of an encoder: its ``training_set``
PIECE = 8_192  # records read at once
_LEAST_EVENTS = 5  # that two records share, to be of one person


def training_set(records: Store) -> dict[str, Any]:
    """Who is trained on, without saying who: a hash of all training ids together, and the seed and
    fractions of the splits where they are made by a hash of the id (else null).

    An equal hash proves that the training subjects are the same. Seed and fractions tell of any id
    where it would be, also in a larger extract. Neither knows a person under another id.
    """
    ids = np.sort(records.subject_ids[records.rows(TRAIN)]).astype("<i8")
    told = {"sha256": hashlib.sha256(ids.tobytes()).hexdigest(), "seed": None, "fractions": None}
    made = _settings(records.folder)
    if "seed" in made and "fractions" in made:
        rule = {"seed": made["seed"], "fractions": made["fractions"]}
        if (_by_hash(records.subject_ids, rule) == records.split_of_row).all():
            told.update(rule)
    return told


def seen_in_pretraining(
    records: Store, rows: np.ndarray, split: np.ndarray, encoder_dir: str | Path | None
) -> Finding | None:
    """Subjects (``rows``, of ``split`` tuning or held_out) that the encoder was trained on, or
    held-out ones that it was chosen on, in any store on the way to it.

    Also whether its vocabulary, or that of the store, was counted on others than those of train.
    """
    masks = {"trained on": np.zeros(len(rows), bool), "chosen on": np.zeros(len(rows), bool)}
    anybody, unknown = np.ones(len(rows), bool), "" if encoder_dir else "no encoder was named"
    if _counted_elsewhere(records, records.vocabulary):
        masks["the vocabulary was counted on other subjects than those of train"] = anybody
    for folder in _lineage(encoder_dir):
        told = checkpoint.read_config(folder).get(TRAINED_ON, {}) if folder.is_dir() else {}
        other = _opened(_settings(folder).get("store"), records)
        if other is None:
            same = told.get("sha256") == training_set(records)["sha256"]
            ids, hashed = records.subject_ids[rows], told.get("seed") is not None
            if not same and (not hashed or (_by_hash(ids, told) == TRAIN).any()):
                unknown = "a store that the encoder was trained on cannot be read"
        elif _changed_since(folder, told, other):
            masks["splits have changed since the encoder was trained"] = anybody
        elif other is not records:
            at = _split_there(records, rows, other)
            masks["trained on"] |= at == TRAIN
            masks["chosen on"] |= (at == TUNING) & (split == HELD_OUT)
    found = of_rows("held_out_in_pretraining", masks, split)
    if found is None and unknown:
        cure = "encoder_dir=... with the store it was trained on in its place"
        return not_checked("held_out_in_pretraining", unknown, cure=cure)
    return found


def _changed_since(folder: Path, told: Mapping[str, Any], other: Store) -> bool:
    if told:
        return told["sha256"] != training_set(other)["sha256"]
    there = (folder / "vocabulary.parquet").is_file()
    return there and _counted_elsewhere(other, Vocabulary.load(folder))


def _lineage(encoder_dir: str | Path | None) -> Iterator[Path]:
    """The encoder, and those it was made of."""
    while encoder_dir:
        yield Path(encoder_dir)
        encoder_dir = _settings(Path(encoder_dir)).get("encoder_dir")


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / "settings.json", missing={})


def _by_hash(ids: np.ndarray, rule: Mapping[str, Any]) -> np.ndarray:
    return np.array(SPLITS)[places(ids, seed=rule["seed"], fractions=rule["fractions"])]


def _opened(path: str | None, records: Store) -> Store | None:
    """The store there: ``records`` itself if it is that one, None if it cannot be read."""
    if path is None or not Path(path).is_dir():
        return None
    if Path(path).samefile(records.folder):
        return records
    try:
        return Store(path)
    except InputError:
        return None


def _counted_elsewhere(records: Store, vocabulary: Vocabulary) -> bool:
    """Whether a vocabulary that was fitted on this store counts events that train does not have."""
    fitted_here = _settings(records.folder).get("vocabulary", "unknown") is None
    if not fitted_here or vocabulary.sha256 != records.vocabulary.sha256:
        return False
    counts = np.zeros(len(vocabulary), np.int64)
    for some in pieces(records.rows(TRAIN)):
        token_T = records.history(some).token_T
        counts += np.bincount(token_T[token_T != NO_TOKEN], minlength=len(vocabulary))
    return bool((vocabulary.counts > counts).any())


def _split_there(records: Store, rows: np.ndarray, other: Store) -> np.ndarray:
    """The split that each subject has in the ``other`` store; "" where it is not there.

    The same person has the same record under any id, or, where one of the two goes on for longer,
    under the same id; an id alone is not enough, for every hospital counts from 1.
    """
    (key_S, enough_S), (other_key_S, other_enough_S) = record_keys(records), record_keys(other)
    known = np.flatnonzero(other_enough_S)[np.argsort(other_key_S[other_enough_S])]
    place = np.searchsorted(other_key_S[known], key_S[rows])
    twin = np.r_[known, -1][place]
    same = enough_S[rows] & (twin >= 0) & (other_key_S[twin] == key_S[rows])
    at = np.where(same, twin, other.rows_of(records.subject_ids[rows]))
    for some in pieces(np.flatnonzero(~same & (at >= 0))):
        at[some[~_alike(records, rows[some], other, at[some])]] = -1
    return np.where(at < 0, "", other.split_of_row[at])


def _alike(records: Store, rows: np.ndarray, other: Store, other_rows: np.ndarray) -> np.ndarray:
    """Whether subject i of one store has the record of subject i of the other, or part of it:
    half of the codes of the shorter one, at the same times, and at more than one time."""
    sides = []
    for store, which in ((records, rows), (other, other_rows)):
        row_T, time_T, code_T = timed(store, which)
        own_T = mixed(row_T.astype(np.uint64)) ^ event_keys(store, time_T, code_T)
        distinct, first = np.unique(own_T, return_index=True)
        sides.append((distinct, row_T[first], time_T[first]))
    (key_K, row_K, time_K), (other_key_K, other_row_K, _) = sides
    both = np.isin(key_K, other_key_K)
    shared, *sizes = (
        np.bincount(row, minlength=len(rows)) for row in (row_K[both], row_K, other_row_K)
    )
    moments = np.unique(np.stack([row_K[both], time_K[both]]), axis=1)[0]
    enough = (shared >= _LEAST_EVENTS) & (np.bincount(moments, minlength=len(rows)) > 1)
    return enough & (2 * shared >= np.minimum(*sizes))


# --- hashes of records --------------------------------------------------------------------------


def pieces(rows: np.ndarray) -> list[np.ndarray]:
    """Of rows, those that are read at once."""
    return np.split(rows, range(PIECE, len(rows), PIECE)) if len(rows) else []


def record_keys(records: Store) -> tuple[np.ndarray, np.ndarray]:
    """A hash of the dated inputs of each subject, and whether they are enough to know it by: some
    codes, at more than one time."""
    key_S, enough_S = np.zeros(len(records), np.uint64), np.zeros(len(records), bool)
    for here in pieces(np.arange(len(records))):
        row_T, time_T, code_T = timed(records, here)
        np.add.at(key_S, here[row_T], event_keys(records, time_T, code_T))  # modulo 2**64
        new_T = np.r_[False, (row_T[1:] == row_T[:-1]) & (time_T[1:] > time_T[:-1])][: len(row_T)]
        events, moments = (np.bincount(row_T[m], minlength=len(here)) for m in (..., new_T))
        enough_S[here] = (events >= _LEAST_EVENTS) & (moments > 0)
    return key_S, enough_S


def timed(records: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place in ``rows``, time and code of each dated input of whole records."""
    history = records.history(rows)
    kept = (history.token_T != NO_TOKEN) & (history.time_T != STATIC)
    row_T = np.repeat(np.arange(len(rows)), np.diff(history.offsets_B1))
    return row_T[kept], history.time_T[kept], history.code_T[kept]


def event_keys(records: Store, time_T: np.ndarray, code_T: np.ndarray) -> np.ndarray:
    return mixed(code_keys(records.codes)[code_T] ^ mixed(time_T.astype(np.uint64)))


def code_keys(codes: list[str]) -> np.ndarray:
    """A 64-bit hash of each code, the same in every store."""
    digests = [hashlib.blake2b(code.encode(), digest_size=8).digest() for code in codes]
    return np.frombuffer(b"".join(digests), np.uint64)
