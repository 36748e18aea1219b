"""Histories to padding-free batches of a token budget, lengths grouped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from medbert.data.store import History, Store
from medbert.data.visits import days_between
from medbert.schema import (
    DATES,
    DEATH,
    FEMALE,
    MALE,
    NO_TOKEN,
    SEX,
    STATIC,
    UNKNOWN_SEX,
    Batch,
    InputError,
)

_CHUNK = 20_000  # histories read at once when only their lengths are wanted
_BIN = 1.1  # subjects whose lengths are within this factor may share a batch


class Sequences(Dataset[Batch]):
    """The token sequences of some rows of a store, each cut at its own time.

    Item ``indices`` (an int array) is one `Batch`. ``until`` (microseconds) and ``labels`` have
    one value per row. A history longer than ``max_tokens`` keeps its static codes and the most
    recent others; ``n_shortened`` counts them. ``age_T`` is NaN where there are no dates.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        *,
        until: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        max_tokens: int,
    ) -> None:
        self.store, self.rows, self.until, self.labels = store, np.asarray(rows), until, labels
        self.max_tokens = max_tokens
        chunks = np.split(np.arange(len(rows)), range(_CHUNK, len(rows), _CHUNK))
        full = np.concatenate([np.diff(_tokens_only(self._history(c))[1]) for c in chunks])
        self.lengths = np.minimum(full, max_tokens)
        self.n_shortened = int((full > max_tokens).sum())
        self._death = store.codes.index(DEATH) if DEATH in store.codes else None
        sexes = {f"{SEX}//F": FEMALE, f"{SEX}//M": MALE}
        self._sex_of_code = np.array([sexes.get(c, UNKNOWN_SEX) for c in store.codes], np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: np.ndarray) -> Sequences:
        """Some of them."""
        until, labels = (x if x is None else x[places] for x in (self.until, self.labels))
        how: dict[str, Any] = {"labels": labels, "max_tokens": self.max_tokens}
        return Sequences(self.store, self.rows[places], until=until, **how)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        history = self._history(indices)
        keep, offsets = _tokens_only(history)
        keep, offsets = _most_recent(keep, offsets, history.time_T, self.max_tokens)
        labels = None if self.labels is None else self.labels[indices]
        return Batch(
            tokens_T=torch.from_numpy(history.token_T[keep].astype(np.int64)),
            visit_T=torch.from_numpy(history.visit_T[keep].astype(np.int64)),
            age_T=torch.from_numpy(self._age(history)[keep]),
            offsets_B1=torch.from_numpy(offsets),
            rows_B=torch.from_numpy(np.asarray(indices, dtype=np.int64)),
            stay_V=torch.from_numpy(history.stay_V.astype(np.float32)),
            visit_offsets_B1=torch.from_numpy(history.visit_offsets_B1),
            labels_B=None if labels is None else torch.from_numpy(labels.astype(np.float32)),
            sex_B=torch.from_numpy(self._sex(history)),
            end_B=torch.from_numpy(self._end(history, indices)),
        )

    def _history(self, indices: np.ndarray) -> History:
        until = None if self.until is None else self.until[indices]
        return self.store.history(self.rows[indices], until=until)

    def _sex(self, history: History) -> np.ndarray:
        sex_B = np.full(len(history.birth_B), UNKNOWN_SEX)
        sex_T = self._sex_of_code[history.code_T]
        said = np.flatnonzero(sex_T)
        sex_B[np.searchsorted(history.offsets_B1, said, side="right") - 1] = sex_T[said]
        return sex_B

    def _end(self, history: History, indices: np.ndarray) -> np.ndarray:
        """See ``Batch.end_B``."""
        end_B = np.full(len(indices), self.store.end)
        if self.until is not None:
            end_B = self.until[indices]
        elif self._death is not None:
            died = np.flatnonzero(history.code_T == self._death)
            owner = np.searchsorted(history.offsets_B1, died, side="right") - 1
            end_B[owner] = history.time_T[died]
        days_B = days_between(self._birth(history), end_B)
        n_visits_B = np.diff(history.visit_offsets_B1)
        return np.where(np.isnan(days_B), n_visits_B, days_B).astype(np.float32)

    def _age(self, history: History) -> np.ndarray:
        birth_T = np.repeat(self._birth(history), np.diff(history.offsets_B1))
        return days_between(birth_T, history.time_T).astype(np.float32)

    def _birth(self, history: History) -> np.ndarray:
        dated = self.store.time == DATES
        return history.birth_B if dated else np.full_like(history.birth_B, STATIC)


