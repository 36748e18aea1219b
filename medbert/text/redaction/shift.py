"""Dates moved by a secret number of days per patient, in notes and in coded events alike.

The number is keyed (HMAC-SHA256 of the patient's id under a secret): whole days, so that clock
times and lengths of stay do not change (no summer time), and a multiple of ``step``: with 7,
weekdays stay. As everything of a patient moves by the same number, all intervals stay to the day.
How dates in text are read and written again is in ``written_dates``.

Shifted full dates are NOT de-identified by HIPAA Safe Harbor: 45 CFR 164.514(b)(2) wants all of a
date but its year removed (operator ``generalise``). They need an expert's determination or a
limited data set; under the GDPR they are pseudonymous as long as the key exists.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from medbert.schema import InputError

_SHORTEST_KEY = 16  # bytes


def read_key(where: str) -> bytes:
    """The secret in a file, or in an environment variable (``env:NAME``).

    Errors do not repeat ``where``: it may be the secret itself, given by mistake.
    """
    kind, _, name = where.partition(":")
    try:
        secret = (os.environ[name].encode() if kind == "env" else Path(where).read_bytes()).strip()
    except (OSError, KeyError, ValueError):
        raise InputError(
            "key: names no readable file and no environment variable that is set; say "
            "key=PATH or key=env:NAME, never the secret itself"
        ) from None
    if len(secret) < _SHORTEST_KEY:
        raise InputError(
            f"key: a secret of fewer than {_SHORTEST_KEY} bytes; make one with: "
            "python -c 'import secrets; print(secrets.token_hex(32))' > secret.key"
        )
    return secret


def keyed(key: bytes, *words: str | int) -> int:
    """A number below 2**64 that nobody can foretell without the key."""
    message = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hmac.digest(key, message, "sha256")[:8], "big")


def subject_number(patient: str | int) -> int:
    """The ``subject_id`` that ``medbert prepare`` gives to a patient's id: a whole number is
    itself, any other id a hash (as in ``data.sources.columns``; a test holds the two together).

    >>> subject_number(7), subject_number("7.0"), subject_number("007")
    (7, 7, 8025550046627891858)
    """
    word = str(patient).strip()
    if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.0*)?", word):
        number = int(word.partition(".")[0])
        if -(2**63) <= number < 2**63:
            return number
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 1 << 62


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Days by which all of a patient moves: a multiple of ``step``, never 0, at most ``max_days``
    either way."""

    key: bytes = field(repr=False)
    max_days: int = 364
    step: int = 7

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.max_days:
            raise InputError(
                f"shift: step={self.step} max_days={self.max_days}: a step is at least a day and "
                "at most max_days"
            )

    @classmethod
    def of(cls, *, key: str | None, max_days: int = 364, step: int = 7) -> Shift | None:
        """``key`` as in ``read_key``; None: nothing is shifted."""
        return None if key is None else cls(key=read_key(key), max_days=max_days, step=step)

    @property
    def told(self) -> dict[str, int | str]:
        """What may be written down: two data sets moved alike have the same fingerprint."""
        mark = keyed(self.key, "fingerprint", self.max_days, self.step) >> 32
        return {"max_days": self.max_days, "step": self.step, "fingerprint": f"{mark:08x}"}

    def days(self, patient: str | int) -> int:
        most = self.max_days // self.step
        place = keyed(self.key, "days", subject_number(patient)) % (2 * most) - most
        return self.step * (place + (place >= 0))
