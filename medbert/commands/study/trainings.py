"""The trainings of a benchmark, each kept in a file, and which arm of an encoder is taken."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medbert.commands.study.arms import Arm, BaselineArm, Trial
from medbert.commands.study.trials import Asked

log = logging.getLogger(__name__)

BEYOND_CHANCE = 1.96  # errors of a difference; those of the two are taken for independent


class Answer(NamedTuple):
    """Probabilities by what was ``judged``; ``chosen`` on tuning, with that AUROC and its error."""

    auroc: float
    error: float
    probabilities: dict[str, np.ndarray]
    chosen: dict[str, Any]
    seconds: float


def train_all(
    asked: Asked, arms: Sequence[Arm], core: Sequence[Arm], folder: Path
) -> dict[str, dict[str, Answer]]:
    """The answers of every training, by the name of its trial and that of the arm. What is in the
    folder is not trained again: there is a small file for each."""
    folder.mkdir(exist_ok=True)
    wanted = [(trial, arms) for trial in asked.of_every_arm()]
    wanted += [(trial, core) for trial in asked.of_some_arms()]
    total, number = sum(len(some) for _, some in wanted), count(1)
    answers: dict[str, dict[str, Answer]] = {}
    for trial, some in wanted:
        answers[trial.name] = {}
        # baselines first: what is missing for them is soon known
        for arm in sorted(some, key=lambda arm: not isinstance(arm, BaselineArm)):
            what = f"training {next(number)} of {total}: {trial.name}, {arm.name}"
            answers[trial.name][arm.name] = _answer(trial, arm, folder, what)
        if trial.frame is not asked.whole.frame:
            trial.frame.forget()
    return answers


def _answer(trial: Trial, arm: Arm, folder: Path, what: str) -> Answer:
    file = folder / f"{trial.key(arm)}.npz"
    if not file.exists():
        log.info(what)
        begun, training = time.monotonic(), logging.getLogger("medbert.train")
        level = training.level
        training.setLevel(logging.WARNING)  # without the lines of single trainings; there are many
        try:
            auroc, probabilities, chosen = arm.train(trial, folder)
        finally:
            training.setLevel(level)
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


def best_of_families(arms: Iterable[Arm], answers: Mapping[str, Answer]) -> dict[str, Arm]:
    """The first arm of each family, or the first that the best one on tuning does not beat beyond
    chance: on few labels the best is often so by luck, and the luckier, the smaller its own error.
    """
    known, found = [arm for arm in arms if arm.name in answers], {}
    for family in dict.fromkeys(arm.family for arm in known):
        some = [(arm, answers[arm.name]) for arm in known if arm.family == family]
        best = max((answer for _, answer in some), key=lambda answer: answer.auroc)
        found[family] = next(
            arm
            for arm, answer in some
            if best.auroc - answer.auroc <= BEYOND_CHANCE * math.hypot(best.error, answer.error)
        )
    return found


def standard_error(auroc: float, labels: np.ndarray) -> float:
    """Of an AUROC on such rows (Hanley & McNeil 1982, Radiology 143:29)."""
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    two_positives, two_negatives = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (positives - 1) * (two_positives - auroc**2)
    spread += (len(labels) - positives - 1) * (two_negatives - auroc**2)
    return math.sqrt(max(spread, 0.0) / pairs)
