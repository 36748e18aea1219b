"""``medbert pretrain``: an encoder from the training subjects of a store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medbert.commands.artefacts import artefact, write_json
from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.model import checkpoint
from medbert.schema import TRAIN, TUNING, InputError
from medbert.train.fit import fit
from medbert.train.module import TrainingModule

log = logging.getLogger(__name__)


def pretrain(
    *,
    store: str,
    encoder: Callable[..., torch.nn.Module],
    objective: Callable[..., torch.nn.Module],
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    max_tokens: int,
    batch_tokens: int,
    patience: int,
    ckpt_path: str | None,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes the encoder folder ``out`` (weights, config, vocabulary, metrics) and returns it.

    Held-out subjects are never read. An unfinished run is taken up after its last whole epoch.
    """
    records = Store(store)
    with artefact(out, overwrite=overwrite, settings=settings, resumable=True) as folder:
        data = {split: _sequences(records, split, max_tokens) for split in (TRAIN, TUNING)}
        torch.manual_seed(seed)
        model = encoder(vocabulary_size=len(records.vocabulary))
        counts = torch.from_numpy(records.vocabulary.counts.copy())
        goal = objective(
            vocabulary_size=len(records.vocabulary), hidden=model.hidden, counts=counts
        )
        module = TrainingModule(encoder=model, objective=goal, optimizer=optimizer, seed=seed)
        metrics = fit(
            module,
            train=loader(data[TRAIN], budget=batch_tokens, seed=seed, shuffle=True),
            tuning=loader(data[TUNING], budget=batch_tokens),
            trainer=trainer,
            folder=folder,
            monitor="tuning/loss",
            mode="min",
            patience=patience,
            ckpt_path=ckpt_path,
        )
        vocabulary = {"vocabulary_sha256": records.vocabulary.sha256}
        checkpoint.save_module(folder, modules={"encoder": model}, extra=vocabulary)
        records.vocabulary.save(folder / "vocabulary.parquet")
        write_json(folder / "metrics.json", metrics)
        shutil.rmtree(folder / "checkpoints")
    _say_what_was_learned(metrics)
    log.info("made %s; next: medbert finetune store=%s encoder_dir=%s task=dhf", out, store, out)
    return Path(out)


def _sequences(records: Store, split: str, max_tokens: int) -> Sequences:
    data = Sequences(records, records.rows(split), max_tokens=max_tokens)
    if not len(data):
        raise InputError(f"{records.folder}: no subjects in the {split} split to pretrain on")
    counts = (len(data), data.lengths.sum(), len(records.vocabulary), data.n_shortened, max_tokens)
    log.info(
        "%s: %s subjects, %s codes, vocabulary %s; %s subjects keep only their latest %s codes",
        split,
        *(f"{count:,}" for count in counts),
    )
    return data


def _say_what_was_learned(metrics: dict[str, float]) -> None:
    log.info("best epoch %d, tuning loss %.3f", metrics["best_epoch"], metrics["tuning/loss"])
    code, unigram = (metrics.get(f"tuning/{name}") for name in ("masked_code", "unigram"))
    if code is not None and unigram is not None and code > unigram:
        log.warning(
            "the masked-code loss (%.3f) is not below that of code frequencies alone (%.3f): the "
            "encoder has learned no more than which codes are common; train longer, raise "
            "optimizer.lr, or raise rule.min_subjects when preparing",
            code,
            unigram,
        )
