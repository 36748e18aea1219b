"""``medbert embed``: one vector per subject, or per row of a cohort, from an encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from medbert.commands.encoders.cohort_rows import Scoring
from medbert.commands.output.artefacts import artefact
from medbert.model.heads import POOLINGS, pool
from medbert.schema import InputError

log = logging.getLogger(__name__)


def embed(
    *,
    store: str,
    encoder_dir: str,
    cohort: str | None,
    splits: Sequence[str] | None,
    pooling: str,
    max_tokens: int | None,
    batch_tokens: int | None,
    device: str,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out/embeddings.parquet`` and returns ``out``.

    Columns: subject_id, prediction_time, embedding (D float32: what was known at that time, pooled
    over its codes; zeros where there was none); rows in the order of the cohort.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling={pooling}: choose one of {', '.join(POOLINGS)}")
    scoring = Scoring.of(
        encoder_dir,
        store=store,
        cohort=cohort,
        splits=splits,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        device=device,
    )
    model = scoring.model
    kind = pa.list_(pa.float32(), model.hidden)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        scoring.write(
            folder / "embeddings.parquet",
            values=scoring.each(lambda batch: pool(model(batch), batch, pooling).float()),
            columns=lambda values, here: {
                "embedding": pa.FixedSizeListArray.from_arrays(values.ravel(), type=kind)
            },
            fields=[pa.field("embedding", kind)],
        )
    log.info("made %s; open %s", out, Path(out) / "embeddings.parquet")
    return Path(out)
