"""``medbert corpus plant``: a corpus with made-up people in it, to see who is memorised."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.privacy.canaries import CANARIES, planted
from medbert.commands.privacy.canaries_text import drawn
from medbert.schema import TRAIN, InputError
from medbert.text.corpus.documents import DOCUMENTS, UNKNOWN, Corpus

log = logging.getLogger(__name__)


@withheld
def corpus_plant(
    *,
    corpus: str,
    repeats: Sequence[int],
    n_canaries: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out``, the corpus with canaries in its train split, and returns it.

    For each of ``repeats``, ``n_canaries`` names with a number, each the document of so many
    patients. ``canaries.json`` tells them. The gate's report is of other documents, and stays
    behind.
    """
    notes, random = Corpus(corpus), Random(seed)
    if planted(notes.folder):
        raise InputError(f"{corpus}: has canaries already; plant in the corpus it was made of")
    told = [
        {"repeats": n, **canary._asdict()}
        for n in repeats
        for canary in drawn(n_canaries, random=random)
    ]
    rows = [
        _row(one["text"], f"canary-{i}-{k}")
        for i, one in enumerate(told)
        for k in range(one["repeats"])
    ]
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        left = shutil.ignore_patterns("documents.parquet", "gate.json", "settings.json")
        shutil.copytree(corpus, folder, ignore=left, dirs_exist_ok=True)
        old = pq.read_table(Path(corpus) / "documents.parquet").cast(DOCUMENTS)
        table = pa.concat_tables([old, pa.Table.from_pylist(rows, schema=DOCUMENTS)])
        pq.write_table(table, folder / "documents.parquet")
        hashes = hashlib.sha256("".join(table["sha256"].to_pylist()).encode()).hexdigest()
        manifest = {**notes.manifest, "sha256": hashes, "canaries": len(rows)}
        write_json(folder / "manifest.json", manifest)
        write_json(folder / CANARIES, {"canaries": told})
    text = "made %s; next: medbert adapt corpus=%s gate_override='canaries for an audit'"
    log.info(text, out, out)
    return Path(out)


def _row(text: str, name: str) -> dict[str, Any]:
    return {
        "note_id": name,
        "patient_id": name,
        **dict.fromkeys(("site", "kind", "language"), UNKNOWN),
        "split": TRAIN,
        "copies": 1,
        "text": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
