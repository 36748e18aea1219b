"""What Lightning does not have: the best weights kept, and an end that stays one."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor


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
        self.score = self.sign * float(value)
        self.epoch = trainer.current_epoch if trainer.state.fn == "fit" else -1  # before any
        self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.weights:
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = state_dict["weights"]


class Patience(EarlyStopping):
    """Early stopping that a run taken up after its last epoch remembers."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopped_epoch or self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True
