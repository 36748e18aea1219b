"""One vector per note from any encoder of Hugging Face on disk: the mean of its last hidden layer
over all of a note's pieces.

A note that is longer than the encoder reads is cut into windows of equal length, none of it left
out; its vector is the mean over the pieces of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medbert.schema import InputError
from medbert.text.encoders.folders import longest, opened, padded, place
from medbert.text.encoders.pieces import Frame


class NoteEncoder:
    """``batch_tokens``: pieces at once, padding too; results do not depend on it (to float
    tolerance). Suffix W: windows, D: hidden."""

    def __init__(
        self,
        folder: str | Path,
        *,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
    ) -> None:
        model, self.tokenizer, missing = opened(folder, "AutoModel")
        if missing := [name for name in missing if "pooler" not in name]:  # a new one is not asked
            raise InputError(f"{folder}: weights are missing ({missing[0]} ...)")
        self.device = place(device)
        self.model = model.to(self.device).eval()
        self.hidden = int(self.model.config.hidden_size)
        self.frame = Frame.of(self.tokenizer)
        room = min(longest(self.model.config, self.tokenizer), max_tokens or 1 << 30)
        self.length = room - self.frame.size(pair=False)
        if self.length < 1:
            raise InputError(f"max_tokens={max_tokens}: no room for a piece")
        self.batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A row each, (N, D), and how many pieces each has; zeros for a text without any."""
        made = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        windows = [(i, part) for i, ids in enumerate(made) for part in self._windows(ids)]
        windows.sort(key=lambda window: -len(window[1]))
        sums_ND = np.zeros((len(texts), self.hidden))
        for batch in self._batches(windows):
            sums_WD = self._sums([ids for _, ids in batch])
            np.add.at(sums_ND, [i for i, _ in batch], sums_WD)
        n_N = np.array([len(ids) for ids in made], np.int64)
        return (sums_ND / np.maximum(n_N, 1)[:, None]).astype(np.float32), n_N

    def _windows(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        n = -(-len(ids) // self.length)  # 0: no window
        edges = np.linspace(0, len(ids), n + 1).astype(int).tolist()
        yield from (ids[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True))

    def _batches(self, windows: list[Any]) -> Iterator[list[Any]]:
        """Of like lengths, the longest first."""
        at, around = 0, self.frame.size(pair=False)
        while at < len(windows):
            n = max(1, self.batch_tokens // (len(windows[at][1]) + around))
            yield windows[at : at + n]
            at += n

    @torch.inference_mode()
    def _sums(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Over the pieces alone: what stands for the special tokens is left out."""
        ids_WL, mask_WL, own_WL = padded(windows, self.tokenizer, self.frame)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden_WLD = self.model(
                input_ids=ids_WL.to(self.device), attention_mask=mask_WL.to(self.device)
            )[0]
        own_WL1 = own_WL.to(self.device)[:, :, None]
        return (hidden_WLD.float() * own_WL1).sum(1).double().cpu().numpy()
