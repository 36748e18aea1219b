"""Is a corpus de-identified well enough to be trained on? By what was missed in a labelled sample
of each site and kind, and by what a detector still finds in the documents themselves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from medbert.schema import Span
from medbert.text.corpus.documents import UNKNOWN, Document
from medbert.text.notes import Note
from medbert.text.scoring.measures import Sides, upper_bound
from medbert.text.spans import Detector, coarse
from medbert.text.tokens import tokens

Group = tuple[str, ...]


class Bounds(NamedTuple):
    """What has to be shown: ``recall`` of the spans of each group, at ``confidence`` (one-sided);
    and that no more than a share ``residual`` of documents has PHI that a detector still sees."""

    recall: float
    residual: float
    confidence: float


class Labelled:
    """What was found in annotated notes, by group: the fields ``by`` (site, kind, language)."""

    def __init__(self, by: Sequence[str]) -> None:
        self.by = [*by]
        self._notes: dict[Group, list[tuple[int, int, bool]]] = defaultdict(list)

    def add(self, note: Note, gold: Iterable[Span], found: Iterable[Span]) -> None:
        sides = Sides(note.text, gold, found)
        bare = sides.missing(sides.gold, sides.found)
        group = tuple(getattr(note, field) or UNKNOWN for field in self.by)
        self._notes[group].append((len(bare), int((bare > 0).sum()), bool(bare.any())))

    def groups(self, needed: Mapping[Group, int], bounds: Bounds) -> list[dict[str, Any]]:
        """A verdict on each group of the corpus; ``needed``: how many documents each has."""
        design = design_effect([n[:2] for notes in self._notes.values() for n in notes])
        return [
            self._verdict(group, documents, design, bounds) for group, documents in needed.items()
        ]

    def _verdict(
        self, group: Group, documents: int, design: float, bounds: Bounds
    ) -> dict[str, Any]:
        notes = self._notes.get(group, [])
        spans, missed = (sum(note[i] for note in notes) for i in (0, 1))
        leaking = sum(note[2] for note in notes)
        with_phi = sum(note[0] > 0 for note in notes)
        at_most = upper_bound(missed / design, spans / design, confidence=bounds.confidence)
        least = None if at_most is None else 1 - at_most
        why = None
        if not notes:
            why = "no labelled note"
        elif least is None:
            why = "no PHI in its labelled notes: annotate more"
        elif least < bounds.recall:
            few = (spans - missed) / max(spans, 1) >= bounds.recall
            why = "too few labelled notes to show it" if few else "too much is missed"
        return {
            **dict(zip(self.by, group, strict=True)),
            "documents": documents,
            "labelled": len(notes),
            "with_phi": with_phi,
            "leaking": leaking,
            "leaking_at_most": upper_bound(leaking, with_phi, confidence=bounds.confidence),
            "spans": spans,
            "missed": missed,
            "recall": (spans - missed) / spans if spans else None,
            "recall_at_least": least,
            "passed": why is None,
            "why": why,
        }


def design_effect(notes: Sequence[tuple[int, int]]) -> float:
    """By how much misses that come together in a note widen the interval of their share (Kish);
    at least 1. ``notes``: spans and missed ones of each.

    >>> design_effect([(4, 4), (4, 0), (4, 0), (4, 0)]) > 3
    True
    """
    spans_N, missed_N = np.array([n for n in notes if n[0]], float).reshape(-1, 2).T
    total, m = spans_N.sum(), len(spans_N)
    share = missed_N.sum() / total if total else 0.0
    if m < 2 or not 0 < share < 1:
        return 1.0
    residual = ((missed_N - share * spans_N) ** 2).sum() * m / (m - 1) / total**2
    return max(1.0, float(residual / (share * (1 - share) / total)))


class Residual:
    """What a detector still finds in documents, by group.

    ``sure``: the least score that counts; ``labels``: the kinds that do. ``known``: of each note,
    the surrogates that were put into it, whose words are no leak.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        by: Sequence[str],
        labels: Collection[str],
        sure: float,
        known: Mapping[str, Collection[str]],
    ) -> None:
        self.detector, self.by, self.labels, self.sure = detector, [*by], {*labels}, sure
        self.known = known
        self._documents: dict[Group, list[Counter[str]]] = defaultdict(list)

    def add(self, document: Document) -> None:
        text = document.text
        put_in = self.known.get(document.note_id, ())
        ours = {word for said in put_in for word in _words(said)}
        seen: Counter[str] = Counter()
        for span in self.detector.detect(text):
            label = coarse(span.label)
            if label in self.labels and span.score >= self.sure:
                seen[label] += not _words(text[span.start : span.end]) <= ours
        group = tuple(getattr(document, field) for field in self.by)
        self._documents[group].append(+seen)

    def groups(self, bounds: Bounds) -> list[dict[str, Any]]:
        """Blocked is a group of which it is sure that too many documents have PHI."""
        out = []
        for group, documents in sorted(self._documents.items()):
            n, hits = len(documents), sum(map(bool, documents))
            least = lower_bound(hits, n, confidence=bounds.confidence)
            out.append(
                {
                    **dict(zip(self.by, group, strict=True)),
                    "sampled": n,
                    "with_phi": hits,
                    "share": hits / n,
                    "share_at_least": least,
                    "spans": dict(sorted(sum(documents, Counter()).items())),
                    "passed": least <= bounds.residual,
                }
            )
        return out


def _words(text: str) -> set[str]:
    return {text[i:j].casefold() for i, j in tokens(text) if text[i:j].isalnum()}


def lower_bound(events: int, n: int, *, confidence: float) -> float:
    """Clopper and Pearson's one-sided bound of a share.

    >>> round(lower_bound(10, 100, confidence=0.95), 3)
    0.055
    """
    return float(betaincinv(events, n - events + 1, 1 - confidence)) if events else 0.0
