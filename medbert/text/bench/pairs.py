"""Sentence similarity: how alike two texts are, read together, beside what people said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import expit

from medbert.text.bench.pooled import Example, FineTuned, Pooled
from medbert.text.bench.reading import held_out, kept, language_of, table
from medbert.text.bench.tasks import Array, Items, correlation, ratio
from medbert.text.notes import Note

COLUMNS = ("first", "second", "label")


@dataclass
class Pairs(FineTuned):
    """``path``: a CSV, TSV or JSON list with the ``columns`` of two texts and a grade: the same or
    not (1, 0), or any scale. Pairs that begin with the same text are on one side of the split."""

    measures = correlation(), ratio("accuracy at half", 6, 0)
    path: str
    _: KW_ONLY
    columns: Sequence[str] = COLUMNS
    share: float = 0.3
    epochs: int = 5
    learning_rate: float = 5e-4
    batch_size: int = 16
    longest: int = 128

    @cached_property
    def _rows(self) -> tuple[list[Example], Array, np.ndarray]:
        """The pairs, their grades from 0 to 1, and which of them are test ones."""
        rows = [[row[name] for name in self.columns] for row in table(self.path, self.columns)]
        kept(self.path, rows, 10, "pairs")
        grade_N = np.array([float(grade) for *_, grade in rows])
        grade_N = (grade_N - grade_N.min()) / max(np.ptp(grade_N), 1e-9)
        test_N = held_out((first for first, *_ in rows), self.share)
        return [[(first, second)] for first, second, _ in rows], grade_N, test_N

    def items(self) -> Items:
        examples, _, test_N = self._rows
        first = [examples[i][0][0] for i in np.flatnonzero(test_N)]
        language = [language_of(Note("", text)) for text in first]
        return Items(np.unique(first, return_inverse=True)[1], {"language": np.array(language)})

    def run(self, model: Path, *, seed: int) -> Array:
        examples, grade_N, test_N = self._rows
        train = [examples[i] for i in np.flatnonzero(~test_N)]
        ours = Pooled(model, classes=1, how=self, seed=seed)
        ours.fit(train, grade_N[~test_N])
        scores = ours.scores([examples[i] for i in np.flatnonzero(test_N)])
        return _counts(expit([float(s[0, 0]) for s in scores]), grade_N[test_N])

    def beside(self, *, seed: int) -> dict[str, Array]:
        """Words in common."""
        examples, grade_N, test_N = self._rows
        shared = []
        for i in np.flatnonzero(test_N):
            first, second = ({*(text or "").lower().split()} for text in examples[i][0])
            shared.append(len(first & second) / max(len(first | second), 1))
        return {"shared words": _counts(np.array(shared), grade_N[test_N])}


def _counts(x: Array, y: Array) -> Array:
    right = (x >= 0.5) == (y >= 0.5)
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, right.astype(float)], axis=1)
