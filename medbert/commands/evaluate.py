"""``medbert evaluate``: a run beside its untrained twin and tuned baselines, as a report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra.utils import instantiate
from rich.console import Console

from medbert.commands.artefacts import artefact, read_json, write_json
from medbert.commands.classifier import Recipe, Rows, predict, train_classifier
from medbert.commands.reporting import PRETRAINED, UNTRAINED, write_report
from medbert.data import synthetic
from medbert.data.counts import count_codes
from medbert.data.store import Store
from medbert.evaluate import report
from medbert.evaluate.baselines import Features, LightGBMBaseline, LogisticBaseline
from medbert.model import checkpoint
from medbert.schema import (
    BOOLEAN_VALUE,
    HELD_OUT,
    PREDICTION_TIME,
    PROBABILITY,
    SPLITS,
    SUBJECT_ID,
    TRAIN,
    TUNING,
    InputError,
)

log = logging.getLogger(__name__)


def evaluate(
    *,
    run: str,
    baseline: Mapping[str, LogisticBaseline | LightGBMBaseline],
    untrained: bool,
    window_days: Sequence[int | None],
    n_bootstrap: int,
    min_count: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> report.Results:
    """Writes ``out`` (report.html, metrics.json, predictions of every model), returns the results.

    Every model is trained on the run's training rows, chosen on its tuning rows and judged on its
    held-out rows; nothing is chosen on the latter.
    """
    begun = read_json(Path(run) / "settings.json")
    records = Store(begun["store"])
    _check_vocabulary(Path(run), records)
    splits = _labels(Path(run), records)
    pretrained = begun["encoder_dir"] is not None
    subject = PRETRAINED if pretrained else UNTRAINED
    models = {subject: pq.read_table(Path(run) / "predictions.parquet")[PROBABILITY].to_numpy()}
    searches: dict[str, Any] = {}
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        if untrained and pretrained:
            log.info("fine-tuning the same encoder without pretraining")
            models[UNTRAINED] = _untrained(Path(run), begun, records, splits, folder)
        features = {split: _features(records, rows, window_days) for split, rows in splits.items()}
        for each in baseline.values():
            log.info("tuning %s", each.name)
            fitted = each.fit(
                features[TRAIN],
                splits[TRAIN].labels,
                features[TUNING],
                splits[TUNING].labels,
                seed=seed,
                threads=torch.get_num_threads(),
            )
            models[each.name] = fitted.predict_proba(features[HELD_OUT])
            searches[each.name] = dataclasses.asdict(fitted.search)
        held_out = splits[HELD_OUT]
        results = report.summarise(
            held_out.labels,
            models,
            records.subject_ids[held_out.rows],
            reference=subject,
            untrained=UNTRAINED if subject == PRETRAINED and UNTRAINED in models else None,
            oracle=_oracle(records, begun["task"], held_out),
            seed=seed,
            n_bootstrap=n_bootstrap,
        )
        _write_predictions(folder / "predictions.parquet", records, held_out, models)
        write_json(folder / "metrics.json", {**results.to_dict(), "searches": searches})
        write_report(results, folder / "report.html", run=Path(run), min_count=min_count)
    Console().print(report.rich_table(results))
    log.info("made %s; open %s", out, Path(out) / "report.html")
    return results


def _check_vocabulary(run: Path, records: Store) -> None:
    if checkpoint.read_config(run).get("vocabulary_sha256") != records.vocabulary.sha256:
        raise InputError(
            f"{run}: the store {records.folder} has been made anew with another vocabulary since "
            "this run; run `medbert finetune` again"
        )


def _labels(run: Path, records: Store) -> dict[str, Rows]:
    table = pq.read_table(run / "labels.parquet")
    split = table["split"].to_numpy(zero_copy_only=False)
    rows = records.rows_of(table[SUBJECT_ID].to_numpy())
    until = table[PREDICTION_TIME].to_numpy().astype("datetime64[us]").view(np.int64)
    labels = table[BOOLEAN_VALUE].to_numpy(zero_copy_only=False)
    return {s: Rows(rows[split == s], until[split == s], labels[split == s]) for s in SPLITS}


def _untrained(
    run: Path, begun: dict[str, Any], records: Store, splits: dict[str, Rows], folder: Path
) -> np.ndarray:
    parts = {name: instantiate(begun[name]) for name in ("head", "optimizer", "trainer")}
    recipe = Recipe(**parts, **{f: begun[f] for f in Recipe._fields if f not in parts})
    shape: Any = checkpoint.load_module(run, "encoder")
    torch.manual_seed(recipe.seed)
    fresh = type(shape)(**shape.config)
    classifier, _ = train_classifier(records, splits, fresh, recipe, folder=folder / "untrained")
    return predict(records, splits[HELD_OUT], fresh, classifier, recipe)


def _features(records: Store, rows: Rows, window_days: Sequence[int | None]) -> Features:
    counts = count_codes(records, rows.rows, until=rows.until, window_days=list(window_days))
    return Features(counts=counts.codes, dense=np.column_stack([counts.age, counts.female]))


def _write_predictions(
    path: Path, records: Store, rows: Rows, models: Mapping[str, np.ndarray]
) -> None:
    """One line per held-out row, one column of probabilities per model."""
    columns = {
        SUBJECT_ID: records.subject_ids[rows.rows],
        PREDICTION_TIME: rows.until.view("datetime64[us]"),
        BOOLEAN_VALUE: rows.labels,
        **models,
    }
    pq.write_table(pa.table(columns), path)


def _oracle(records: Store, task: dict[str, Any], rows: Rows) -> np.ndarray | None:
    """The true risk of each row, where the records are invented and the outcome is simulated."""
    file = records.folder / "truth.parquet"
    if not file.is_file() or task.get("truth") is None:
        return None
    return synthetic.true_risk(
        pq.read_table(file),
        subject_id=records.subject_ids[rows.rows],
        prediction_time=rows.until.view("datetime64[us]"),
        outcome=task["truth"],
        gap_days=task["outcome"]["gap_days"],
        window_days=task["outcome"]["window_days"],
    )
