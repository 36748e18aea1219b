"""How well a masked language model knows a text: every word hidden once, one in seven at a time.

The same words are hidden for every model, whatever its tokenizer, and a hidden word shows none of
its pieces; so bits per character may be compared where losses per piece may not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medbert.schema import InputError
from medbert.text.bench.tasks import Array
from medbert.text.encoders import folders
from medbert.text.encoders.pieces import Frame
from medbert.text.tokens import tokens

_AT_ONCE = 4096  # pieces, padding too
ROUNDS = 7  # one word in seven is hidden: about the 15% of training
NATS, PIECES, CHARACTERS = range(3)


class Row(NamedTuple):
    """A window of a text: ids of its pieces, those hidden, and what they are worth."""

    text: int
    ids_P: np.ndarray
    hidden_P: np.ndarray
    characters: int


class MaskedModel:
    """A masked language model of Hugging Face on disk, with its fast tokenizer. P: pieces."""

    def __init__(
        self,
        folder: str | Path,
        *,
        longest: int | None = None,
        device: str = "auto",
    ) -> None:
        model, self.tokenizer, _ = folders.opened(folder, "AutoModelForMaskedLM")
        if self.tokenizer.mask_token_id is None:
            raise InputError(f"{folder}: its tokenizer has no mask; give a masked language model")
        self.device = folders.place(device)
        self.model = model.to(self.device).eval()
        self.frame = Frame.of(self.tokenizer)
        room = folders.longest(model.config, self.tokenizer)
        room = room if longest is None else min(room, longest)
        self.length = room - self.frame.size(pair=False)

    def losses(self, texts: Sequence[str], *, rounds: int = ROUNDS) -> Array:
        """(N, 3): nats, pieces and characters of what was hidden, in the first ``rounds`` of
        ``ROUNDS``; with all of them, of every word of a text."""
        rows = [row for i, text in enumerate(texts) for row in self._rows(i, text, rounds)]
        counts_NK = np.zeros((len(texts), 3))
        for row, nats in self._answers(rows):
            counts_NK[row.text] += nats, row.hidden_P.sum(), row.characters
        return counts_NK

    def secrets(self, texts: Sequence[str], places: Sequence[tuple[int, int]]) -> Array:
        """(N,): nats of the pieces in ``places`` of each text, one hidden at a time."""
        nats_N, rows = np.zeros(len(texts)), []
        for i, (text, (start, end)) in enumerate(zip(texts, places, strict=True)):
            ids_P, word_P = self.pieces(text, words := np.array(tokens(text), np.int64))
            inside_P = (words[word_P, 0] >= start) & (words[word_P, 1] <= end)
            for at in np.flatnonzero(inside_P):
                rows.append(Row(i, ids_P, np.arange(len(ids_P)) == at, 0))
        for row, nats in self._answers(rows):
            nats_N[row.text] += nats
        return nats_N

    def _rows(self, number: int, text: str, rounds: int) -> Iterator[Row]:
        words = np.array(tokens(text), np.int64).reshape(-1, 2)
        ids_P, word_P = self.pieces(text, words)
        random = np.random.default_rng(zlib.crc32(text.encode()))
        round_W = random.permutation(len(words)) % ROUNDS
        for first in range(0, len(ids_P), self.length):
            own = slice(first, first + self.length)
            begins_P = np.diff(word_P[own], prepend=-1) != 0
            for turn in range(rounds):
                hidden_P = round_W[word_P[own]] == turn
                if hidden_P.any():
                    of = words[word_P[own][hidden_P & begins_P]]
                    yield Row(number, ids_P[own], hidden_P, int(np.diff(of).sum()))

    def pieces(self, text: str, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the pieces of a text that are in some word, and which word each begins in."""
        ids_P, start_P, end_P = folders.cut(text, self.tokenizer)
        if not len(words):
            return ids_P[:0], ids_P[:0]
        word_P = np.searchsorted(words[:, 1], start_P, "right").clip(max=len(words) - 1)
        kept_P = end_P > words[word_P, 0]
        return ids_P[kept_P], word_P[kept_P]

    def _answers(self, rows: Sequence[Row]) -> Iterator[tuple[Row, float]]:
        """Each row with its nats."""
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: len(row.ids_P)):
            if batch and len(row.ids_P) * (len(batch) + 1) > _AT_ONCE:
                yield from zip(batch, self._nats(batch), strict=True)
                batch = []
            batch.append(row)
        if batch:
            yield from zip(batch, self._nats(batch), strict=True)

    @torch.inference_mode()
    def _nats(self, rows: Sequence[Row]) -> list[float]:
        """Of each row. The output layer sees the hidden places alone."""
        pieces = [row.ids_P.tolist() for row in rows]
        ids_BP, attended_BP, own_BP = folders.padded(pieces, self.tokenizer, self.frame)
        hidden = torch.from_numpy(np.concatenate([row.hidden_P for row in rows]))
        hidden_BP = own_BP.masked_scatter(own_BP, hidden)
        target_M = ids_BP[hidden_BP]
        ids_BP[hidden_BP] = self.tokenizer.mask_token_id
        logits_MC = masked_logits(
            self.model, *(t.to(self.device) for t in (ids_BP, attended_BP, hidden_BP))
        )
        nats_M = torch.nn.functional.cross_entropy(
            logits_MC.float(), target_M.to(self.device), reduction="none"
        )
        parts = nats_M.cpu().double().split(hidden_BP.sum(1).tolist())
        return [float(part.sum()) for part in parts]


def masked_logits(model: Any, ids_BP: Any, attended_BP: Any, hidden_BP: Any) -> Any:
    """(M, C): the output layer of any masked language model at the hidden places alone."""

    def gathered(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[hidden_BP][None]
        return output

    hook = model.base_model.register_forward_hook(gathered)
    try:
        return model(input_ids=ids_BP, attention_mask=attended_BP).logits[0]
    finally:
        hook.remove()
