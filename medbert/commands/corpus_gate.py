"""``medbert corpus gate``: may a corpus be trained on? The finding is kept in its folder."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import write_json
from medbert.commands.output.progress import follow
from medbert.commands.score_deid import pairs
from medbert.schema import InputError
from medbert.text.corpus.documents import Corpus
from medbert.text.corpus.gating import Bounds, Group, Labelled, Residual
from medbert.text.corpus.sampling import chance
from medbert.text.formats.jsonl import rows
from medbert.text.notes import Options, read
from medbert.text.spans import Detector

log = logging.getLogger(__name__)

_FIELDS = ("site", "kind", "language")


@withheld
def corpus_gate(
    *,
    corpus: str,
    gold: str | None,
    found: str | None,
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    labels: Mapping[str, str | None],
    by: Sequence[str],
    recall: float,
    confidence: float,
    detector: Detector,
    sample: int,
    residual: float,
    residual_labels: Collection[str],
    sure: float,
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``gate.json`` into the corpus and returns it.

    It is passed where each group of the corpus (its fields ``by``) has labelled notes that show the
    recall, and where the detector does not see PHI in too many of ``sample`` documents of a group.
    Without ``gold`` it cannot be passed.
    """
    _check(by, gold, found)
    there = Corpus(corpus)
    bounds = Bounds(recall, residual, confidence)
    labelled = Labelled(by)
    if gold and found:
        how = {"format": format, "columns": columns, "encoding": encoding}
        for note, both in pairs(gold, found, labels, Counter(), **how):
            labelled.add(note, *both)
    needed: Counter[Group] = Counter()  # documents of each group
    for row in there.manifest["groups"]:
        needed[tuple(row[field] for field in by)] += row["documents"]
    rows_of = labelled.groups(needed, bounds)
    chosen = _sample(there, by, sample, seed)
    left = Residual(
        detector,
        by=by,
        labels=residual_labels,
        sure=sure,
        known=_surrogates(found, {note for note, _ in chosen.values()}) if found else {},
    )
    drawn = (document for at, document in enumerate(there.documents()) if at in chosen)
    shown = follow(drawn, "looking for PHI", len(chosen), unit="documents", size=lambda one: 1)
    for document in shown:
        left.add(document)
    seen_of = left.groups(bounds)
    report = {
        "passed": all(row["passed"] for row in [*rows_of, *seen_of]),
        "bounds": bounds._asdict(),
        "labelled": rows_of,
        "residual": seen_of,
        "corpus_sha256": there.sha256,
        "gold_sha256": _sha256(gold),
        "settings": settings,
    }
    write_json(there.folder / "gate.json", report)
    _show(by, report, corpus)
    return report


def _check(by: Sequence[str], gold: str | None, found: str | None) -> None:
    if unknown := sorted({*by} - {*_FIELDS}):
        raise InputError(f"by: {unknown[0]}: of {', '.join(_FIELDS)}")
    if gold and not found:
        raise InputError("found: what was found in the notes of gold: out of medbert deidentify")


def _sample(corpus: Corpus, by: Sequence[str], n: int, seed: int) -> dict[int, tuple[str, Group]]:
    """Row of a document -> its note and group: n of each group, drawn at random."""
    table = corpus.table().select(["note_id", "sha256", *by]).to_pylist()
    groups: dict[Group, list[tuple[float, int]]] = defaultdict(list)
    for at, row in enumerate(table):
        groups[tuple(row[field] for field in by)].append((chance(seed, row["sha256"]), at))
    return {
        at: (table[at]["note_id"], group)
        for group, drawn in groups.items()
        for _, at in sorted(drawn)[:n]
    }


def _surrogates(found: str, wanted: Collection[str]) -> dict[str, set[str]]:
    """What ``medbert deidentify`` has put into the notes ``wanted``, by note; nothing, where
    ``found`` is not a folder of its."""
    folder = Path(found)
    if not (folder / "spans.jsonl").is_file() or not [*folder.glob("notes*")]:
        return {}
    places = {
        row["note_id"]: [(s["new_start"], s["new_end"]) for s in row["spans"] if "new_start" in s]
        for _, row in rows(folder / "spans.jsonl", Options())
        if row["note_id"] in wanted
    }
    return {
        note.note_id: {note.text[start:end] for start, end in places[note.note_id]}
        for note in read(folder)
        if note.note_id in places
    }


def _sha256(path: str | None) -> str | None:
    """Of all files of the labelled notes."""
    if path is None:
        return None
    place, digest = Path(path), hashlib.sha256()
    for file in sorted(f for f in (place, *place.rglob("*")) if f.is_file()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _show(by: Sequence[str], report: dict[str, Any], corpus: str) -> None:
    table = Table(*by, "labelled", "spans", "missed", "recall at least", "still seen in", "verdict")
    seen = {tuple(row[field] for field in by): row for row in report["residual"]}
    for row in report["labelled"]:
        group = tuple(row[field] for field in by)
        other = seen.get(group)
        least = row["recall_at_least"]
        why = row["why"] or (None if other and other["passed"] else "PHI is still in it")
        table.add_row(
            *group,
            str(row["labelled"]),
            str(row["spans"]),
            str(row["missed"]),
            "" if least is None else f"{least:.1%}",
            f"{other['with_phi']} of {other['sampled']}" if other else "",
            why or "passed",
        )
    Console().print(table)
    if report["passed"]:
        log.info("passed; next: medbert adapt corpus=%s base=... out=adapted/", corpus)
    else:
        log.warning("NOT passed: medbert adapt will not train on %s", corpus)
