"""Invented people, places, days and numbers for the notes of ``writing``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from random import Random
from typing import Any, NamedTuple

import yaml

from medbert.text.ids import adds_up
from medbert.text.lists import common, data, shipped
from medbert.text.redaction.surrogates import lists_of
from medbert.text.redaction.written_dates import ordinal

_UNLISTED = 0.4  # of names that are ``wide``: those that are on no list
_PLAIN = str.maketrans({"ø": "o", "æ": "ae", "å": "a", "Ø": "O", "Æ": "Ae", "Å": "A", "é": "e"})
_N_DRAWS = 20_000


class Person(NamedTuple):
    """Somebody invented; ``sex``: F or M."""

    sex: str
    given: str
    surname: str
    born: datetime
    middle: str = ""


@cache
def grammar(language: str) -> dict[str, Any]:
    """What notes of a language are made of: ``data/notes``."""
    return dict(yaml.safe_load(data(f"notes/{language}.yaml")))


@cache
def _halves(kind: str) -> tuple[list[str], list[str]]:
    """The beginnings and the ends of listed names."""
    words = sorted(w for w in getattr(shipped(), kind) if w.isalpha() and 5 <= len(w) <= 11)
    return [w[: len(w) // 2] for w in words], [w[len(w) // 2 :] for w in words]


class Cast:
    """Who and what is named in the notes of one patient."""

    def __init__(self, language: str, *, random: Random, wide: bool = False) -> None:
        self.language, self.random, self.wide = language, random, wide
        self.lists, self.forms = lists_of(language), grammar(language)["forms"]
        self.site = random.choice([*self.forms["sites"]])
        self.unit = self.forms["sites"][self.site]
        self.staff = [self.person() for _ in range(6)]
        self.kin = [self.person() for _ in range(3)]
        self.relative, self.job, self.me = self.kin[0], "", self.person()
        self.home = {name: self._place(name) for name in ("city", "street", "postcode")}
        self.numbers = {name: self._number(name) for name in ("mrn", "phone", "account")}

    # --- people -------------------------------------------------------------------------------

    def person(self) -> Person:
        random = self.random
        sex = random.choice("FM")
        born = datetime(1922, 1, 1) + timedelta(days=random.randrange(78 * 365))
        middle = self._surname() if random.random() < 0.15 else ""
        return Person(sex, self._given(sex), self._surname(), born, middle)

    def _given(self, sex: str) -> str:
        if self.wide and self.random.random() < 0.6:
            return self._listed("given")
        names = self.lists["female" if sex == "F" else "male"]
        first = self.random.choice(names)
        return f"{first}-{self.random.choice(names)}" if self.random.random() < 0.04 else first

    def _surname(self) -> str:
        if self.wide and self.random.random() < 0.7:
            return self._listed("surnames")
        return self.random.choice(self.lists["surnames"])

    def _listed(self, kind: str) -> str:
        """A name of the lists, or one that could be on them and is not."""
        name = self.random.choice(_names(kind))
        if self.random.random() < _UNLISTED:
            first, last = _halves(kind)
            name = self.random.choice(first) + self.random.choice(last)
        return name.title() if name.isalpha() else name.title().replace("'S", "'s")

    # --- what stands in a slot ------------------------------------------------------------------

    def phi(self, slot: str, time: datetime) -> tuple[str, str] | None:
        """The text of a slot of PHI and its label; None: the slot is a word of the grammar."""
        name, _, form = slot.partition(".")
        patient, others = self.me, [one for one in self.kin if one is not self.relative]
        people: Mapping[str, Callable[[], tuple[Person, str]]] = {
            "patient": lambda: (patient, "NAME:PATIENT"),
            "doctor": lambda: (self.random.choice(self.staff[:4]), "NAME:CLINICIAN"),
            "nurse": lambda: (self.random.choice(self.staff[4:]), "NAME:CLINICIAN"),
            "kin": lambda: (self.relative, "NAME:RELATIVE"),
            "kin2": lambda: (self.random.choice(others), "NAME:RELATIVE"),
        }
        if name in people:
            person, label = people[name]()
            return self._named(person, form), label
        if name in ("date", "today", "born", "month", "year", "weekday", "daymonth"):
            return self._dated(name, time)
        if name in ("age", "years"):
            years = (time - patient.born).days // 365
            return str(years if name == "age" else self.random.randint(30, 96)), "AGE"
        makers = {
            "city": ("LOCATION", lambda: self.home["city"]),
            "elsewhere": ("LOCATION", lambda: self._place("city")),
            "street": ("LOCATION:STREET", lambda: self.home["street"]),
            "postcode": ("LOCATION:POSTCODE", lambda: self.home["postcode"]),
            "region": ("LOCATION:REGION", lambda: self.random.choice(shipped().regions)),
            "unit": ("LOCATION:CARE_UNIT", lambda: self.unit),
            "clinic": ("LOCATION:CARE_UNIT", self._clinic),
            "company": ("ORGANISATION", self._company),
            "mrn": ("ID:MRN", lambda: self.numbers["mrn"]),
            "account": ("ID:ACCOUNT", lambda: self.numbers["account"]),
            "case": ("ID", lambda: self._number("case")),
            "national": (f"ID:{self.forms['national']}", self._national),
            "phone": ("CONTACT:PHONE", lambda: self.numbers["phone"]),
            "otherphone": ("CONTACT:PHONE", lambda: self._number("phone")),
            "email": ("CONTACT:EMAIL", self._email),
            "url": ("CONTACT:URL", lambda: f"www.{_plain(self.unit)}.example.org"),
        }
        if name not in makers:
            return None
        label, make = makers[name]
        return make(), label

    def _named(self, person: Person, form: str) -> str:
        given, surname = person.given, person.surname
        whole = " ".join(part for part in (given, person.middle, surname) if part)
        stop = "" if self.language == "en" else "."
        forms = {
            "first": given,
            "last": surname,
            "whole": whole,
            "comma": f"{surname}, {given}",
            "upper": f"{surname.upper()}, {given.upper()}",
            "short": f"{given} {surname[0]}.",
            "initial": f"{given[0]}. {surname}",
            "initials": f"{given[0]}{stop}{surname[0]}{stop}",
        }
        if form:
            return forms[form]
        return forms[self.random.choices(("whole", "comma", "short", "initial"), (12, 1, 2, 2))[0]]

    def _dated(self, name: str, time: datetime) -> tuple[str, str]:
        random = self.random
        back = random.choice((0, 1, 3, 10, 30, 100, 400, 2000))
        day = {"today": time, "born": self.me.born}.get(name, time - timedelta(days=back))
        forms = self.forms
        if name == "year":
            return str(day.year - random.randrange(12)), "DATE:YEAR"
        if name == "weekday":
            return forms["weekdays"].split()[day.weekday()], "DATE:WEEKDAY"
        kind = {"month": "months_of", "daymonth": "short_dates"}.get(name, "dates")
        month = forms["months"].split()[day.month - 1]
        parts = {
            "d": day.day, "m": day.month, "y": day.year % 100, "Y": day.year,
            "month": month, "mon": month[:3], "th": ordinal(day.day),
        }  # fmt: skip
        return random.choice(forms[kind]).format(**parts), "DATE"

    # --- places and numbers ---------------------------------------------------------------------

    def _place(self, kind: str) -> str:
        random = self.random
        if kind == "city":
            if self.wide and random.random() < 0.6:
                return random.choice(shipped().places)
            return random.choice(self.lists["places"])
        if kind == "street":
            street, number = random.choice(self.lists["streets"]), random.randint(1, 180)
            if self.wide and random.random() < 0.6:
                street = random.choice(self.forms["roads"]).format(name=self._surname())
            apartment = random.randint(1, 999)
            form = random.choice(self.forms["streets"])
            return str(form.format(street=street, number=number, apartment=apartment))
        return self._number("postcode")

    def _clinic(self) -> str:
        form = self.random.choice(self.lists["organisations"])
        named = self.wide and self.random.random() < 0.3
        return form.format(place=self._surname() if named else self._place("city"))

    def _company(self) -> str:
        form = self.random.choice(self.forms["companies"])
        name, other = self._surname(), self._surname()
        return str(form.format(name=name, other=other, place=self._place("city")))

    def _number(self, kind: str) -> str:
        """0: any digit, 9: not zero, X: a letter; what else stands in the form stays."""
        random = self.random
        kinds = {"0": "0123456789", "9": "123456789", "X": "ABCDEFGHJKLMNPRSTUVWXYZ"}
        form = random.choice(self.forms[kind])
        return "".join(random.choice(kinds.get(sign, sign)) for sign in form)

    def _national(self) -> str:
        """Of Norway one that belongs to nobody: month + 80, as in the register for tests."""
        if self.language == "en":
            return self._number("ssn")
        born, random = self.me.born, self.random
        day = f"{born.day:02}{born.month + 80:02}{born.year % 100:02}"
        for _ in range(_N_DRAWS):
            number = f"{day}{random.randrange(100_000):05}"
            if adds_up("FNR", number):
                break
        return random.choice((number, f"{number[:6]} {number[6:]}", number))

    def _email(self) -> str:
        given, surname = _plain(self.me.given), _plain(self.me.surname)
        number = self.random.choice(("", "", str(self.me.born.year % 100)))
        return f"{given}.{surname}{number}@example.{self.random.choice(('com', 'org', 'net'))}"


@cache
def _names(kind: str) -> Sequence[str]:
    return sorted(name for name in getattr(shipped(), kind) if len(name) > 2 and not common(name))


def _plain(words: str) -> str:
    return re.sub(r"[^a-z]", "", words.translate(_PLAIN).lower()) or "post"
