"""The head of a MEDS-DEV run: ``python finetune.py demo=False task=labels task.path=... out=...``.

The settings are those of ``medbert finetune``, and ``out`` is what ``medbert predict`` reads. The
difference: no label of a held-out subject is looked at, so there is no report; and ``demo=True``
takes splits of one class, of which MEDS-DEV's demo of 100 patients has many.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module

from medbert.commands import run
from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.classifier import Recipe, Rows, train_classifier
from medbert.commands.output.artefacts import artefact, write_json
from medbert.data.store import Store
from medbert.model import checkpoint
from medbert.schema import TRAIN, TUNING, InputError

log = logging.getLogger("medbert")


def train(
    *,
    store: str,
    encoder_dir: str,
    task: Any,
    demo: bool,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
    encoder: Any,
    **recipe: Any,
) -> Path:
    """Writes the run folder ``out`` (weights, vocabulary, metrics.json) and returns it."""
    records, how = Store(store), Recipe(**recipe)
    torch.manual_seed(how.seed)
    model = load_encoder(encoder_dir, records)
    cohort = task.build(records)
    split_of_row = records.split_of_row[cohort.rows]
    splits = {}
    for split in (TRAIN, TUNING):
        rows = Rows(*(column[split_of_row == split] for column in cohort[:3]))
        told = f"{split}: {len(rows.rows)} rows, {int(rows.labels.sum())} positive"
        log.info(told)
        if len(set(rows.labels)) < (1 if demo else 2):
            raise InputError(f"{told}; a head is trained on both classes, and judged on both")
        splits[split] = rows
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        classifier, metrics = train_classifier(records, splits, model, how, folder=folder)
        vocabulary = {"vocabulary_sha256": records.vocabulary.sha256}
        modules = {"encoder": model, "head": classifier}
        checkpoint.save_module(folder, modules=modules, extra=vocabulary)
        records.vocabulary.save(folder / "vocabulary.parquet")
        write_json(folder / "metrics.json", {"training": metrics})
    return Path(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    demo, *words = sys.argv[1:]
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        config = compose("finetune", overrides=[f"+{demo}", "_target_=__main__.train", *words])
    try:
        run("finetune", config)
    except InputError as error:
        sys.exit(str(error))
