"""Rows of packed pieces to padding-free batches, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from medbert.schema import InputError
from medbert.text.encoders.masks import Free, Replacement, Words
from medbert.text.encoders.pieces import WORD, Frame, Pieces, Tokens, cut, pack, pair

_WIDTH = 8  # rows of a batch are as wide as its longest one, rounded up to this


class TextBatch(NamedTuple):
    """T tokens of P pieces laid end to end, M of them hidden; rows say only which share attention.

    tokens_T int64 as they are shown; place_T int64 into the grid of rows x ``width``; piece_T,
    position_T int64 (from 0 in each piece), kind_T int64 (1: the second part of a pair); rows_B
    int64; hidden_M int64 into T; target_M int64 what they are; text_M int64 whose they are;
    first_P, random_P: of each pair its first token, and whether its second part is from elsewhere.
    """

    tokens_T: Tensor
    place_T: Tensor
    piece_T: Tensor
    position_T: Tensor
    kind_T: Tensor
    rows_B: Tensor
    hidden_M: Tensor
    target_M: Tensor
    text_M: Tensor
    first_P: Tensor
    random_P: Tensor
    width: int


class Index(NamedTuple):
    """What a batch is made of: its number, how much of training is done then, and its rows."""

    batch: int
    progress: float
    rows: np.ndarray


class Source(NamedTuple):
    """Tokens, cut and packed into R rows."""

    tokens: Tokens
    pieces: Pieces
    order_P: np.ndarray
    offsets_R1: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets_R1) - 1


def source(
    tokens: Tokens, *, frame: Frame, length: int, pairs: bool, seed: int, packed: bool = True
) -> Source:
    """Rows of at most ``length`` tokens, special ones too; not ``packed``: one piece a row."""
    longest = length - frame.size(pair=pairs)
    if longest < 1:
        raise InputError(f"length={length}: too short for a token beside the special ones")
    pieces = pair(tokens, longest=longest, seed=seed) if pairs else cut(tokens, longest=longest)
    content_P = pieces.end_P - pieces.start_P + pieces.end2_P - pieces.start2_P
    one, two = frame.size(pair=False), frame.size(pair=True)
    length_P = content_P + np.where(pieces.random_P >= 0, two, one)
    if packed:
        return Source(tokens, pieces, *pack(length_P, row=length))
    return Source(tokens, pieces, np.arange(len(length_P)), np.arange(len(length_P) + 1))


class Rows(Dataset[TextBatch]):
    """The rows of one or more sources, numbered through. Item ``Index`` is a `TextBatch`.

    What is hidden in a row depends on ``seed``, the number of the batch and the row, and on
    nothing else: not on workers, processes, or what else the batch holds.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        frame: Frame,
        masking: Words,
        replacement: Replacement,
        seed: int,
    ) -> None:
        self.sources, self.frame, self.seed = list(sources), frame, seed
        self.masking, self.replacement = masking, replacement
        self.first_S = np.cumsum([0, *(s.rows for s in sources)])
        self.first_text_S = np.cumsum([0, *(len(s.tokens.offsets_N1) - 1 for s in sources)])

    def __len__(self) -> int:
        return int(self.first_S[-1])

    def __getitem__(self, index: Index) -> TextBatch:
        rows = [self._row(int(row), index) for row in index.rows]
        sizes = np.array([len(row["token"]) for row in rows])
        width = int(-(-max(sizes, default=1) // _WIDTH) * _WIDTH)
        offsets = np.cumsum(sizes) - sizes
        pieces = np.array([row["pieces"] for row in rows])
        first = np.cumsum(pieces) - pieces

        def joined(name: str, shift: np.ndarray | int = 0) -> Tensor:
            shifts = np.broadcast_to(shift, len(rows))
            parts = [row[name] + by for row, by in zip(rows, shifts, strict=True)]
            return torch.from_numpy(np.concatenate(parts).astype(np.int64))

        return TextBatch(
            tokens_T=joined("shown"),
            place_T=joined("place", np.arange(len(rows)) * width),
            piece_T=joined("piece", first),
            position_T=joined("position"),
            kind_T=joined("kind"),
            rows_B=torch.from_numpy(np.asarray(index.rows, np.int64)),
            hidden_M=joined("hidden", offsets),
            target_M=joined("target"),
            text_M=joined("text"),
            first_P=joined("first", offsets),
            random_P=joined("random"),
            width=width,
        )

    def _row(self, row: int, index: Index) -> dict[str, np.ndarray]:
        s = int(np.searchsorted(self.first_S, row, side="right")) - 1
        laid = self._laid(self.sources[s], row - int(self.first_S[s]))
        token_T, free_F = laid["token"], np.flatnonzero(laid["free"])
        random = np.random.default_rng([self.seed, index.batch, row])
        free = Free(laid["begins"][free_F], laid["piece"][free_F])
        hidden = self.masking.choose(free, random, progress=index.progress)
        place_M = free_F[hidden.place_M]
        shown_T = token_T.copy()
        shown_T[place_M] = self.replacement(token_T[place_M], hidden.unit_M, random)
        return laid | {
            "shown": shown_T,
            "place": np.arange(len(token_T)),
            "hidden": place_M,
            "target": token_T[place_M],
            "text": laid["owner"][place_M] + self.first_text_S[s],
        }

    def _laid(self, of: Source, row: int) -> dict[str, np.ndarray]:
        """The pieces of a row end to end, each in its frame."""
        before, after = self.frame
        parts: list[dict[str, np.ndarray]] = []
        firsts, randoms, total = [], [], 0
        chosen = of.order_P[of.offsets_R1[row] : of.offsets_R1[row + 1]]
        for number, p in enumerate(chosen):
            edge = len(before)
            token_T: list[np.ndarray] = [np.array(before)]
            mark_T: list[np.ndarray] = [np.zeros(edge, np.uint8)]
            spans = [(of.pieces.start_P[p], of.pieces.end_P[p])]
            if of.pieces.random_P[p] >= 0:
                spans.append((of.pieces.start2_P[p], of.pieces.end2_P[p]))
                firsts.append(total)
                randoms.append(int(of.pieces.random_P[p]))
                edge += int(spans[0][1] - spans[0][0]) + len(after)
            for start, end in spans:
                token_T += [of.tokens.token_T[start:end], np.array(after)]
                mark_T += [of.tokens.mark_T[start:end] | _FREE, np.zeros(len(after), np.uint8)]
            tokens, marks = np.concatenate(token_T), np.concatenate(mark_T)
            n = len(tokens)
            words = {"token": tokens, "free": marks >= _FREE, "begins": (marks & WORD) > 0}
            places = {"piece": np.full(n, number), "position": np.arange(n)}
            kind = (np.arange(n) >= edge) & (len(spans) > 1)
            owner = np.full(n, of.pieces.text_P[p])
            parts.append({**words, **places, "kind": kind, "owner": owner})
            total += n
        laid = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        ends = {"first": np.array(firsts, np.int64), "random": np.array(randoms, np.int64)}
        return laid | ends | {"pieces": np.array(len(chosen))}


_FREE = 128  # a bit that no mark uses


class RowSampler(Sampler[Index]):
    """Yields ``batches`` an epoch of ``rows`` rows each, of which a share ``replay`` is of the
    second source (``sizes``: rows of each source).

    The batches follow each other through one permutation of a source after another, so the rows of
    a batch depend on ``seed`` and the number of the batch alone. ``start`` batches of the next
    epoch are passed over. Of several processes each takes its part of every batch. ``epochs``: of
    the whole training, which says how much of it is done. ``batches`` is by default once over the
    first source, in whole steps of ``multiple`` batches.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rows: int,
        batches: int | None = None,
        replay: float = 0.0,
        epochs: int = 1,
        multiple: int = 1,
        seed: int,
    ) -> None:
        if not 0 <= replay < 1:
            raise InputError(f"replay={replay}: a share from 0 to below 1")
        if replay and (len(sizes) < 2 or not sizes[1]):
            raise InputError(f"replay={replay}: needs general= with documents to train on")
        if not sizes[0]:
            raise InputError("the corpus has no documents to train on")
        self.sizes, self.rows, self.replay, self.seed = tuple(sizes), rows, replay, seed
        once = int(np.ceil(sizes[0] / (rows * (1 - replay))))  # over the first source
        self.batches = batches or -(-once // multiple) * multiple
        self.epochs, self.epoch, self.start = epochs, 0, 0
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Index]:
        start, self.start = self.start, 0
        rank, world = _process()
        if world > self.rows:
            raise InputError(f"batch_rows={self.rows} cannot be shared by {world} processes")
        total = self.batches * self.epochs
        for i in range(start, self.batches):
            batch = self.epoch * self.batches + i
            yield Index(batch, batch / total, self._rows(batch)[rank::world])

    def _rows(self, batch: int) -> np.ndarray:
        spent = [int(np.floor(b * self.rows * self.replay)) for b in (batch, batch + 1)]
        own = [b * self.rows - s for b, s in zip((batch, batch + 1), spent, strict=True)]
        parts = [self._stream(0, *own)]
        if spent[1] > spent[0]:
            parts.append(self._stream(1, *spent) + self.sizes[0])
        return np.concatenate(parts)

    def _stream(self, which: int, first: int, end: int) -> np.ndarray:
        """Places ``first`` to ``end`` of the endless order of a source."""
        size, found = self.sizes[which], []
        while first < end:
            turn, place = divmod(first, size)
            if self._order.get(which, (-1,))[0] != turn:
                random = np.random.default_rng([self.seed, which, turn])
                self._order[which] = (turn, random.permutation(size))
            part = self._order[which][1][place : place + end - first]
            found.append(part)
            first += len(part)
        return np.concatenate(found)


class InOrder(Sampler[Index]):
    """All rows once, always hidden alike; of several processes each takes whole batches."""

    def __init__(self, size: int, *, rows: int, shared: bool = False) -> None:
        self.size, self.rows, self.shared = size, rows, shared

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Index]:
        for start in self._starts():
            yield Index(0, 1.0, np.arange(start, min(start + self.rows, self.size)))

    def _starts(self) -> list[int]:
        starts = list(range(0, self.size, self.rows))
        rank, world = _process()
        return starts[rank::world] if self.shared and len(starts) >= world else starts


def _process() -> tuple[int, int]:
    """Which of how many processes this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def loader(data: Rows, sampler: RowSampler | InOrder, *, workers: int = 0) -> DataLoader:
    """Batches as they come from ``data``, made in ``workers`` other processes."""
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers)
