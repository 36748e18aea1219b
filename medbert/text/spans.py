"""Spans of PHI: their labels, how those of several detectors become one list, and what a name found
once means for the rest of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Protocol

from medbert.schema import Span
from medbert.text.detectors.words import Persons

LABELS = ("NAME", "AGE", "DATE", "ID", "LOCATION", "CONTACT", "ORGANISATION")
"""What a detector may find; a finer kind may stand after a colon (``ID:SSN``)."""

_SURE = 0.7  # a score from which a span is looked for again


def coarse(label: str) -> str:
    """One of ``LABELS``: ``NAME:PATIENT`` -> ``NAME``."""
    return label.partition(":")[0]


class Detector(Protocol):
    """Finds PHI: spans in order that do not overlap, their scores as probable as they can be."""

    def detect(self, text: str) -> list[Span]: ...


def merge(found: Iterable[Span]) -> list[Span]:
    """One list without overlaps in which every character found stays found.

    Where spans overlap, the longer gives the label, and of equally long ones the surer; those of
    one label become one, and of another what stands outside remains.
    """
    merged: list[Span] = []
    group: list[Span] = []
    end = -1
    for span in [*sorted(found), None]:
        if group and (span is None or span.start >= end):
            merged += group if len(group) == 1 else _painted(group)
            group = []
        if span is not None and span.end > span.start:
            end = max(end, span.end) if group else span.end
            group.append(span)
    return merged


def _painted(group: list[Span]) -> list[Span]:
    """Overlapping spans, the best painted last."""

    def rank(span: Span) -> tuple[float, float]:
        return span.end - span.start, span.score

    ranked = sorted(group, key=rank)
    first = min(span.start for span in group)
    owner = [ranked[0]] * (max(span.end for span in group) - first)
    for span in ranked:
        owner[span.start - first : span.end - first] = [span] * (span.end - span.start)
    runs = [[*run] for _, run in groupby(enumerate(owner, first), lambda at: coarse(at[1].label))]
    found = []
    for run in runs:
        start, end, best = run[0][0], run[-1][0] + 1, max((span for _, span in run), key=rank)
        sure = max(
            s.score for s in group if s.start < end and start < s.end and s.label == best.label
        )
        found.append(Span(start, end, best.label, sure))
    return found


def grown(text: str, span: Span) -> Span:
    """A span without blanks and marks around it, and with the whole of the words at its ends.

    Letters grow over letters and digits over digits, so that of ``12.03.2020kl`` the date alone is
    one; of an ID, both over both. An initial keeps its full stop. What holds only marks is empty.
    """
    start, end, label, score = span
    while start < end and not text[start].isalnum() and text[start] not in "+(#":
        start += 1
    while start < end and not text[end - 1].isalnum():
        end -= 1
    mixed = coarse(label) == "ID"
    while 0 < start < end and _alike(text[start - 1], text[start], mixed):
        start -= 1
    while start < end < len(text) and _alike(text[end - 1], text[end], mixed):
        end += 1
    if coarse(label) == "NAME" and re.fullmatch(
        r"(?:.*\W)?[^\W\d_]\.", text[start : end + 1], re.S
    ):
        end += 1
    return Span(start, end, label, score)


def _alike(a: str, b: str, mixed: bool) -> bool:
    if mixed:
        return a.isalnum() and b.isalnum()
    return (a.isalpha() and b.isalpha()) or (a.isdigit() and b.isdigit())


def everywhere(names: Iterable[str], text: str, *, score: float = 0.9) -> list[Span]:
    """Every place where one of these people is named: in whole or part, with initials, as a
    possessive, in any order and case; ordinary words ("May") only where they must be the name."""
    return Persons(names, score=score).detect(text)


def consistent(text: str, spans: Sequence[Span]) -> list[Span]:
    """``spans``, and what they have found with a score of 0.7 or more wherever it stands again:
    names in any form, numbers and addresses as they are."""
    sure = [(coarse(s.label), s, text[s.start : s.end]) for s in spans if s.score >= _SURE]
    again = everywhere({words for label, _, words in sure if label == "NAME"}, text)
    exact = {
        words: span for label, span, words in sure if label in ("ID", "CONTACT") and len(words) > 4
    }
    if exact:
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, exact))})(?!\w)")
        again += [
            Span(*m.span(), exact[m[0]].label, exact[m[0]].score) for m in pattern.finditer(text)
        ]
    return merge([*spans, *again])


class Ensemble:
    """Several detectors as one: what any finds, in whole words, and everywhere it stands again."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors

    def detect(self, text: str) -> list[Span]:
        found = merge([span for one in self.detectors for span in one.detect(text)])
        return consistent(text, merge([grown(text, span) for span in found]))
