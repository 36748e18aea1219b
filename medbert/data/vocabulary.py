"""Codes to token ids, counted on training subjects only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.schema import NO_TOKEN, SPECIAL_TOKENS, UNK, InputError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which codes become tokens.

    A code is an input when one of ``include`` matches it (regular expressions; none: every code)
    and none of ``exclude`` does. An input code seen in fewer than ``min_subjects`` training
    subjects becomes UNK: rare codes identify people and are never learned.
    """

    min_subjects: int
    include: Sequence[str]
    exclude: Sequence[str]

    def admits(self, codes: Sequence[str]) -> np.ndarray:
        """Boolean, one per code."""
        include = re.compile("|".join(f"(?:{p})" for p in self.include))
        exclude = re.compile("|".join(f"(?:{p})" for p in self.exclude) or r"(?!)")
        return np.array([bool(include.search(c)) and not exclude.search(c) for c in codes], bool)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token ``i`` is ``codes[i]``; the first four are PAD, UNK, MASK, CLS.

    ``counts`` and ``n_subjects`` are over training subjects; UNK counts what it stands for.
    """

    codes: tuple[str, ...]
    counts: np.ndarray
    n_subjects: np.ndarray
    titles: tuple[str | None, ...]
    rule: Rule
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {code: i for i, code in enumerate(self.codes)})

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def sha256(self) -> str:
        """Identity of the vocabulary: its codes in order, and what it leaves out."""
        text = json.dumps([list(self.codes), list(self.rule.include), list(self.rule.exclude)])
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, codes: Sequence[str]) -> np.ndarray:
        """int32 token per code: UNK where unknown, NO_TOKEN where it is no input at all."""
        tokens = np.array([self._index.get(code, UNK) for code in codes], dtype=np.int32)
        return np.where(self.rule.admits(codes), tokens, np.int32(NO_TOKEN))

    def decode(self, tokens: Sequence[int]) -> list[str]:
        return [self.codes[token] for token in tokens]

    def save(self, path: str | Path) -> None:
        rule = {
            "min_subjects": self.rule.min_subjects,
            "include": list(self.rule.include),
            "exclude": list(self.rule.exclude),
        }
        table = pa.table(
            {
                "token": pa.array(range(len(self)), pa.int32()),
                "code": pa.array(self.codes, pa.string()),
                "count": pa.array(self.counts, pa.int64()),
                "n_subjects": pa.array(self.n_subjects, pa.int64()),
                "title": pa.array(self.titles, pa.string()),
            }
        ).replace_schema_metadata({"medbert.rule": json.dumps(rule)})
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads ``vocabulary.parquet``, given itself or the store or encoder folder that has it."""
        file = Path(path) / "vocabulary.parquet" if Path(path).is_dir() else Path(path)
        try:
            table = pq.read_table(file)
            rule = Rule(**json.loads(table.schema.metadata[b"medbert.rule"]))
            codes = tuple(table["code"].to_pylist())
            counts, n_subjects = table["count"].to_numpy(), table["n_subjects"].to_numpy()
            titles = tuple(table["title"].to_pylist())
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{file}: not a medbert vocabulary; name a store/ or an encoder/ folder ({error})"
            ) from error
        if codes[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise InputError(f"{file}: the first tokens must be {SPECIAL_TOKENS}")
        return cls(codes=codes, counts=counts, n_subjects=n_subjects, titles=titles, rule=rule)


def fit(
    codes: Sequence[str],
    *,
    counts: np.ndarray,
    n_subjects: np.ndarray,
    titles: dict[str, str],
    rule: Rule,
) -> Vocabulary:
    """Builds the vocabulary from per-code counts of the training split, most frequent first.

    ``counts`` are events and ``n_subjects`` distinct training subjects of each of ``codes``.
    """
    admitted = rule.admits(codes) & (n_subjects > 0)
    kept = np.flatnonzero(admitted & (n_subjects >= rule.min_subjects))
    if not len(kept):
        raise InputError(
            f"no code is left for the vocabulary: {int(admitted.sum())} of {len(codes)} codes are "
            f"admitted and none of them occurs in {rule.min_subjects} or more training subjects; "
            "lower rule.min_subjects or change rule.include and rule.exclude"
        )
    kept = kept[np.lexsort((np.array(codes)[kept], -counts[kept]))]
    rare = np.flatnonzero(admitted & (n_subjects < rule.min_subjects))
    special = np.zeros(len(SPECIAL_TOKENS), np.int64)
    special[UNK] = counts[rare].sum()
    words = tuple(codes[int(i)] for i in kept)
    return Vocabulary(
        codes=SPECIAL_TOKENS + words,
        counts=np.concatenate([special, counts[kept]]),
        n_subjects=np.concatenate([np.zeros_like(special), n_subjects[kept]]),
        titles=(None,) * len(SPECIAL_TOKENS) + tuple(titles.get(code) for code in words),
        rule=rule,
    )
