"""``medbert predict``: what a fine-tuned run says of other rows, or of another store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medbert.commands.artefacts import artefact
from medbert.commands.cohort_rows import Scoring
from medbert.model import checkpoint
from medbert.schema import BOOLEAN_VALUE, DECISION, PROBABILITY

log = logging.getLogger(__name__)


def predict(
    *,
    run: str,
    store: str,
    cohort: str | None,
    splits: Sequence[str] | None,
    max_tokens: int | None,
    batch_tokens: int | None,
    device: str,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out/predictions.parquet`` and returns ``out``.

    In the schema of meds-evaluation and the order of the cohort; ``boolean_value`` is the cohort's,
    null where it has none. The store must have been prepared with the vocabulary of the run.
    """
    scoring = Scoring.of(
        run,
        store=store,
        cohort=cohort,
        splits=splits,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        device=device,
    )
    head: Any = checkpoint.load_module(run, "head").to(scoring.device).eval()

    def columns(logits: np.ndarray, here: slice) -> dict[str, Any]:
        probability = torch.from_numpy(logits).double().sigmoid().numpy()
        labels = scoring.cohort.labels[here]
        return {BOOLEAN_VALUE: labels, DECISION: probability >= 0.5, PROBABILITY: probability}

    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        scoring.write(
            folder / "predictions.parquet",
            function=lambda batch: head.logits(scoring.model, batch),
            columns=columns,
            fields=[
                pa.field(BOOLEAN_VALUE, pa.bool_()),
                pa.field(DECISION, pa.bool_()),
                pa.field(PROBABILITY, pa.float64()),
            ],
        )
    log.info("made %s; open %s", out, Path(out) / "predictions.parquet")
    return Path(out)
