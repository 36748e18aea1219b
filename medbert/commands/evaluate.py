"""``medbert evaluate``: a run beside its untrained twin and tuned baselines, as a report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from hydra.utils import instantiate

from medbert.commands.encoders.classifier import Recipe, Rows, predict, train_classifier
from medbert.commands.output.artefacts import artefact, read_json, write_json
from medbert.commands.output.progress import show
from medbert.commands.study.judging import features, groups, labelled, oracle
from medbert.commands.study.reporting import PRETRAINED, UNTRAINED, write_report
from medbert.commands.study.table_one import table_one
from medbert.data.counts import Counts, count_codes
from medbert.data.store import Store
from medbert.evaluate.baselines import LightGBMBaseline, LogisticBaseline
from medbert.evaluate.intervals import summarise
from medbert.evaluate.reports.report import rich_table
from medbert.evaluate.reports.study import Study, analyse
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
) -> Study:
    """Writes ``out`` (report.html, metrics.json, predictions of every model), returns the study.

    Every model is trained on the run's training rows, chosen on its tuning rows and judged on its
    held-out rows; nothing is chosen on the latter.
    """
    begun = read_json(Path(run) / "settings.json")
    records = Store(begun["store"])
    _check_vocabulary(Path(run), records)
    splits = _labels(Path(run), records)
    subject = UNTRAINED if begun["encoder_dir"] is None else PRETRAINED
    models = {subject: pq.read_table(Path(run) / "predictions.parquet")[PROBABILITY].to_numpy()}
    searches: dict[str, Any] = {}
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        if untrained and subject == PRETRAINED:
            models[UNTRAINED] = _untrained(Path(run), begun, records, splits, folder)
        counts = {
            split: count_codes(records, rows.rows, until=rows.until, window_days=[*window_days])
            for split, rows in splits.items()
        }
        tuned = {each.name: each for each in baseline.values()}
        for name, each in tuned.items():
            log.info("tuning %s", name)
            models[name], searches[name] = _tuned(each, splits, counts, seed=seed)
        held_out = splits[HELD_OUT]
        results = summarise(
            held_out.labels,
            models,
            records.subject_ids[held_out.rows],
            reference=subject,
            untrained=UNTRAINED if subject == PRETRAINED and UNTRAINED in models else None,
            oracle=oracle(records, begun["task"], held_out),
            seed=seed,
            n_bootstrap=n_bootstrap,
        )
        pq.write_table(labelled(records, held_out, models), folder / "predictions.parquet")
        study = analyse(
            results,
            records.subject_ids[held_out.rows],
            groups=groups(records, held_out, counts[HELD_OUT]),
            over=next((n for n, b in tuned.items() if type(b) is LogisticBaseline), None),
            seed=seed,
            n=n_bootstrap,
            min_count=min_count,
        )
        columns = table_one(records, splits, min_count=min_count)
        study = dataclasses.replace(study, table_one=columns)
        study = write_report(study, folder / "report.html", run=Path(run), min_count=min_count)
        write_json(folder / "metrics.json", {**study.to_dict(), "searches": searches})
    show(rich_table(results, study.comparisons, min_count=min_count))
    log.info("made %s; open %s", out, Path(out) / "report.html")
    return study


def _tuned(
    baseline: LogisticBaseline | LightGBMBaseline,
    splits: Mapping[str, Rows],
    counts: Mapping[str, Counts],
    *,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Held-out probabilities, and the record of the search."""
    train, tuning = ((features(counts[s]), splits[s].labels) for s in (TRAIN, TUNING))
    fitted = baseline.fit(*train, *tuning, seed=seed, threads=torch.get_num_threads())
    return fitted.predict_proba(features(counts[HELD_OUT])), dataclasses.asdict(fitted.search)


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
    log.info("fine-tuning the same encoder without pretraining")
    parts = {name: instantiate(begun[name]) for name in ("head", "optimizer", "trainer")}
    recipe = Recipe(**parts, **{f: begun[f] for f in Recipe._fields if f in begun.keys() - parts})
    shape: Any = checkpoint.load_module(run, "encoder")
    torch.manual_seed(recipe.seed)
    fresh = type(shape)(**shape.config)
    classifier, _ = train_classifier(records, splits, fresh, recipe, folder=folder / "untrained")
    return predict(records, splits[HELD_OUT], fresh, classifier, recipe)
