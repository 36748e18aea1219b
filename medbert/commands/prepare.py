"""``medbert prepare``: a source's records to a token store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medbert.commands.artefacts import artefact
from medbert.data import prepare as preparing
from medbert.data import splits as subject_splits
from medbert.data.vocabulary import Rule, Vocabulary
from medbert.schema import Source

log = logging.getLogger(__name__)


def prepare(
    *,
    source: Source,
    vocabulary: str | None,
    rule: Rule,
    splits: str | None,
    fractions: Sequence[float],
    shard_subjects: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out``/ and returns its path.

    ``vocabulary`` names an encoder or store folder whose vocabulary is reused; without it one is
    fitted by ``rule`` on the training subjects. ``splits`` names a Parquet of subject splits.
    """
    given = None if splits is None else subject_splits.read(splits)
    chosen = rule if vocabulary is None else Vocabulary.load(vocabulary)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        log.info("reading the source")
        records = source.read()
        log.info("%s events read; writing the store", f"{len(records.events):,}")
        info = preparing.write_store(
            records,
            folder,
            vocabulary=chosen,
            splits=given,
            fractions=fractions,
            seed=seed,
            shard_subjects=shard_subjects,
        )
        if truth := records.metadata.get("truth"):
            shutil.copy(truth, folder / "truth.parquet")
    for name, value in info["counts"].items():
        log.info("%s: %s", name.replace("_", " "), f"{value:,}")
    for reason, count in records.metadata.get("set_aside", {}).items():
        log.info("set aside, %s: %s", reason.replace("_", " "), f"{count:,}")
    if info["counts"]["unknown_share"] > 0.2:
        log.warning(
            "%.0f%% of the codes are unknown to this vocabulary: it may be of another dataset or "
            "code system",
            100 * info["counts"]["unknown_share"],
        )
    log.info("made %s; next: medbert pretrain store=%s out=encoder/", out, out)
    return Path(out)
