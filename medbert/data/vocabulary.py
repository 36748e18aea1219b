"""Codes to token ids, counted on training subjects only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data import bins
from medbert.data.bins import Block
from medbert.data.codes import ancestors
from medbert.data.roll_up import Gained, roll_up
from medbert.schema import NO_TOKEN, SPECIAL_TOKENS, UNK, InputError

_NO_PARENTS: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which codes become tokens.

    A code is an input when one of ``include`` matches it (regular expressions; none: every code)
    and none of ``exclude`` does. An input code seen in fewer than ``min_subjects`` training
    subjects is never learned, for rare codes identify people: it becomes UNK or, with ``roll_up``,
    the nearest code above it that enough subjects share. ``value_bins`` > 0: values of a code fall
    into up to so many quantile bins, each a token of its own.
    """

    min_subjects: int
    include: Sequence[str]
    exclude: Sequence[str]
    roll_up: bool = False
    value_bins: int = 0

    def __post_init__(self) -> None:
        if self.value_bins == 1 or not 0 <= self.value_bins <= 30:
            raise InputError(
                f"rule.value_bins={self.value_bins} must be 0 (values are no input) or 2 to 30"
            )

    def admits(self, codes: Sequence[str]) -> np.ndarray:
        """Boolean, one per code."""
        include = re.compile("|".join(f"(?:{p})" for p in self.include))
        exclude = re.compile("|".join(f"(?:{p})" for p in self.exclude) or r"(?!)")
        return np.array([bool(include.search(c)) and not exclude.search(c) for c in codes], bool)


