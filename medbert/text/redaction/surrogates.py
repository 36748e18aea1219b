"""Invented names, places, numbers and addresses in the place of real ones.

All choices are keyed, nothing is remembered: the same key, patient and name give the same
surrogate in every note, process and run. What a name stands for (given name or surname) is seen
where it stands whole, so let ``Whose.names`` be all names in the notes of a patient.

Strategies: ``consistent``; ``random``, another surrogate for each mention; ``markov``, each mention
has the surrogate of the one before it with probability ``stay``, so that a name which a detector
missed does not stand out as the one that never changes (hiding in plain sight: Carrell 2013;
Osborne 2025, doi 10.3390/electronics14193945).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from random import Random
from typing import NamedTuple

import yaml

from medbert.schema import InputError
from medbert.text.ids import CHECKS, adds_up
from medbert.text.lists import PARTICLES, data, shipped
from medbert.text.redaction.shift import keyed, subject_number
from medbert.text.redaction.written_dates import cased

STRATEGIES = ("consistent", "random", "markov")
_LANGUAGES = ("nb", "nn", "en", "de", "es")
_DRAWS = 30_000  # of numbers, until one has right check digits (one in 400 of the Norwegian ones)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PARTICLE = re.compile(rf"\b(?:{'|'.join(sorted(PARTICLES))})\s+")
_STREET = re.compile(
    r"\b(?:street|st|road|rd|avenue|ave|lane|drive|way|calle|avenida|plaza|paseo)\b"
    r"|(?:gata|gaten|gate|veien|vegen|vei|veg|straße|strasse|str\.?|weg|platz|allee)\b",
    re.IGNORECASE,
)
_URL = re.compile(r"((?:\w+://)?)((?:www\.)?)(?:[\w-]+\.)+([a-z]{2,4})((?:[:/?#].*)?)", re.I | re.S)
_CALLING_CODE = re.compile(r"(?:\+|00)(?:1(?=[\s(-])|[34]\d)")
_LETTERS = str.maketrans({"ø": "o", "Ø": "O", "æ": "ae", "Æ": "Ae", "ß": "ss"})


class Whose(NamedTuple):
    """Whom a note is about, and which one it is; None: not known. ``sex``: F or M."""

    patient: str | None = None
    note: str = ""
    time: datetime | None = None
    language: str | None = None
    sex: str | None = None
    names: tuple[str, ...] = ()


class Mention(NamedTuple):
    """A text that is PHI. ``counts``: the mentions before it, in this note, of each word that gets
    a surrogate; ``used``: such words of this one."""

    text: str
    label: str
    whose: Whose = Whose()
    counts: Mapping[str, int] = {}
    used: set[str] = set()  # noqa: B006


@cache
def lists_of(language: str) -> dict[str, tuple[str, ...]]:
    lists = yaml.safe_load(data(f"surrogates/{language}.yaml"))
    return {
        name: tuple(words.strip().split(", ") if ", " in words else words.split())
        for name, words in lists.items()
    }


@cache
def _sexes() -> dict[str, str]:
    """Given names in any language -> F, M; those of both sexes are not in it."""
    of = {s: {n.casefold() for x in _LANGUAGES for n in lists_of(x)[s]} for s in ("female", "male")}
    women, men = of["female"] - of["male"], of["male"] - of["female"]
    return dict.fromkeys(women, "F") | dict.fromkeys(men, "M")


@cache
def _titles() -> frozenset[str]:
    return frozenset(title for language in _LANGUAGES for title in lists_of(language)["titles"])


def _fold(word: str) -> str:
    """A word without case and genitive."""
    return re.sub(r"['’]s?$", "", unicodedata.normalize("NFKC", word).casefold())


@lru_cache(maxsize=256)
def _roles(names: tuple[str, ...]) -> dict[str, str]:
    """Every word of the names -> ``given`` or ``surname``: by its place in longer names, and, where
    it only stands alone, by the list of given names."""
    votes: dict[str, Counter[str]] = {}
    for name in names:
        words = [w for w in map(_fold, _WORD.findall(name)) if len(w) > 1]
        words = [w for w in words if w not in _titles() and w not in PARTICLES]
        last = 0 if re.match(r"\s*[^\s,]+,", name) else len(words) - 1
        for i, word in enumerate(words):
            alone = len(words) == 1 and not re.search(r"\b\w\b", name)
            known = word in _sexes() or word in shipped().given
            given = known if alone else i != last
            votes.setdefault(word, Counter())["given" if given else "surname"] += 1 if alone else 99
    return {word: max(sorted(of), key=of.__getitem__) for word, of in votes.items()}


@dataclass(frozen=True, kw_only=True)
class Surrogates:
    """The operator. ``language`` is used where that of a note is unknown or has no lists."""

    key: bytes = field(repr=False)
    strategy: str = "consistent"
    stay: float = 0.5
    language: str = "en"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES or self.language not in _LANGUAGES:
            raise InputError(
                f"surrogates: strategy={self.strategy} language={self.language}: strategy is one "
                f"of {', '.join(STRATEGIES)}, language one of {', '.join(_LANGUAGES)}"
            )

    def __call__(self, mention: Mention) -> str:
        """Nothing of the original stays but its form: titles, separators, case, calling code. Where
        there is nothing to put a surrogate for, a tag."""
        kind = mention.label.partition(":")[0]
        makers = {
            "NAME": self._name,
            "LOCATION": self._location,
            "ORGANISATION": self._organisation,
            "CONTACT": self._contact,
        }
        new = makers.get(kind, self._number)(mention)
        return new if new != mention.text else f"[{kind}]"

    # --- choosing -----------------------------------------------------------------------------

    def _lists(self, mention: Mention) -> dict[str, tuple[str, ...]]:
        own = re.split("[-_]", (mention.whose.language or "").lower())[0]
        own = "nb" if own == "no" else own
        return lists_of(own if own in _LANGUAGES else self.language)

    def _draw(self, mention: Mention, word: str, *more: str | int) -> int:
        """A number that stands for a word as long as its surrogate does not change."""
        whose, n = mention.whose, mention.counts.get(word, 0)
        mention.used.add(word)
        scope: tuple[str | int, ...]
        scope = ("" if whose.patient is None else subject_number(whose.patient),)
        if self.strategy == "random":
            scope += (whose.note, n)
        if self.strategy == "markov":
            draws = (keyed(self.key, "leave", *scope, whose.note, word, i) for i in range(n + 1))
            if changes := sum(draw >= self.stay * 2**64 for draw in draws):
                scope += (whose.note, changes)
        return keyed(self.key, "surrogate", *scope, word, *more)

    def _pick(self, mention: Mention, options: Sequence[str], word: str, *more: str) -> str:
        """One of the options, but none that is in the word itself."""
        others = [option for option in options if option.casefold() not in word]
        return others[self._draw(mention, word, *more) % len(others)]

    def _shaped(self, mention: Mention, text: str, attempt: int = 0) -> str:
        """Letters for letters and digits for digits, whatever stands between them."""
        bare = re.sub(r"[\W_]", "", text).casefold()
        while bare:
            random = Random(self._draw(mention, bare, "shape", attempt))

            def other(sign: re.Match[str], random: Random = random) -> str:
                if sign[0].isdigit():
                    return random.choice(string.digits)
                return cased(random.choice(string.ascii_uppercase), sign[0])

            new = re.sub(r"[^\W_]", other, text)
            if new != text and not (bare[0] in "123456789" and new.lstrip("+( ")[:1] == "0"):
                return new
            attempt += _DRAWS
        return text

    # --- names --------------------------------------------------------------------------------

    def _name(self, mention: Mention) -> str:
        roles = _roles((*mention.whose.names, mention.text))

        def other(match: re.Match[str]) -> str:
            word, folded = match[0], _fold(match[0])
            listed = folded in _sexes() or folded in shipped().given or folded in shipped().surnames
            if word.casefold() in _titles():
                return word
            if len(word) == 1 or (word.isupper() and len(word) <= 3 and not listed):
                return "".join(self._initial(mention, c, roles, i) for i, c in enumerate(word))
            genitive = re.search(r"['’]s?$", word)
            ending, stem = genitive[0] if genitive else "", folded.removesuffix("s")
            given = stem in _sexes() and roles.get(folded) == "given"
            if stem != folded not in _sexes() and (stem in roles or given):
                folded, ending = stem, ending or "s"  # as in Norwegian and German
            return cased(self._word(mention, folded, roles), word) + ending

        bare = _PARTICLE.sub("", mention.text)
        text = bare if _WORD.search(bare) else mention.text
        new = _WORD.sub(other, text)
        return re.sub(r"\d+", lambda number: self._shaped(mention, number[0]), new)

    def _word(self, mention: Mention, folded: str, roles: Mapping[str, str]) -> str:
        lists = self._lists(mention)
        if roles.get(folded) == "surname":
            return self._pick(mention, lists["surnames"], folded)
        sex = _sexes().get(folded) or (mention.whose.sex or "").upper()[:1]
        options = {"F": lists["female"], "M": lists["male"]}.get(sex)
        return self._pick(mention, options or lists["female"] + lists["male"], folded)

    def _initial(self, mention: Mention, letter: str, roles: Mapping[str, str], place: int) -> str:
        """Of the surrogate of the one name that begins so, else a letter of its own."""
        begun = [word for word in roles if word.startswith(letter.casefold()) and len(word) > 3]
        role = "surname" if place else "given"
        named = [word for word in begun if roles[word] == role] or begun
        if len(named) == 1:
            return cased(self._word(mention, named[0], roles)[:1], letter)
        return cased(self._pick(mention, string.ascii_uppercase, letter.casefold()), letter)

    # --- places, numbers, addresses -------------------------------------------------------------

    def _location(self, mention: Mention) -> str:
        lists = self._lists(mention)

        def other(match: re.Match[str]) -> str:
            piece = match[0]
            words = re.search(r"[^\W\d_](?:[^\d\n]*[^\W\d_])?\.?", piece)
            coded = re.match(r"(?:[A-Z]{1,2}-)?\d{4,5}\s", piece)
            numbered = bool(re.search(r"\d", piece)) and not coded
            if words is None or (numbered and not re.search(r"[^\W\d_A-Z]", piece)):
                return self._shaped(mention, piece)
            if coded:
                words = re.compile(r"\S.*").search(piece, coded.end())
                assert words is not None
            road = not coded and (numbered or _STREET.search(piece))
            new = self._pick(mention, lists["streets" if road else "places"], _fold(words[0]))
            before, after = piece[: words.start()], piece[words.end() :]
            shaped = (self._shaped(mention, part) for part in (before, after))
            return cased(new, words[0]).join(shaped)

        return re.sub(r"[^,;\r\n\s](?:[^,;\r\n]*[^,;\r\n\s])?", other, mention.text)

    def _organisation(self, mention: Mention) -> str:
        lists, folded = self._lists(mention), _fold(mention.text)
        place = self._pick(mention, lists["places"], folded)
        kind = self._pick(mention, lists["organisations"], folded, "kind")
        return cased(kind.format(place=place), mention.text)

    def _contact(self, mention: Mention) -> str:
        text, roles = mention.text, _roles(mention.whose.names)
        local, at, domain = text.rpartition("@")
        if at:

            def other(match: re.Match[str]) -> str:
                name = self._word(mention, _fold(match[0]), roles).translate(_LETTERS)
                plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
                return cased(plain, match[0])

            new = re.sub(r"[^\W\d_]+", other, local)
            new = re.sub(r"\d+", lambda number: self._shaped(mention, number[0]), new)
            top = re.search(r"\.([a-z]{2,3})$", domain, re.IGNORECASE)
            return f"{new}@example.{top[1] if top else 'org'}"
        if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", text):
            return f"192.0.2.{self._draw(mention, text) % 254 + 1}"  # of RFC 5737, for examples
        if url := _URL.fullmatch(text):
            return f"{url[1]}{url[2]}example.{url[3]}{self._shaped(mention, url[4])}"
        code = _CALLING_CODE.match(text)
        kept = code[0] if code else ""
        return kept + self._shaped(mention, text.removeprefix(kept))

    def _number(self, mention: Mention) -> str:
        kind = mention.label.partition(":")[2]
        needed = [k for k in ([kind] if kind in CHECKS else CHECKS) if adds_up(k, mention.text)][:1]
        for attempt in range(_DRAWS):
            new = self._shaped(mention, mention.text, attempt)
            if all(adds_up(k, new) for k in needed):
                return new
        return self._shaped(mention, mention.text)
