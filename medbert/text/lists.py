"""The shipped word lists (``data/``, sources in its ``lists.md``) and what a word of them means."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

UPPER = "A-ZÀ-ÖØ-ÞŠŽĆČŁŚŻŞİ"
WORD = re.compile(r"[^\W\d_]+(?:[-'’‑][^\W\d_]+)*")
PARTICLES = frozenset(
    {"al", "ap", "bin", "da", "de", "del", "della", "den", "der", "di", "dos", "du", "el", "ibn"}
    | {"la", "le", "ter", "van", "von"}
)
_PLACE_BEFORE = re.compile(
    r"\b(?:in|at|from|near|i|fra|på|ved|til|nær|aus|nach|bei|en|desde|by|of|our|visiting)\s+$"
)
_SENTENCE = re.compile(r"(?:^|[.!?:;\n\r\t*•>|\"“(-]\s*)$")


class Lists(NamedTuple):
    """Words in lower case (``units``, ``places``, ``regions``: as they are written)."""

    given: frozenset[str]
    surnames: frozenset[str]
    common: frozenset[str]
    function: frozenset[str]
    eponyms: frozenset[str]
    things: frozenset[str]  # with a capital, but nobody: drugs, languages, feasts
    places: tuple[str, ...]
    regions: tuple[str, ...]
    units: tuple[str, ...]


@cache
def shipped() -> Lists:
    """The lists of ``data/``."""
    given, surnames, common, function, eponyms, things = (
        frozenset(data(f"{name}.txt").casefold().split()) for name in Lists._fields[:6]
    )
    places, regions, units = (tuple(data(f"{name}.txt").splitlines()) for name in Lists._fields[6:])
    return Lists(given, surnames, common, function, eponyms, things, places, regions, units)


def data(name: str) -> str:
    """What a file of ``data/`` says."""
    return files(__package__).joinpath("data", name).read_text(encoding="utf-8")


@cache
def calendar() -> dict[str, Any]:
    return yaml.safe_load(data("calendar.yaml"))


def _calendar(what: str) -> list[tuple[str, ...]]:
    """The names of each month or weekday in all languages."""
    return [*zip(*(names.split() for names in calendar()[what].values()), strict=True)]


@cache
def months() -> tuple[str, ...]:
    """Each month as an alternation of its names and their beginnings, in all languages."""
    short = ({name[:k] for name in names for k in (3, 4, 99)} for names in _calendar("months"))
    return tuple("|".join(sorted(names, key=len, reverse=True)) for names in short)


@cache
def _cues() -> dict[str, tuple[str, ...]]:
    found = {
        name: tuple(words.replace("_", " ") for words in text.split())
        for name, text in yaml.safe_load(data("cues.yaml")).items()
    }
    days = {day for names in _calendar("weekdays") for day in names}
    return found | {"month": tuple("|".join(months()).split("|")), "weekday": tuple(sorted(days))}


def cues(names: str) -> tuple[str, ...]:
    """The words and phrases of lists of ``data/cues.yaml`` (names between blanks), and of "month"
    and "weekday"."""
    return tuple(cue for name in names.split() for cue in _cues()[name])


def any_of(names: str) -> str:
    """A pattern of any of these, the longest first."""
    found = sorted(cues(names), key=len, reverse=True)
    return "|".join(re.escape(cue).replace(r"\ ", r"[ \n]") for cue in found)


def common(word: str) -> bool:
    """Whether it is an ordinary word too: such a name counts only beside another name.

    >>> common("Grace"), common("Hastings"), common("walks")
    (True, False, True)
    """
    lists, low = shipped(), word.casefold().removesuffix("'s").removesuffix("’s")
    if low in lists.common or low in lists.function or low in lists.things:
        return True
    if low in lists.given or low in lists.surnames:
        return False
    ends = ("s", "es", "ed", "d", "ing")
    return any(
        low.endswith(e) and len(low) > len(e) + 2 and low[: -len(e)] in lists.common for e in ends
    )


@cache
def _tail() -> re.Pattern[str]:
    """What makes a name before it the name of a disease, a test or a scale."""
    return re.compile(rf"(?:['’]?s)?[ \n-](?:[\w'’-]+[ \n]){{0,2}}?(?i:{any_of('tail')})")


def tailed(text: str, end: int) -> bool:
    """Whether what ends here is followed by "disease", "score", ...: then it names one of these."""
    return bool(_tail().match(text, end))


def eponym(text: str, start: int, end: int) -> bool:
    """Whether a name is that of a disease or a test: "Wilson's disease", "Wells score"."""
    known = shipped().eponyms
    words = text[start:end].casefold().replace("’", "'").removesuffix("'s").split()
    return any(word in known for word in words) and bool(_tail().match(text, end))


def opens(text: str, start: int) -> bool:
    """Whether a sentence, a line or an item begins here, so that a capital says nothing."""
    return bool(_SENTENCE.search(text, max(0, start - 6), start))


def place(text: str, start: int, end: int) -> bool:
    """Whether a listed place is meant as one: no disease or score of that name, and a word that is
    ordinary too only after a word of place."""
    word = text[start:end]
    if _tail().match(text, end) or (word.isupper() and len(word) < 3):
        return False
    if " " in word or not common(word):
        return True
    return bool(_PLACE_BEFORE.search(text, max(0, start - 12), start)) and not opens(text, start)


@cache
def place_words() -> frozenset[str]:
    return frozenset(
        place.casefold() for place in shipped().places + shipped().regions + shipped().units
    )
