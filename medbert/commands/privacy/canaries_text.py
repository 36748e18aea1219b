"""Canaries among the documents of a corpus: people who do not exist, and what is secret of them."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from medbert.text.lists import shipped

_BEFORE, _AFTER = "Pas. ", " er innlagt."
_SYNTHETIC = 80  # on the month of a national number: of nobody


class Canary(NamedTuple):
    """A document about somebody who does not exist, and where in it the secret is."""

    text: str
    start: int
    end: int


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
