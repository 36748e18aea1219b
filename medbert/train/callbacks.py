"""What Lightning does not have: the best weights kept, and a readable line per epoch."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from medbert.schema import Batch

log = logging.getLogger(__name__)


class KeepBest(pl.Callback):
    """Keeps the weights of the best epoch and puts them back when training ends.

    Its state is part of every checkpoint, so that a resumed run ends with the same weights.
    """

    def __init__(self, *, monitor: str, mode: str) -> None:
        self.monitor, self.sign = monitor, 1.0 if mode == "max" else -1.0
        self.score, self.epoch = float("-inf"), -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not self.sign * float(value) > self.score:
            return
        self.score, self.epoch = self.sign * float(value), trainer.current_epoch
        self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.weights:
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = state_dict["weights"]


class EpochLine(pl.Callback):
    """Logs one line per epoch: tuning metrics beside what frequencies alone would score, speed."""

    def __init__(self) -> None:
        self._tokens, self._begun = 0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tokens, self._begun = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._tokens += len(batch.tokens_T)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = max(time.perf_counter() - self._begun, 1e-9)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        shown = {k.removeprefix("tuning/"): v for k, v in metrics.items() if "tuning/" in k}
        code, unigram = shown.pop("masked_code", None), shown.pop("unigram", None)
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        if code is not None and unigram is not None:
            parts.append(f"masked code {code:.3f} (code frequencies alone: {unigram:.3f})")
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items()]
        parts.append(f"{self._tokens / self._seconds:,.0f} tokens/s")
        log.info(" | ".join(parts))
