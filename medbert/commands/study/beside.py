"""Arms that need few labels: what an encoder says without any, and what it says beside counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from medbert.commands.encoders.questions import Question, ask, of_outcome
from medbert.commands.study.arms import Arm, EncoderArm, Frame, Trained, Trial, on_counts
from medbert.evaluate.baselines import AgeSexBaseline, LightGBMBaseline, LogisticBaseline
from medbert.evaluate.benefit import Recalibration, recalibrate
from medbert.evaluate.metrics import auroc
from medbert.model.heads import FrozenLogistic
from medbert.schema import InputError

Baseline = LogisticBaseline | LightGBMBaseline
Where = Mapping[str, tuple[Frame, np.ndarray]]  # places in a frame, by name

TINY = 1e-9  # probabilities are kept so far from 0 and 1
FOLDS = 5
ENOUGH = 20  # rows with the outcome, and without, for a slope
WORTH = 100  # an answer without labels counts as much as so many labelled rows with the outcome
DOUBT = 0.5  # deviation of its slope from 1, before any label is seen


class Answering(Protocol):
    """Log-odds of the outcome, from an encoder alone; those of training rows come from a model
    that has not seen their subjects' labels. ``worth``: see ``BesideArm``."""

    @property
    def worth(self) -> float | None: ...

    @property
    def family(self) -> str: ...

    @property
    def identity(self) -> Any: ...

    def answers(self, trial: Trial, where: Where) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class QueryArm:
    """The encoder's own answer to the question of the task: no label is used."""

    family: str
    make: Callable[[int], Any]
    weights: str | None
    max_tokens: int
    batch_tokens: int
    worth: float | None = WORTH

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
            return ask(
                frame.records,
                frame.rows.rows,
                frame.rows.until,
                self.make(trial.seed),
                question,
                max_tokens=self.max_tokens,
                batch_tokens=self.batch_tokens,
            )

        return {
            name: frame.keep(("query", self.family, seed), partial(of_all, frame))[places]
            for name, (frame, places) in where.items()
        }


@dataclass(frozen=True)
class FrozenAnswer:
    """A logistic regression on the pooled outputs of a frozen encoder, for any task."""

    arm: EncoderArm
    worth: float | None = None

    @property
    def family(self) -> str:
        return self.arm.family

    @property
    def identity(self) -> Any:
        return self.arm.identity

    def answers(self, trial: Trial, where: Where) -> dict[str, np.ndarray]:
        model = self.arm.make(trial.seed)
        classifier: Any = self.arm.recipe.head(hidden=model.hidden)
        labels = trial.frame.rows.labels

        def pooled(frame: Frame, places: np.ndarray) -> torch.Tensor:
            return self.arm.pooled(frame, places, trial.seed, model, classifier)

        def fit(places: np.ndarray, **how: Any) -> float:
            tuning = pooled(trial.frame, trial.tuning), labels[trial.tuning]
            return classifier.fit(pooled(trial.frame, places), labels[places], *tuning, **how)["C"]

        def said(frame: Frame, places: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return classifier.output(pooled(frame, places)).double().squeeze(-1).numpy()

        penalty = fit(trial.train)
        found = {name: said(*at) for name, at in where.items()}
        subjects = np.unique(trial.frame.subject_ids[trial.train], return_inverse=True)[1]
        fold = np.random.default_rng(trial.seed).permutation(subjects.max() + 1)[subjects] % FOLDS
        for out in range(FOLDS):
            mine, others = trial.train[fold == out], trial.train[fold != out]
            if len(mine) and 0 < labels[others].sum() < len(others):
                fit(others, penalties=[penalty])
                found["train"][fold == out] = said(trial.frame, mine)
        return found


@dataclass(frozen=True)
class BesideArm:
    """The mean, on the log-odds scale, of an encoder's answer and of baselines on counts.

    Nothing is chosen by label between them, so that it holds from few labels to many. An answer
    without labels that is ``worth`` n has the weight n / (n + P) where P training rows have the
    outcome; its slope is put right by the training rows first, so that one which says little there
    moves little. One that was learned from labels (None) is one among equals, and the baselines
    see it.
    """

    answering: Answering
    kind: str
    baselines: Sequence[Baseline]

    @property
    def family(self) -> str:
        return self.answering.family

    @property
    def name(self) -> str:
        return f"{self.family} ({self.kind} beside counts)"

    @property
    def identity(self) -> Any:
        made = self.answering
        return [self.name, made.worth, made.identity, [repr(each) for each in self.baselines]]

    def train(self, trial: Trial, folder: Path) -> Trained:
        labels = trial.frame.rows.labels
        mine = {"train": (trial.frame, trial.train), "tuning": (trial.frame, trial.tuning)}
        where = {**mine, **trial.judged}
        answers = self.answering.answers(trial, where)
        worth = self.answering.worth
        if worth is None:
            put_right = recalibrate(labels[trial.train], expit(answers["train"]), slope=False)
        else:
            put_right = _believed(labels[trial.train], answers["train"])
        parts = {name: [logit(put_right(expit(answers[name])))] for name in where}
        given = {name: frame.features.at(places) for name, (frame, places) in where.items()}
        weights = [1.0] * (1 + len(self.baselines))
        if worth is None:
            for name, counts in given.items():
                seen = np.column_stack([counts.dense, answers[name]])
                given[name] = counts._replace(dense=seen)
        else:
            weights[0] = worth / labels[trial.train].sum() * len(self.baselines)
        chosen = {}
        for each in self.baselines:
            if worth is not None:
                fitted = on_counts(trial, each)
            else:
                fitted = each.fit(
                    given["train"],
                    labels[trial.train],
                    given["tuning"],
                    labels[trial.tuning],
                    seed=trial.seed,
                    threads=torch.get_num_threads(),
                )
            chosen[each.name] = asdict(fitted.search)["chosen"]
            for name, features in given.items():
                parts[name].append(logit(np.clip(fitted.predict_proba(features), TINY, 1 - TINY)))
        mean = {n: expit(np.average(part, axis=0, weights=weights)) for n, part in parts.items()}
        tuning = labels[trial.tuning], mean["tuning"]
        spread = _calibration(*tuning)
        found = {name: spread(mean[name]) for name in trial.judged}
        return float(auroc(*tuning)), found, {"chosen": chosen}


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
        heads = [arm for arm in arms if arm.family == family]
        model = heads[0].make(0)
        posed = [arm.posed(model, question).head(hidden=model.hidden) for arm in heads]
        frozen = [a for a, h in zip(heads, posed, strict=True) if isinstance(h, FrozenLogistic)]
        made, sizes = heads[0], heads[0].recipe
        foretells = made.weights is not None and getattr(model, "hazards", None) is not None
        if question and foretells:  # untrained, it has nothing to say
            query = QueryArm(family, made.make, made.weights, sizes.max_tokens, sizes.batch_tokens)
            found += [BesideArm(query, "query", on_codes), query]
        elif frozen:
            found.append(BesideArm(FrozenAnswer(frozen[0]), "frozen", on_codes))
        found += heads
    return found
