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
from medbert.text.detectors.tagger import longest as longest_of
from medbert.text.tokens import tokens

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
        batch_pieces: int = 4096,
        longest: int | None = None,
        device: str = "auto",
    ) -> None:
        self.model, self.tokenizer = loaded(folder, "AutoModelForMaskedLM")
        if self.tokenizer.mask_token_id is None:
            raise InputError(f"{folder}: its tokenizer has no mask; give a masked language model")
        self.device = place(device)
        self.model = self.model.to(self.device).eval()
        self.batch_pieces = batch_pieces
        self.before, self.after = around(self.tokenizer)
        room = longest_of(self.model.config, self.tokenizer)
        room = room if longest is None else min(room, longest)
        self.length = room - len(self.before) - len(self.after)

    def losses(self, texts: Sequence[str], *, rounds: int = ROUNDS) -> Array:
        """(N, 3): nats, pieces and characters of what was hidden, in the first ``rounds`` of
        ``ROUNDS``; with all of them, of every word of a text."""
        rows = [row for i, text in enumerate(texts) for row in self._rows(i, text, rounds)]
        counts_NK = np.zeros((len(texts), 3))
        rows.sort(key=lambda row: len(row.ids_P))
        for batch in self._batches(rows):
            for row, nats in zip(batch, self._nats(batch), strict=True):
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
        rows.sort(key=lambda row: len(row.ids_P))
        for batch in self._batches(rows):
            for row, nats in zip(batch, self._nats(batch), strict=True):
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
        made = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        start_P, end_P = np.array(made["offset_mapping"], np.int64).reshape(-1, 2).T
        ids_P = np.array(made["input_ids"], np.int64)
        if not len(words):
            return ids_P[:0], ids_P[:0]
        word_P = np.searchsorted(words[:, 1], start_P, "right").clip(max=len(words) - 1)
        kept_P = end_P > words[word_P, 0]
        return ids_P[kept_P], word_P[kept_P]

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        batch: list[Row] = []
        for row in rows:
            if batch and len(row.ids_P) * (len(batch) + 1) > self.batch_pieces:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @torch.inference_mode()
    def _nats(self, rows: Sequence[Row]) -> list[float]:
        """Of each row. The output layer sees the hidden places alone."""
        ahead, back = len(self.before), len(self.after)
        width = max(len(row.ids_P) for row in rows) + ahead + back
        ids_BP = torch.full((len(rows), width), self.tokenizer.pad_token_id or 0)
        attended_BP, hidden_BP = (
            torch.zeros_like(ids_BP),
            torch.zeros_like(ids_BP, dtype=torch.bool),
        )
        for i, row in enumerate(rows):
            whole = torch.tensor([*self.before, *row.ids_P.tolist(), *self.after])
            ids_BP[i, : len(whole)], attended_BP[i, : len(whole)] = whole, 1
            hidden_BP[i, ahead : ahead + len(row.ids_P)] = torch.from_numpy(row.hidden_P)
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


def loaded(folder: str | Path, kind: str, **more: Any) -> tuple[Any, Any]:
    """A model of ``kind`` (a name of transformers) and its tokenizer; offline, safetensors."""
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give the folder of a Hugging Face model")
    try:
        import transformers
    except ImportError as error:
        raise InputError("this needs transformers: pip install 'medbert[text]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **more
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{folder}: no model of transformers to read here ({reason})") from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: no fast tokenizer (tokenizer.json) in it")
    return model, tokenizer


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    probe = tokenizer("0", return_special_tokens_mask=True)
    ids, here = probe["input_ids"], probe["special_tokens_mask"].index(0)
    return ids[:here], [i for i in ids[here:] if i in tokenizer.all_special_ids]


def place(device: str) -> torch.device:
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(cuda if device == "auto" else device)
