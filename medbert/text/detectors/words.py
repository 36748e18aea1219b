"""Detectors by word lists: people by their names, and listed phrases."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from medbert.schema import Span
from medbert.text.lists import (
    PARTICLES,
    UPPER,
    WORD,
    common,
    eponym,
    opens,
    place,
    place_words,
    shipped,
)

_GLUED = re.compile(rf"(?<=[a-zæøåäöüß]{{3}})(?=[{UPPER}][a-zæøåäöüß]{{2}})")


def base(word: str) -> str:
    return word[:-2] if word.endswith(("'s", "’s", "'S")) else word


class Word(NamedTuple):
    start: int
    end: int
    text: str  # without a possessive
    low: str

    @property
    def initial(self) -> bool:
        return len(self.text) == 1 and self.text.isupper()

    @property
    def capital(self) -> bool:
        return self.text[0].isupper()


def words_of(text: str) -> list[Word]:
    """Every word; two that are glued ("pasientOla") apart."""
    found = []
    for match in WORD.finditer(text):
        start, word = match.span()[0], match.group()
        if not word[1:].islower() and (glued := _GLUED.search(word)):
            found.append((start, word[: glued.start()]))
            start, word = start + glued.start(), word[glued.start() :]
        found.append((start, base(word)))
    return [Word(start, start + len(word), word, word.casefold()) for start, word in found]


class Names:
    """People by lists of given names and surnames, and by what stands around these.

    A given name counts alone where it is no ordinary word; else beside a surname or an initial.
    """

    def __init__(self, *, given: Collection[str] = (), surnames: Collection[str] = ()) -> None:
        lists = shipped()
        self.given = lists.given.union(name.casefold() for name in given)
        self.surnames = lists.surnames.union(name.casefold() for name in surnames)

    def detect(self, text: str) -> list[Span]:
        words, found, done = words_of(text), [], -1
        for i, word in enumerate(words):
            if i <= done or not (word.initial or self._given(word.low)):
                continue
            first = self._before(text, words, i, done)
            last, score = self._name(text, words, i)
            score = max(score, 0.8 * (first < i))
            if score and not eponym(text, word.start, words[last].end):
                end = words[last].end
                end += words[last].initial and text[end : end + 1] == "."
                found.append(Span(words[first].start, end, "NAME", score))
                done = last
        return found

    def _given(self, low: str) -> bool:
        return low in self.given or ("-" in low and low.split("-")[0] in self.given)

    def _name(self, text: str, words: list[Word], i: int) -> tuple[int, float]:
        """The last word of the name that begins with word i, and what it is worth."""
        word = words[i]
        plain = not common(word.low)
        last = self._last(text, words, i, plain)
        if word.initial:  # "J. Smith"
            named = last > i and text[word.end] == "." and not words[last].initial
            return last, 0.8 * (named and self._listed(words[i + 1]))
        if not word.capital:
            low = last > i and plain and words[last].low in self.surnames
            return last, 0.5 * low
        if last > i:
            return last, 0.95 if plain else 0.8
        alone = plain and not word.text.isupper() and word.low not in shipped().eponyms
        return last, (0.5 if opens(text, word.start) else 0.7) * (alone and len(word.low) > 2)

    def _listed(self, word: Word) -> bool:
        return (word.low in self.surnames or self._given(word.low)) and not common(word.low)

    def _last(self, text: str, words: list[Word], i: int, plain: bool) -> int:
        last, k = i, i + 1
        while k < len(words) and k < i + 6:
            before, word = words[k - 1], words[k]
            gap = text[before.end : word.start]
            beside = (
                gap == "-" or not gap.strip(" \t\xa0") or (before.initial and gap in (".", ". "))
            )
            if not beside and (gap.strip(" ") != "\n" or not self._listed(word)):
                break
            if word.low in PARTICLES and word.text.islower() and words[i].capital:
                k += 1
                continue
            if not self._follows(text, words[i], before, word, plain):
                break
            last, k = k, k + 1
        return last

    def _follows(self, text: str, first: Word, before: Word, word: Word, plain: bool) -> bool:
        if word.initial:
            return plain or text[word.end : word.end + 1] == "."
        if not first.capital:  # all in lower case
            listed = word.text.islower() and word.low in self.surnames and len(word.low) > 3
            return listed and not common(word.low)
        if not word.capital or word.low in shipped().function:
            return False
        if word.text.isupper() and not before.text.isupper():
            return False  # "John Smith MD"
        listed = word.low in self.surnames or self._given(word.low)
        return listed if common(word.low) or not plain else True

    def _before(self, text: str, words: list[Word], i: int, done: int) -> int:
        """The surname before a comma, where there is one: "LAST, First"."""
        if i - 1 <= done or not i or text[words[i - 1].end : words[i].start] != ", ":
            return i
        given, word = words[i], words[i - 1]
        if not (given.capital and word.capital and self._listed(given)) or common(word.low):
            return i
        listed = word.low in self.surnames and word.low not in place_words()
        return i - 1 if listed or opens(text, word.start) else i


class Phrases:
    """Listed phrases by their label, with a capital; ``keep`` may refuse one where it stands.

    Abbreviations of up to four letters count only as they are listed: "Ada" is not "ADA".
    """

    def __init__(
        self,
        phrases: Mapping[str, Iterable[str]],
        *,
        score: float = 0.85,
        keep: Callable[[str, int, int], bool] | None = None,
    ) -> None:
        self.score, self.keep = score, keep
        self.by_first: dict[str, list[tuple[tuple[str, ...], str, bool]]] = {}
        for label, listed in phrases.items():
            for phrase in listed:
                if words := tuple(word.low for word in words_of(phrase)):
                    self.by_first.setdefault(words[0], []).append((words, label, phrase.isupper()))
        for several in self.by_first.values():
            several.sort(key=lambda phrase: len(phrase[0]), reverse=True)

    def detect(self, text: str) -> list[Span]:
        words, found, done = words_of(text), [], 0
        for i, word in enumerate(words):
            for phrase, label, upper in self.by_first.get(word.low, ()):
                last = i + len(phrase) - 1
                if i < done or not word.capital or not _same(text, words[i : last + 1], phrase):
                    continue
                start, end = word.start, words[last].end
                short = end - start < 5 and text[start:end].isupper() != upper
                if not short and (self.keep is None or self.keep(text, start, end)):
                    found.append(Span(start, end, label, self.score))
                    done = last + 1
        return found


def _same(text: str, words: list[Word], phrase: tuple[str, ...]) -> bool:
    """Whether words that stand together are those of a phrase."""
    if tuple(word.low for word in words) != phrase:
        return False
    gaps = (text[a.end : b.start] for a, b in pairwise(words))
    return all(len(gap) < 5 and not gap.strip(" .,&'’s\n-") for gap in gaps)


def folded(low: str) -> str:
    """A word in lower case without accents: "Åse" and "Ase", "Bjørn" and "Bjorn", "Aas" and "Ås"
    are one."""
    if not low.isascii():
        low = low.replace("ø", "o").replace("æ", "ae").replace("ð", "d").replace("ł", "l")
        low = "".join(c for c in unicodedata.normalize("NFKD", low) if not unicodedata.combining(c))
    return low.replace("aa", "a")


def _less(word: str) -> set[str]:
    """A word with any one letter left out: two words one edit apart share one of these."""
    return {word[:i] + word[i + 1 :] for i in range(1, len(word))}


class Persons:
    """People whose names are known: whole, in parts, with initials, in any order and case.

    A part that is an ordinary word too counts only with a capital inside a sentence, or beside
    another part. ``fuzzy`` allows one wrong letter in parts of six and more.
    """

    def __init__(self, names: Iterable[str], *, fuzzy: bool = False, score: float = 0.9) -> None:
        lists = shipped()
        never = (lists.function - lists.given - lists.surnames) | PARTICLES
        parts = {base(part).casefold() for name in names for part in WORD.findall(name)}
        parts |= {piece for part in parts for piece in re.split(r"[-'’]", part)}
        self.score = score
        self.parts = {folded(part) for part in parts - never if len(part) > 1}
        self.initials = {part[0] for part in self.parts}
        long = [part for part in self.parts if fuzzy and len(part) >= 6]
        self.near = set(long).union(*map(_less, long))

    def detect(self, text: str) -> list[Span]:
        words = words_of(text)
        hits = [self._known(word) for word in words]
        if not any(hits):
            return []
        groups: list[list[int]] = []
        for i in [i for i, hit in enumerate(hits) if hit or self._initial(text, words, hits, i)]:
            last = groups[-1] if groups else []
            if last and last[-1] == i - 1 and _joined(text, words[i - 1], words[i], len(last) == 1):
                last.append(i)
            else:
                groups.append([i])
        return [
            Span(words[g[0]].start, words[g[-1]].end, "NAME", self.score)
            for g in groups
            if self._meant(text, [words[i] for i in g])
        ]

    def _known(self, word: Word) -> bool:
        low = folded(word.low)
        if low in self.parts or (word.capital and low[-1:] == "s" and low[:-1] in self.parts):
            return True
        pieces = low.split("-") if word.capital and "-" in low else ()
        if any(p in self.parts and len(p) > 2 and not common(p) for p in pieces):
            return True
        if not self.near or not word.capital or not 6 <= len(low) <= 30:
            return False
        return low in self.near or not self.near.isdisjoint(_less(low))

    def _initial(self, text: str, words: list[Word], hits: list[bool], i: int) -> bool:
        """An initial of a known name beside a known part: the J of "J. Smith"."""
        if not words[i].initial or folded(words[i].low) not in self.initials:
            return False
        beside = [k for k in (i - 1, i + 1) if 0 <= k < len(words) and hits[k]]
        return any(_joined(text, words[min(i, k)], words[max(i, k)]) for k in beside)

    def _meant(self, text: str, group: list[Word]) -> bool:
        """Whether words that may be the name are: not "will may", nor "May" where a line begins."""
        if len(group) > 1:
            return any(word.capital or not common(word.low) for word in group)
        word, low = group[0], group[0].low
        inside = word.capital and not word.initial and not opens(text, word.start)
        return inside or (len(low) > 2 and not common(low))


def _joined(text: str, before: Word, after: Word, comma: bool = False) -> bool:
    """Whether two words are of one name; a comma is only in "Hansen, Ola"."""
    gap = text[before.end : after.start]
    marks = " \n\xa0-" + "," * comma + "." * before.initial
    return len(gap) <= 3 and not gap.strip(marks) and "\n\n" not in gap


def listed() -> list[Names | Phrases]:
    """The shipped lists as detectors: people, and places with regions and care units."""
    lists = shipped()
    places = {"LOCATION:REGION": lists.regions, "LOCATION:CARE_UNIT": lists.units}
    return [Names(), Phrases({"LOCATION": lists.places, **places}, keep=place)]
