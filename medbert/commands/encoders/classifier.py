"""A head on an encoder, trained on labelled rows: what `finetune` does, and `evaluate` repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.data.tasks.cohorts import Cohort
from medbert.model.heads import FrozenLogistic
from medbert.schema import SPLITS, TRAIN, TUNING, InputError
from medbert.train.score import place, score


class Rows(NamedTuple):
    """The labelled rows of one split; ``until`` in microseconds."""

    rows: np.ndarray
    until: np.ndarray
    labels: np.ndarray


class Recipe(NamedTuple):
    """How a head is trained: the same for a pretrained encoder and an untrained one."""

    head: Callable[..., torch.nn.Module]
    optimizer: Callable[..., Any]
    trainer: Callable[..., Any]
    freeze: bool
    max_tokens: int
    batch_tokens: int
    patience: int
    seed: int
    device: str = "auto"


def by_split(records: Store, cohort: Cohort) -> dict[str, Rows]:
    """The cohort's rows of each split; refuses a split with no rows or with one class only."""
    split_of_row = records.split_of_row[cohort.rows]
    found = {}
    for split in SPLITS:
        here = split_of_row == split
        labels = cohort.labels[here]
        if labels.all() or not labels.any():
            kind = "no rows" if not len(labels) else "one class only"
            raise InputError(
                f"the {split} split has {kind} ({len(labels)} rows, {int(labels.sum())} positive) "
                f"for this task; it needs both: use more subjects, or other splits"
            )
        found[split] = Rows(cohort.rows[here], cohort.prediction_time[here], labels)
    return found


def train_classifier(
    records: Store,
    splits: dict[str, Rows],
    model: Any,
    recipe: Recipe,
    *,
    folder: Path,
) -> tuple[Any, dict[str, float]]:
    """Trains a head (and, unless frozen, ``model`` in place) on train, choosing on tuning."""
    torch.manual_seed(recipe.seed)
    classifier: Any = recipe.head(hidden=model.hidden)
    data = {split: sequences(records, splits[split], recipe) for split in (TRAIN, TUNING)}
    if isinstance(classifier, FrozenLogistic):
        features = [frozen(part, model, classifier, recipe) for part in data.values()]
        outcome = splits[TRAIN].labels, splits[TUNING].labels
        return classifier, classifier.fit(features[0], outcome[0], features[1], outcome[1])
    from medbert.train.fit import fit
    from medbert.train.module import TrainingModule

    module = TrainingModule(
        encoder=model,
        objective=classifier,
        optimizer=recipe.optimizer,
        seed=recipe.seed,
        freeze_encoder=recipe.freeze,
    )
    metrics = fit(
        module,
        train=loader(data[TRAIN], budget=recipe.batch_tokens, seed=recipe.seed, shuffle=True),
        tuning=loader(data[TUNING], budget=recipe.batch_tokens),
        trainer=recipe.trainer,
        folder=folder,
        monitor="tuning/auroc",
        mode="max",
        patience=recipe.patience,
        resumable=False,
        from_start=classifier.starts,
    )
    return classifier, metrics


def frozen(data: Sequences, model: Any, classifier: FrozenLogistic, recipe: Recipe) -> torch.Tensor:
    """What a frozen encoder gives the head for each row, (N, K)."""
    device = place(recipe.device)
    model.to(device)
    batches = loader(data, budget=recipe.batch_tokens)
    return score(lambda batch: classifier.features(model, batch), batches, device=device)


def predict(
    records: Store,
    rows: Rows,
    model: Any,
    classifier: Any,
    recipe: Recipe,
) -> np.ndarray:
    """Probability of the outcome for each row."""
    device = place(recipe.device)
    model.to(device).eval()
    classifier.to(device).eval()
    data = loader(sequences(records, rows, recipe), budget=recipe.batch_tokens)
    logits = score(lambda batch: classifier.logits(model, batch), data, device=device)
    return logits.double().sigmoid().numpy()


def sequences(records: Store, rows: Rows, recipe: Recipe) -> Sequences:
    return Sequences(
        records, rows.rows, until=rows.until, labels=rows.labels, max_tokens=recipe.max_tokens
    )
