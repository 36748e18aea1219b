"""One vector of a text (or of a pair of texts) and a linear layer on it, trained with the encoder.

Suffixes: E sequences, P pieces, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbert.text.bench.tasks import Array
from medbert.text.encoders import folders

Sequence_ = tuple[str, str | None]
Example = Sequence[Sequence_]
"""The sequences that are weighed against each other: the answers to a question; or a single one."""

_SCORED = 32  # examples at once


@dataclass(kw_only=True)
class FineTuned:
    """How the tasks train a `Pooled`, each with its own defaults."""

    seeded = True
    epochs: int
    learning_rate: float
    batch_size: int
    longest: int
    device: str = "auto"


class Pooled:
    """Scores (E, C): the mean over the pieces of each sequence, through a linear layer."""

    def __init__(self, folder: str | Path, *, classes: int, how: FineTuned, seed: int) -> None:
        torch.manual_seed(seed)
        self.how = how
        self.encoder, self.tokenizer, _ = folders.opened(folder, "AutoModel")
        self.tokenizer.truncation_side = "left"  # what is asked stands at the end
        self.device, config = folders.place(how.device), self.encoder.config
        self.longest = min(how.longest, folders.longest(config, self.tokenizer))
        self.head = torch.nn.Linear(config.hidden_size, classes)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)
        self.encoder, self.head = self.encoder.to(self.device), self.head.to(self.device)

    def fit(self, examples: Sequence[Example], targets: NDArray[Any]) -> None:
        """``targets``: which sequence of an example is the right one; the class of its only
        sequence; or, floats from 0 to 1, the grade of it."""
        epochs = folders.fine_tuned(
            [*self.encoder.parameters(), *self.head.parameters()],
            lambda own: self._loss([examples[i] for i in own], targets[own]),
            n=len(examples),
            epochs=self.how.epochs,
            batch_size=self.how.batch_size,
            learning_rate=self.how.learning_rate,
        )
        self.encoder.train()
        for _ in epochs:
            pass
        self.encoder.eval()

    @torch.inference_mode()
    def scores(self, examples: Sequence[Example]) -> list[Array]:
        """Of each example, (its sequences, C)."""
        found: list[Any] = [None] * len(examples)
        length = [sum(len(first) + len(second or "") for first, second in e) for e in examples]
        order = sorted(range(len(examples)), key=length.__getitem__)
        for i in range(0, len(order), _SCORED):
            own = order[i : i + _SCORED]
            parts = self._logits([examples[j] for j in own])
            for j, part in zip(own, parts, strict=True):
                found[j] = part.float().cpu().numpy().astype(np.float64)
        return found

    def _loss(self, examples: Sequence[Example], targets: NDArray[Any]) -> Tensor:
        parts = self._logits(examples)
        if targets.dtype.kind == "f":
            grade = torch.tensor(targets, dtype=torch.float32, device=self.device)
            logits = torch.cat(parts).flatten()
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, grade)
        one_of_several = self.head.out_features == 1
        rows = [p.flatten() for p in parts] if one_of_several else list(torch.cat(parts))
        logits = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1e4)
        target = torch.tensor(targets, device=self.device)
        return torch.nn.functional.cross_entropy(logits, target)

    def _logits(self, examples: Sequence[Example]) -> list[Tensor]:
        flat = [sequence for example in examples for sequence in example]
        first, second = zip(*flat, strict=True)
        made = self.tokenizer(
            [*first],
            None if second[0] is None else [*second],
            truncation=True,
            max_length=self.longest,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        hidden_EPD = self.encoder(**made).last_hidden_state
        mask_EP1 = made["attention_mask"][..., None]
        mean_ED = (hidden_EPD * mask_EP1).sum(1) / mask_EP1.sum(1)
        return list(self.head(mean_ED).split([len(example) for example in examples]))
