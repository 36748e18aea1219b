"""Term classification: the class of a term that stands by itself, beside character n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from medbert.text.bench.pooled import FineTuned, Pooled
from medbert.text.bench.reading import held_out, kept, table
from medbert.text.bench.tasks import Array, Items, f1
from medbert.text.language import TOO_SHORT

COLUMNS = ("term", "class")
_STEM = 6  # terms with the same beginning are on one side of the split


@dataclass
class Terms(FineTuned):
    """``path``: a CSV or TSV of a term and its class (NorMedTerm as it is published, or columns
    that you name). Classes of fewer than ``min_count`` terms are left out; every seed draws
    ``labelled`` terms to train on, and ``n_test`` test terms are the same ones for all."""

    measures = (f1("macro F1"),)
    path: str
    _: KW_ONLY
    columns: Sequence[str] = COLUMNS
    labelled: int = 600
    n_test: int = 2000
    min_count: int = 200
    share: float = 0.3
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 32
    longest: int = 32

    @cached_property
    def _parts(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]], int]:
        """Terms with the numbers of their classes: to train on, to test; how many classes."""
        rows = {(r[self.columns[0]], r[self.columns[1]]) for r in table(self.path, self.columns)}
        counts = Counter(kind for _, kind in rows)
        names = sorted(name for name, n in counts.items() if n >= self.min_count)
        number = {name: i for i, name in enumerate(names)}
        known = sorted((term, number[kind]) for term, kind in rows if kind in number)
        kept(self.path, names, 2, f"classes of at least {self.min_count} terms")
        test_N = held_out((term[:_STEM].lower() for term, _ in known), self.share)
        order = np.random.default_rng(0).permutation(len(known))
        test = [known[i] for i in order if test_N[i]][: self.n_test]
        return [known[i] for i in order if not test_N[i]], test, len(names)

    def _drawn(self, seed: int) -> list[tuple[str, int]]:
        pool = self._parts[0]
        chosen = np.random.default_rng([1, seed]).permutation(len(pool))[: self.labelled]
        return [pool[i] for i in chosen]

    def items(self) -> Items:
        test = self._parts[1]
        stem = [term[:_STEM].lower() for term, _ in test]
        language = np.full(len(test), TOO_SHORT)
        return Items(np.unique(stem, return_inverse=True)[1], {"language": language})

    def run(self, model: Path, *, seed: int) -> Array:
        _, test, classes = self._parts
        train = self._drawn(seed)
        ours = Pooled(model, classes=classes, how=self, seed=seed)
        ours.fit([[(term, None)] for term, _ in train], np.array([kind for _, kind in train]))
        found = ours.scores([[(term, None)] for term, _ in test])
        return self._counts(np.array([int(s[0].argmax()) for s in found]))

    def beside(self, *, seed: int) -> dict[str, Array]:
        """Logistic regression on character n-grams, from the same labelled terms."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
        model = make_pipeline(
            grams, LogisticRegression(C=10, max_iter=500, class_weight="balanced")
        )
        train = self._drawn(seed)
        model.fit([term for term, _ in train], [kind for _, kind in train])
        return {"character n-grams": self._counts(model.predict([t for t, _ in self._parts[1]]))}

    def _counts(self, found_N: np.ndarray) -> Array:
        """Of every class: hits, gold, found."""
        _, test, classes = self._parts
        gold_NC = np.array([kind for _, kind in test])[:, None] == np.arange(classes)
        found_NC = found_N[:, None] == np.arange(classes)
        return (
            np.stack([gold_NC & found_NC, gold_NC, found_NC], axis=2).reshape(len(test), -1) * 1.0
        )
