"""``medbert finetune``: a prediction head on an encoder, and its held-out predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.classifier import Recipe, Rows, by_split, predict, train_classifier
from medbert.commands.encoders.questions import of_outcome, told
from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.study.judging import labelled, write_predictions
from medbert.commands.study.reporting import PRETRAINED, UNTRAINED, write_report
from medbert.data.store import Store
from medbert.data.tasks.cohorts import Cohort
from medbert.evaluate.intervals import summarise
from medbert.evaluate.reports.study import Study
from medbert.model import checkpoint
from medbert.schema import HELD_OUT, LABELS

log = logging.getLogger(__name__)


class Task(Protocol):
    """Turns a store into a cohort with labels."""

    def build(self, store: Store) -> Cohort: ...


def finetune(
    *,
    store: str,
    encoder_dir: str | None,
    encoder: Callable[..., torch.nn.Module],
    task: Task,
    head: Callable[..., torch.nn.Module],
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    freeze: bool,
    max_tokens: int,
    batch_tokens: int,
    patience: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes the run folder ``out`` (weights, labels, predictions, metrics) and returns it.

    ``encoder_dir=None`` trains ``encoder`` from scratch on the labels alone.
    """
    records = Store(store)
    torch.manual_seed(seed)
    if encoder_dir is None:
        model = encoder(vocabulary_size=len(records.vocabulary))
    else:
        model = load_encoder(encoder_dir, records)
    asked = told(head, model, of_outcome(getattr(task, "outcome", None), records))
    head, settings = partial(head, **asked), {**settings, "head": settings["head"] | asked}
    recipe = Recipe(head, optimizer, trainer, freeze, max_tokens, batch_tokens, patience, seed)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        cohort = task.build(records)
        splits = by_split(records, cohort)
        for split, rows in splits.items():
            log.info("%s: %s rows, %s positive", split, len(rows.rows), int(rows.labels.sum()))
        classifier, metrics = train_classifier(records, splits, model, recipe, folder=folder)
        held_out = predict(records, splits[HELD_OUT], model, classifier, recipe)
        vocabulary = {"vocabulary_sha256": records.vocabulary.sha256}
        modules = {"encoder": model, "head": classifier}
        checkpoint.save_module(folder, modules=modules, extra=vocabulary)
        records.vocabulary.save(folder / "vocabulary.parquet")
        _write_labels(folder / "labels.parquet", records, splits)
        write_predictions(folder / "predictions.parquet", records, splits[HELD_OUT], held_out)
        about = {"flow": [tuple(step) for step in cohort.flow], "task": cohort.task}
        write_json(folder / "cohort.json", about)
        results = summarise(
            splits[HELD_OUT].labels,
            {UNTRAINED if encoder_dir is None else PRETRAINED: held_out},
            records.subject_ids[splits[HELD_OUT].rows],
            reference=UNTRAINED if encoder_dir is None else PRETRAINED,
            seed=seed,
        )
        write_json(folder / "metrics.json", {"training": metrics, **results.to_dict()})
        write_report(Study(results), folder / "report.html", run=folder, min_count=10)
    log.info("made %s; next: medbert evaluate run=%s out=report/", out, out)
    return Path(out)


def _write_labels(path: Path, records: Store, splits: dict[str, Rows]) -> None:
    parts = [
        labelled(records, rows, {"split": np.full(len(rows.rows), split)})
        for split, rows in splits.items()
    ]
    schema = LABELS.append(pa.field("split", pa.string()))
    pq.write_table(pa.concat_tables(parts).cast(schema), path)
