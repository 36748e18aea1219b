"""A token classifier on any Hugging Face encoder on disk, decided word by word.

Three ways in which the usual pipeline leaks do not exist here: nothing is cut off after the longest
input (windows overlap, and every piece is read where it has most context), no word is ever split
(its first piece decides for all of it), and no path of tags is illegal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from medbert.schema import InputError
from medbert.text.detectors.thresholds import (
    CARD,
    OUTSIDE,
    Scored,
    Trained,
    read_card,
    tag,
    tags_of,
)
from medbert.text.encoders.folders import cut, fine_tuned, longest, opened, padded, place
from medbert.text.encoders.pieces import Frame
from medbert.text.notes import Note
from medbert.text.tokens import Offsets, tokens

log = logging.getLogger(__name__)

_KIND = "AutoModelForTokenClassification"
_NO_LABEL = -100  # of a piece that the loss does not see
_MARK = re.compile(r"([BIESLUM])-(.+)")
_BEGINS = ("B", "S", "U")  # in IOB2, BIOES and BILOU


class Tagger(Trained):
    """A model and its (fast) tokenizer; windows share ``overlap`` of their pieces. Suffix P: the
    pieces of a text, W: its words, L: our tags, C: the model's own."""

    kind: ClassVar[str] = "tagger"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        overlap: int = 128,
        batch_size: int = 8,
        device: str = "auto",
        **operating: Any,
    ) -> None:
        tags, column_C = iob2(model.config.id2label)
        super().__init__(tags, **operating)
        self.device = place(device)
        self.model, self.tokenizer = model.to(self.device).eval(), tokenizer
        self.column_C = torch.tensor(column_C, device=self.device)
        self.frame = Frame.of(tokenizer)
        self.length = longest(model.config, tokenizer) - self.frame.size(pair=False)
        self.overlap, self.batch_size = min(overlap, self.length // 2), batch_size

    def score(self, text: str) -> Scored:
        words, ids_P, first_W = self.split(text)
        p_PL = np.zeros((max(len(ids_P), 1), len(self.tags)), np.float32)
        p_PL[0, 0] = 1
        windows, last_end = list(self.windows(len(ids_P))), 0
        for i in range(0, len(windows), self.batch_size):
            batch = windows[i : i + self.batch_size]
            found = self._read([ids_P[first:end] for first, end in batch])
            for (first, end), part_PL in zip(batch, found, strict=True):
                begin = (first + last_end) // 2 if first else 0  # each has half of what is shared
                p_PL[begin:end] = part_PL[begin - first :]
                last_end = end
        p_WL = p_PL[first_W]
        return Scored(words, p_WL, p_WL.argmax(1) > 0)

    def windows(self, n_pieces: int) -> Iterator[tuple[int, int]]:
        """From which piece to which; the last window is as long as the others."""
        step, first = self.length - self.overlap, 0
        while first + self.length < n_pieces:
            yield first, first + self.length
            first += step
        if n_pieces:
            yield max(0, min(first, n_pieces - self.length)), n_pieces

    def split(self, text: str) -> tuple[list[Offsets], np.ndarray, np.ndarray]:
        """Words, ids of pieces, and of each word the first piece that has a character of it (of one
        that the tokenizer drops: the piece before it)."""
        words = tokens(text)
        ids_P, start_P, end_P = cut(text, self.tokenizer)
        start_W, end_W = np.array(words, np.int64).reshape(-1, 2).T
        last_W = np.maximum(np.searchsorted(start_P, end_W) - 1, 0)
        first_W = np.minimum(np.searchsorted(end_P, start_W, "right"), last_W)
        return words, ids_P, first_W

    @torch.inference_mode()
    def _read(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        p_BPC = self._logits(ids).float().softmax(-1)
        p_BPL = torch.zeros((*p_BPC.shape[:2], len(self.tags)), device=self.device)
        p_BPL.index_add_(2, self.column_C, p_BPC)
        return [p_PL[: len(own)] for p_PL, own in zip(p_BPL.cpu().numpy(), ids, strict=True)]

    def _logits(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Of the pieces alone: what the special tokens are given is left out."""
        lists = [own.tolist() for own in ids]
        ids_BP, mask_BP, _ = padded(lists, self.tokenizer, self.frame)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.model(
                input_ids=ids_BP.to(self.device), attention_mask=mask_BP.to(self.device)
            )
        first = len(self.frame.before)
        return output.logits[:, first : first + max(map(len, ids))]

    @classmethod
    def train(
        cls,
        notes: Iterable[Note],
        *,
        base: str,
        epochs: int = 4,
        learning_rate: float = 3e-5,
        warmup: float = 0.1,
        weight_decay: float = 0.01,
        batch_size: int = 8,
        overlap: int = 128,
        device: str = "auto",
        seed: int = 0,
    ) -> Self:
        """Fine-tunes the encoder in the folder ``base`` on notes with gold spans.

        The loss sees the first piece of each word. For the rate see ``fine_tuned``.
        """
        notes = [note for note in notes if note.spans is not None]
        tags = tags_of(span for note in notes for span in note.spans or ())
        torch.manual_seed(seed)
        named = {"id2label": dict(enumerate(tags)), "label2id": {t: i for i, t in enumerate(tags)}}
        more = {**named, "ignore_mismatched_sizes": True}  # the head of another task gives way
        model, tokenizer, missing = opened(base, _KIND, **more)
        if [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]:
            raise InputError(f"{base}: weights of the encoder are missing ({missing[0]} ...)")
        self = cls(model, tokenizer, overlap=overlap, batch_size=batch_size, device=device)
        examples = [example for note in notes for example in self._examples(note)]
        losses = fine_tuned(
            [*model.parameters()],
            lambda own: self._loss([examples[i] for i in own]),
            n=len(examples),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
        )
        model.train()
        for epoch, loss in enumerate(losses, 1):
            log.info("epoch %d of %d: loss %.4f", epoch, epochs, loss)
        model.eval()
        return self

    def _examples(self, note: Note) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        words, ids_P, first_W = self.split(note.text)
        target_P = np.full(len(ids_P), _NO_LABEL)
        numbers = [self.tags.index(name) for name in tag(words, note.spans or ())]
        if len(ids_P):
            target_P[first_W[::-1]] = numbers[::-1]  # a piece of two words is the first one's
        for first, end in self.windows(len(ids_P)):
            yield ids_P[first:end], target_P[first:end]

    def _loss(self, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        logits_BPC = self._logits([ids_P for ids_P, _ in examples])
        target_BP = torch.full(logits_BPC.shape[:2], _NO_LABEL)
        for row, (_, target_P) in zip(target_BP, examples, strict=True):
            row[: len(target_P)] = torch.from_numpy(target_P)
        return torch.nn.functional.cross_entropy(
            logits_BPC.flatten(0, 1).float(), target_BP.to(self.device).flatten()
        )

    def save(self, folder: str | Path) -> None:
        """A Hugging Face folder (safetensors) with our detector.json beside it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        files = sorted(file.name for file in Path(folder).glob("*token*.json"))
        files += ["config.json", "model.safetensors"]
        self._write_card(Path(folder), files, overlap=self.overlap)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """What ``save`` wrote; or any token classifier of Hugging Face, offline."""
        known: dict[str, Any] = {}
        if (Path(folder) / CARD).is_file():
            card = read_card(folder, cls.kind)
            known = {"points": card["points"], "overlap": card["overlap"]}
        model, tokenizer, missing = opened(folder, _KIND)
        if missing:
            raise InputError(f"{folder}: an encoder without a trained classifier of tokens")
        return cls(model, tokenizer, device=device, **known)


def iob2(labels: dict[int, str]) -> tuple[list[str], list[int]]:
    """Our tags for the labels of a model (IOB, BIOES, BILOU or plain), and which of these each is.

    >>> iob2({0: "O", 1: "B-NAME", 2: "I-NAME", 3: "L-NAME", 4: "U-NAME"})
    (['O', 'B-NAME', 'I-NAME'], [0, 1, 2, 2, 1])
    """
    parts = []
    for i in range(len(labels)):
        marked = _MARK.fullmatch(labels[i])
        parts.append(marked.groups() if marked else ("I", labels[i]))
    names = sorted({name for _, name in parts} - {OUTSIDE})
    if OUTSIDE not in labels.values() or "LABEL_0" in names:
        raise InputError(f"a model of the labels {', '.join(names[:3])} ...: O, B-NAME are needed")
    tags = [OUTSIDE, *(f"{mark}-{name}" for name in names for mark in "BI")]
    ours = [OUTSIDE if n == OUTSIDE else f"{'B' if m in _BEGINS else 'I'}-{n}" for m, n in parts]
    return tags, [tags.index(name) for name in ours]
