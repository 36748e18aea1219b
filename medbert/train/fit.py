"""Fits a TrainingModule: loggers, early stopping, the best weights, checkpoints to resume from."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from medbert.schema import InputError
from medbert.train.callbacks import KeepBest, Patience
from medbert.train.checkpoints import Checkpoints, Signals, WholeFiles, latest_checkpoint
from medbert.train.diagnostics import EpochLine
from medbert.train.module import TrainingModule

log = logging.getLogger(__name__)

_NOISE = (
    ".*does not have many workers.*",
    ".*`isinstance.treespec, LeafSpec.`.*",
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # its sampler is
    ".*recommended to use `self.log.*sync_dist=True.*",
    ".*`srun` command is available.*",
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
    from_start: bool = False,
    checkpoint_minutes: float = 10.0,
    deadline: float | None = None,
    line: EpochLine | None = None,
) -> dict[str, float]:
    """Trains until ``monitor`` has not improved for ``patience`` epochs; restores the best weights.

    ``folder`` receives logs/ for TensorBoard and as CSV (a ``logger`` of the trainer is told the
    same) and, where ``resumable``, checkpoints/: the latest readable one there is taken up, else
    ``ckpt_path``. See `Checkpoints` for when they are written and when ``Unfinished`` is raised,
    `EpochLine` for what is told meanwhile. With ``from_start`` the weights as they are given may be
    the best (epoch 0). Returns the metrics of the best epoch, and the steps of all.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    place = folder / "checkpoints"
    resume = latest_checkpoint(place) or ckpt_path
    best = KeepBest(monitor=monitor, mode=mode)
    callbacks = [best, Patience(monitor, mode=mode, patience=patience), line or EpochLine()]
    if progress := sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    with warnings.catch_warnings(), Signals() if resumable else nullcontext() as signals:
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        if signals is not None:
            saving = Checkpoints(
                place,
                sampler=train.sampler,
                minutes=checkpoint_minutes,
                deadline=deadline,
                signals=signals,
                resumed=resume,
            )
            callbacks.append(saving)
        machine = trainer(
            callbacks=callbacks,
            logger=_loggers(folder, trainer),
            enable_progress_bar=progress,
            enable_checkpointing=resumable,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        if machine.world_size > 1 and not resumable:
            raise InputError("trainer.devices: only pretraining shares its work among devices")
        machine.strategy.checkpoint_io = WholeFiles()
        if machine.strategy.root_device.type == "cpu":
            _keep_memory()
        if from_start:
            machine.validate(module, tuning, verbose=False)
        machine.fit(module, train, tuning, ckpt_path=resume, weights_only=True)
        module.eval()
        steps = machine.global_step
        measured = machine.validate(module, tuning, verbose=False)[0]
    return {"best_epoch": best.epoch + 1, "steps": steps, **measured}


def _loggers(folder: Path, trainer: Callable[..., pl.Trainer]) -> list[Logger]:
    """CSV, TensorBoard, and the one that a partly made trainer was given."""
    board = TensorBoardLogger(folder / "logs", name="", version="", default_hp_metric=False)
    given = getattr(trainer, "keywords", {}).get("logger")
    return [CSVLogger(folder / "logs", name=""), board, *filter(None, [given])]


def _keep_memory() -> None:
    """Tells the C library (glibc) to keep freed memory for the next step, for the whole process.

    It otherwise gives large tensors back to the system and takes them anew, page by page: a tenth
    to a third of a step on a CPU with a large vocabulary.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for name, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            mallopt(name, value)
