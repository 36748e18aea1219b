"""Counts of codes in a history: what the baselines see, on the rows the encoder sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from medbert.data.codes import ancestors
from medbert.data.store import History, Store
from medbert.data.visits import days_between
from medbert.schema import DATES, DAY_US, DAYS_PER_YEAR, SEX, SPECIAL_TOKENS, TRAIN

ROLLED_UP = " (and below)"
MONTHS = (0, 15, 30, 60, 90, 180, 270, 365, 545, 730, 1095)  # days
COUNTED = 50_000  # subjects
_AGE_CODE = "AGE//"  # where a source knows an age band but no birth; its value is the middle


class Counts(NamedTuple):
    """``codes``: CSR (rows, windows x vocabulary) counts; ``age`` in years, NaN where unknown;
    ``female``: 1, 0, NaN where unknown; ``names`` of the columns of ``codes``; ``sets``: how many
    columns, from the first, each of the feature sets has, the smallest first."""

    codes: sparse.csr_matrix
    age: np.ndarray
    female: np.ndarray
    names: list[str]
    sets: Mapping[str, int]

    def at(self, rows: np.ndarray) -> Counts:
        """Some of the rows."""
        codes, age, female = (part[rows] for part in self[:3])
        return Counts(codes, age, female, self.names, self.sets)


def count_codes(
    store: Store,
    rows: np.ndarray,
    *,
    until: np.ndarray,
    window_days: list[int | None],
    roll_up: bool = False,
) -> Counts:
    """Counts each token in the history of ``rows`` until ``until``, in each window before it.

    A window of None is the whole history; where the store has no dates only that one is used.
    ``roll_up`` adds, for the first window, counts of each code above others with all below it.
    """
    history = store.history(rows, until=until)
    n_rows, n_codes = len(rows), len(store.vocabulary)
    row_T = np.repeat(np.arange(n_rows), np.diff(history.offsets_B1))
    is_code = history.token_T >= len(SPECIAL_TOKENS)
    windows = [w for w in window_days if w is None or store.time == DATES]
    blocks, names = [], []
    for window in windows:
        inside = is_code.copy()
        if window is not None:
            inside &= history.time_T > until[row_T] - window * DAY_US
        place = (row_T[inside], history.token_T[inside])
        ones = np.ones(int(inside.sum()), np.float32)
        block = sparse.coo_matrix((ones, place), shape=(n_rows, n_codes)).tocsr()
        blocks.append(block[:, len(SPECIAL_TOKENS) :])
        when = "" if window is None else f" (last {window} d)"
        names += [code + when for code in store.vocabulary.codes[len(SPECIAL_TOKENS) :]]
    sets = {"first window": len(names) // len(windows)}
    sets |= {"all windows": len(names)} if len(windows) > 1 else {}
    if roll_up:
        above, below_KA = _roll_ups(store.vocabulary.codes[len(SPECIAL_TOKENS) :])
        blocks.append(blocks[0] @ below_KA)
        names += [name + ROLLED_UP for name in above]
        sets |= {f"{[*sets][-1]} and roll-ups": len(names)} if above else {}
    return Counts(
        codes=sparse.hstack(blocks, format="csr"),
        age=_age(store, history, row_T, until),
        female=_female(store, history, row_T, n_rows),
        names=names,
        sets=sets,
    )


def first_of_cases(store: Store, tokens: np.ndarray) -> tuple[tuple[float, float], ...]:
    """A disease is written with several of its codes: in a subject that has had none of ``tokens``
    at a moment, which share of those that come so long afterwards is the first to come?

    (from day, share) pairs; where a store has no dates a visit is a day. With G(t) further codes a
    case within t of the first one, codes come 1 + G(t) times as often as cases do, t after the
    moment. Counted in up to 50,000 training subjects, whole records.
    """
    rows = store.rows(TRAIN)[:COUNTED]
    knots = np.array(MONTHS if store.time == DATES else range(5), float)
    within = (knots + np.append(knots[1:], 2 * knots[-1])) / 2  # the middle of each piece
    cases, further = 0, np.zeros(len(knots))
    for begin in range(0, len(rows), COUNTED // 5):
        history = store.history(rows[begin : begin + COUNTED // 5])
        place = np.flatnonzero(np.isin(history.token_T, tokens))
        row = np.searchsorted(history.offsets_B1, place, side="right") - 1
        when = history.time_T[place] / DAY_US if store.time == DATES else history.visit_T[place]
        table = pd.DataFrame({"row": row, "token": history.token_T[place], "when": when})
        came = table.groupby(["row", "token"], sort=False)["when"].min()
        delay = came - came.groupby("row").transform("min")
        cases += came.index.unique("row").size
        further += (delay.to_numpy()[:, None] <= within).sum(0)
    codes = further / cases if cases else np.ones(len(knots))
    return tuple(zip(knots.tolist(), (1 / codes).tolist(), strict=True))


def _roll_ups(codes: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """The codes above two or more of ``codes``, and which these are: (codes, codes above). Of codes
    above the same ones only the nearest is there."""
    below: dict[str, list[int]] = {}
    for place, code in enumerate(codes):
        for above in (code, *ancestors(code, {})):
            below.setdefault(above, []).append(place)
    groups = {tuple(places): above for above, places in below.items() if len(places) > 1}
    sizes = [len(places) for places in groups]
    at = np.array([place for places in groups for place in places], np.int64)
    columns = np.repeat(np.arange(len(groups)), sizes)
    pairs = np.ones(len(at), np.float32), (at, columns)
    return list(groups.values()), sparse.csr_matrix(pairs, (len(codes), len(groups)))


def _age(store: Store, history: History, row_T: np.ndarray, until: np.ndarray) -> np.ndarray:
    if store.time == DATES:
        return days_between(history.birth_B, until) / DAYS_PER_YEAR
    age = np.full(len(until), np.nan)
    is_band = np.array([code.startswith(_AGE_CODE) for code in store.codes])[history.code_T]
    age[row_T[is_band]] = history.value_T[is_band]  # in time order, so the latest one stays
    return age


def _female(store: Store, history: History, row_T: np.ndarray, n_rows: int) -> np.ndarray:
    female = np.full(n_rows, np.nan)
    for code, value in ((f"{SEX}//F", 1.0), (f"{SEX}//M", 0.0)):
        if code in store.codes:
            female[row_T[history.code_T == store.codes.index(code)]] = value
    return female
