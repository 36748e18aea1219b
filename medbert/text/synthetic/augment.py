"""Training notes again, with other people in them and written otherwise.

A detector that has seen a thousand notes of one source knows its names and its forms by heart. In
the copies every gold span is another: names, places and organisations from the lists, other days in
other formats, other numbers; in lower case or capitals, with initials, glued to the next word,
without the title before it. What carries over to another source is then all that is left to learn.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from random import Random

from medbert.schema import Span
from medbert.text.notes import Note
from medbert.text.redaction.surrogates import Mention, Surrogates, Whose
from medbert.text.redaction.written_dates import move, read
from medbert.text.spans import LABELS, coarse

log = logging.getLogger(__name__)

_TITLE = re.compile(r"\b(?:[Dd]r|[Pp]rof|[Mm]r|[Mm]r?s|[Ss]ra?|[Hh]err|[Ff]rau|[Ff]ru)\.? $")
_DATES = ("%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%d-%m-%Y", "%Y-%m-%d", "%d%m%y", "%d.%m", "%Y")
_LANGUAGES = ("en", "nb", "nn", "de", "es")  # whose names a note of unknown language is given
_MAX_DAYS = 7 * 365


def augmented(
    notes: Iterable[Note], *, copies: int = 1, variation: float = 0.3, seed: int = 0
) -> Iterator[Note]:
    """Each note with gold spans as it is, and ``copies`` times as somebody else's.

    ``variation``: the share of spans that are also written in another form. Only spans with a label
    of ``spans.LABELS`` become others; of which other labels there are spans is told in the end.
    """
    random, stay = Random(seed), set[str]()
    for note in notes:
        yield note
        for _ in range(copies if note.spans else 0):
            yield _other(note, random=random, variation=variation)
            stay |= {s.label for s in note.spans or () if coarse(s.label) not in LABELS}
    if stay:
        log.warning("the same in all copies, for the labels are none of ours: %s", sorted(stay))


def _other(note: Note, *, random: Random, variation: float) -> Note:
    named = [(_kind(span.label), span) for span in sorted(note.spans or ())]
    language = note.language or random.choice(_LANGUAGES)
    surrogate = Surrogates(key=random.randbytes(16), language=language)
    names = tuple(note.text[s.start : s.end] for kind, s in named if kind == "NAME")
    whose = Whose(language=note.language, names=names)
    days = random.randint(-_MAX_DAYS, _MAX_DAYS)
    text, spans, end = "", [], 0
    for kind, span in named:
        if span.start < end:
            continue  # overlaps the one before it
        old = note.text[span.start : span.end]
        new = _surrogate(Mention(old, kind, whose), surrogate, days)
        before = note.text[end : span.start]
        if random.random() < variation:
            new = _written(new, kind, random)
            before = _TITLE.sub("", before) if kind == "NAME" else before
            glue = kind in ("ID", "DATE") and before[-2:-1].isalpha() and random.random() < 0.2
            before = before.rstrip(" ") if glue else before
        text += before
        spans.append(Span(len(text), len(text) + len(new), span.label))
        text, end = text + new, span.end
    return note._replace(text=text + note.text[end:], spans=tuple(spans))


def _kind(label: str) -> str:
    """Units of care are named as organisations are, not as towns."""
    return "ORGANISATION" if label == "LOCATION:CARE_UNIT" else coarse(label)


def _surrogate(mention: Mention, surrogate: Surrogates, days: int) -> str:
    """Of dates another day, of ages other digits; what is no PHI of ours stays as it is."""
    old, kind = mention.text, mention.label
    if kind == "DATE" and (moved := move(old, days)):
        return moved
    if kind in ("DATE", "AGE"):
        return re.sub(r"\d+", lambda number: _near(number[0], days), old)
    new = surrogate(mention).strip() if kind in LABELS else old
    return old if new == f"[{kind}]" else new


def _near(number: str, days: int) -> str:
    """Another number that could stand there: of months, of days, of ages, years of a century."""
    head, tail = (number[:-2], number[-2:]) if len(number) in (3, 4) else ("", number)
    most = next((n for n in (12, 31, 99) if int(tail) <= n), 10 ** len(tail) - 1)
    return head + str((int(tail) + days) % most + 1).zfill(len(tail))


def _written(text: str, kind: str, random: Random) -> str:
    """In another form of its kind."""
    if kind == "NAME":
        words = text.split()
        forms = [text.lower(), text.upper(), text.title()]
        if len(words) > 1:
            forms += [f"{words[0][0]}. {words[-1]}", f"{words[0]} {words[-1][0]}."]
            forms += [f"{words[-1]}, {' '.join(words[:-1])}", words[-1]]
        return random.choice(forms)
    if kind == "DATE" and (known := read(text)) and known.unit == "day":
        return known.day.strftime(random.choice(_DATES))
    if kind in ("ID", "CONTACT"):
        return re.sub(r"(?<=\d)[ .-](?=\d)", random.choice(("", " ", "-")), text)
    if kind in ("LOCATION", "ORGANISATION"):
        return random.choice((text, text, text.lower(), text.upper()))
    return text
