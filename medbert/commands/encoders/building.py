"""What several verbs make alike: an encoder from its folder, a pretraining from its settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from safetensors import SafetensorError
from safetensors.torch import load_file

from medbert.commands.output.artefacts import read_json
from medbert.data.batches import Sequences
from medbert.data.splits import mixed
from medbert.data.store import Store
from medbert.model import checkpoint
from medbert.schema import TRAIN, InputError

if TYPE_CHECKING:  # Lightning takes longer to load than an encoder takes to score a cohort
    from medbert.train.module import TrainingModule

_OBJECTIVE = "objective.safetensors"
_PART = np.uint64(0x5AB5E7)  # apart from the hash that makes the splits


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
    from medbert.train.module import TrainingModule

    torch.manual_seed(seed)
    size, counts = len(records.vocabulary), torch.from_numpy(records.vocabulary.counts.copy())
    model: Any = encoder(vocabulary_size=size)
    for layer in model.layers if compiler else ():
        layer.compile(backend=compiler, dynamic=True)
    goal: Any = objective(vocabulary_size=size, hidden=model.hidden, counts=counts)
    if hasattr(goal, "start"):
        goal.start(model)
    return TrainingModule(encoder=model, objective=goal, optimizer=optimizer, seed=seed)


def save_objective(folder: Path, objective: torch.nn.Module) -> None:
    """What was asked of an encoder, beside it: an audit asks the same again. Not to be shared."""
    checkpoint.save_weights(objective.state_dict(), folder / _OBJECTIVE)


def load_objective(folder: str | Path, records: Store, *, hidden: int) -> torch.nn.Module:
    """The objective of a pretraining, with the weights it ended with.

    Raises InputError where the folder has none, or its settings name anything but an objective.
    """
    begun, file = read_json(Path(folder) / "settings.json"), Path(folder) / _OBJECTIVE
    cure = "name the folder that `medbert pretrain` made"
    if not file.is_file() or "objective" not in begun:
        raise InputError(f"{file}: not found; {cure}")
    for target in _targets(begun["objective"]):
        if not _of_the_model(target):
            raise InputError(f"{folder}/settings.json: {target} is no objective of medbert; {cure}")
    counts = torch.from_numpy(records.vocabulary.counts.copy())
    goal = instantiate(begun["objective"], _convert_="all")(
        vocabulary_size=len(records.vocabulary), hidden=hidden, counts=counts
    )
    try:
        goal.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file}: not the weights of its objective ({reason}); {cure}") from error
    return goal


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a configuration."""
    if isinstance(node, dict):
        yield from (str(v) for k, v in node.items() if k == "_target_")
        node = [*node.values()]
    for child in node if isinstance(node, list) else ():
        yield from _targets(child)


def _of_the_model(target: str) -> bool:
    """Whether a target is made in ``medbert.model``, and not only reached by way of it."""
    where, _, name = target.rpartition(".")
    if not re.fullmatch(r"medbert\.model\.\w+", where) or find_spec(where) is None:
        return False
    return getattr(getattr(import_module(where), name, None), "__module__", None) == where


def training_sequences(
    records: Store, split: str, max_tokens: int, *, n_subjects: int | None = None
) -> Sequences:
    """The whole records of a split; InputError if it has no subjects.

    ``n_subjects`` of train, and as large a part of any other split: by a hash of the id, so that
    the subjects of a smaller number are among those of a larger one.
    """
    rows = records.rows(split)
    if not len(rows):
        raise InputError(f"{records.folder}: no subjects in the {split} split to pretrain on")
    if n_subjects is not None:
        there = len(records.rows(TRAIN))
        if not 0 < n_subjects <= there:
            raise InputError(f"n_subjects={n_subjects:,}: train has {there:,} subjects")
        order = np.argsort(mixed(records.subject_ids[rows].astype(np.uint64) ^ _PART))
        rows = np.sort(rows[order[: math.ceil(len(rows) * n_subjects / there)]])
    return Sequences(records, rows, max_tokens=max_tokens)


def pretraining_advice(settings: dict[str, Any], *, steps: int, **more: Any) -> list[str]:
    """``advice`` on a pretraining of these settings; ``more``: its other arguments."""
    from medbert.train.learning import advice

    warmup, lr = (settings["optimizer"].get(name, 0.0) for name in ("warmup", "lr"))
    warmup, rate = warmup * steps if warmup < 1 else warmup, settings["objective"].get("rate", 1.0)
    return advice(steps=steps, warmup=warmup, lr=lr, rate=rate, **more)
