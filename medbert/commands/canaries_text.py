"""Canaries among the documents of a corpus: people who do not exist, to see who is memorised."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medbert.commands.artefacts import artefact, read_json, write_json
from medbert.commands.parts import withheld
from medbert.schema import TRAIN, InputError
from medbert.text.corpora import DOCUMENTS, UNKNOWN, Corpus
from medbert.text.lists import shipped

log = logging.getLogger(__name__)

CANARIES = "canaries.json"
_BEFORE, _AFTER = "Pas. ", " er innlagt."
_SYNTHETIC = 80  # on the month of a national number: of nobody


class Canary(NamedTuple):
    """A document about somebody who does not exist, and where in it the secret is."""

    text: str
    start: int
    end: int


@withheld
def plant_text(
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
    if planted(notes):
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


def planted(corpus: Corpus) -> list[dict[str, Any]]:
    """``repeats``, ``text``, ``start`` and ``end`` of each canary; none of a corpus without."""
    file = corpus.folder / CANARIES
    return read_json(file)["canaries"] if file.is_file() else []


def drawn(n: int, *, random: Random) -> list[Canary]:
    """Names from the shipped lists, with national numbers that nobody has (month + 80)."""
    names = sorted(shipped().surnames)
    made = []
    for _ in range(n):
        day, month, rest = random.randint(1, 28), random.randint(1, 12), random.randrange(10**7)
        secret = f"{random.choice(names).title()}, f.nr {day:02}{month + _SYNTHETIC}{rest:07}"
        start = len(_BEFORE)
        made.append(Canary(f"{_BEFORE}{secret}{_AFTER}", start, start + len(secret)))
    return made


def _row(text: str, name: str) -> dict[str, Any]:
    return {
        "note_id": name,
        "patient_id": name,
        "site": UNKNOWN,
        "kind": UNKNOWN,
        "language": UNKNOWN,
        "split": TRAIN,
        "copies": 1,
        "text": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
