"""What a benchmark trains, behind one interface: baselines on counts, heads on encoders.

An arm trains on some rows of a frame, chooses on others, and gives probabilities for any; arms of
one family (the heads on one encoder) are one recipe: the best of them on tuning.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.classifier import (
    Recipe,
    Rows,
    frozen,
    predict,
    sequences,
    train_classifier,
)
from medbert.commands.encoders.questions import Question, of_outcome, told
from medbert.commands.study.judging import features
from medbert.commands.study.reporting import PRETRAINED, UNTRAINED
from medbert.data.counts import Counts, count_codes
from medbert.data.store import Store
from medbert.evaluate.baselines import Features, LightGBMBaseline, LogisticBaseline
from medbert.model import checkpoint
from medbert.model.heads import FrozenLogistic
from medbert.schema import TRAIN, TUNING

log = logging.getLogger(__name__)

LEAST_STEPS = 16  # of an epoch: batches are smaller where there are few labels
FOLDS = 5  # of training subjects, for answers by models that have not seen their labels


@dataclass
class Frame:
    """Labelled rows of a store as models see them; what is made of all rows is made once.

    ``window_days`` of the counts; the observation window is that of ``records``.
    """

    records: Store
    rows: Rows
    window_days: Sequence[int]
    outcome: Any = None  # of the task, for arms that ask for it
    _kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        rows, seen = self.rows, self.records.window_days
        days = [None, *(day for day in self.window_days if seen is None or day < seen)]
        of = partial(count_codes, self.records, rows.rows, until=rows.until, roll_up=True)
        return self.keep("counts", lambda: of(window_days=days))

    @property
    def features(self) -> Features:
        return self.keep("features", lambda: features(self.counts))

    @property
    def subject_ids(self) -> np.ndarray:
        return self.records.subject_ids[self.rows.rows]

    def at(self, places: np.ndarray) -> Rows:
        return Rows(*(part[places] for part in self.rows))

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forget(self) -> None:
        """Frees what was kept; it is made anew when it is asked for."""
        self._kept.clear()


Where = Mapping[str, tuple[Frame, np.ndarray]]  # places in a frame, by name


class Trial(NamedTuple):
    """One training of each arm: ``train``, ``tuning`` are places in the frame, and ``judged`` names
    places in this frame or another one for which probabilities are wanted."""

    name: str
    frame: Frame
    train: np.ndarray
    tuning: np.ndarray
    judged: Where
    seed: int

    def key(self, arm: Arm) -> str:
        """Equal keys, equal answers."""
        told = hashlib.sha256(json.dumps([arm.identity, self.seed], default=str).encode())
        parts = [(self.frame, self.train), (self.frame, self.tuning), *self.judged.values()]
        for name, (frame, places) in zip(("", "", *self.judged), parts, strict=True):
            shards = [shard["sha256"] for shard in frame.records.info["shards"]]
            told.update(json.dumps([name, shards, frame.records.window_days]).encode())
            for part in frame.at(places):
                told.update(np.ascontiguousarray(part).tobytes())
        return told.hexdigest()[:32]


Trained = tuple[float, dict[str, np.ndarray], Any]  # AUROC on tuning, probabilities, what it chose


def on_counts(trial: Trial, baseline: LogisticBaseline | LightGBMBaseline) -> Any:
    """A baseline fitted to the counts of a trial; once, whoever asks for it."""

    def fit() -> Any:
        given, labels = trial.frame.features, trial.frame.rows.labels
        train, tuning = ((given.at(at), labels[at]) for at in (trial.train, trial.tuning))
        return baseline.fit(*train, *tuning, seed=trial.seed, threads=torch.get_num_threads())

    return trial.frame.keep(("on counts", repr(baseline), trial.name, trial.seed), fit)


@dataclass(frozen=True)
class BaselineArm:
    """A baseline on the counts of its frame."""

    baseline: LogisticBaseline | LightGBMBaseline

    @property
    def name(self) -> str:
        return self.baseline.name

    @property
    def family(self) -> str:
        return self.name

    @property
    def identity(self) -> Any:
        return repr(self.baseline)

    def train(self, trial: Trial, folder: Path) -> Trained:
        fitted = on_counts(trial, self.baseline)
        probabilities = {
            name: fitted.predict_proba(judged.features.at(places))
            for name, (judged, places) in trial.judged.items()
        }
        return fitted.search.auroc, probabilities, asdict(fitted.search)


@dataclass(frozen=True)
class EncoderArm:
    """A head on an encoder, which ``make`` makes of a seed; ``weights`` say which encoder it is.

    None: one that is untrained, and another one for every seed.
    """

    family: str
    head: str
    make: Callable[[int], Any]
    weights: str | None
    recipe: Recipe
    settings: Any  # of the recipe and the shape, for JSON

    @property
    def name(self) -> str:
        return f"{self.family} ({self.head.replace('_', ' ')})"

    @property
    def identity(self) -> Any:
        return [self.family, self.head, self.weights, self.settings]

    def train(self, trial: Trial, folder: Path) -> Trained:
        model = self.make(trial.seed)
        question = of_outcome(trial.frame.outcome, trial.frame.records)
        recipe = self.posed(model, question)._replace(seed=trial.seed)
        classifier = recipe.head(hidden=model.hidden)
        if isinstance(classifier, FrozenLogistic):
            return self._frozen(trial, model, classifier)
        frame = trial.frame
        lengths = frame.keep(
            "lengths", lambda: sequences(frame.records, frame.rows, recipe).lengths
        )
        budget = int(lengths[trial.train].sum()) // LEAST_STEPS
        recipe = recipe._replace(batch_tokens=max(1, min(recipe.batch_tokens, budget)))
        splits = {TRAIN: frame.at(trial.train), TUNING: frame.at(trial.tuning)}
        with TemporaryDirectory(dir=folder) as place:
            classifier, metrics = train_classifier(
                frame.records, splits, model, recipe, folder=Path(place)
            )
        probabilities = {
            name: predict(judged.records, judged.at(places), model, classifier, self.recipe)
            for name, (judged, places) in trial.judged.items()
        }
        return metrics["tuning/auroc"], probabilities, metrics

    def posed(self, model: Any, question: Question | None) -> Recipe:
        """The recipe, its head told the question if it takes one; InputError where it cannot be."""
        head = self.recipe.head
        return self.recipe._replace(head=partial(head, **told(head, model, question)))

    def answers(self, trial: Trial, where: Where) -> dict[str, np.ndarray]:
        """Log-odds by a logistic regression on the pooled outputs of the frozen encoder; those of
        ``train`` come from one that has not seen their subjects' labels."""
        model = self.make(trial.seed)
        classifier: Any = self.recipe.head(hidden=model.hidden)
        labels, pooled = trial.frame.rows.labels, self._pooled(trial.seed, model, classifier)

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

    def _pooled(self, seed: int, model: Any, classifier: FrozenLogistic) -> Callable[..., Any]:
        """What a frozen head makes of rows of a frame; of all its rows it is made once."""
        key = (self.name, seed if self.weights is None else None)

        def pooled(frame: Frame, places: np.ndarray) -> torch.Tensor:
            def make() -> torch.Tensor:
                data = sequences(frame.records, frame.rows, self.recipe)
                return frozen(data, model, classifier, self.recipe)

            return frame.keep(key, make)[places]

        return pooled

    def _frozen(self, trial: Trial, model: Any, classifier: FrozenLogistic) -> Trained:
        pooled = self._pooled(trial.seed, model, classifier)

        def given(places: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
            return pooled(trial.frame, places), trial.frame.rows.labels[places]

        chosen = classifier.fit(*given(trial.train), *given(trial.tuning))
        with torch.no_grad():
            probabilities = {
                name: classifier.output(pooled(*where)).double().sigmoid().squeeze(-1).numpy()
                for name, where in trial.judged.items()
            }
        return chosen["tuning_auroc"], probabilities, chosen


class Arm(Protocol):
    """``identity``: what its answers depend on, for JSON."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def identity(self) -> Any: ...

    def train(self, trial: Trial, folder: Path) -> Trained: ...


def encoder_arms(
    records: Store,
    recipes: Mapping[str, Recipe],
    encoder_dir: str | None,
    encoder: Callable[..., Any],
    encoders: Mapping[str, str | None],
    untrained: bool,
    settings: Mapping[str, Any],
) -> list[EncoderArm]:
    """Every head on every encoder: pretrained, untrained, others; one that is missing is passed.

    ``encoder`` is the shape of the untrained one where there is no ``encoder_dir``. The recipe of a
    head "" is for encoders that are only asked.
    """
    size = len(records.vocabulary)
    shape: Callable[..., Any] = partial(encoder, vocabulary_size=size)
    made: dict[str, tuple[Callable[[int], Any], str | None]] = {}
    for family, folder in {PRETRAINED: encoder_dir, **encoders}.items():
        if folder is not None:
            model: Any = load_encoder(folder, records)
            weights = checkpoint.read_config(folder)["weights_sha256"]
            made[family] = partial(_copy, model), weights
            if family == PRETRAINED:
                shape = partial(model.__class__, **model.config)
    if untrained or encoder_dir is None:
        made[UNTRAINED] = partial(_fresh, shape), None
    order = sorted(made, key=lambda family: family not in (PRETRAINED, UNTRAINED))
    told = ("encoder", "optimizer", "trainer", "freeze", "max_tokens", "batch_tokens", "patience")
    about = {name: settings[name] for name in told}
    return [
        EncoderArm(family, head, *made[family], recipe, [about, settings["heads"].get(head)])
        for family in order
        for head, recipe in recipes.items()
    ]


def _copy(model: Any, seed: int) -> Any:
    return deepcopy(model)


def _fresh(shape: Callable[[], Any], seed: int) -> Any:
    torch.manual_seed(seed)
    return shape()
