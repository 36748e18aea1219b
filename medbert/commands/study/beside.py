"""Arms that need few labels: what an encoder says without any, and what it says beside counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from medbert.commands.encoders.questions import Question, ask, of_outcome
from medbert.commands.study.arms import Arm, EncoderArm, Frame, Trained, Trial, Where, on_counts
from medbert.data.batches import Sequences
from medbert.evaluate.baselines import AgeSexBaseline, LightGBMBaseline, LogisticBaseline
from medbert.evaluate.benefit import Recalibration, recalibrate
from medbert.evaluate.metrics import auroc
from medbert.model.heads import FrozenLogistic
from medbert.schema import InputError

Baseline = LogisticBaseline | LightGBMBaseline

TINY = 1e-9  # probabilities are kept so far from 0 and 1
ENOUGH = 20  # rows with the outcome, and without, for a slope
WORTH = 100  # an answer without labels counts as much as so many labelled rows with the outcome
DOUBT = 0.5  # deviation of its slope from 1, before any label is seen


@dataclass(frozen=True)
class QueryArm:
    """The encoder's own answer to the question of the task: no label is used."""

    family: str
    make: Callable[[int], Any]
    weights: str | None
    max_tokens: int
    batch_tokens: int

    @property
    def name(self) -> str:
        return f"{self.family} (query, no labels)"

    @property
    def identity(self) -> Any:
        return [self.name, self.weights, self.max_tokens]

    def train(self, trial: Trial, folder: Path) -> Trained:
        where = {"tuning": (trial.frame, trial.tuning), **trial.judged}
        found = {name: expit(value) for name, value in self.answers(trial, where).items()}
        labels = trial.frame.rows.labels[trial.tuning]
        return float(auroc(labels, found.pop("tuning"))), found, {}

    def answers(self, trial: Trial, where: Where) -> dict[str, np.ndarray]:
        seed = trial.seed if self.weights is None else None

        def of_all(frame: Frame) -> np.ndarray:
            question = of_outcome(frame.outcome, frame.records)
            assert question is not None, "such arms are made for tasks that ask for codes"
            rows, until, _ = frame.rows
            data = Sequences(frame.records, rows, until=until, max_tokens=self.max_tokens)
            return ask(data, self.make(trial.seed), question, batch_tokens=self.batch_tokens)

        return {
            name: frame.keep(("query", self.family, seed), partial(of_all, frame))[places]
            for name, (frame, places) in where.items()
        }


@dataclass(frozen=True)
class BesideArm:
    """The mean, on the log-odds scale, of an encoder's answer and of baselines on counts.

    Nothing is chosen by label between them, so that it holds from few labels to many. An answer
    without labels has the weight n / (n + P) where n is WORTH and P training rows have the outcome;
    its slope is put right by the training rows first, so that one which says little there moves
    little. One that was ``learned`` from labels is one among equals, and the baselines see it.
    """

    answering: EncoderArm | QueryArm
    baselines: Sequence[Baseline]

    @property
    def learned(self) -> bool:
        return isinstance(self.answering, EncoderArm)

    @property
    def family(self) -> str:
        return self.answering.family

    @property
    def name(self) -> str:
        return f"{self.family} ({'frozen' if self.learned else 'query'} beside counts)"

    @property
    def identity(self) -> Any:
        worth = None if self.learned else WORTH
        return [self.name, worth, self.answering.identity, [repr(each) for each in self.baselines]]

    def train(self, trial: Trial, folder: Path) -> Trained:
        labels = trial.frame.rows.labels
        mine = {"train": (trial.frame, trial.train), "tuning": (trial.frame, trial.tuning)}
        where = {**mine, **trial.judged}
        answers = self.answering.answers(trial, where)
        if self.learned:
            put_right = recalibrate(labels[trial.train], expit(answers["train"]), slope=False)
        else:
            put_right = _believed(labels[trial.train], answers["train"])
        parts = {name: [logit(put_right(expit(answers[name])))] for name in where}
        given = {name: frame.features.at(places) for name, (frame, places) in where.items()}
        weights = [1.0] * (1 + len(self.baselines))
        if self.learned:
            for name, counts in given.items():
                seen = np.column_stack([counts.dense, answers[name]])
                given[name] = counts._replace(dense=seen)
        else:
            weights[0] = WORTH / labels[trial.train].sum() * len(self.baselines)
        chosen = {}
        for each in self.baselines:
            if self.learned:
                train = given["train"], labels[trial.train]
                tuning = given["tuning"], labels[trial.tuning]
                threads = torch.get_num_threads()
                fitted: Any = each.fit(*train, *tuning, seed=trial.seed, threads=threads)
            else:
                fitted = on_counts(trial, each)
            chosen[each.name] = asdict(fitted.search)["chosen"]
            for name, features in given.items():
                parts[name].append(logit(np.clip(fitted.predict_proba(features), TINY, 1 - TINY)))
        mean = {n: expit(np.average(part, axis=0, weights=weights)) for n, part in parts.items()}
        judged = labels[trial.tuning], mean["tuning"]
        spread = _calibration(*judged)
        found = {name: spread(mean[name]) for name in trial.judged}
        return float(auroc(*judged)), found, {"chosen": chosen}


