"""What a person wants to see of a run while it runs: a line per epoch, and now and then between."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from medbert.schema import Batch
from medbert.train.learning import StayScores

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0
_PADDING_EVERY = 10  # batches; the padding of one says enough of its neighbours
_MASKED_CODE, _UNIGRAM, _STAY = "masked_code", "unigram", "stay_auroc"


class EpochLine(pl.Callback):
    """Logs a line per epoch: tuning metrics beside what chance would score, speed, memory, time.

    ``visit_pairs``: the loss (nats) that pairs of codes alone reach on the same hidden codes.
    ``places``: how many places attention has for a batch; with it padding is told. ``unit``: what
    the rows of a batch are. Adds the metric
    ``tuning/stay_auroc`` where the objective has a prolonged-stay term. Without a progress bar, a
    line comes every half a minute inside long epochs too.
    """

    def __init__(
        self,
        *,
        visit_pairs: float | None = None,
        places: Callable[[Batch], int] | None = None,
        unit: str = "subjects",
    ) -> None:
        self.visit_pairs, self.places, self.unit = visit_pairs, places, unit
        self._tokens = self._subjects = self._padded = self._real = self._first_step = 0
        self._seconds = self._epoch_begun = 0.0
        self._stays: StayScores  # of the validation that goes on

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = self._said = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = trainer.global_step  # what a resumed run has behind it costs no time
        self._epoch_begun = time.perf_counter()  # taken up within an epoch, none starts

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tokens = self._subjects = self._padded = self._real = 0
        self._epoch_begun, self._seconds = time.perf_counter(), 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._tokens += len(batch.tokens_T)
        self._subjects += len(batch.rows_B)
        if self.places is not None and batch_idx % _PADDING_EVERY == 0:
            with trainer.precision_plugin.forward_context():  # which attention: by the precision
                self._padded += self.places(batch)
            self._real += len(batch.tokens_T)
        now = time.perf_counter()
        if now - self._said > _LINE_EVERY_S and trainer.progress_bar_callback is None:
            self._said, self._seconds = now, now - self._epoch_begun
            done = f"batch {batch_idx + 1:,}/{trainer.num_training_batches:,}"
            loss = f"loss {float(outputs['loss']):.3f}"
            self._tell([self._epoch(trainer), done, loss, *self._speed(trainer)], trainer)

    # --- tuning -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seconds = max(time.perf_counter() - self._epoch_begun, 1e-9)
        self._stays = StayScores(pl_module.objective)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._stays.add(batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stays.close()
        auroc = self._stays.auroc()  # of several processes, each scores its own subjects
        if not math.isnan(auroc):
            pl_module.log(f"tuning/{_STAY}", auroc, batch_size=1)

    # --- lines --------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        shown = {k.removeprefix("tuning/"): v for k, v in metrics.items() if "tuning/" in k}
        code, unigram = shown.pop(_MASKED_CODE, None), shown.pop(_UNIGRAM, None)
        parts = [self._epoch(trainer)]
        if code is not None and unigram is not None:
            pairs = "" if self.visit_pairs is None else f", pairs of codes {self.visit_pairs:.3f}"
            parts.append(f"masked code {code:.3f} (code frequencies alone {unigram:.3f}{pairs})")
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items()]
        self._seconds = self._seconds or time.perf_counter() - self._epoch_begun
        self._tell([*parts, *self._speed(trainer)], trainer)
        self._said = time.perf_counter()

    def _epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _speed(self, trainer: pl.Trainer) -> list[str]:
        """Of this epoch so far, of all processes if they are alike; time left of the whole run."""
        per_s = trainer.world_size / max(self._seconds, 1e-9)
        parts = [
            f"{self._tokens * per_s:,.0f} tokens/s",
            f"{self._subjects * per_s:,.0f} {self.unit}/s",
        ]
        if self._real:
            parts.append(f"padding in attention {100 * (self._padded / self._real - 1):.1f}%")
        parts.append(f"memory {peak_memory() / 1e9:.1f} GB")
        made = trainer.global_step - self._first_step
        left = trainer.estimated_stepping_batches - trainer.global_step
        if made and 0 < left < float("inf"):
            parts.append(
                f"at most {duration((time.perf_counter() - self._begun) / made * left)} left"
            )
        return parts

    def _tell(self, parts: list[str], trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            log.info(" | ".join(parts))


def peak_memory() -> int:
    """Bytes: of the GPU where there is one in use, else of this process."""
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """
    >>> duration(42.4), duration(754), duration(7_500), duration(300_000)
    ('42 s', '13 min', '2 h 5 min', '3 d 11 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
