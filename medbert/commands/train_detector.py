"""``medbert train_detector``: annotated notes to a detector with a recall that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import InputError
from medbert.text.detectors.thresholds import F1, METRICS, RECALL, Trained
from medbert.text.notes import Note, read
from medbert.text.spans import coarse
from medbert.text.synthetic.augment import augmented

log = logging.getLogger(__name__)


@withheld
def train_detector(
    *,
    notes: str,
    tuning: str,
    learner: Callable[..., Trained],
    recall: float,
    per_label: bool,
    labels: Mapping[str, str | None],
    fine: bool,
    copies: int,
    variation: float,
    refit: bool,
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``out`` (the detector and metrics.json) and returns its metrics.

    These are, at both operating points, of the tuning notes: they chose the thresholds, so the
    numbers of other notes (``medbert score_deid``) will be somewhat lower. ``refit`` then trains
    once more, on all notes, and keeps the thresholds: what is written has never been measured.
    """
    named = {field: name for field, name in columns.items() if name}

    def labelled(path: str) -> list[Note]:
        found = read(path, format=format, columns=named, encoding=encoding)
        return [_renamed(note, labels, fine) for note in found if note.spans is not None]

    train, judged = labelled(notes), labelled(tuning)
    if shared := len({note.text for note in train} & {note.text for note in judged}):
        raise InputError(f"{tuning}: {shared} of its notes are in {notes} too; keep them apart")
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        more = partial(augmented, copies=copies, variation=variation, seed=seed)
        made = learner(more(train))
        points = made.tune(judged, recall=recall, per_label=per_label)
        if refit:
            tuned, made = made, learner(more([*train, *judged]))
            made.points = tuned.points
        made.save(folder)
        told: dict[str, Any] = {"recall_asked_for": recall, "refitted_on_both": refit}
        told |= {"notes": len(train), "tuning_notes": len(judged)}
        write_json(folder / METRICS, metrics := {**told, "on_tuning": points})
    for point in (F1, RECALL):
        log.info("at %s on %d tuning notes: %s", point, len(judged), _summary(points[point]))
    log.info("made %s; next: medbert deidentify in=notes/ detector.trained=%s out=clean/", out, out)
    return metrics


def _renamed(note: Note, labels: Mapping[str, str | None], fine: bool) -> Note:
    """``labels`` may name a label whole, or up to its colon."""
    spans = []
    for span in note.spans or ():
        kind = coarse(span.label)
        name = labels.get(span.label, labels.get(kind, span.label if fine else kind))
        spans += [span._replace(label=name)] if name else []
    return note._replace(spans=tuple(spans))


def _summary(point: Mapping[str, Any]) -> str:
    token, strict = point["measures"]["token"], point["measures"]["strict typed"]
    documents = point["documents"]
    return (
        f"strict F1 {strict['f1']:.3f}, token recall {token['recall']:.4f}, precision "
        f"{token['precision']:.4f}, {documents['leaking']} of {documents['with_phi']} notes leak"
    )
