"""Removing what was found: an operator for each label, and where everything lies afterwards."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from medbert.schema import InputError, Span
from medbert.text.redaction.shift import Shift, keyed
from medbert.text.redaction.surrogates import Mention, Surrogates, Whose
from medbert.text.redaction.written_dates import (
    AGES,
    PARTS_OF_YEARS,
    Known,
    is_relative,
    move,
    read,
    too_old,
)
from medbert.text.spans import coarse

Operator = Callable[[Mention], str]

_AGE = re.compile(r"(\d+(?:[.,]\d+)?)\+?|([^\W\d_]+)|[\s().,'’/–-]+")


class Placed(NamedTuple):
    """A span in the old text, and what stands for it in the new one."""

    before: Span
    after: Span


class Redacted(NamedTuple):
    text: str
    spans: tuple[Placed, ...]


def redact(
    text: str,
    spans: Iterable[Span],
    operators: Mapping[str, Operator],
    *,
    whose: Whose = Whose(),  # noqa: B008
) -> Redacted:
    """The text with every span given to the operator of its label: of ``NAME:PATIENT``, else of
    ``NAME``, else of ``*``, else ``tag``.

    Spans that overlap go as one, by the operator of the longest that is not kept; where they are of
    different kinds, that is a tag, unless it is a mask. Spans come back in the order given, and all
    else in the text stays as it is.

    Raises InputError where a span does not lie in the text.
    """
    spans = list(spans)
    for number, span in enumerate(spans, 1):
        if not 0 <= span.start < span.end <= len(text):
            raise InputError(
                f"note {whose.note}: span {number} is {span.start}:{span.end}, in a text of "
                f"{len(text)} characters; spans must be of the same text"
            )
    whose = whose._replace(names=tuple(sorted({*whose.names, *_names(text, spans)})))
    counts: Counter[str] = Counter()
    pieces: list[str] = []
    placed: dict[int, Placed] = {}
    done = length = 0
    for start, end, members in _regions(spans):
        label, operator = _operator_of([spans[i] for i in members], operators)
        mention = Mention(text[start:end], label, whose, counts, set())
        new = operator(mention)
        counts.update(mention.used)
        pieces += [text[done:start], new]
        length += start - done
        for i in members:
            after = spans[i]._replace(start=length, end=length + len(new))
            placed[i] = Placed(spans[i], after)
        length, done = length + len(new), end
    return Redacted("".join([*pieces, text[done:]]), tuple(placed[i] for i in range(len(spans))))


def _regions(spans: Sequence[Span]) -> list[tuple[int, int, list[int]]]:
    """Runs of spans that overlap: start, end, numbers of the spans."""
    regions: list[tuple[int, int, list[int]]] = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i][:2]):
        start, end = spans[i][:2]
        if regions and start < regions[-1][1]:
            first, last, members = regions[-1]
            regions[-1] = first, max(last, end), [*members, i]
        else:
            regions.append((start, end, [i]))
    return regions


def _operator_of(spans: Sequence[Span], operators: Mapping[str, Operator]) -> tuple[str, Operator]:
    def of(span: Span) -> Operator:
        names = (span.label, coarse(span.label), "*")
        return next((operators[name] for name in names if name in operators), tag)

    taken = [span for span in spans if of(span) is not keep] or list(spans)
    longest = max(taken, key=lambda span: (span.end - span.start, span.score))
    several = len({coarse(span.label) for span in spans}) > 1
    return longest.label, tag if several and of(longest) not in (mask, keep) else of(longest)


def _names(text: str, spans: Sequence[Span]) -> list[str]:
    """Names as they stand in the text: given name and surname may be two spans."""
    names: list[str] = []
    last = -1
    for span in sorted(span for span in spans if coarse(span.label) == "NAME"):
        if names and re.fullmatch(r",?[ .]?", text[last : span.start]) and last <= span.start:
            names[-1] += text[last : span.end]
        else:
            names.append(text[span.start : span.end])
        last = span.end
    return names


# --- operators ------------------------------------------------------------------------------------


def tag(mention: Mention) -> str:
    return f"[{coarse(mention.label)}]"


def mask(mention: Mention) -> str:
    """As long as it was."""
    return "X" * len(mention.text)


def keep(mention: Mention) -> str:
    return mention.text


def generalise(mention: Mention) -> str:
    """Ages over 89 become 90+, dates their year, if it does not tell of such an age; what cannot be
    read, and all else, becomes a tag."""
    kind, text = coarse(mention.label), mention.text
    if kind == "AGE":
        return _age(text) or tag(mention)
    if kind == "DATE" and is_relative(text):
        return text
    known = _known(mention.whose)
    found = read(text, known=known) if kind == "DATE" else None
    return tag(mention) if not found or too_old(found.day, known=known) else str(found.day.year)


def _age(text: str) -> str | None:
    """None: not an age in numbers, or something beside one."""
    parts = list(_AGE.finditer(text))
    words = {part[2].casefold() for part in parts if part[2]}
    old = [part for part in parts if part[1] and float(part[1].replace(",", ".")) >= 90]
    if "".join(part[0] for part in parts) != text or not words <= AGES | PARTS_OF_YEARS:
        return None
    if not any(part[1] for part in parts) or (old and words & PARTS_OF_YEARS):
        return None
    return "".join("90+" if part in old else part[0] for part in parts)


def _known(whose: Whose) -> Known:
    return Known(near=whose.time and whose.time.date(), language=whose.language)


def _hash(mention: Mention, *, key: bytes) -> str:
    """The same for the same words in all notes: it links them, of other patients too."""
    kind, bare = coarse(mention.label), " ".join(mention.text.casefold().split())
    return f"[{kind}:{keyed(key, 'hash', kind, bare) >> 24:010x}]"


def _shift(mention: Mention, *, shift: Shift) -> str:
    """Without a patient, a note's dates move by its own days; without either, a tag."""
    whose = mention.whose
    if whose.patient is None and not whose.note:
        return tag(mention)
    days = shift.days(f"note {whose.note}" if whose.patient is None else whose.patient)
    return move(mention.text, days, known=_known(whose)) or tag(mention)


