"""Canaries among the documents of a corpus: people who do not exist, and what is secret of them."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from medbert.commands.output.artefacts import read_json
from medbert.text.corpus.documents import Corpus
from medbert.text.lists import shipped

CANARIES = "canaries.json"
_BEFORE, _AFTER = "Pas. ", " er innlagt."
_SYNTHETIC = 80  # on the month of a national number: of nobody


class Canary(NamedTuple):
    """A document about somebody who does not exist, and where in it the secret is."""

    text: str
    start: int
    end: int


def planted(corpus: Corpus) -> list[dict[str, Any]]:
    """``repeats``, ``text``, ``start`` and ``end`` of each canary; none of a corpus without."""
    return read_json(corpus.folder / CANARIES, missing={"canaries": []})["canaries"]


def drawn(n: int, *, random: Random) -> list[Canary]:
    """Names from the shipped lists, with national numbers that nobody has (month + 80)."""
    names = sorted(shipped().surnames)
    made = []
    for _ in range(n):
        day, month, rest = random.randint(1, 28), random.randint(1, 12), random.randrange(10**7)
        secret = f"{random.choice(names).title()}, f.nr {day:02}{month + _SYNTHETIC}{rest:07}"
        start = len(_BEFORE)
        made.append(Canary(f"{_BEFORE}{secret}{_AFTER}", start, start + len(secret)))
    return made
