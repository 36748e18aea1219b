"""``medbert predict``: what a run, or an encoder without any label, says of rows of a store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medbert.commands.encoders.cohort_rows import Scoring
from medbert.commands.encoders.questions import answered, ask, foretelling, of_words
from medbert.commands.output.artefacts import artefact
from medbert.model import checkpoint
from medbert.schema import BOOLEAN_VALUE, DECISION, PROBABILITY, InputError

log = logging.getLogger(__name__)

_FIELDS = (
    pa.field(BOOLEAN_VALUE, pa.bool_()),
    pa.field(DECISION, pa.bool_()),
    pa.field(PROBABILITY, pa.float64()),
)


def predict(
    *,
    run: str | None,
    encoder_dir: str | None,
    query: str | Sequence[str] | None,
    gap: str | float,
    horizon: str | float,
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

    Of a ``run`` it is the probability of its task. Of an encoder (``encoder_dir``) that foretells
    codes it is that of ``query``: one of these codes, for the first time, within ``horizon`` days
    after a ``gap``; null for subjects that have had one.
    """
    if (run is None) == (encoder_dir is None) or (encoder_dir is None) != (query is None):
        raise InputError("say run=FOLDER, or encoder_dir=FOLDER query=CODE horizon=365d")
    scoring = Scoring.of(
        run or encoder_dir or "",
        store=store,
        cohort=cohort,
        splits=splits,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        device=device,
    )
    question, rows = None, scoring.cohort
    if query is None:
        head: Any = checkpoint.load_module(run or "", "head").to(scoring.device).eval()
        values = scoring.each(partial(head.logits, scoring.model))
    else:
        question = of_words(query, scoring.records, gap=gap, horizon=horizon)
        foretelling(scoring.model, "query")
        how: dict[str, Any] = {"batch_tokens": scoring.batch_tokens, "device": scoring.device}
        values = partial(ask, model=scoring.model, question=question, **how)

    def columns(logits: np.ndarray, here: slice) -> dict[str, Any]:
        probability = torch.from_numpy(logits).double().sigmoid().numpy()
        had = np.zeros(len(probability), bool)
        if question is not None:
            had = answered(scoring.records, rows.rows[here], rows.until[here], question)
        return {
            BOOLEAN_VALUE: rows.labels[here],
            DECISION: pa.array(probability >= 0.5, mask=had),
            PROBABILITY: pa.array(probability, mask=had),
        }

    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        file = folder / "predictions.parquet"
        scoring.write(file, values=values, columns=columns, fields=_FIELDS)
    log.info("made %s; open %s", out, Path(out) / "predictions.parquet")
    return Path(out)
