"""``medbert audit plant``: a copy of a store with made-up subjects, to see what is memorised."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.commands.output.artefacts import artefact, read_json, write_json
from medbert.commands.privacy.canaries import CANARIES, draw, planted, tokens_of
from medbert.data.splits import places
from medbert.data.store import Store, write_subjects
from medbert.data.visits import Stays
from medbert.schema import (
    DATES,
    DAY_US,
    KINDS,
    SPLITS,
    STATIC,
    SUBJECT_SPLITS,
    TRAIN,
    InputError,
)

log = logging.getLogger(__name__)

_SHARD, _AGE_DAYS, _APART_DAYS = "canaries.arrow", 60 * 365, 30


def audit_plant(
    *,
    store: str,
    repeats: Sequence[int],
    n_canaries: int,
    n_codes: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out``, the store with canaries among its training subjects, and returns it.

    For each of ``repeats``, ``n_canaries`` sequences of ``n_codes`` codes drawn at random, each the
    record of so many subjects (Carlini et al. 2019, arXiv 1802.08232). All are alike but for their
    codes. ``canaries.json`` tells them; vocabulary and counts stay those of the real subjects, and
    the settings of ``prepare`` stand for its own.
    """
    records, random = Store(store), np.random.default_rng(seed)
    if planted(records.folder):
        raise InputError(f"{store}: has canaries already; plant in the store that it was made of")
    tokens = tokens_of(records)
    if not 0 < n_codes <= len(tokens):
        raise InputError(f"n_codes={n_codes}: {store} has {len(tokens)} codes to draw from")
    times = np.repeat(repeats, n_canaries)
    drawn = draw(random, tokens, len(times), n_codes)
    begun = read_json(records.folder / "settings.json")
    ids = _new_ids(records, begun, random, int(times.sum()))
    with artefact(out, overwrite=overwrite, settings=begun) as folder:
        ours = shutil.ignore_patterns("settings.json", "environment.json")
        shutil.copytree(store, folder, ignore=ours, dirs_exist_ok=True)
        _add_shard(records, folder, ids, np.repeat(drawn, times, axis=0))
        owners = np.split(ids, np.cumsum(times)[:-1])
        told = [
            {"subject_ids": own.tolist(), "tokens": codes.tolist()}
            for own, codes in zip(owners, drawn, strict=True)
        ]
        write_json(folder / CANARIES, {"canaries": told})
    log.info("made %s; next: medbert pretrain store=%s out=encoder/, then medbert audit", out, out)
    return Path(out)


def _new_ids(
    records: Store, begun: dict[str, Any], random: np.random.Generator, n: int
) -> np.ndarray:
    """Ids that nobody has; where splits are by a hash of the id, such as it puts into train."""
    ids = np.unique(random.integers(2**40, 2**60, 1000 + 1000 * n))
    ids = ids[records.rows_of(ids) < 0]
    if begun.get("splits") is None and "fractions" in begun:
        split = places(ids, fractions=begun["fractions"], seed=begun["seed"])
        ids = ids[split == SPLITS.index(TRAIN)]
    return random.permutation(ids)[:n]


def _add_shard(records: Store, folder: Path, ids: np.ndarray, tokens: np.ndarray) -> None:
    """A code a visit, visits a month apart up to the end of the records."""
    n, length = tokens.shape
    code_of = np.zeros(len(records.vocabulary), np.int64)
    known = np.flatnonzero(records.token_of_code >= 0)
    code_of[records.token_of_code[known]] = known
    dated = records.time == DATES
    apart = DAY_US * (_APART_DAYS if dated else 1)
    time = np.tile(records.end - apart * np.arange(length)[::-1], n)
    birth = np.full(n, time[0] - _AGE_DAYS * DAY_US if dated else STATIC)
    subject, visit = np.repeat(np.arange(n), length), np.tile(np.arange(1, length + 1), n)
    events = {"subject": subject, "code": code_of[tokens].ravel(), "time": time, "visit": visit}
    kind = np.full(len(time), KINDS.index("outpatient"))
    stays = Stays(subject, time, time, np.zeros(len(time), np.float32), kind)
    shard = write_subjects(folder / "data" / _SHARD, ids, birth, events, stays)
    splits = pq.read_table(folder / "subject_splits.parquet")
    added = pa.table([ids, np.full(n, TRAIN)], SUBJECT_SPLITS)
    pq.write_table(pa.concat_tables([splits, added]), folder / "subject_splits.parquet")
    info = {**records.info, "shards": [*records.info["shards"], shard]}
    more = {"subjects": n, f"subjects_{TRAIN}": n, "events": n * length, "visits": n * length}
    counts = info["counts"]
    info["counts"] = {**counts, **{name: counts[name] + by for name, by in more.items()}}
    write_json(folder / "dataset.json", info)
