"""What counts as PHI, and where it begins and ends: guidelines differ, and so do annotators.

A policy cuts gold and found alike, so that what is left between them is error, not taste.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from medbert.schema import Span
from medbert.text.lists import any_of
from medbert.text.spans import LABELS, coarse, grown

_TITLE = re.compile(rf"(?i:(?:{any_of('dr mr')})\b\.?\s*)+")
_TITLE_BEFORE = re.compile(rf"(?<!\w)(?i:(?:{any_of('dr mr')})\b\.?\s{{0,2}})+$")
_AGE = re.compile(r"[\W_]*(\d{1,3})(?!\d)")
_UNIT = re.compile(
    r"[ -]?(?:(?i:years?|yrs?|months?|weeks?|days?|jahre?|años|meses|mnd|måneder|uker|dager)\b"
    r"|års?\b|åra?(?:ene|ing)\b|(?:års?ig|åring|jährig)\w*|y\.?\s?/?o\b|y\b|['’]?s\b)"
    r"(?:[ -](?:old|of age|gammel|gamle|gammal|alt|de edad)\b)?"
)
_WEEKDAY = re.compile(rf"(?i:(?:{any_of('weekday')})\b)[\s,.]*(?:(?i:the|den|el)\s+)?")
_YOUNG = re.compile(rf"\W*(?i:{any_of('teens tens')}|octogenarian)\b")
_OLD = 90  # years: from here an age tells who it is (45 CFR 164.514(b)(2)(i)(C))


@dataclass(frozen=True)
class LabelPolicy:
    """Which spans count, and how they are cut.

    ``labels`` that count; ``age_unit``: "41 år" rather than "41"; ``titles``: "Dr. Hansen" rather
    than "Hansen"; ``year_only``, ``weekdays``, ``ages_under_90`` and ``regions`` (states and
    countries): whether these alone count; ``join``: neighbours of one label with but a blank, a
    full stop or a hyphen between them are one span, as "Ola" and "Hansen".
    """

    labels: Collection[str] = LABELS
    age_unit: bool = False
    titles: bool = False
    year_only: bool = True
    weekdays: bool = False
    ages_under_90: bool = True
    regions: bool = True
    join: bool = True

    def apply(self, text: str, spans: Iterable[Span]) -> list[Span]:
        """The spans that count, cut; in order."""
        cut = [self._cut(text, span) for span in sorted(spans) if self._counts(text, span)]
        whole = [span for span in (grown(text, span) for span in cut) if span.end > span.start]
        return _joined(text, whole) if self.join else whole

    def _counts(self, text: str, span: Span) -> bool:
        words, label = text[span.start : span.end], coarse(span.label)
        if label not in self.labels:
            return False
        if label == "AGE" and not self.ages_under_90:
            number = re.search(r"\d+", words)
            return int(number[0]) >= _OLD if number else not _YOUNG.match(words)
        if label == "DATE":
            if not self.year_only and re.fullmatch(r"\W*(?:1[89]|20)\d\d(?:\W+\d{2,4})?\W*", words):
                return False
            return self.weekdays or not _WEEKDAY.fullmatch(words)
        return self.regions or span.label != "LOCATION:REGION"

    def _cut(self, text: str, span: Span) -> Span:
        start, end, label, score = span
        kind = coarse(label)
        if kind == "AGE" and (number := _AGE.match(text, start, end)):
            unit = _UNIT.match(text, number.end(1))
            start, end = number.start(1), number.end(1)
            end = unit.end() if self.age_unit and unit else end
        if kind == "NAME":
            title = _TITLE.match(text, start, end)
            if self.titles:
                before = _TITLE_BEFORE.search(text, max(0, start - 20), start)
                start = before.start() if before else start
            elif title and title.end() < end:
                start = title.end()
        if kind == "DATE" and not self.weekdays and (day := _WEEKDAY.match(text, start, end)):
            start = day.end()
        return Span(start, end, label, score)


def _joined(text: str, spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in spans:
        last = kept[-1] if kept else None
        if last and coarse(last.label) == coarse(span.label):
            gap = text[last.end : span.start]
            if re.fullmatch(r"[ .\xa0-]{0,2}\n?[ ]?", gap):
                kept[-1] = last._replace(
                    end=max(last.end, span.end), score=max(last.score, span.score)
                )
                continue
        kept.append(span)
    return kept


STRICT = LabelPolicy(weekdays=True, titles=True, age_unit=True)
"""All that may tell of a person."""
SAFE_HARBOR = LabelPolicy(year_only=False, ages_under_90=False, regions=False)
"""What 45 CFR 164.514(b)(2)(i) asks to remove; years, states and ages under 90 may stay."""
CARD = LabelPolicy(labels=("NAME", "AGE", "DATE", "ID"))
"""The labels of a clinical NAME, AGE, DATE, ID tagger."""
