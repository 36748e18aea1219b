"""One LightningModule for pretraining and fine-tuning: what differs is the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from medbert.schema import Batch, LossOutput

_SEEDS = 2**31 - 1


class TrainingModule(pl.LightningModule):
    """Minimises ``objective(encoder, batch)``.

    Every step draws its randomness (masks, dropout) from a seed made of ``seed``, the step number
    and the rank, so that a resumed run repeats an unbroken one without any saved random state.
    ``optimizer`` is called with this module and the number of steps, and returns what Lightning's
    configure_optimizers returns. An objective with ``logits`` (a head) is also judged by AUROC.
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
        self.tuning_auroc = BinaryAUROC() if hasattr(objective, "logits") else None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.freeze_encoder:
            self.encoder.eval()
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % _SEEDS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output: LossOutput = self.objective(self.encoder, batch)
        self._log("train", output, batch)
        return output.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log("tuning", self.objective(self.encoder, batch), batch)
        if self.tuning_auroc is not None and batch.labels_B is not None:
            logits_B = self.objective.logits(self.encoder, batch)
            self.tuning_auroc.update(logits_B.sigmoid(), batch.labels_B.int())
            self.log("tuning/auroc", self.tuning_auroc, batch_size=len(batch.rows_B))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self, total_steps=int(self.trainer.estimated_stepping_batches))

    def _log(self, stage: str, output: LossOutput, batch: Batch) -> None:
        metrics = {"loss": output.loss, **output.metrics}
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=len(batch.rows_B), on_step=False, on_epoch=True)
