"""Invented notes of invented people, with gold spans: to try every command, and to train on.

What is said stands in ``data/notes/LANGUAGE.yaml``: a grammar, in which ``{word}`` is one of the
entries of that name and ``[a|b]`` is a or b; below a name, F and M are chosen by the sex of the
patient. Names of people, places and numbers come from ``Cast``; where one of them stands, there is
a gold span. Titles, units and prepositions are outside of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from medbert.schema import Span
from medbert.text.notes import Note
from medbert.text.synthetic.casting import Cast, grammar

LANGUAGES = ("en", "nb", "nn")
_SLOT = re.compile(r"\{([\w.]+)\}")
_EITHER = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_WIDTHS = (60, 72, 80)  # of notes whose lines were broken
_NOTES = (3, 8)  # of a patient
_BEGUN = datetime(2014, 1, 1)
_DAYS = 3650


class Piece(NamedTuple):
    """A stretch of a note; ``label``: of its span, where it is PHI."""

    text: str
    label: str | None = None


def invent(
    n_patients: int,
    *,
    seed: int = 1,
    wide: bool = False,
    noise: float = 0.1,
) -> Iterator[Note]:
    """Yields the notes of each patient in the order of time, of hospitals in turn.

    ``wide``: names from all shipped lists, and such as are on none, rather than from the lists of
    surrogates. ``noise``: how likely a note is written carelessly (lines broken, all in lower case
    or capitals, misspelt, numbers glued to words), and half as likely each name in it.
    """
    random = Random(seed)
    for number in range(n_patients):
        language = LANGUAGES[number % len(LANGUAGES)]
        cast = Cast(language, random=random, wide=wide)
        time = _BEGUN + timedelta(days=random.randrange(_DAYS), minutes=random.randrange(1440))
        for n in range(random.randint(*_NOTES)):
            kinds = grammar(language)["kinds"]
            kind = random.choice([*kinds]) if n else "admission"
            written = _Writer(cast, time=time, random=random, noise=noise)
            text, spans = _typed(written.note(kinds[kind]), random=random, noise=noise)
            note_id = f"{cast.site}-{number:04}-{n:02}"
            patient_id = f"{number:04}"
            yield Note(note_id, text, patient_id, time, kind, language, spans, site=cast.site)
            time += timedelta(days=random.choice((0, 1, 2, 7, 30, 90, 200)), hours=n + 1)


class _Writer:
    """Writes one note of a patient: expands the grammar."""

    def __init__(self, cast: Cast, *, time: datetime, random: Random, noise: float) -> None:
        self.cast, self.time, self.random, self.noise = cast, time, random, noise
        self.grammar = grammar(cast.language)
        self.said: set[str] = set()  # no sentence twice in a note

    def note(self, sections: str) -> list[Piece]:
        """``sections``: names of the grammar; ``NAME*3``: up to three sentences of it; ``NAME?``:
        every other note has it."""
        pieces: list[Piece] = []
        for section in sections.split():
            name, _, most = section.rstrip("?").partition("*")
            if section.endswith("?") and self.random.random() < 0.5:
                continue
            pieces.append(Piece("\n" * self.random.choice((1, 2, 2)) * bool(pieces)))
            titles = self.grammar.get(f"{name}_title", [""])
            pieces.append(Piece(self.random.choice(titles) if self.random.random() < 0.7 else ""))
            for i in range(self.random.randint(1, int(most or 1))):
                self.cast.relative = self.random.choice(self.cast.kin)
                chosen = self._choose(name)
                between = "\n" if chosen[:2] in ("- ", "1.") else " "
                pieces += [Piece(between * (i > 0)), *self._expand(chosen)]
        return pieces

    def _choose(self, name: str) -> str:
        options = self.grammar[name]
        if isinstance(options, dict):
            options = options[(self.cast.relative if name == "relation" else self.cast.me).sex]
        new = [option for option in options if option not in self.said]
        chosen = self.random.choice(new or options)
        self.said.add(chosen)
        if name == "job":
            chosen = self.cast.job = self.cast.job or chosen
        return str(chosen)

    def _expand(self, template: str) -> list[Piece]:
        template = _EITHER.sub(lambda m: self.random.choice(m[1].split("|")), template)
        pieces, end = [], 0
        for slot in _SLOT.finditer(template):
            pieces.append(Piece(template[end : slot.start()]))
            pieces += self._slot(slot[1])
            end = slot.end()
        return [*pieces, Piece(template[end:])]

    def _slot(self, name: str) -> list[Piece]:
        if made := self.cast.phi(name, self.time):
            text, label = made
            careless = self.random.random() < self.noise / 2
            return [Piece(self._careless(text, label) if careless else text, label)]
        pieces = self._expand(self._choose(name.lower()))
        first = pieces[0].text  # never PHI: what stands in front of it
        return [Piece(first[:1].upper() + first[1:] if name[0].isupper() else first), *pieces[1:]]

    def _careless(self, text: str, label: str) -> str:
        if label.startswith(("NAME", "LOCATION", "ORGANISATION")):
            return self.random.choice((text.lower(), text.upper()))
        cut = self.random.randrange(3, max(4, len(text) - 3))
        broken = label.startswith("ID") and text[cut - 1 : cut + 1].isdigit()
        return f"{text[:cut]}\n{text[cut:]}" if broken else text


def _typed(pieces: list[Piece], *, random: Random, noise: float) -> tuple[str, tuple[Span, ...]]:
    """The pieces as one text, written as carelessly as ``noise`` says."""
    change = random.choice((str.lower, str.upper)) if random.random() < noise / 3 else str
    glued = random.random() < noise
    misspelt = random.random() < noise
    text, spans = "", []
    for piece in pieces:
        new = change(piece.text)
        if len(new) != len(piece.text):
            new = piece.text
        if piece.label is None and misspelt:
            new = re.sub(r"(?<=[a-z])[a-z]{3}(?=[a-z])", _swapped(random), new)
        if piece.label and glued and new[:1].isdigit() and text[-2:-1].isalpha():
            text = text.removesuffix(" ")
        if piece.label and new:
            spans.append(Span(len(text), len(text) + len(new), piece.label))
        text += new
    if random.random() < noise:
        text = _broken(text, random.choice(_WIDTHS))
    return text, tuple(spans)


def _swapped(random: Random) -> Callable[[re.Match[str]], str]:
    def swap(letters: re.Match[str]) -> str:
        a, b, c = [*letters[0]]
        return f"{b}{a}{c}" if random.random() < 0.05 else letters[0]

    return swap


def _broken(text: str, width: int) -> str:
    """Lines broken at blanks, as a fixed width asks; as long as before."""
    signs, line, blank = list(text), 0, -1
    for i, sign in enumerate(signs):
        if sign == "\n":
            line, blank = i + 1, -1
        elif sign == " ":
            blank = i
        if i - line >= width and blank > line:
            signs[blank] = "\n"
            line, blank = blank + 1, -1
    return "".join(signs)
