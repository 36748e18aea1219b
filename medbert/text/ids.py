"""National numbers of people and their check digits.

A right check digit is evidence: it raises the score of what has the shape. A wrong one excludes
nothing, for numbers in notes are mistyped, and those of invented notes seldom add up.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable

Check = Callable[[str], bool]


def luhn(digits: str) -> bool:
    """Mod 10 with every second digit doubled."""
    twice = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(n - 9 * (n > 9) for n in twice) % 10 == 0


def _mod11(digits: str, *weights: int) -> bool:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True)) % 11 == 0


def _date(day: int, month: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= monthrange(2000, month)[1]


def _fnr(digits: str) -> bool:
    """Day + 40: a D-number; month + 40: an H-number; month + 65 or 80: synthetic."""
    day, month = int(digits[:2]), int(digits[2:4])
    dated = any(_date(day - 40 * (day > 40), month - more) for more in (0, 40, 65, 80))
    first = _mod11(digits[:10], 3, 7, 6, 1, 8, 9, 4, 5, 2, 1)
    return dated and first and _mod11(digits, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)


def _personnummer(digits: str) -> bool:
    """The last ten digits; day + 60: a co-ordination number."""
    day = int(digits[-6:-4])
    return _date(day - 60 * (day > 60), int(digits[-8:-6])) and luhn(digits[-10:])


def _cpr(digits: str) -> bool:
    """Numbers given since 2007 may have no check digit."""
    dated = _date(int(digits[:2]), int(digits[2:4]))
    return dated and _mod11(digits, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)


def _hetu(text: str) -> bool:
    number = int(text[:6] + text[7:10])
    dated = _date(int(text[:2]), int(text[2:4]))
    return dated and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == text[10]


def _kvnr(text: str) -> bool:
    digits = f"{ord(text[0]) - 64:02}{text[1:]}"
    parts = (int(d) * (1 + i % 2) for i, d in enumerate(digits[:10]))
    return sum(n // 10 + n % 10 for n in parts) % 10 == int(digits[10])


def _dni(text: str) -> bool:
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


CHECKS: dict[str, tuple[str, Check]] = {
    "FNR": (r"\d{11}", _fnr),  # Norway, fødselsnummer and its kin
    "PNR": (r"\d{10}|\d{12}", _personnummer),  # Sweden, personnummer
    "CPR": (r"\d{10}", _cpr),  # Denmark
    "HETU": (r"\d{6}[+A-FU-Y-]\d{3}\w", _hetu),  # Finland
    "NHS": (r"\d{10}", lambda digits: _mod11(digits, *range(10, 1, -1), 1)),  # United Kingdom
    "BSN": (r"(?!0+$)\d{9}", lambda digits: _mod11(digits, *range(9, 1, -1), -1)),  # Netherlands
    "KVNR": (r"[A-Z]\d{9}", _kvnr),  # Germany, health insurance
    "DNI": (r"[XYZ\d]\d{7}[A-Z]", _dni),  # Spain, also NIE
    "SSN": (r"(?!000|666|9)\d{3}(?!00)\d\d(?!0000)\d{4}", bool),  # United States: no check digit
    "NPI": (r"[12]\d{9}", lambda digits: luhn("80840" + digits)),  # United States, clinicians
    "CARD": (r"\d{12,19}", luhn),
}
"""What stands after ``ID:`` in a label: its form without blanks and marks, and its check."""


def adds_up(kind: str, text: str) -> bool:
    """Whether a text is a number of this kind with a right check digit (for an SSN: one that may
    have been given out); blanks and marks inside count for nothing.

    >>> adds_up("FNR", "010190 00083"), adds_up("FNR", "01019000084")
    (True, False)
    """
    form, check = CHECKS.get(kind, ("(?!)", bool))
    marks = r"[\s.]" if kind == "HETU" else r"[\W_]"
    signs = re.sub(marks, "", text.upper())
    return bool(re.fullmatch(form, signs)) and check(signs)
