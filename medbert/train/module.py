"""One LightningModule for pretraining and fine-tuning: what differs is the objective."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn
from torchmetrics.classification import BinaryAUROC

from medbert.schema import Batch, LossOutput
from medbert.train.optimizers import clip_gradients

_SEEDS = 2**31 - 1


class TrainingModule(pl.LightningModule):
    """Minimises ``objective(encoder, batch)``.

    Every step draws its randomness (masks, dropout) from a seed made of ``seed`` and the step
    number, so that a resumed run repeats an unbroken one without any saved random state, and masks
    do not depend on how many processes share a batch. Where several do, the mean of their losses is
    taken for the loss, and tuning metrics are those of all tuning subjects.
    ``optimizer`` is called with this module and the number of steps, and returns what Lightning's
    configure_optimizers returns. An objective with ``logits`` (a head) is also judged by AUROC.
    ``private``, once set, stands for the objective in training steps (see ``train.private``).
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        objective: Any,
        optimizer: Callable[..., Any],
        seed: int,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.make_optimizer, self.seed = optimizer, seed
        self.freeze_encoder = freeze_encoder
        self.encoder.requires_grad_(not freeze_encoder)
        self.private: Any = None
        self.tuning_auroc = BinaryAUROC() if hasattr(objective, "logits") else None
        self._measured: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.freeze_encoder:
            self.encoder.eval()
        torch.manual_seed(hash((self.seed, self.global_step)) % _SEEDS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output: LossOutput = (self.private or self.objective)(self.encoder, batch)
        every: dict[str, Any] = {"batch_size": len(batch.rows_B), "on_epoch": True}
        self.log("train/loss", output.loss.detach(), on_step=True, sync_dist=True, **every)
        named = {f"train/{name}": value for name, value in output.metrics.items()}
        self.log_dict(named, on_step=False, **every)  # of the first process alone
        return output.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output: LossOutput = self.objective(self.encoder, batch)
        metrics = {"loss": output.loss, **output.metrics}
        self._measured.append((len(batch.rows_B), {k: v.detach() for k, v in metrics.items()}))
        if self.tuning_auroc is not None and batch.labels_B is not None:
            logits_B = self.objective.logits(self.encoder, batch)
            self.tuning_auroc.update(logits_B.sigmoid(), batch.labels_B.int())
            self.log("tuning/auroc", self.tuning_auroc, batch_size=len(batch.rows_B))

    def on_validation_epoch_end(self) -> None:
        """Logs each metric's mean over subjects, the same in any number of processes."""
        mine = [(n, name, float(v)) for n, batch in self._measured for name, v in batch.items()]
        self._measured.clear()
        everyones: list[Any] = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            distributed.all_gather_object(everyones, mine)
        sums = defaultdict[str, list[tuple[float, int]]](list)
        for subjects, name, value in chain.from_iterable(everyones):
            sums[name].append((value * subjects, subjects))
        for name, parts in sums.items():
            total, subjects = (math.fsum(part) for part in zip(*parts, strict=True))
            self.log(f"tuning/{name}", total / subjects, batch_size=1)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_gradients(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self, total_steps=int(self.trainer.estimated_stepping_batches))
