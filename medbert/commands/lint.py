"""``medbert lint``: leaks in a task's cohort, looked for before anything is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import sparse

from medbert.commands.encoders import trained_on
from medbert.commands.encoders.classifier import Rows, by_split
from medbert.commands.finetune import Task
from medbert.commands.output.artefacts import artefact, write_json
from medbert.data.batches import Sequences
from medbert.data.codes import is_diagnosis, matches
from medbert.data.counts import ROLLED_UP, Counts, count_codes
from medbert.data.store import History, Store
from medbert.data.tasks.cohorts import NEVER
from medbert.data.tasks.outcomes import CodeInVisit, NewPhenotypes
from medbert.evaluate.leaks import leakage
from medbert.evaluate.leaks.findings import Finding, not_checked, of_rows, refuse, rich_table
from medbert.schema import (
    DATES,
    DAY_US,
    DEATH,
    HELD_OUT,
    NO_TOKEN,
    SPECIAL_TOKENS,
    STATIC,
    TRAIN,
    TUNING,
)

log = logging.getLogger(__name__)

_WINDOWS = (None, 365)  # of the counts that are looked at one by one
_NAMED_VISITS = ("inpatient", "emergency", "outpatient", "unknown")  # as the source has them
_LEAST_CODES = 8  # of visits that are compared
_NO_DATES = "the store knows no dates, and without them two records are soon alike by chance"


def lint(
    *,
    store: str,
    task: Task,
    encoder_dir: str | None,
    outcome: Sequence[str] | None,
    allow: Sequence[str],
    min_count: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> list[Finding]:
    """Writes ``out`` (lint.json), shows the findings and returns them.

    Raises InputError where a finding is an error and not among ``allow``; the folder stays.
    """
    refuse([], allow=allow, where=out)
    records = Store(store)
    splits = by_split(records, task.build(records))
    codes, washout_days = washed_out(getattr(task, "outcome", None))
    found = leaks(
        records,
        splits,
        outcome=codes if outcome is None else outcome,
        washout_days=washout_days if outcome is None else None,
        encoder_dir=encoder_dir,
    )
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        told = [one.to_dict(min_count=min_count) for one in found]
        write_json(folder / "lint.json", {"allowed": [*allow], "findings": told})
    Console().print(rich_table(found, min_count=min_count))
    refuse(found, allow=allow, where=f"{out}/lint.json")
    log.info("made %s; next: medbert finetune store=%s out=run/", out, store)
    return found


def washed_out(outcome: Any) -> tuple[Sequence[str], int | None]:
    """The codes that a task's rows may not have had before, and in how many days (None: ever).

    No codes where the outcome is not made of them alone, or may have been there before.
    """
    if isinstance(outcome, NewPhenotypes) and outcome.only is not None:
        outcome = outcome.each()[outcome.only]
    days = getattr(outcome, "washout_days", None)
    by_value = [getattr(outcome, bound, None) for bound in ("min_value", "max_value")]
    if isinstance(outcome, CodeInVisit) or days == 0 or by_value != [None, None]:
        return (), None
    return getattr(outcome, "codes", ()), days


def leaks(
    records: Store,
    splits: Mapping[str, Rows],
    *,
    outcome: Sequence[str] = (),
    washout_days: int | None = None,
    features: Mapping[str, Counts] | None = None,
    encoder_dir: str | Path | None = None,
) -> list[Finding]:
    """Every finding about the labelled rows of ``splits``, and what could not be looked for.

    ``outcome``: patterns of codes that no history may hold (in the ``washout_days`` before the
    prediction time; None: ever). ``features``: the counts that models are given, by split; those of
    train are made here where there are none.
    """
    rows = Rows(*(np.concatenate(part) for part in zip(*splits.values(), strict=True)))
    split = np.repeat(np.array([*splits], object), [len(part.rows) for part in splits.values()])
    counts, train = dict(features or {}), splits[TRAIN]
    if TRAIN not in counts:
        windows = list(_WINDOWS)
        counts[TRAIN] = count_codes(records, train.rows, until=train.until, window_days=windows)
    seen = _look(records, rows, outcome, washout_days)
    late = {kind.removeprefix("late "): seen[kind] for kind in seen if kind.startswith("late ")}
    late["counts of codes"] = np.zeros(len(split), bool)
    for name, given in counts.items():
        late["counts of codes"][split == name] = _counted(given) > seen["known"][split == name]
    end = max(records.end, int(seen["end"].max(initial=STATIC)))
    judged = [np.unique(rows.rows[split == name]) for name in (TUNING, HELD_OUT)]
    judged_in = np.repeat(np.array([TUNING, HELD_OUT], object), [len(some) for some in judged])
    no_outcome = not_checked(
        "outcome_in_history", "no codes are known to be new with the outcome", cure="outcome=[CODE]"
    )
    found = [
        of_rows("codes_after_index", late, split),
        of_rows("outcome_in_history", seen["outcome"], split) if outcome else no_outcome,
        trained_on.seen_in_pretraining(records, np.concatenate(judged), judged_in, encoder_dir),
        *_copies(records),
        _alone(records, train, counts[TRAIN], seen["newest"][split == TRAIN]),
        leakage.prevalence_differs(rows.labels, rows.rows, split),
        *leakage.rows_of_subjects(rows.rows, rows.until, rows.labels, split),
        leakage.time_order(rows.until, split, birth=seen["birth"], death=seen["death"], end=end),
    ]
    return [one for one in found if one is not None]


# --- what models are given, beside whole records ------------------------------------------------


def _look(
    records: Store, rows: Rows, outcome: Sequence[str], washout_days: int | None
) -> dict[str, np.ndarray]:
    """Of each row: whether the ``outcome`` is in its history, how many ``known`` codes are, the
    time of the ``newest``, ``birth``, ``death`` and ``end`` of the visits; what was ``late ...``.
    """
    no_limit = np.iinfo(np.int32).max
    data = Sequences(records, rows.rows, until=rows.until, max_tokens=no_limit)
    diagnosis, death = is_diagnosis(records.codes), matches(records.codes, [f"^{DEATH}"])
    wanted = matches(records.codes, list(outcome)) if outcome else np.zeros(len(death), bool)
    parts = []
    for here in trained_on.pieces(np.arange(len(rows.rows))):
        until, n = rows.until[here], len(here)
        whole = records.history(rows.rows[here])
        given = records.history(rows.rows[here], until=until)
        row_T, row_V = _owner(whole.offsets_B1), _owner(whole.visit_offsets_B1)
        of_T = _owner(given.offsets_B1)
        told_T = wanted[given.code_T]
        if washout_days is not None:
            told_T &= given.time_T > until[of_T] - washout_days * DAY_US
        known_T = whole.time_T <= until[row_T]
        code_T, died_T = known_T & (whole.token_T >= len(SPECIAL_TOKENS)), death[whole.code_T]
        token_T = known_T & (whole.token_T != NO_TOKEN)
        in_sequence = data[here].lengths_B.numpy()
        parts.append(
            {
                **_late(whole, given, until, diagnosis),
                "late codes in sequences": in_sequence > np.bincount(row_T[token_T], minlength=n),
                "outcome": _any(of_T, told_T, n),
                "known": np.bincount(row_T[code_T], minlength=n),
                "newest": _per_row(np.maximum, of_T, given.time_T, start=STATIC, n=n),
                "birth": whole.birth_B,
                "death": _per_row(
                    np.minimum, row_T[died_T], whole.time_T[died_T], start=NEVER, n=n
                ),
                "end": _per_row(np.maximum, row_V, whole.end_V, start=STATIC, n=n),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _late(
    whole: History, given: History, until: np.ndarray, diagnosis: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of which ``given`` tells something that is after ``until``, or known only after it."""
    row_V, of_V = _owner(whole.visit_offsets_B1), _owner(given.visit_offsets_B1)
    of_T = _owner(given.offsets_B1)
    n, going_V, begun_V = len(until), whole.end_V > until[row_V], whole.start_V <= until[row_V]
    told_V = ~np.isnan(given.stay_V)
    if len(told_V) == begun_V.sum():  # else visits are late, and are told so
        told_V &= going_V[begun_V]
    open_V = np.r_[going_V & np.isin(whole.kind_V, _NAMED_VISITS), False]
    place_T = np.where(given.visit_T > 0, whole.visit_offsets_B1[of_T] + given.visit_T - 1, -1)
    later_V = (given.start_V > until[of_V]) | (given.end_V > until[of_V])
    return {
        "late codes": _any(of_T, given.time_T > until[of_T], n),
        "late visits": _any(of_V, later_V, n),
        "late lengths of stay": _any(of_V, told_V, n),
        "late diagnoses of a stay that goes on": _any(
            of_T, diagnosis[given.code_T] & open_V[place_T], n
        ),
    }


