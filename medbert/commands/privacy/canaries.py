"""Canaries of a store: which of its subjects are made up, and what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medbert.commands.output.artefacts import read_json
from medbert.data.store import Store
from medbert.schema import SEX, SPECIAL_TOKENS

CANARIES = "canaries.json"


def planted(folder: Path) -> list[dict[str, Any]]:
    """``subject_ids`` and ``tokens`` of each canary of a store; of a corpus ``repeats``, ``text``,
    ``start`` and ``end``; none of one without."""
    return read_json(folder / CANARIES, missing={"canaries": []})["canaries"]


def real(records: Store, rows: np.ndarray) -> np.ndarray:
    """Which rows are no canaries, (N,) bools."""
    ids = [i for one in planted(records.folder) for i in one["subject_ids"]]
    return ~np.isin(records.subject_ids[rows], ids)


def tokens_of(records: Store) -> np.ndarray:
    """What canaries are made of: tokens of codes without a value, but for sexes, of them the half
    that more subjects have: of a rare outcome canaries would be a great part."""
    sexes = np.array([code.startswith(f"{SEX}//") for code in records.codes])
    tokens = records.token_of_code
    tokens = np.unique(tokens[(tokens >= len(SPECIAL_TOKENS)) & ~sexes])
    n_subjects = records.vocabulary.n_subjects[tokens]
    return tokens[n_subjects >= np.median(n_subjects)] if len(tokens) else tokens


def draw(random: np.random.Generator, tokens: np.ndarray, n: int, n_codes: int) -> np.ndarray:
    """(n, n_codes): distinct tokens in a row, all equally likely."""
    return np.stack([random.choice(tokens, n_codes, replace=False) for _ in range(n)])
