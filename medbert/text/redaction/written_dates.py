"""Dates as people write them: read, and written again for another day in the same way.

This is not how dates are found (``rules``): it starts from a text that is known to be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache
from typing import NamedTuple

from medbert.text.lists import calendar

_WORDS = calendar()
_NAMES: dict[str, dict[str, list[str]]] = {
    kind: {language: names.split() for language, names in _WORDS[kind].items()}
    for kind in ("months", "weekdays")
}
_BESIDE = frozenset(_WORDS["beside"].split())  # of no weight before a date: they may stay
_RELATIVE = frozenset(_WORDS["relative"].split())  # what is counted from the note moves with it
_DAY_FIRST = dict.fromkeys(_WORDS["day_first"].split(), True) | {"en-us": False}
AGES, PARTS_OF_YEARS = (frozenset(_WORDS[what].split()) for what in ("ages", "parts_of_years"))
_OLDEST_DAYS = 90 * 365.25

_TIME = (
    r"(?:[\s,]+(?:(?:kl\.?|klokken|klokka|at|um|a\slas|@)\s*\d{1,2}[:.]|\d{1,2}:)|T\d{1,2}:)\d\d"
    r"(?:[:.]\d\d(?:[.,]\d+)?)?\s?(?:Z|[+-]\d\d:?\d\d|[ap]\.?m\.?|uhr|h|hrs)?"
)
_STAY = rf"(?:(?:{'|'.join(sorted(_BESIDE))})\.?[\s,]+)*"
_DAYS = {name[:n] for names in _NAMES["weekdays"].values() for name in names for n in (3, 4, 5, 12)}
_DAYS |= {name[:2] for name in _NAMES["weekdays"]["de"]}
_BEFORE = [
    re.compile(rf"\s*{_STAY}{weekday}", re.IGNORECASE)
    for weekday in ("", rf"(?:{'|'.join(sorted(_DAYS))})\.?,?\s+{_STAY}")
]
_D, _NAME, _Y = r"(?P<d>\d\d?)(?P<th>st|nd|rd|th)?", r"(?P<name>[^\W\d_]{3,10})", r"(?P<y>\d{4})"
_YY = r"['’]?(?P<y>\d{4}|\d\d)"
_S, _GAP, _OF = r"\s?(?P<s>[./–-])\s?", r"[\s.,/–-]*", r"(?:(?:of|de|del)\s)?"
_A, _B, _M = r"(?P<a>\d\d?)", r"(?P<b>\d\d?)", r"(?P<m>\d\d?)"  # a, b: day and month or the reverse
_PATTERNS = [
    re.compile(f"(?:{core})(?:{_TIME})?[\\s.,]*", re.IGNORECASE)
    for core in (
        rf"{_Y}{_S}{_M}\s?(?P=s)\s?(?P<d>\d\d?)",
        rf"{_A}{_S}{_B}\s?(?P=s)\s?{_YY}",
        rf"{_A}(?P<mixed>[./])\s?{_B}\.?\s?[–-]\s?{_YY}",  # 12/8-20
        rf"{_A}\s{_B}\s{_Y}",
        rf"{_A}(?:[/–-]|\.\s?){_B}\.?",
        rf"{_M}\s?[./–-]\s?{_Y}",
        rf"{_Y}(?P<years>[./–-]){_M}",
        r"(?P<a>\d\d)(?P<b>\d\d)(?P<y>\d{4}|\d\d)",
        r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
        r"(?P<short>)(?P<y>\d\d)(?P<s>-?)(?P<m>\d\d)(?P=s)(?P<d>\d\d)",
        rf"{_D}{_GAP}{_OF}{_NAME}(?:{_GAP}{_OF}{_YY})?",
        rf"(?P<reverse>){_NAME}{_GAP}{_D}(?:[\s.,/–-]+{_YY})?",
        rf"{_NAME}{_GAP}{_OF}{_Y}",
        rf"{_NAME}\.?\s?['’/–-](?P<y>\d\d)",
        rf"{_Y}{_GAP}{_NAME}(?:{_GAP}{_D})?",
        _NAME,
        _Y,
    )
]
_BETWEEN = re.compile(r"\s*(?:[–—-]|\b(?:til|to|and|og|bis|und|until|through|a|al|y|hasta)\b)\s*")
_DAYS_OF_MONTH = re.compile(r"(\D*)(\d\d?)(\.?\s?[–-]\s?)(\d\d?)(\D.*)", re.DOTALL)
_A_DAY = re.compile(r"(\D*)(\d+)(.*)", re.DOTALL)


class Known(NamedTuple):
    """What helps to read a date.

    ``near`` is the day of the note: a date without a year is the nearest one, and a year of two
    digits at most one later (None: than today). ``day_first``: whether 12/8 is in August; None: as
    in the ``language`` ("en" alone does not tell, "en-GB" and "en-US" do).
    """

    near: date | None = None
    language: str | None = None
    day_first: bool | None = None


class Dated(NamedTuple):
    """``day`` is in the middle of the ``unit`` (day, month, year) that the text names."""

    day: date
    unit: str


def read(text: str, *, known: Known = Known()) -> Dated | None:  # noqa: B008
    """The date that a text can only mean; None: none, or several."""
    found = {dated for _, dated, _, _ in _readings(text, known)}
    return found.pop() if len(found) == 1 else None


def move(text: str, days: int, *, known: Known = Known()) -> str | None:  # noqa: B008
    """The same text so many days later, or None where that would be a guess.

    That is where the readings of the text do not all move to the same text, and where it tells of
    an age over 89 (``too_old``). Relative expressions and times of the day stay; months and years
    move with their middle.

    >>> move("Friday, 28 Feb. 2020 at 14:30", 7), move("12.08.-19", 30, known=Known(language="nb"))
    ('Friday, 6 Mar. 2020 at 14:30', '11.09.-19')
    >>> move("12/8", 7), move("30.2.2020", 7), move("2 days ago", 7)
    (None, None, '2 days ago')
    """
    if is_relative(text):
        return _weekdays_moved(text, days, known.language)
    if whole := _moved(text, days, known):
        return whole[0]
    for first in (True, False):  # in no order of day and month is it one date
        if any(True for _ in _readings(text, known._replace(day_first=first))):
            return None
    return _range_moved(text, days, known)


def is_relative(text: str) -> bool:
    """Whether a text only says how long before or after the note something was, or a weekday, or a
    time of the day."""
    bare = re.sub(_TIME, " ", f" {text}", flags=re.IGNORECASE)
    words = set(re.findall(r"[^\W\d_]+", bare.casefold()))
    weekdays = {w for w in words if _named(w, "weekdays") and not _named(w, "months")}
    weekdays -= _BESIDE | _RELATIVE
    if re.search(r"\d[./]\d|\d{4}", bare) or not words - weekdays <= _BESIDE | _RELATIVE:
        return False
    return bool(words & _RELATIVE) or bool(weekdays or not words) and not re.search(r"\d", bare)


def too_old(day: date, *, known: Known) -> bool:
    """Whether it is 90 years before the note (before today, where that is unknown)."""
    return ((known.near or date.today()) - day).days >= _OLDEST_DAYS


# --- reading --------------------------------------------------------------------------------------


def _readings(text: str, known: Known) -> Iterator[tuple[re.Match[str], Dated, str, str]]:
    """All that the text can mean, with the groups of day and month."""
    tag = (known.language or "").lower().replace("_", "-")
    first = known.day_first
    if first is None:
        first = _DAY_FIRST.get(tag, _DAY_FIRST.get(tag.partition("-")[0]))
    if first is None and not tag and "." in text:
        first = True  # only in English does anybody write the month first with dots
    starts = {before.end() for pattern in _BEFORE if (before := pattern.match(text))}
    matches = (pattern.fullmatch(text, start) for start in starts for pattern in _PATTERNS)
    for match in filter(None, matches):
        part = match.groupdict()
        if (
            ("short" in part and first is not None and not tag.startswith("sv"))
            or ("mixed" in part and not first)
            # "mai 16" is a day or a year where the day stands first
            or ("reverse" in part and first and not part["y"] and not tag.startswith("en"))
            or ("years" in part and int(part["m"]) > int(part["y"]) % 100)  # 2010-12: years?
        ):
            continue
        orders = [("d", "name" if "name" in part else "m")]
        if "a" in part:
            orders = [("a", "b")] * (first is not False) + [("b", "a")] * (first is not True)
        for day, month in orders:
            number = part.get(month)
            if month == "name":
                named = _named(part["name"], "months", known.language)
                number = str(named[1] + 1) if named else "0"
            for dated in _days(part.get("y"), number, part.get(day), known.near):
                yield match, dated, day, month


def _days(
    year: str | None, month: str | None, day: str | None, near: date | None
) -> Iterator[Dated]:
    years = [2000, 2001, 2002, 2003]  # in any of which it may be, where nothing tells
    if year is not None:
        value = int(year) if len(year) == 4 else 2000 + int(year)
        late = len(year) == 2 and value > (near or date.today()).year + 1
        years = [value - 100 if late else value]
    elif near is not None:
        years = [near.year - 1, near.year, near.year + 1]
    unit = "day" if day else "month" if month else "year"
    found = []
    for value in years:
        try:
            found.append(date(value, int(month or 7), int(day or (15 if month else 1))))
        except ValueError:  # no such day
            continue
    if year is None and near is not None:
        found = sorted(found, key=lambda day: abs(day - near))[:1]
    yield from (Dated(day, unit) for day in found if 1850 <= day.year <= 2150)


@lru_cache(maxsize=4096)
def _named(word: str, kind: str, language: str | None = None) -> tuple[str, int] | None:
    """The language and the place of a name, whole or cut to three letters or more."""
    names, own = _NAMES[kind], (language or "").lower()[:2]
    own = "nb" if own == "no" or own not in names and own == "nn" else own
    likely = ("en", "de") if word[:1].isupper() else ("nb", "es")
    least = 2 if own == "de" and kind == "weekdays" else 3
    folded = word.casefold().replace("mrz", "märz")
    for among in ([own] if own in names else [], [*likely, *names]):
        for whole in (True, False):
            for candidate in among:
                places = [
                    place
                    for place, name in enumerate(names[candidate])
                    if name == folded
                    or (not whole and len(word) >= least and name.startswith(folded))
                ]
                if len(places) == 1:
                    return candidate, places[0]
    return None


# --- writing --------------------------------------------------------------------------------------


def _moved(text: str, days: int, known: Known) -> tuple[str, str] | None:
    """The text and its unit."""
    found = set()
    for match, (day, unit), *groups in _readings(text, known):
        if too_old(day, known=known):
            return None
        found.add((_written(match, day + timedelta(days), days, groups, known.language), unit))
    return found.pop() if len(found) == 1 else None


def _range_moved(text: str, days: int, known: Known) -> str | None:
    """Of two dates, or of two days of a month."""
    ranges = set()
    for between in _BETWEEN.finditer(text):
        first = _moved(text[: between.start()], days, known)
        last = _moved(text[between.end() :], days, known)
        if first and last and first[1] == last[1]:
            ranges.add(first[0] + between[0] + last[0])
    if (part := _DAYS_OF_MONTH.fullmatch(text)) and re.search(r"[^\W\d_]{3}", text):
        ends = [_moved(part[1] + part[i] + part[5], days, known) for i in (2, 4)]
        moved = [m for end in ends if end and (m := _A_DAY.fullmatch(end[0]))]
        if len(moved) == 2 and moved[0].group(1, 3) == moved[1].group(1, 3):
            ranges.add("".join([moved[0][1], moved[0][2], part[3], moved[1][2], moved[1][3]]))
    return ranges.pop() if len(ranges) == 1 else None


def _written(
    match: re.Match[str], new: date, days: int, groups: list[str], language: str | None
) -> str:
    part = {group: value for group, value in match.groupdict().items() if value}
    numbers = [part[group] for group in groups if group in part and group != "name"]
    padded = any(n[0] == "0" for n in numbers)
    loose = "name" in part and re.search(r"\s", match[0].strip())  # 12 March; but 12-Mar, 12MAR
    padded |= not loose and all(len(n) == 2 for n in numbers)
    written = {
        group: f"{value:02}" if padded else str(value)
        for group, value in zip(groups, (new.day, new.month), strict=True)
    }
    written["y"] = str(new.year)[-len(part.get("y", "")) :]
    written["th"] = ordinal(new.day)
    if "name" in part:
        short = match.string[match.end("name") : match.end("name") + 1] in ("-", "/", ".")
        written["name"] = _like(part["name"], "months", new.month - 1, language, short)
    text = match.string
    for start, group in sorted(((match.start(g), g) for g in written if g in part), reverse=True):
        text = text[:start] + written[group] + text[match.end(group) :]
    before = match.string[: match.start()]
    return _weekdays_moved(before, days, language) + text.removeprefix(before)


def _weekdays_moved(text: str, days: int, language: str | None) -> str:
    def later(match: re.Match[str]) -> str:
        found = _named(match[0], "weekdays", language)
        if found is None or match[0].casefold() in _BESIDE | _RELATIVE:
            return match[0]
        return _like(match[0], "weekdays", (found[1] + days) % 7, language)

    return text if days % 7 == 0 else re.sub(r"[^\W\d_]+", later, text)


def _like(word: str, kind: str, place: int, language: str | None, short: bool = False) -> str:
    """The name at ``place`` in the language, length and case of another."""
    found = _named(word, kind, language)
    assert found is not None
    names = _NAMES[kind][found[0]]
    new = names[place]
    if len(word) < len(names[found[1]]) or (short and len(word) <= 4):  # "May." is both
        new = new[: 4 if found[0] == "fr" else min(len(word), 3)]
    return cased(new, word)


def ordinal(day: int) -> str:
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def cased(word: str, like: str) -> str:
    """In the case of another word.

    >>> cased("liv", "KARI"), cased("Liv", "kari"), cased("liv", "Kari")
    ('LIV', 'liv', 'Liv')
    """
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.lower() if like.islower() else word[:1].upper() + word[1:]
