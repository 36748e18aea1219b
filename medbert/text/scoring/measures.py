"""What was found beside what should have been: leaks first, then recall, precision, F1 and F2.

Measures, each over all labels and (``typed``) with equal labels only:

    token     runs of word characters; a token of PHI that is half covered is leaked
    strict    both ends agree (seqeval's strict IOB2; MEDDOCAN's NER where typed, spans where not)
    relaxed   the start agrees, and the end within 2 characters (i2b2 2014)
    covered   the other side has every word character of the span
    merged    strict, or strict once neighbours with no letter or digit between them are joined, or
              within such a match (MEDDOCAN's spans)

A document leaks if a word character of its gold PHI is not covered.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from medbert.schema import Span
from medbert.text.notes import Note

_TOKEN = re.compile(r"\w+")
_SLACK = range(-2, 3)  # characters by which the end may differ: relaxed
_LENGTHS = ((250, "under 250 tokens"), (1000, "250 to 999 tokens"))
_LONGER = "1,000 tokens or more"

Items = list[tuple[str, bool]]  # the label of each, and whether the other side has it too
MISSED, PARTLY, OTHER_LABEL, NO_PHI = "missed", "partly covered", "other label", "no PHI"


class Error(NamedTuple):
    """A gold span (or, of NO_PHI, a found one); ``found``: the label it was given instead."""

    kind: str
    span: Span
    found: str = ""


class Sides:
    """Gold and found spans of one text, compared. Suffix T: tokens."""

    def __init__(self, text: str, gold: Iterable[Span], found: Iterable[Span]) -> None:
        self.text, self.gold, self.found = text, sorted({*gold}), sorted({*found})
        bounds = [match.span() for match in _TOKEN.finditer(text)]
        self.start_T, self.end_T = np.array(bounds, np.int64).reshape(-1, 2).T
        self.word = self._inside(bounds)
        self.gold_T, self.found_T = self._labels(self.gold), self._labels(self.found)

    def _inside(self, spans: Iterable[Sequence[Any]]) -> NDArray[np.bool_]:
        """Which characters are in one of the spans."""
        mask = np.zeros(len(self.text), bool)
        for start, end, *_ in spans:
            mask[start:end] = True
        return mask

    def _tokens_of(self, start: int, end: int) -> slice:
        first = np.searchsorted(self.end_T, start, "right")
        return slice(int(first), int(np.searchsorted(self.start_T, end)))

    def _labels(self, spans: Sequence[Span]) -> NDArray[Any]:
        """The label of the first span that each token has a character of; else empty."""
        label_T = np.full(len(self.start_T), "", object)
        for span in reversed(spans):
            label_T[self._tokens_of(span.start, span.end)] = span.label
        return label_T

    def missing(self, bounds: Iterable[Sequence[Any]], by: Iterable[Span]) -> NDArray[np.int64]:
        """How many word characters within each of ``bounds`` none of ``by`` has."""
        return self._count(bounds, self.word & ~self._inside(by))

    def _count(self, bounds: Iterable[Sequence[Any]], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        before = np.r_[0, np.cumsum(mask)]
        start, end = np.array([b[:2] for b in bounds], np.int64).reshape(-1, 2).T
        return before[end] - before[start]

    def leaks(self) -> bool:
        return bool(self.missing(self.gold, self.found).any())

    def items(self) -> dict[str, tuple[Items, Items]]:
        """Measure -> gold items and found items."""
        out = {}
        for kind in ("", " typed"):
            sides = [
                {(s.start, s.end, s.label if kind else ""): s.label for s in side}
                for side in (self.gold, self.found)
            ]
            out["token" + kind] = self._tokens(typed=bool(kind))
            out["strict" + kind] = _both(sides, lambda key, other: key in other)
            out["relaxed" + kind] = _both(sides, _relaxed)
            out["covered" + kind] = self._covered(sides)
        return out | {"merged": self._merged()}

    def _tokens(self, *, typed: bool) -> tuple[Items, Items]:
        bare = self.word & self._inside(self.gold) & ~self._inside(self.found)
        whole_T = self._count(zip(self.start_T, self.end_T, strict=True), bare) == 0
        same_T = (self.gold_T == self.found_T) | (not typed)
        hits = (self.gold_T, whole_T & same_T), (self.found_T, (self.gold_T != "") & same_T)
        gold, found = (
            [(label, bool(hit)) for label, hit in zip(*side, strict=True) if label] for side in hits
        )
        return gold, found

    def _covered(self, sides: Sequence[dict[Any, str]]) -> tuple[Items, Items]:
        out: tuple[Items, Items] = [], []
        for label in {key[2] for side in sides for key in side}:
            mine = [{k: v for k, v in side.items() if k[2] == label} for side in sides]
            for items, spans, other in zip(out, mine, mine[::-1], strict=True):
                bare = self.missing(spans, other)
                items += [(v, not n) for v, n in zip(spans.values(), bare, strict=True)]
        return out

    def _merged(self) -> tuple[Items, Items]:
        gold, found = ({span[:2] for span in side} for side in (self.gold, self.found))
        matched = (gold & found) | ({*self._joined(gold)} & {*self._joined(found)})
        wrong: list[Items] = [
            [("", False) for s, e in mine if not any(a <= s and e <= b for a, b in matched)]
            for mine in (gold - found, found - gold)
        ]
        hits: Items = [("", True)] * len(matched)
        return hits + wrong[0], hits + wrong[1]

    def _joined(self, bounds: Collection[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        begun: tuple[int, int] | None = None
        for start, end in sorted(bounds):
            if begun and any(map(str.isalnum, self.text[begun[1] : start])):
                yield begun
                begun = None
            begun = (begun[0] if begun else start, end)
        if begun:
            yield begun

    def errors(self) -> Iterator[Error]:
        """Gold spans that leak or have another label, then what was found where no PHI is."""
        words, bare = self.missing(self.gold, ()), self.missing(self.gold, self.found)
        for span, all_of_it, left in zip(self.gold, words, bare, strict=True):
            given = self.found_T[self._tokens_of(span.start, span.end)]
            if left:
                yield Error(MISSED if left == all_of_it else PARTLY, span)
            elif len(given) and span.label not in given:
                yield Error(OTHER_LABEL, span, given[0])
        in_gold = self._count(self.found, self._inside(self.gold))
        yield from (Error(NO_PHI, s) for s, n in zip(self.found, in_gold, strict=True) if not n)

    def terms_lost(self, terms: Terms) -> tuple[int, int]:
        """How many clinical terms stand outside of PHI, and how many of them were touched."""
        words = [self.text[s:e].lower() for s, e in zip(self.start_T, self.end_T, strict=True)]
        here = [self.found_T[where] for where in terms.within(words) if not any(self.gold_T[where])]
        return len(here), sum(map(any, here))


def _both(
    sides: Sequence[dict[Any, str]], has: Callable[[Any, Collection[Any]], bool]
) -> tuple[Items, Items]:
    gold, found = (
        [(label, has(key, other)) for key, label in mine.items()]
        for mine, other in (sides, sides[::-1])
    )
    return gold, found


def _relaxed(key: tuple[int, int, str], other: Collection[Any]) -> bool:
    return any((key[0], key[1] + more, key[2]) in other for more in _SLACK)


class Terms:
    """Clinical terms, looked up word by word, the longest first."""

    def __init__(self, terms: Iterable[str]) -> None:
        self._after: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for term in terms:
            if words := tuple(_TOKEN.findall(term.lower())):
                self._after[words[0]].add(words)

    def within(self, words: Sequence[str]) -> Iterator[slice]:
        at = 0
        while at < len(words):
            known = self._after.get(words[at], ())
            here = [len(t) for t in known if t == tuple(words[at : at + len(t)])]
            if here:
                yield slice(at, at + max(here))
            at += max(here, default=1)


class Scores:
    """Adds up notes; ``to_dict`` at any time. Holds counts, and ids of patients, never text.

    ``label`` makes the labels that are compared from those of the spans.
    """

    def __init__(
        self, *, label: Callable[[str], str], terms: Terms | None = None, confidence: float = 0.95
    ) -> None:
        self.label, self.terms, self.confidence = label, terms, confidence
        self._hits: Counter[tuple[str, ...]] = Counter()
        self._documents: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._patients: dict[str, bool] = {}

    def add(self, note: Note, gold: Iterable[Span], found: Iterable[Span]) -> Sides:
        named = [[s._replace(label=self.label(s.label)) for s in side] for side in (gold, found)]
        sides = Sides(note.text, *named)
        groups = [("all", "all"), ("length", _length(len(sides.start_T)))]
        groups += [("language", note.language)] if note.language else []
        groups += [("kind", note.kind)] if note.kind else []
        counts = self._counts(sides)
        for group in groups:
            self._documents[group].update(counts)
        for measure, both in sides.items().items():
            for side, items in zip(("gold", "found"), both, strict=True):
                for (label, hit), n in Counter(items).items():
                    for group in groups + ([("label", label)] if label else []):
                        self._hits[(*group, measure, side)] += n
                        self._hits[(*group, measure, side + " hit")] += n * hit
        if note.patient_id and sides.gold:
            before = self._patients.get(note.patient_id, False)
            self._patients[note.patient_id] = before or bool(counts["leaking"])
        return sides

    def _counts(self, sides: Sides) -> dict[str, int]:
        outside = sides.gold_T == ""
        counts = {
            "with_phi": bool(sides.gold),
            "leaking": sides.leaks(),
            "without_phi": not sides.gold,
            "touched_of_these": bool(sides.found) and not sides.gold,
            "other_tokens": int(outside.sum()),
            "other_tokens_lost": int((sides.found_T[outside] != "").sum()),
        }
        if self.terms:
            counts["clinical_terms"], counts["clinical_terms_lost"] = sides.terms_lost(self.terms)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Group -> name -> documents and measures; ``all`` has one name, ``all``."""
        out: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
        for (group, name), n in self._documents.items():
            lost = {"share_lost": _share(n["other_tokens_lost"], n["other_tokens"])}
            leaks = self._leaks(n["with_phi"], n["leaking"])
            out[group][name] = {"documents": {**n, **lost, **leaks}, "measures": {}}
        if self._patients:
            leaking = sum(self._patients.values())
            out["all"]["all"]["patients"] = self._leaks(len(self._patients), leaking)
        for group, name, measure, _ in list(self._hits):
            counts = [
                self._hits[group, name, measure, side]
                for side in ("gold", "gold hit", "found", "found hit")
            ]
            out[group][name].setdefault("measures", {})[measure] = rates(*counts)
        return {group: dict(sorted(names.items())) for group, names in out.items()}

    def _leaks(self, n: int, leaking: int) -> dict[str, Any]:
        """``leaking_at_most``: one-sided, at ``confidence``."""
        return {
            "with_phi": n,
            "leaking": leaking,
            "share_without_leak": _share(n - leaking, n),
            "leaking_at_most": upper_bound(leaking, n, confidence=self.confidence),
        }


def rates(gold: int, gold_hit: int, found: int, found_hit: int) -> dict[str, Any]:
    """Recall of ``gold`` items, precision of ``found`` ones; None where there are none."""
    recall, precision = _share(gold_hit, gold), _share(found_hit, found)
    r, p = recall or 0.0, precision or 0.0
    f1, f2 = ((1 + b) * p * r / (b * p + r) if p + r else 0.0 for b in (1, 4))
    return {
        "recall": recall,
        "precision": precision,
        "f1": f1,
        "f2": f2,
        "gold": gold,
        "found": found,
        "missed": gold - gold_hit,
        "wrong": found - found_hit,
    }


def upper_bound(events: float, n: float, *, confidence: float = 0.95) -> float | None:
    """Clopper and Pearson's one-sided bound of a share: none of n gives about 3 / n at 95%.

    >>> round(upper_bound(0, 300), 4)
    0.0099
    """
    if not n:
        return None
    return 1.0 if events == n else float(betaincinv(events + 1, n - events, confidence))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _length(tokens: int) -> str:
    return next((name for under, name in _LENGTHS if tokens < under), _LONGER)
