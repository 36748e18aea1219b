"""What several verbs make alike: an encoder from its folder, a pretraining from its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medbert.data.batches import Sequences
from medbert.data.store import Store
from medbert.model import checkpoint
from medbert.schema import InputError
from medbert.train.learning import advice
from medbert.train.module import TrainingModule


def load_encoder(folder: str | Path, records: Store) -> torch.nn.Module:
    """The encoder in a folder, if it speaks the store's vocabulary."""
    config = checkpoint.read_config(Path(folder))
    if config.get("vocabulary_sha256") != records.vocabulary.sha256:
        raise InputError(
            f"{folder}: trained with another vocabulary than that of {records.folder}; prepare the "
            f"records again with `medbert prepare ... vocabulary={folder}`"
        )
    return checkpoint.load_module(Path(folder), "encoder")


def pretraining(
    records: Store,
    *,
    encoder: Callable[..., torch.nn.Module],
    objective: Callable[..., torch.nn.Module],
    optimizer: Callable[..., Any],
    compiler: str | None,
    seed: int,
) -> TrainingModule:
    """A new encoder of the store's vocabulary, and what it is to learn.

    ``compiler`` is a backend of torch.compile for its layers, or None.
    """
    torch.manual_seed(seed)
    size, counts = len(records.vocabulary), torch.from_numpy(records.vocabulary.counts.copy())
    model: Any = encoder(vocabulary_size=size)
    for layer in model.layers if compiler else ():
        layer.compile(backend=compiler, dynamic=True)
    goal: Any = objective(vocabulary_size=size, hidden=model.hidden, counts=counts)
    if hasattr(goal, "start"):
        goal.start(model)
    return TrainingModule(encoder=model, objective=goal, optimizer=optimizer, seed=seed)


def training_sequences(records: Store, split: str, max_tokens: int) -> Sequences:
    """The whole records of a split; InputError if it has no subjects."""
    data = Sequences(records, records.rows(split), max_tokens=max_tokens)
    if not len(data):
        raise InputError(f"{records.folder}: no subjects in the {split} split to pretrain on")
    return data


def pretraining_advice(
    settings: dict[str, Any],
    *,
    steps: int,
    subjects: int,
    codes: int,
    vocabulary: int,
    **reached: Any,
) -> list[str]:
    """``advice`` on a pretraining of these settings; ``reached``: loss, unigram, visit_pairs."""
    learning = settings["optimizer"]
    warmup = learning.get("warmup", 0)
    return advice(
        steps=steps,
        warmup=warmup * steps if warmup < 1 else warmup,
        lr=learning.get("lr", 0.0),
        subjects=subjects,
        codes=codes,
        vocabulary_size=vocabulary,
        rate=settings["objective"].get("rate", 1.0),
        **reached,
    )