def _tokens_only(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Which events are tokens (indices), and the offsets of the subjects among them."""
    is_token = history.token_T != NO_TOKEN
    before = np.concatenate([[0], np.cumsum(is_token)])
    return np.flatnonzero(is_token), before[history.offsets_B1]


def _most_recent(
    keep: np.ndarray, offsets: np.ndarray, time_T: np.ndarray, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    if not len(lengths) or lengths.max() <= max_tokens:
        return keep, offsets
    static = time_T[keep] == STATIC
    before = np.concatenate([[0], np.cumsum(static)])
    room = max_tokens - np.minimum(np.diff(before[offsets]), max_tokens)
    from_end = np.repeat(offsets[1:], lengths) - np.arange(len(keep))
    from_start = np.arange(len(keep)) - np.repeat(offsets[:-1], lengths)
    chosen = (static & (from_start < max_tokens)) | (from_end <= np.repeat(room, lengths))
    kept_before = np.concatenate([[0], np.cumsum(chosen)])
    return keep[chosen], kept_before[offsets]


class TokenBudgetSampler(Sampler[np.ndarray]):
    """Yields batches of row indices: at most ``budget`` tokens, subjects of nearly equal length.

    The order is a pure function of ``seed`` and the epoch; the number of batches is the same in
    every epoch. A subject longer than the budget makes a batch of its own. ``start`` batches of
    the next epoch are passed over. Where several processes train, a ``shared`` sampler makes the
    batches of one process: if they are shuffled, each process takes its part of every batch
    (every n-th subject, so that lengths are alike; a batch has at least one for each), else whole
    batches in turn (all of them, where there are fewer than processes).
    """

    def __init__(
        self, lengths: np.ndarray, *, budget: int, seed: int, shuffle: bool, shared: bool = False
    ) -> None:
        self.budget, self.seed, self.shuffle, self.shared = budget, seed, shuffle, shared
        self.epoch, self.start = 0, 0
        bin_of = np.ceil(np.log(np.maximum(lengths, 1)) / np.log(_BIN))
        self._order = np.argsort(bin_of, kind="stable")
        self._bin = bin_of[self._order]
        cost = np.floor(_BIN**self._bin)  # a bound on the length that holds for the whole bin
        self._total = np.cumsum(cost)
        self._bounds: dict[int, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        rank, world = self._place()
        batches = range(len(self._cuts()) - 1)
        return len(batches if self.shuffle or len(batches) < world else batches[rank::world])

    def __iter__(self) -> Iterator[np.ndarray]:
        (rank, world), bounds, order = self._place(), self._cuts(), self._order
        batches, start, self.start = np.arange(len(bounds) - 1), self.start, 0
        if self.shuffle:
            random = np.random.default_rng([self.seed, self.epoch])
            order = order[np.lexsort((random.random(len(order)), self._bin))]
            batches = random.permutation(batches)
        elif len(batches) >= world:
            batches = batches[rank::world]
        part = slice(rank, None, world) if self.shuffle else slice(None)
        for i in batches[start:]:
            yield order[bounds[i] : bounds[i + 1]][part]

    def _place(self) -> tuple[int, int]:
        """Which process this is, and of how many: known only once they have met."""
        if self.shared and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def _cuts(self) -> np.ndarray:
        least = self._place()[1] if self.shuffle else 1
        if least > len(self._total):
            raise InputError(
                f"{len(self._total)} subjects cannot be shared by {least} processes: "
                "set trainer.devices lower"
            )
        if least not in self._bounds:
            self._bounds[least] = _boundaries(self._total, self.budget, least=least)
        return self._bounds[least]


def _boundaries(total: np.ndarray, budget: int, *, least: int = 1) -> np.ndarray:
    """Cuts a running total into consecutive pieces of at most ``budget`` (or ``least`` items)."""
    bounds = [0]
    while bounds[-1] < len(total):
        spent = total[bounds[-1] - 1] if bounds[-1] else 0
        fits = int(np.searchsorted(total, spent + budget, side="right"))
        bounds.append(min(max(fits, bounds[-1] + least), len(total)))
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < least:  # too few are left: from the one before
        bounds[-2] = bounds[-1] - least
        if bounds[-2] - bounds[-3] < least:
            del bounds[-2]
    return np.array(bounds)


def loader(
    data: Sequences, *, budget: int, seed: int = 0, shuffle: bool = False, shared: bool = False
) -> DataLoader:
    """A DataLoader of ready batches; reading is a few array copies, so no worker processes."""
    sampler = TokenBudgetSampler(
        data.lengths, budget=budget, seed=seed, shuffle=shuffle, shared=shared
    )
    return DataLoader(data, batch_size=None, sampler=sampler)