def _alone(records: Store, train: Rows, counts: Counts, newest: np.ndarray) -> Finding | None:
    """Every code by its presence, count and last time, and what else a model could go by."""
    history, names = records.history(train.rows, until=train.until), list(records.vocabulary.codes)
    row_T = _owner(history.offsets_B1)
    kept = (history.token_T >= len(SPECIAL_TOKENS)) & (history.time_T != STATIC)
    kept &= records.time == DATES
    row_K, token_K = row_T[kept][::-1], history.token_T[kept][::-1]  # latest first
    days_K = (train.until[row_K] - history.time_T[kept][::-1]) / DAY_US
    place, first = np.unique(row_K * len(names) + token_K, return_index=True)
    shape = (len(train.rows), len(names))
    recency = sparse.csr_matrix((1 / (1 + days_K[first]), np.divmod(place, len(names))), shape)
    blocks = {
        "present": (counts.codes.astype(bool).astype(np.float32), counts.names),
        "count": (counts.codes, counts.names),
        "time since the last": (recency, names),
    }
    dense = {
        "age": counts.age,
        "sex": counts.female,
        "number of codes": np.diff(history.offsets_B1).astype(float),
        "number of visits": np.diff(history.visit_offsets_B1).astype(float),
        "prediction time": train.until.astype(float),
        "time since the last code": np.where(newest == STATIC, np.nan, train.until - newest),
    }
    return leakage.single_feature(blocks, dense, train.labels)