class Tokens(NamedTuple):
    """How the codes of a dataset are encoded: row i of each array is code i.

    ``plain``: int32 token of an event without value, UNK, or NO_TOKEN where the code is no input.
    ``first_bin``: int32 token of the lowest bin, -1 where there are no bins; ``edges``: float32
    between the bins, filled up with inf. Both are None where no code has bins.
    """

    plain: np.ndarray
    edges: np.ndarray | None
    first_bin: np.ndarray | None

    def of(self, code_T: np.ndarray, value_T: np.ndarray) -> np.ndarray:
        """int32 token of each event; ``value_T`` float32, NaN where none."""
        token_T = self.plain[code_T]
        if self.edges is not None and self.first_bin is not None:
            here = np.flatnonzero((self.first_bin[code_T] >= 0) & ~np.isnan(value_T))
            code_H, value_H = code_T[here], value_T[here].astype(np.float32, copy=False)
            token_T[here] = self.first_bin[code_H] + bins.bin_of(self.edges, code_H, value_H)
        return token_T


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token ``i`` is ``codes[i]``; the first four are PAD, UNK, MASK, CLS.

    ``counts`` (events) and ``n_subjects`` are over the training events that are encoded as the
    token; UNK counts what it stands for. Where rarer codes rolled up into a code that is common
    itself, ``n_subjects`` are those of the code itself, which is a lower bound.

    A token ``CODE//Q1``, ``CODE//Q2`` ... stands for ``CODE`` with a value from ``low`` (float32)
    to below ``high``; NaN is no bound. Events without value are ``CODE`` itself, if enough subjects
    have such.
    """

    codes: tuple[str, ...]
    counts: np.ndarray
    n_subjects: np.ndarray
    titles: tuple[str | None, ...]
    low: np.ndarray
    high: np.ndarray
    rule: Rule
    _index: dict[str, int] = field(init=False, repr=False, compare=False)
    _first_bin: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lowest = np.flatnonzero(np.isnan(self.low) & ~np.isnan(self.high)).tolist()
        firsts = {self.codes[token].removesuffix("//Q1"): token for token in lowest}
        object.__setattr__(self, "_index", {code: i for i, code in enumerate(self.codes)})
        object.__setattr__(self, "_first_bin", firsts)

    def __len__(self) -> int:
        return len(self.codes)

    def table(self) -> pd.DataFrame:
        """A line for each token; counts are of the training subjects."""
        counted = {"count": self.counts, "subjects": self.n_subjects}
        return pd.DataFrame({"code": self.codes, "title": self.titles, **counted})

    @property
    def sha256(self) -> str:
        """Identity of the vocabulary: its codes and bins in order, and what it leaves out."""
        bounds = [None if np.isnan(edge) else float(edge) for edge in (*self.low, *self.high)]
        rule = [list(self.rule.include), list(self.rule.exclude), self.rule.roll_up]
        return hashlib.sha256(json.dumps([list(self.codes), bounds, *rule]).encode()).hexdigest()

    def tokens(self, codes: Sequence[str], parents: Mapping[str, Sequence[str]]) -> Tokens:
        """How events of ``codes`` are encoded; ``parents`` as for ``codes.ancestors``."""
        plain = self.encode(codes, parents=parents)
        first = np.array([self._first_bin.get(code, -1) for code in codes], np.int32)
        first[plain == NO_TOKEN] = -1
        ends = np.flatnonzero(np.isnan(self.high))  # a code's last bin has no upper bound
        own = {
            i: self.high[first[i] : ends[np.searchsorted(ends, first[i])]]
            for i in np.flatnonzero(first >= 0)
        }
        if not own:
            return Tokens(plain, None, None)
        edges = np.full((len(codes), max(map(len, own.values()))), np.inf, np.float32)
        for i, between in own.items():
            edges[i, : len(between)] = between
        return Tokens(plain, edges, first)

    def knows(self, codes: Sequence[str]) -> np.ndarray:
        """Boolean, one per code: is it a token itself, or with its values?"""
        return np.array([c in self._index or c in self._first_bin for c in codes], bool)

    def encode(
        self, codes: Sequence[str], *, parents: Mapping[str, Sequence[str]] = _NO_PARENTS
    ) -> np.ndarray:
        """int32 token per code, whatever its value: its own, else that of the nearest code above it
        if the rule rolls up, else UNK; NO_TOKEN where it is no input at all."""
        found = [self._index.get(code, -1) for code in codes]
        for i in [i for i, token in enumerate(found) if token < 0]:
            above = ancestors(codes[i], parents) if self.rule.roll_up else []
            found[i] = next((self._index[code] for code in above if code in self._index), UNK)
        tokens = np.array(found, dtype=np.int32)
        return np.where(self.rule.admits(codes), tokens, np.int32(NO_TOKEN))

    def decode(self, tokens: Sequence[int]) -> list[str]:
        return [self.codes[token] for token in tokens]

    def extended(
        self,
        codes: Sequence[str],
        *,
        counts: np.ndarray,
        n_subjects: np.ndarray,
        titles: Sequence[str | None],
    ) -> Vocabulary:
        """With new codes behind the old ones, which keep their tokens and counts."""
        none = np.full(len(codes), np.nan, np.float32)
        return Vocabulary(
            codes=(*self.codes, *codes),
            counts=np.concatenate([self.counts, counts]),
            n_subjects=np.concatenate([self.n_subjects, n_subjects]),
            titles=(*self.titles, *titles),
            low=np.concatenate([self.low, none]),
            high=np.concatenate([self.high, none]),
            rule=self.rule,
        )

    def save(self, path: str | Path) -> None:
        rule = asdict(self.rule)
        lists = {"include": list(self.rule.include), "exclude": list(self.rule.exclude)}
        table = pa.table(
            {
                "token": pa.array(range(len(self)), pa.int32()),
                "code": pa.array(self.codes, pa.string()),
                "count": pa.array(self.counts, pa.int64()),
                "n_subjects": pa.array(self.n_subjects, pa.int64()),
                "title": pa.array(self.titles, pa.string()),
                "low": pa.array(self.low, pa.float32(), from_pandas=True),
                "high": pa.array(self.high, pa.float32(), from_pandas=True),
            }
        ).replace_schema_metadata({"medbert.rule": json.dumps(rule | lists)})
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads ``vocabulary.parquet``, given itself or the store or encoder folder that has it."""
        file = Path(path) / "vocabulary.parquet" if Path(path).is_dir() else Path(path)
        try:
            table = pq.read_table(file)
            found = cls(
                codes=tuple(table["code"].to_pylist()),
                counts=table["count"].to_numpy(),
                n_subjects=table["n_subjects"].to_numpy(),
                titles=tuple(table["title"].to_pylist()),
                low=table["low"].to_numpy().astype(np.float32),
                high=table["high"].to_numpy().astype(np.float32),
                rule=Rule(**json.loads(table.schema.metadata[b"medbert.rule"])),
            )
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{file}: not a vocabulary of this medbert; name a store/ or an encoder/ folder, "
                f"and make it again if an older version made it ({error})"
            ) from error
        if found.codes[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise InputError(f"{file}: the first tokens must be {SPECIAL_TOKENS}")
        return found


def fit(
    codes: Sequence[str],
    *,
    counts: np.ndarray,
    n_subjects: np.ndarray,
    titles: Mapping[str, str],
    parents: Mapping[str, Sequence[str]],
    rule: Rule,
    scan: Callable[[], Iterator[Block]],
) -> Vocabulary:
    """Builds the vocabulary from the training split, most frequent code first.

    ``counts`` are events and ``n_subjects`` distinct training subjects of each of ``codes``.
    ``scan`` starts a pass over all events of training subjects: one for ``rule.roll_up``, two for
    ``rule.value_bins``. No token is in fewer than ``rule.min_subjects`` subjects: where fewer have
    a code without a value that has bins, that counts as rare, too.
    """
    admitted = rule.admits(codes) & (n_subjects > 0)
    counts, n_subjects = counts.astype(np.int64), n_subjects.astype(np.int64)  # copies
    binned = _binned(codes, admitted & (n_subjects >= rule.min_subjects), parents, rule, scan)
    for i, found in binned.items():
        counts[i], n_subjects[i] = found.plain
    common = admitted & (n_subjects >= rule.min_subjects)
    plain = {codes[i]: Gained(counts[i], n_subjects[i]) for i in np.flatnonzero(common).tolist()}
    loose = admitted & ~common
    unknown = int(counts[loose].sum())
    if rule.roll_up and unknown:
        has_bins = np.isin(np.arange(len(codes)), list(binned))
        gained = roll_up(
            codes,
            loose=loose,
            binned=has_bins,
            kept=plain,
            parents=parents,
            rule=rule,
            scan=scan,
        )
        for code, more in gained.items():
            own = plain.get(code)
            plain[code] = more if own is None else Gained(own.events + more.events, own.n_subjects)
            unknown -= more.events
    if not plain and not binned:
        raise InputError(
            f"no code is left for the vocabulary: {int(admitted.sum())} of {len(codes)} codes are "
            f"admitted and none of them occurs in {rule.min_subjects} or more training subjects; "
            "lower rule.min_subjects or change rule.include and rule.exclude"
        )
    rows = [_Row(code) for code in SPECIAL_TOKENS]
    rows[UNK] = rows[UNK]._replace(events=unknown)
    rows += _in_order(plain, {codes[i]: found for i, found in binned.items()}, titles)
    names, events, subjects, title, low, high = zip(*rows, strict=True)
    return Vocabulary(
        codes=names,
        counts=np.array(events, np.int64),
        n_subjects=np.array(subjects, np.int64),
        titles=title,
        low=np.array(low, np.float32),
        high=np.array(high, np.float32),
        rule=rule,
    )


class _Row(NamedTuple):
    code: str
    events: int = 0
    n_subjects: int = 0
    title: str | None = None
    low: float = np.nan
    high: float = np.nan


def _binned(
    codes: Sequence[str],
    wanted: np.ndarray,
    parents: Mapping[str, Sequence[str]],
    rule: Rule,
    scan: Callable[[], Iterator[Block]],
) -> dict[int, bins.Bins]:
    """The bins of each code (by index) that has some, and whose names for them are not taken."""
    if not rule.value_bins:
        return {}
    taken = {name for code in codes for name in (code, *ancestors(code, parents)) if "//Q" in name}
    numbers = range(1, rule.value_bins + 1)
    free = [not taken or taken.isdisjoint(f"{code}//Q{n}" for n in numbers) for code in codes]
    return bins.fit(
        scan, wanted & np.array(free), bins=rule.value_bins, min_subjects=rule.min_subjects
    )


def _in_order(
    plain: Mapping[str, Gained], binned: Mapping[str, bins.Bins], titles: Mapping[str, str]
) -> list[_Row]:
    """Every code and behind it its bins, by all their events."""

    def events(code: str) -> int:
        inside = int(binned[code].counts.sum()) if code in binned else 0
        return inside + (plain[code].events if code in plain else 0)

    rows = []
    for code in sorted({*plain, *binned}, key=lambda code: (-events(code), code)):
        if code in plain:
            rows.append(_Row(code, *plain[code], titles.get(code)))
        if code in binned:
            edges, counts, n_subjects, _ = binned[code]
            bounds = np.concatenate([[np.nan], edges, [np.nan]])
            for i, between in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
                title = bins.title(titles.get(code, code), *between)
                name = f"{code}//Q{i + 1}"
                rows.append(_Row(name, int(counts[i]), int(n_subjects[i]), title, *between))
    return rows
