"""Token classification: fine-tuned on a few labelled notes, judged by entity F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medbert.text.bench.reading import by_line, kept, language_of, notes, parted
from medbert.text.bench.tasks import Array, Items, Measure, ratio
from medbert.text.detectors.tagger import Tagger
from medbert.text.detectors.thresholds import F1
from medbert.text.notes import Note


@dataclass
class Entities:
    """Notes with gold spans in any format (``lines``: each line is a note, as in CoNLL files of
    sentences). ``labels``: gold labels that are other ones here, None: not looked for. Labels of
    fewer than ``min_count`` spans are left out, as slips of the annotation.

    Every seed draws ``labelled`` notes of those that are not test notes.
    """

    measures = (
        Measure("entity F1", True, lambda s: 2 * s[..., 0] / np.maximum(s[..., 1] + s[..., 2], 1)),
        ratio("recall", 0, 1),
        ratio("precision", 0, 2),
    )
    seeded = True
    path: str
    _: KW_ONLY
    test: str | None = None
    labelled: int = 100
    lines: bool = False
    labels: Mapping[str, str | None] = field(default_factory=dict)
    min_count: int = 20
    share: float = 0.3
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 8
    device: str = "auto"

    @cached_property
    def _parts(self) -> tuple[list[Note], list[Note]]:
        """Notes to label, and test notes."""
        found = self._read(self.path)
        if self.test:
            sides = found, self._read(self.test)
        else:
            sides = parted(found, [n.patient_id or n.note_id for n in found], self.share)
        counts = Counter(span.label for note in found for span in note.spans or ())
        known = {label for label, n in counts.items() if n >= self.min_count}
        pool, test = ([_only(note, known) for note in side] for side in sides)
        kept(self.path, pool, self.labelled, "notes to label")
        kept(self.test or self.path, test, 2, "test notes")
        return pool, test

    def _read(self, path: str) -> list[Note]:
        found = [note for note in notes(path) if note.spans is not None]
        return [
            note._replace(
                spans=tuple(
                    span._replace(label=name)
                    for span in note.spans or ()
                    if (name := self.labels.get(span.label, span.label))
                )
            )
            for note in (by_line(found) if self.lines else found)
        ]

    def items(self) -> Items:
        test = self._parts[1]
        cluster = np.array([note.patient_id or note.note_id for note in test])
        language = np.array([language_of(note) for note in test])
        return Items(cluster, {"language": language})

    def run(self, model: Path, *, seed: int) -> Array:
        pool, test = self._parts
        drawn = np.random.default_rng(seed).permutation(len(pool))[: self.labelled]
        tagger = Tagger.train(
            [pool[i] for i in drawn],
            base=str(model),
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            device=self.device,
            seed=seed,
        )
        tagger.point = F1
        return np.array([_counts(note, tagger) for note in test], np.float64)

    def beside(self, *, seed: int) -> dict[str, Array]:
        return {}


def _only(note: Note, labels: set[str]) -> Note:
    return note._replace(spans=tuple(span for span in note.spans or () if span.label in labels))


def _counts(note: Note, tagger: Tagger) -> tuple[int, int, int]:
    """Entities found, both ends and the label right; those of gold; those that were found."""
    gold = {span[:3] for span in note.spans or ()}
    found = {span[:3] for span in tagger.detect(note.text)}
    return len(gold & found), len(gold), len(found)