def _counted(given: Counts) -> np.ndarray:
    """How many codes of the whole history were counted in each row; 0 where only windows were."""
    whole = np.flatnonzero(
        [" (last " not in name and not name.endswith(ROLLED_UP) for name in given.names]
    )
    return np.asarray(given.codes[:, whole].sum(axis=1)).ravel()


# --- subjects and visits that are there twice ---------------------------------------------------


def _copies(records: Store) -> list[Finding | None]:
    """Subjects, and visits of other subjects, with a copy in another split."""
    names = ("duplicate_subjects", "near_identical_visits")
    if records.time != DATES:
        cure = "compare the source's own identifiers"
        return [not_checked(name, _NO_DATES, cure=cure) for name in names]
    key_S, enough_S = trained_on.record_keys(records)
    twin_S = leakage.twins(key_S, enough_S, records.split_of_row)
    key_C = trained_on.code_keys(records.codes)
    codes, days, subjects, sizes = [], [], [], []
    for here in trained_on.pieces(np.arange(len(records))):
        row_T, time_T, code_T = trained_on.timed(records, here)
        day_T = time_T // DAY_US
        new = np.r_[True, (row_T[1:] != row_T[:-1]) | (day_T[1:] != day_T[:-1])][: len(row_T)]
        first, n_codes = np.flatnonzero(new), len(key_C)
        distinct = np.unique((np.cumsum(new) - 1) * n_codes + code_T)
        size = np.bincount(distinct // n_codes, minlength=len(first))
        large = (size >= _LEAST_CODES) & ~twin_S[here[row_T[first]]]
        codes.append(key_C[distinct[large[distinct // n_codes]] % n_codes])
        days.append(day_T[first][large])
        subjects.append(here[row_T[first]][large])
        sizes.append(size[large])
    subject_V = np.concatenate(subjects)
    return [
        of_rows(names[0], twin_S, records.split_of_row),
        leakage.near_identical_visits(
            np.concatenate(codes),
            np.repeat(np.arange(len(subject_V)), np.concatenate(sizes)),
            day_V=np.concatenate(days),
            subject_V=subject_V,
            split_V=records.split_of_row[subject_V],
        ),
    ]


# --- subjects laid end to end -------------------------------------------------------------------


def _owner(offsets: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _any(row_I: np.ndarray, mask_I: np.ndarray, n: int) -> np.ndarray:
    """Which of ``n`` rows own an item of the mask."""
    return np.bincount(row_I[mask_I], minlength=n) > 0


def _per_row(
    extreme: np.ufunc, row_I: np.ndarray, value_I: np.ndarray, *, start: int, n: int
) -> np.ndarray:
    out = np.full(n, start)
    extreme.at(out, row_I, value_I)
    return out
