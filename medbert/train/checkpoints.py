"""Taking up a run exactly where it was: what is saved, when, and how a run is stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from medbert.schema import Unfinished

log = logging.getLogger(__name__)

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
_GO_ON, _SAVE, _TIME_UP = range(3)  # the processes agree on the highest; above: a signal


def latest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that can be read; a damaged one is passed over, saying so."""
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in found:
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001  (torch raises many kinds for a damaged file)
            log.warning("%s is damaged (%s); taking the one before it", file, type(error).__name__)
            continue
        log.info("taking up unfinished work at %s", file)
        return str(file)
    return None


class WholeFiles(TorchCheckpointIO):
    """Writes beside the file and renames: a kill or a full disk leaves the earlier file whole.

    Lightning's own way goes through the system's temporary folder, whence a move is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        part = Path(path).with_name("saving.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


class Signals:
    """Within ``with``: SIGTERM, SIGUSR1 and SIGUSR2 are noted in ``received`` (0: none came).

    Outside the main thread, and for a signal that is ignored, nothing changes.
    """

    def __init__(self) -> None:
        self.received = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
            handlers = {number: signal.getsignal(number) for number in known}
            self._earlier = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
        self.listen()
        return self

    def listen(self) -> None:
        for number in self._earlier:
            signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def owner(self, number: int) -> Callable[[int, FrameType | None], Any] | None:
        """Who listened before, such as a launcher that puts its jobs back into the queue."""
        earlier = self._earlier.get(number)
        return earlier if callable(earlier) else None


class Checkpoints(Checkpoint):
    """Saves at the end of each epoch and every ``minutes`` (0: after every step), keeping two.

    On a signal, or when ``time.monotonic()`` passes ``deadline``, it saves at the end of the step
    and raises `Unfinished`; a signal that somebody else listened to is passed on instead. A step
    that validation follows is not an end: there the epoch, or the next step, is.
    ``sampler.start`` is set to the batches of the epoch that were done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sampler: Any,
        minutes: float,
        deadline: float | None,
        signals: Signals,
        resumed: str | None,
    ) -> None:
        self.folder, self.sampler, self.signals = folder, sampler, signals
        self.seconds, self.deadline = 60 * minutes, deadline
        self._last = None if resumed is None else Path(resumed)
        self._saved_at, self._batches = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.listen()  # Lightning has just put its own handler for SIGTERM there
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        validates = done % (trainer.val_check_batch or trainer.num_training_batches) == 0
        if not validates and done % trainer.accumulate_grad_batches == 0:
            self._settle(trainer, batches=done)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._settle(trainer, batches=0, at_least=_SAVE)

    def _settle(self, trainer: pl.Trainer, *, batches: int, at_least: int = _GO_ON) -> None:
        wish = max(self._agreed(trainer), at_least)
        if wish == _GO_ON:
            return
        self._batches = batches
        self._save(trainer)
        if wish == _TIME_UP:
            raise Unfinished(f"time is up {_told(trainer)}")
        if wish > _TIME_UP:
            number = wish - _TIME_UP
            if (owner := self.signals.owner(number)) is None:
                raise Unfinished(f"{signal.Signals(number).name} came {_told(trainer)}")
            self.signals.received = 0
            owner(number, None)

    def _agreed(self, trainer: pl.Trainer) -> int:
        now, wish = time.monotonic(), _GO_ON
        if self.signals.received:
            wish = _TIME_UP + self.signals.received
        elif self.deadline is not None and now >= self.deadline:
            wish = _TIME_UP
        elif now - self._saved_at >= self.seconds:
            wish = _SAVE
        if trainer.world_size > 1:  # what one wants all do, at the same step
            wish_1 = torch.tensor(wish, device=trainer.strategy.root_device)
            wish = int(trainer.strategy.reduce(wish_1, reduce_op="max"))
        return wish

    def _save(self, trainer: pl.Trainer) -> None:
        file = self.folder / f"{trainer.global_step:09d}.ckpt"
        trainer.save_checkpoint(file)
        if trainer.is_global_zero:
            for other in set(self.folder.glob("*.ckpt")) - {file, self._last}:
                other.unlink(missing_ok=True)
        self._last, self._saved_at = file, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.start = state_dict["batches"]


def _told(trainer: pl.Trainer) -> str:
    return f"at step {trainer.global_step:,}; everything is saved: repeat the command to go on"