def operators_of(
    choices: Mapping[str, str],
    *,
    key: bytes | None = None,
    max_days: int = 364,
    step: int = 7,
    strategy: str = "consistent",
    stay: float = 0.5,
    language: str = "en",
) -> dict[str, Operator]:
    """Operators by label (``*``: all others) from their names: tag, mask, keep, generalise, and,
    with the secret ``key`` (``shift.read_key``), hash, surrogate, shift. For the rest see ``Shift``
    and ``Surrogates``.
    """
    named: dict[str, Operator]
    named = {"tag": tag, "mask": mask, "keep": keep, "generalise": generalise}
    secret = key or b""
    with_key: dict[str, Operator] = {
        "hash": partial(_hash, key=secret),
        "shift": partial(_shift, shift=Shift(key=secret, max_days=max_days, step=step)),
        "surrogate": Surrogates(key=secret, strategy=strategy, stay=stay, language=language),
    }
    for label, choice in choices.items():
        if choice not in named | with_key:
            known = ", ".join(named | with_key)
            raise InputError(f"operators: {label}={choice}: choose one of {known}")
        if choice in with_key and not key:
            raise InputError(f"operators: {label}={choice} needs a secret: key=PATH or env:NAME")
    return {label: (named | with_key)[choice] for label, choice in choices.items()}


# --- the way back ---------------------------------------------------------------------------------


def sealed(note: str, text: str, redacted: Redacted, *, key: bytes) -> bytes:
    """One encrypted line (Fernet) that brings the old ``text`` back; see ``restored``.

    Nothing writes such lines unless it is asked to: with them, and the key, nothing is removed.
    """
    regions: dict[tuple[int, int], tuple[int, int]] = {}
    for before, after in redacted.spans:
        start, end = regions.get(after[:2], before[:2])
        regions[after[:2]] = min(start, before.start), max(end, before.end)
    back = [(*place, text[start:end]) for place, (start, end) in sorted(regions.items())]
    return _cipher(key).encrypt(json.dumps([note, back]).encode())


def restored(line: bytes, redacted: str, *, key: bytes) -> tuple[str, str]:
    """Note and old text. Raises InputError where the line is of another key, or damaged."""
    cipher = _cipher(key)
    from cryptography.fernet import InvalidToken

    try:
        note, back = json.loads(cipher.decrypt(line.strip()))
    except InvalidToken:
        raise InputError("the reversible map is of another key, or damaged") from None
    for start, end, old in reversed(back):
        redacted = redacted[:start] + old + redacted[end:]
    return note, redacted


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.fernet import Fernet
    except ImportError as error:
        raise InputError("a reversible map needs: pip install 'medbert[text]'") from error
    return Fernet(base64.urlsafe_b64encode(hmac.digest(key, b"reversible map", "sha256")))
