"""The trainings of a benchmark, each kept in a file, and which arm of an encoder is taken."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medbert.commands.study.arms import Arm, Trial

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """Probabilities by what was ``judged``; ``chosen`` on tuning, with that AUROC and its error."""

    auroc: float
    error: float
    probabilities: dict[str, np.ndarray]
    chosen: dict[str, Any]
    seconds: float


class Trainings:
    """Trains what is not in the folder yet, one small file a training, and says what is running."""

    def __init__(self, folder: Path, *, total: int) -> None:
        self.folder, self.total, self.done = folder, total, 0
        folder.mkdir(exist_ok=True)

    def __call__(self, trial: Trial, arm: Arm) -> Answer:
        self.done += 1
        file = self.folder / f"{trial.key(arm)}.npz"
        if not file.exists():
            log.info("training %d of %d: %s, %s", self.done, self.total, trial.name, arm.name)
            begun = time.monotonic()
            with _quiet():
                auroc, probabilities, chosen = arm.train(trial, self.folder)
            about = json.dumps([auroc, chosen, time.monotonic() - begun], default=float)
            kept: dict[str, Any] = {"about": np.array(about), **probabilities}
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.savez(stream, **kept)
            part.replace(file)
        with np.load(file) as stored:
            auroc, chosen, seconds = json.loads(str(stored["about"]))
            probabilities = {name: stored[name] for name in trial.judged}
        error = standard_error(auroc, trial.frame.rows.labels[trial.tuning])
        return Answer(auroc, error, probabilities, chosen, seconds)


@contextmanager
def _quiet() -> Any:
    """Without the lines of single trainings; there are many."""
    training = logging.getLogger("medbert.train")
    level = training.level
    training.setLevel(logging.WARNING)
    try:
        yield
    finally:
        training.setLevel(level)


def best_of_families(arms: Iterable[Arm], answers: Mapping[str, Answer]) -> dict[str, Arm]:
    """The first arm of each family that is within a standard error of the best one on tuning.

    The rule of Breiman et al. (1984, ch. 3.4.3): on few labels the best is often so by chance.
    """
    families: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.name in answers:
            families.setdefault(arm.family, []).append(arm)
    found = {}
    for family, some in families.items():
        best = max((answers[arm.name] for arm in some), key=lambda answer: answer.auroc)
        near = best.auroc - best.error
        found[family] = next(arm for arm in some if answers[arm.name].auroc >= near)
    return found


def standard_error(auroc: float, labels: np.ndarray) -> float:
    """Of an AUROC on such rows (Hanley & McNeil 1982, Radiology 143:29)."""
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    two_positives, two_negatives = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (positives - 1) * (two_positives - auroc**2)
    spread += (len(labels) - positives - 1) * (two_negatives - auroc**2)
    return math.sqrt(max(spread, 0.0) / pairs)
