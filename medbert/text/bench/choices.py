"""Multiple-choice questions: NorMedQA as it is published, or a table of one's own.

The same exam question stands there several times, also in the other written norm: questions that
are alike are of one cluster, and a cluster is trained on or tested on, never both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medbert.text.bench.pooled import FineTuned, Pooled
from medbert.text.bench.reading import kept, language_of, parted, table
from medbert.text.bench.tasks import Array, Items, ratio
from medbert.text.notes import Note

_NUMBERED = re.compile(r"\s+[B-E][.)]?\s+(?=[A-ZÆØÅ\d])")  # where the semicolons were lost
_RATIONALE = 2.0  # an answer so many times as long as any other, and of several sentences
COLUMNS = ("question_text", "answer_text", "wrong_answers_text")


class Question(NamedTuple):
    """``options``: the right one first."""

    text: str
    options: tuple[str, ...]
    language: str
    cluster: int


@dataclass
class Choices(FineTuned):
    """``path``: a CSV, TSV or JSON list with the ``columns`` of a question, the right answer, and
    the wrong ones, set apart by semicolons. ``alike``: the cosine of character n-grams from which
    questions are of one cluster; two in different languages are then the same question twice.
    """

    measures = ratio("accuracy", 0, 1), ratio("same answer in both languages", 2, 3)
    path: str
    _: KW_ONLY
    columns: Sequence[str] = COLUMNS
    alike: float = 0.45
    share: float = 0.3
    epochs: int = 3
    learning_rate: float = 5e-4
    batch_size: int = 8
    longest: int = 128

    @cached_property
    def questions(self) -> list[Question]:
        """Those with at least two wrong answers."""
        rows = [[row[name] for name in self.columns] for row in table(self.path, self.columns)]
        parted = [(text, options(answer, wrong)) for text, answer, wrong in rows]
        parted = [(text, all_of) for text, all_of in parted if len(all_of) > 2]
        kept(self.path, parted, 10, "questions with at least two wrong answers")
        cluster = clusters([" ".join((text, *all_of)) for text, all_of in parted], alike=self.alike)
        return [
            Question(text, all_of, language_of(Note("", text)), int(c))
            for (text, all_of), c in zip(parted, cluster, strict=True)
        ]

    @cached_property
    def _parts(self) -> tuple[list[Question], list[Question]]:
        return parted(self.questions, [f"{q.cluster}" for q in self.questions], self.share)

    def items(self) -> Items:
        test = self._parts[1]
        return Items(
            np.array([q.cluster for q in test]), {"language": np.array([q.language for q in test])}
        )

    def run(self, model: Path, *, seed: int) -> Array:
        train, test = self._parts
        right = np.zeros(len(train), np.int64)  # the order of sequences says nothing to the model
        ours = Pooled(model, classes=1, how=self, seed=seed)
        ours.fit([_example(q) for q in train], right)
        chosen = [int(s[:, 0].argmax()) for s in ours.scores([_example(q) for q in test])]
        return _counts(test, np.array(chosen))

    def beside(self, *, seed: int) -> dict[str, Array]:
        test = self._parts[1]
        random = np.random.default_rng(seed)
        longest = np.array([int(np.argmax([*map(len, q.options)])) for q in test])
        guessed = np.array([int(random.integers(len(q.options))) for q in test])
        return {"the longest answer": _counts(test, longest), "guessing": _counts(test, guessed)}


def options(answer: str, wrong: str) -> tuple[str, ...]:
    """The right answer, without a rationale behind it, and the wrong ones.

    >>> options("Marfans syndrom", "Sotos syndrom C Klinefelters syndrom D 48,XYYY")
    ('Marfans syndrom', 'Sotos syndrom', 'Klinefelters syndrom', '48,XYYY')
    """
    parts = wrong.split(";") if ";" in wrong else _NUMBERED.split(wrong)
    others = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    answer = answer.strip()
    if others and len(answer) > _RATIONALE * max(map(len, others)):
        answer = re.split(r"(?<=[.!?])\s|\n", answer)[0]
    return (answer, *(other for other in others if other != answer)) if answer else ()


def clusters(texts: Sequence[str], *, alike: float) -> np.ndarray:
    """(N,): texts whose character n-grams have a cosine above ``alike`` are of one cluster, and so
    is what is alike to one of them."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2).fit_transform(texts)
    cosine = (grams @ grams.T).tocsr()
    cosine.data = np.where(cosine.data > alike, cosine.data, 0)
    cosine.eliminate_zeros()
    return connected_components(cosine, directed=False)[1]


def _example(question: Question) -> list[tuple[str, str | None]]:
    return [(question.text, option) for option in question.options]


def _counts(test: Sequence[Question], chosen: np.ndarray) -> Array:
    """Right, 1, and of pairs in two languages: the same option chosen, 1 (at the first of both)."""
    counts = np.zeros((len(test), 4))
    counts[:, 0], counts[:, 1] = chosen == 0, 1
    of_cluster: dict[int, list[int]] = {}
    for i, question in enumerate(test):
        of_cluster.setdefault(question.cluster, []).append(i)
    for members in of_cluster.values():
        for a, b in combinations(members, 2):
            same_kind = len(test[a].options) == len(test[b].options)
            if {test[a].language, test[b].language} == {"nb", "nn"} and same_kind:
                counts[a, 2:] += chosen[a] == chosen[b], 1
    return counts