def _believed(labels: np.ndarray, log_odds: np.ndarray) -> Recalibration:
    """How far log-odds are to be believed, by labelled rows that they were not learned from: the
    slope of Cox (1958), not below 0, with 1 and DOUBT for a prior; more labels, more say."""
    middle = log_odds - log_odds.mean()

    def cost(line: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = line[0] + line[1] * middle
        error, doubt = expit(fitted) - labels, (line[1] - 1) / DOUBT
        likelihood = np.logaddexp(0, fitted).sum() - fitted[labels].sum()
        slopes = np.array([error.sum(), (error * middle).sum() + doubt / DOUBT])
        return likelihood + doubt**2 / 2, slopes

    begun = np.array([logit(labels.mean()), 1.0])
    bounds = [(None, None), (0.0, None)]
    level, slope = minimize(cost, begun, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Recalibration(float(level - slope * log_odds.mean()), float(slope))


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Recalibration:
    """A mean of log-odds is too narrow: stretched on tuning rows, where there are enough."""
    if min(labels.sum(), (~labels).sum()) >= ENOUGH:
        with suppress(InputError):
            return recalibrate(labels, probabilities)
    return recalibrate(labels, probabilities, slope=False)


def beside_counts(
    arms: Sequence[EncoderArm], baselines: Sequence[Baseline], question: Question | None
) -> list[Arm]:
    """The arms, and before those of each encoder its answer beside the counts of codes: to the
    question, if it foretells codes (and that answer alone), else from its frozen outputs."""
    on_codes = [each for each in baselines if not isinstance(each, AgeSexBaseline)]
    found: list[Arm] = []
    for family in dict.fromkeys(arm.family for arm in arms):
        mine = [arm for arm in arms if arm.family == family]
        heads, model = [arm for arm in mine if arm.head], mine[0].make(0)
        posed = [arm.posed(model, question).head(hidden=model.hidden) for arm in heads]
        frozen = [a for a, h in zip(heads, posed, strict=True) if isinstance(h, FrozenLogistic)]
        made, sizes = mine[0], mine[0].recipe
        foretells = made.weights is not None and getattr(model, "hazards", None) is not None
        if question and foretells:  # untrained, it has nothing to say
            query = QueryArm(family, made.make, made.weights, sizes.max_tokens, sizes.batch_tokens)
            found += [BesideArm(query, on_codes), query]
        elif frozen:
            found.append(BesideArm(frozen[0], on_codes))
        elif not heads:
            raise InputError(
                f"{family}: has no answer to this without labels, so it needs a head; say "
                "+head@heads.frozen_logistic=frozen_logistic (or untrained=false)"
            )
        found += heads
    return found
