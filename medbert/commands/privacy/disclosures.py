"""What the files of an encoder say of persons and machines, beside its weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data.store import Store

PRIVATE = frozenset(  # of a pretraining: ``Encoder.save_pretrained`` leaves it out, or empties it
    ("settings.json", "environment.json", "metrics.json", "objective.safetensors", "learning.png")
)
_PRIVATE_FOLDERS, _CARD = ("logs", "checkpoints"), "card.json"
_SHORTEST_ID = 6  # characters; shorter ones are any number
_DATE = r"\b(?:1[89]|20)\d\d-[01]\d-[0-3]\d|\b[0-3]?\d[./][01]?\d[./](?:1[89]|20)\d\d\b"
_PATTERNS = {
    "date": re.compile(_DATE),
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.\w+"),
    "path": re.compile(r"(?<![\w/.:<])/[\w.-]+/[\w./-]+|\b[A-Za-z]:\\\w"),
    "long number": re.compile(r"(?<![\w.+-])\d{6,}(?![\w.])"),
}
_PROSE = ("path", "long number")  # what a text by people must not have: they may sign and date it
_CODES = ("date", "e-mail address", "path")  # code systems have long numbers


def disclosures(folder: Path, records: Store) -> tuple[Counter[str], list[str]]:
    """Dates, addresses, paths, long numbers and ids of subjects in the files of a folder that are
    to be passed on, how many by file and kind; and the names of those that are to be kept back.

    A file that cannot be looked into counts as one find. Of weights only the names are read.
    """
    ids, passed_on = _ids(records), (folder / _CARD).is_file()
    found, kept_back = Counter[str](), set()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if not passed_on and (name.name in PRIVATE or name.parts[0] in _PRIVATE_FOLDERS):
            kept_back.add(name.parts[0])
            continue
        try:
            found.update(f"{name}: {what}" for what in _in_file(file, ids))
        except (OSError, ValueError, pa.ArrowException):
            found[f"{name}: cannot be looked into"] = 1
    return found, sorted(kept_back)


def _in_file(file: Path, ids: Collection[str]) -> Iterator[str]:
    for value, kinds in _parts(file):
        text = str(value)
        for kind in kinds if isinstance(value, str) else ():
            yield from [kind] * len(_PATTERNS[kind].findall(text))
        if kinds is not _CODES:
            yield from ["id of a subject"] * sum(
                word in ids for word in re.findall(r"[\w-]+", text)
            )


def _parts(file: Path) -> Iterator[tuple[str | int, Collection[str]]]:
    """Every text and whole number of a file, and what it must not hold; ValueError: of no kind
    that can be read."""
    if file.suffix == ".json":
        found = _leaves(json.loads(file.read_text(encoding="utf-8")))
    elif file.suffix == ".safetensors":
        with file.open("rb") as data:
            header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        found = _leaves([*header, header.get("__metadata__")])
    elif file.suffix == ".parquet":
        table = pq.read_table(file)
        counts = ("token", "count", "n_subjects")  # of a vocabulary
        yield from ((code, _CODES) for code in _leaves(_column(table, "code")))
        names = [name for name in table.column_names if name not in (*counts, "code")]
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        found = _leaves([about, *(_column(table, name) for name in names)])
    elif file.suffix in (".md", ".txt", ".csv", ".yaml", ".html"):
        yield file.read_text(encoding="utf-8"), _PROSE if file.suffix == ".md" else _PATTERNS
        return
    else:
        raise ValueError(file.suffix)
    yield from ((value, _PATTERNS) for value in found)


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else []


def _leaves(node: Any) -> Iterator[str | int]:
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for child in node:
            yield from _leaves(child)
    elif isinstance(node, str | int):
        yield node


def _ids(records: Store) -> set[str]:
    """Ids of subjects, and the source's own names of them."""
    ids = set(map(str, records.subject_ids.tolist()))
    for file in (records.folder / "subjects").glob("*.parquet"):
        ids.update(pq.read_table(file)["name"].to_pylist())
    return {name for name in ids if len(name) >= _SHORTEST_ID}
