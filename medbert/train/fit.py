"""Fits a TrainingModule: loggers, early stopping, the best weights, checkpoints to resume from."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from medbert.schema import Batch
from medbert.train.callbacks import EpochLine, KeepBest
from medbert.train.module import TrainingModule

log = logging.getLogger(__name__)

_NOISE = (
    ".*does not have many workers.*",
    ".*`isinstance.treespec, LeafSpec.`.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


def fit(
    module: TrainingModule,
    *,
    train: DataLoader,
    tuning: DataLoader,
    trainer: Callable[..., pl.Trainer],
    folder: Path,
    monitor: str,
    mode: str,
    patience: int,
    ckpt_path: str | None = None,
    resumable: bool = True,
) -> dict[str, float]:
    """Trains until ``monitor`` has not improved for ``patience`` epochs; restores the best weights.

    ``folder`` receives logs/ for TensorBoard and as CSV and, where ``resumable``, checkpoints/
    (one per finished epoch, the latest kept). Takes up ``ckpt_path``, or the latest readable
    checkpoint there. Returns the metrics of the best epoch.
    """
    pl_log = logging.getLogger("pytorch_lightning")
    pl_log.setLevel(logging.WARNING)
    best = KeepBest(monitor=monitor, mode=mode)
    callbacks: list[pl.Callback] = [
        best,
        EarlyStopping(monitor, mode=mode, patience=patience),
        EpochLine(),
    ]
    if resumable:
        path = folder / "checkpoints"
        callbacks.append(ModelCheckpoint(path, filename="{epoch}", save_on_train_epoch_end=True))
    if progress := sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    machine = trainer(
        callbacks=callbacks,
        logger=[CSVLogger(folder / "logs", name=""), _tensorboard(folder)],
        enable_progress_bar=progress,
        enable_checkpointing=resumable,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        resume = ckpt_path or latest_checkpoint(folder / "checkpoints")
        machine.fit(module, train, tuning, ckpt_path=resume, weights_only=True)
        module.eval()
        measured = machine.validate(module, tuning, verbose=False)[0]
    return {"best_epoch": best.epoch + 1, **measured}


def _tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder / "logs", name="", version="", default_hp_metric=False)


def latest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that can be read; a damaged one is passed over, saying so."""
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in found:
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001  (torch raises many kinds for a damaged file)
            log.warning("%s is damaged (%s); taking the one before it", file, type(error).__name__)
            continue
        log.info("taking up unfinished work at %s", file)
        return str(file)
    return None


def score(function: Callable[[Batch], Tensor], data: DataLoader) -> Tensor:
    """``function`` of every batch, one value (or row of values) per row of the loader's dataset.

    The result is in the order of the dataset, whatever the order of the batches; on the CPU.
    """
    answers, rows = [], []
    with torch.inference_mode():
        for batch in data:
            answers.append(function(batch).cpu())
            rows.append(batch.rows_B)
    if not answers:
        return torch.zeros(0)
    return torch.cat(answers)[torch.argsort(torch.cat(rows))]
