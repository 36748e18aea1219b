"""Texts as numbers on disk, cut into pieces that fit a row, and pieces packed into rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medbert.schema import InputError

WORD, SENTENCE = 1, 2  # bits of ``mark_T``: a word, a sentence begins here
_BEGIN = re.compile(r"(?:[.!?]\s+|\n\s*)(?=\S)")
_TEXTS = 256  # tokenised at once
_FILES = ("token_T.bin", "mark_T.bin", "offsets_N1.npy")


class Tokens(NamedTuple):
    """N texts laid end to end, memory-mapped: token_T int32, mark_T uint8, offsets_N1 int64."""

    token_T: np.ndarray
    mark_T: np.ndarray
    offsets_N1: np.ndarray


class Pieces(NamedTuple):
    """What is framed by special tokens and sees nothing else: tokens ``start_P:end_P``, and of a
    pair also ``start2_P:end2_P`` (empty otherwise). random_P: 1 where the second part is that of
    another text, 0 where it follows, -1 where there is none."""

    start_P: np.ndarray
    end_P: np.ndarray
    start2_P: np.ndarray
    end2_P: np.ndarray
    random_P: np.ndarray
    text_P: np.ndarray


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        probe = tokenizer("0", return_special_tokens_mask=True)
        ids, special = probe["input_ids"], probe["special_tokens_mask"]
        if 0 not in special:
            raise InputError("this tokenizer makes nothing of the text '0'")
        first, last = special.index(0), len(special) - special[::-1].index(0)
        return cls(tuple(ids[:first]), tuple(ids[last:]))

    def size(self, *, pair: bool) -> int:
        return len(self.before) + len(self.after) * (2 if pair else 1)


def write_tokens(
    texts: Iterable[str], folder: Path, *, tokenizer: Any, sentences: bool = False
) -> Tokens:
    """Tokenises into ``folder``, a few texts at a time. It then holds the texts: delete it."""
    folder.mkdir(parents=True, exist_ok=True)
    token, mark, offsets = (folder / name for name in _FILES)
    lengths = [0]
    with token.open("wb") as tokens_out, mark.open("wb") as marks_out:
        remaining = iter(texts)
        while some := list(islice(remaining, _TEXTS)):
            for ids, marks in _numbers(some, tokenizer, sentences):
                tokens_out.write(ids.tobytes())
                marks_out.write(marks.tobytes())
                lengths.append(len(ids))
    np.save(offsets, np.cumsum(lengths))
    return open_tokens(folder)


def open_tokens(folder: Path) -> Tokens:
    token, mark, offsets = (folder / name for name in _FILES)
    offsets_N1 = np.load(offsets)
    if not offsets_N1[-1]:
        return Tokens(np.zeros(0, np.int32), np.zeros(0, np.uint8), offsets_N1)
    return Tokens(np.memmap(token, np.int32, "r"), np.memmap(mark, np.uint8, "r"), offsets_N1)


def _numbers(
    texts: list[str], tokenizer: Any, sentences: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    made = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,  # "[SEP]" in a note is text
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for text, encoding in zip(texts, made.encodings, strict=True):
        ids = np.array(encoding.ids, np.int32)
        words = np.array([-1 if w is None else w for w in encoding.word_ids], np.int64)
        marks = np.zeros(len(ids), np.uint8)
        marks[np.flatnonzero(np.diff(words, prepend=-2))] |= WORD
        if sentences and len(ids):
            end_T = np.array(encoding.offsets, np.int64)[:, 1]
            begins = [0, *(found.end() for found in _BEGIN.finditer(text))]
            first = np.searchsorted(end_T, begins, side="right")
            marks[first[first < len(ids)]] |= SENTENCE
        yield ids, marks


def cut(tokens: Tokens, *, longest: int) -> Pieces:
    """Every token is in one piece; a text of more than ``longest`` makes several."""
    lengths_N = np.diff(tokens.offsets_N1)
    n_N = -(-lengths_N // longest)
    text_P = np.repeat(np.arange(len(n_N)), n_N)
    within_P = np.arange(len(text_P)) - np.repeat(np.cumsum(n_N) - n_N, n_N)
    start_P = tokens.offsets_N1[text_P] + within_P * longest
    end_P = np.minimum(start_P + longest, tokens.offsets_N1[text_P + 1])
    nothing = np.zeros_like(start_P)
    return Pieces(start_P, end_P, nothing, nothing, np.full_like(start_P, -1), text_P)


def pair(tokens: Tokens, *, longest: int, seed: int) -> Pieces:
    """As ``cut``, each piece in two parts at a sentence; in half of them the second part is one of
    another text, of about the same length (BERT's next-sentence prediction). A piece that is one
    sentence stays whole, with nothing to ask of it."""
    pieces, random = cut(tokens, longest=longest), np.random.default_rng([seed, 1])
    middle_P = np.zeros_like(pieces.start_P)
    for p, (start, end) in enumerate(zip(pieces.start_P, pieces.end_P, strict=True)):
        inside = np.flatnonzero(tokens.mark_T[start + 1 : end] & SENTENCE)
        if len(inside):
            middle_P[p] = start + 1 + random.choice(inside)
    halves = np.flatnonzero(middle_P)
    start2_P, end2_P = np.zeros_like(middle_P), np.zeros_like(middle_P)
    start2_P[halves], end2_P[halves] = middle_P[halves], pieces.end_P[halves]
    first_end_P = np.where(middle_P > 0, middle_P, pieces.end_P)
    random_P = np.where(middle_P > 0, 0, -1)
    other = random.permutation(halves)[: len(halves) // 2]
    other = other[np.argsort((end2_P - start2_P)[other], kind="stable")]
    giver = np.roll(other, -1)
    apart = pieces.text_P[giver] != pieces.text_P[other]
    other, giver = other[apart], giver[apart]
    room = longest - (first_end_P - pieces.start_P)[other]
    size = np.minimum((end2_P - start2_P)[giver], room)
    start2_P[other] = middle_P[giver]
    end2_P[other] = start2_P[other] + size
    random_P[other] = 1
    return Pieces(pieces.start_P, first_end_P, start2_P, end2_P, random_P, pieces.text_P)


def pack(length_P: np.ndarray, *, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces (indices, P) laid into rows of at most ``row`` tokens: those of row r are
    ``order_P[offsets_R1[r] : offsets_R1[r + 1]]``. Best fit, the longest first.

    >>> order, offsets = pack(np.array([4, 7, 3, 6]), row=10)
    >>> [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    [[1, 2], [0, 3]]
    """
    rows, open_rooms = 0, 0  # a bit for each amount of room that some row still has
    with_room: list[list[int]] = [[] for _ in range(row + 1)]
    row_P = np.zeros(len(length_P), np.int64)
    for p in np.argsort(-length_P, kind="stable").tolist():
        size = int(length_P[p])
        if fits := open_rooms >> size:
            room = size + (fits & -fits).bit_length() - 1
            here = with_room[room].pop()
            if not with_room[room]:
                open_rooms &= ~(1 << room)
        else:
            here, room, rows = rows, row, rows + 1
        row_P[p] = here
        if left := room - size:
            with_room[left].append(here)
            open_rooms |= 1 << left
    order_P = np.argsort(row_P, kind="stable")
    return order_P, np.searchsorted(row_P[order_P], np.arange(rows + 1))
