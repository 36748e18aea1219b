"""What a hospital knows of a patient already, found in every spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from medbert.schema import InputError, Span
from medbert.text.detectors.words import Persons
from medbert.text.lists import months
from medbert.text.spans import merge

_FIELDS = (  # what a column of a person table holds, by its name
    ("DATE", r"birth|born|dob|death|died|date|fødselsdato|født"),
    ("CONTACT", r"phone|tel|mob|fax|mail|url|website"),
    ("LOCATION", r"address|street|city|town|post|zip|county|adresse|gate|sted|municipality"),
    ("ORGANISATION", r"employer|organi[sz]ation|school|arbeidsgiver"),
    (
        "ID",
        r"mrn|ssn|fnr|nhs|cpr|number|nummer|account|licen[cs]e|passport|insurance|(^|_)(id|nr|no)$",
    ),
    ("NAME", r"name|given|first|middle|last|family|surname|maiden|relative|navn|alias"),
)
_GAP = r"[\s./-]{0,2}"


class Known:
    """What is known of one patient, found in any spelling: the strongest signal there is."""

    def __init__(self, found: Iterable[tuple[str, str]], *, fuzzy: bool = True) -> None:
        """``found``: (label, value) pairs; dates are ISO (``1962-05-03``)."""
        pairs = [(label, value.strip()) for label, value in found if value.strip()]
        self.persons = Persons(
            [v for label, v in pairs if label == "NAME"], fuzzy=fuzzy, score=0.99
        )
        makers = {"DATE": _date, "ID": _number, "CONTACT": _contact}
        self.patterns = [
            (label, re.compile(source, re.IGNORECASE))
            for label, value in pairs
            if label != "NAME" and (source := makers.get(label, _phrase)(value))
        ]

    @classmethod
    def of(cls, row: Mapping[str, Any], *, columns: Mapping[str, str] | None = None) -> Known:
        """Of a row of a person table: what a column holds is told by its name, or by ``columns``
        (name -> label, "" for a column to leave out). A value may be a list.

        Raises:
            InputError: a column whose name tells nothing.
        """
        pairs = []
        for column, value in row.items():
            told = (label for label, name in _FIELDS if re.search(name, column.casefold()))
            label = (columns or {}).get(column, next(told, None))
            if label is None:
                raise InputError(
                    f"column {column!r}: its name does not tell what it holds; say columns="
                    f"{{{column!r}: 'NAME'}} (or DATE, CONTACT, LOCATION, ORGANISATION, ID; '' to "
                    "leave it out)"
                )
            several = value if isinstance(value, list | tuple | set) else [value]
            several = [v.isoformat()[:10] if isinstance(v, date) else v for v in several]
            pairs += [(label, str(v)) for v in several if label and v is not None and v == v]
        return cls(pairs)

    def detect(self, text: str) -> list[Span]:
        found = self.persons.detect(text)
        for label, pattern in self.patterns:
            found += [Span(*m.span(), label, 0.99) for m in pattern.finditer(text)]
        return merge(found)


def _date(value: str) -> str:
    """A date in any order, with digits or a month in letters, full year or short."""
    if not (iso := re.match(r"(\d{4})-(\d\d)-(\d\d)", value)):
        return _phrase(value)
    year, month, day = iso.groups()
    y, d = f"(?:{year[:2]})?{year[2:]}", f"0?{int(day)}"
    m = f"(?:0?{int(month)}|{months()[int(month) - 1]})"
    sep, th = r"[\s.,/'’-]{0,3}(?:(?:of|de|del)\s)?", r"(?:st|nd|rd|th|º)?"
    orders = f"{d}{th}{sep}{m}{sep}{y}", f"{m}{sep}{d}{th}{sep}{y}", f"{y}{sep}{m}{sep}{d}"
    return rf"(?<!\d)(?:{'|'.join(orders)})(?!\d)"


def _number(value: str) -> str:
    signs = re.findall(r"[^\W_]", value)
    return rf"(?<![^\W_]){_GAP.join(map(re.escape, signs))}(?!\d)" if len(signs) > 3 else ""


def _contact(value: str) -> str:
    digits = re.sub(r"\D", "", value)
    if len(digits) < 7 or re.search(r"[^\W\d_]{3}", value):
        return _phrase(value)
    # A country code may be written, or not: the last eight digits tell the number.
    return rf"(?<!\d)(?:[+(]*\d[\s().-]{{0,2}}){{0,7}}{'[ ().-]{0,2}'.join(digits[-7:])}(?!\d)"


def _phrase(value: str) -> str:
    """The words of a value in order, each part of it between commas, and a town without its
    postcode."""
    parts = [value, *value.split(","), *re.findall(r"\d{4,5} ([^\W\d][^,]{3,})", value)]
    texts = [r"[\s.,-]+".join(map(re.escape, re.findall(r"[\w@.'’+]*\w", part))) for part in parts]
    texts = [t for t in dict.fromkeys(texts) if len(t) > 3]
    return rf"(?<!\w)(?:{'|'.join(texts)})(?!\w)" if texts else ""
