"""``medbert pretrain``: an encoder from the training subjects of a store."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from medbert.commands.encoders import building
from medbert.commands.encoders.trained_on import TRAINED_ON, training_set
from medbert.commands.output.artefacts import artefact, first_process, read_json, write_json
from medbert.commands.output.progress import follow
from medbert.data.batches import Sequences, loader
from medbert.data.entropy import chance, fit_pairs
from medbert.data.store import Store
from medbert.evaluate.figures.learning import draw
from medbert.model import checkpoint
from medbert.model.hazards import TimeToEvent
from medbert.model.layers.attention import places
from medbert.model.regression import begin
from medbert.schema import ORDER, TRAIN, TUNING, InputError
from medbert.train.diagnostics import EpochLine
from medbert.train.fit import fit
from medbert.train.learning import by_frequency, hide, masked_term
from medbert.train.module import TrainingModule
from medbert.train.private import PoissonSampler, Privacy, PrivateSteps
from medbert.train.score import place

log = logging.getLogger(__name__)

_READ = 2000  # batches at most that a regression starts from
_FREE = ("checkpoint_minutes", "time_limit")  # settings that do not change what is learned


def pretrain(
    *,
    store: str,
    encoder: Callable[..., torch.nn.Module],
    objective: Callable[..., torch.nn.Module],
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    n_subjects: int | None,
    max_tokens: int,
    batch_tokens: int,
    compiler: str | None,
    patience: int,
    ckpt_path: str | None,
    checkpoint_minutes: float,
    time_limit: str | int | None,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
    privacy: Privacy | None = None,
) -> Path:
    """Writes the encoder folder ``out`` (weights, config, vocabulary, metrics) and returns it.

    Held-out subjects are never read. A run that was killed is taken up at its last checkpoint and
    ends with the weights of an unbroken one; one that was told to stop raises ``Unfinished``. Of
    several processes, the first one writes. config.json says what ``privacy`` promises.
    """
    if privacy is not None and ckpt_path is not None:
        raise InputError("ckpt_path: weights that were learned without privacy cannot be a start")
    deadline = deadline_of(time_limit)
    records, writes = Store(store), first_process()
    kept = artefact(out, overwrite=overwrite, settings=settings, free=_FREE, writes=writes)
    with kept as folder:
        parts = {"encoder": encoder, "objective": objective, "optimizer": optimizer}
        module = building.pretraining(records, **parts, compiler=compiler, seed=seed)
        data = _whom_to_read(records, max_tokens, n_subjects, module.objective)
        if privacy is None:  # what is promised is of the steps alone
            some = loader(data[TRAIN], budget=batch_tokens, seed=seed, shuffle=True)
            begin(module.encoder, module.objective, _some(some))
        tuning = loader(data[TUNING], budget=batch_tokens)
        by_chance = _by_chance(data[TRAIN], tuning, module.objective, seed)
        train = loader(data[TRAIN], budget=batch_tokens, seed=seed, shuffle=True, shared=True)
        if privacy is not None:
            train = _made_private(module, data[TRAIN], privacy, settings)
        metrics = fit(
            module,
            train=train,
            tuning=loader(data[TUNING], budget=batch_tokens, shared=True),
            trainer=trainer,
            folder=folder,
            monitor="tuning/loss",
            mode="min",
            patience=patience,
            ckpt_path=ckpt_path,
            checkpoint_minutes=checkpoint_minutes,
            deadline=deadline,
            line=_line(by_chance, module),
        )
        if not writes:
            return Path(out)
        _write(folder, module, records, {**metrics, "by_chance": by_chance}, tuning)
        shutil.rmtree(folder / "checkpoints")
    _tell_what_was_learned(metrics, by_chance.get("visit_pairs"), data[TRAIN], settings)
    log.info("made %s; next: medbert finetune store=%s encoder_dir=%s task=dhf", out, store, out)
    return Path(out)


def _some(batches: DataLoader) -> Iterator[Any]:
    """As many as a regression starts from."""
    read = min(len(batches), _READ)
    told: dict[str, Any] = {"unit": "codes", "size": lambda batch: len(batch.tokens_T)}
    return follow(islice(batches, read), "reading for a start", read, **told)


def _line(by_chance: dict[str, float], module: TrainingModule) -> EpochLine:
    pairs = by_chance.get("visit_pairs")
    return EpochLine(visit_pairs=pairs, places=partial(places, module.encoder))


def _made_private(
    module: TrainingModule, data: Sequences, privacy: Privacy, settings: dict[str, Any]
) -> DataLoader:
    """Steps of the module become private; returns the batches that they need."""
    epochs = settings["trainer"].get("max_epochs") or 0
    steps = PrivateSteps(module.objective, privacy, subjects=len(data), epochs=epochs)
    text = "private: noise of %.2f times max_norm=%s in each of %s steps of about %s subjects"
    average = round(steps.subjects * steps.rate)
    log.info(text, steps.noise, privacy.max_norm, f"{steps.steps:,}", f"{average:,}")
    if read_json(data.store.folder / "settings.json").get("vocabulary") is None:
        log.warning(
            "private: the promise does not cover the vocabulary and its counts, which are those of "
            "these subjects; prepare with the vocabulary= of an encoder of other subjects"
        )
    module.private = steps
    sampler = PoissonSampler(len(data), steps=steps.steps_an_epoch)
    return DataLoader(data, batch_size=None, sampler=sampler)


def _by_chance(train: Sequences, tuning: DataLoader, objective: Any, seed: int) -> dict[str, float]:
    """What code frequencies, and pairs of codes, alone would score on the same hidden codes."""
    if masked_term(objective) is None:
        return {}
    pairs = fit_pairs(train, counts=train.store.vocabulary.counts, seed=seed)
    return chance(pairs, tuning, hide=partial(hide, objective))


def _write(
    folder: Path,
    module: TrainingModule,
    records: Store,
    metrics: dict[str, Any],
    tuning: DataLoader,
) -> None:
    extra = {"vocabulary_sha256": records.vocabulary.sha256, TRAINED_ON: training_set(records)}
    extra |= {"privacy": module.private.told()} if module.private else {}
    checkpoint.save_module(folder, modules={"encoder": module.encoder}, extra=extra)
    building.save_objective(folder, module.objective)
    records.vocabulary.save(folder / "vocabulary.parquet")
    counts = torch.from_numpy(records.vocabulary.counts.copy())
    module.to(place())
    found = by_frequency(module.encoder, module.objective, tuning, counts=counts)
    write_json(folder / "metrics.json", {**metrics, "by_frequency": found})
    if found:
        chance_of = {f"{k.replace('_', ' ')} alone": v for k, v in metrics["by_chance"].items()}
        losses, file = _losses(folder / "logs"), folder / "learning.png"
        draw(file, losses=losses, references=chance_of, by_frequency=found)


def _losses(logs: Path) -> list[float]:
    """The tuning loss on hidden codes of each epoch; a run taken up again has logs of each part.

    The last line of all is of the best weights, after training.
    """
    column, trained = "tuning/masked_code", set[int]()
    by_epoch: dict[int, float] = {}
    for file in sorted(logs.glob("version_*/metrics.csv"), key=lambda f: f.stat().st_mtime):
        part = pd.read_csv(file)
        if column in part and "train/loss_epoch" in part:
            trained.update(part["epoch"][part["train/loss_epoch"].notna()])
            part = part.dropna(subset=[column])
            by_epoch.update(zip(part["epoch"], part[column], strict=True))
    return [by_epoch[epoch] for epoch in sorted(trained & by_epoch.keys())]


def deadline_of(time_limit: str | int | None) -> float | None:
    """When to stop, by ``time.monotonic()``; YAML reads 02:30:00 as a number of seconds."""
    if time_limit is None:
        return None
    parts = str(time_limit).split(":")
    if len(parts) > 3 or not all(part.isdecimal() for part in parts):
        raise InputError(f"time_limit={time_limit}: expected HH:MM:SS, or seconds")
    return time.monotonic() + sum(60**i * int(part) for i, part in enumerate(reversed(parts)))


def _whom_to_read(
    records: Store, max_tokens: int, n_subjects: int | None, objective: Any
) -> dict[str, Sequences]:
    data = {
        split: building.training_sequences(records, split, max_tokens, n_subjects=n_subjects)
        for split in (TRAIN, TUNING)
    }
    for split, of_split in data.items():
        log.info(
            "%s: %s subjects, %s codes, vocabulary %s; %s subjects keep only their latest %s codes",
            split,
            *(f"{n:,}" for n in (len(of_split), of_split.lengths.sum(), len(records.vocabulary))),
            *(f"{n:,}" for n in (of_split.n_shortened, max_tokens)),
        )
    return {split: _with_a_future(some, objective) for split, some in data.items()}


def _with_a_future(data: Sequences, objective: Any) -> Sequences:
    """Without the subjects of one visit where only what follows is asked and nothing can: where
    records end with the last visit (ORDER). They may be most of all."""
    terms = getattr(objective, "terms", {}).values()
    foretold = bool(terms) and all(isinstance(term, TimeToEvent) for term in terms)
    if not foretold or data.store.time != ORDER:
        return data
    visits = np.diff(data.store.history(data.rows).visit_offsets_B1)
    if not (visits > 1).any():
        return data
    log.info("%s subjects of one visit are passed over", f"{(visits < 2).sum():,}")
    return Sequences(data.store, data.rows[visits > 1], max_tokens=data.max_tokens)


def _tell_what_was_learned(
    metrics: dict[str, float], pairs: float | None, train: Sequences, settings: dict[str, Any]
) -> None:
    log.info("best epoch %d, tuning loss %.3f", metrics["best_epoch"], metrics["tuning/loss"])
    for text in building.pretraining_advice(
        settings,
        steps=int(metrics["steps"]),
        subjects=len(train),
        codes=int(train.lengths.sum()),
        vocabulary_size=len(train.store.vocabulary),
        loss=metrics.get("tuning/masked_code"),
        unigram=metrics.get("tuning/unigram"),
        visit_pairs=pairs,
    ):
        log.warning("%s", text)
