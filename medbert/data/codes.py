"""Clinical codes: one spelling of ICD, which are diagnoses, what is above each, and patterns.

Everything works on the distinct codes of a column, so the cost hardly grows with its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from medbert.schema import CODE, PARENTS, InputError

Codes: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str | None]

_SPELLING = re.compile(
    r"(?:DIAGNOSIS//ICD//(?P<meds>9|10)//|ICD[-_ ]?(?P<icd>9|10)(?:[-_ ]?CM)?[-/:_| ]+)"
    r"(?P<body>.+)",
    re.IGNORECASE,
)
_ICD9 = re.compile(r"(\d{3}|V\d{2}|E\d{3})\.?(\d{0,2})")
_ICD9_SHORT = re.compile(r"(\d{1,2})(?:\.(\d{0,2}))?")  # 38 or 8.45: leading zeros were lost
_ICD10 = re.compile(r"([A-Z]\d[0-9A-Z])\.?([0-9A-Z]{0,4})")
_BELOW_CATEGORY = re.compile(r"(ICD(?:9|10)[A-Z]*/\w{2,4})\.(\w+)", re.IGNORECASE)
_ATC_LEVELS = {7: 5, 5: 4, 4: 3}  # characters of an ATC code -> of the one above
_DIAGNOSIS = re.compile(r"DIAGNOSIS//|ICD(?:9|10|11)(?!PCS|PROC)[A-Z]*/", re.IGNORECASE)


def canonical(codes: Codes) -> pa.ChunkedArray:
    """Codes with ICD diagnoses in one spelling: system, upper case, dotted, no blanks around.

    A bare ICD9 or ICD10 is taken for the Clinical Modification. ICD-9 categories that lost their
    leading zeros get them back. Codes that are no ICD diagnosis are only trimmed; null stays null.

    >>> canonical(["DIAGNOSIS//ICD//10//M25511", "ICD-10-CM:e11.9 ", "ICD9_150.6"]).to_pylist()
    ['ICD10CM/M25.511', 'ICD10CM/E11.9', 'ICD9CM/150.6']
    >>> canonical(["icd9cm/E8859", "ICD9CM/V5867", "ICD9CM/8", " LAB//50912 "]).to_pylist()
    ['ICD9CM/E885.9', 'ICD9CM/V58.67', 'ICD9CM/008', 'LAB//50912']
    """
    return _on_distinct(codes, lambda distinct: pa.array(map(_spell, distinct), pa.string()))


def is_diagnosis(codes: Codes) -> np.ndarray:
    """Mask of the diagnoses among (canonical) codes; procedure systems of ICD are none.

    >>> is_diagnosis(["ICD10CM/I50.9", "ICD9CM/428.0", "ICD10PCS/0JDM0ZZ", "LAB//50912", None])
    array([ True,  True, False, False, False])
    """
    return mask(codes, lambda code: _DIAGNOSIS.match(code) is not None)


def ancestors(code: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """What is above a (canonical) code, nearest first, without the code itself.

    First what ICD and ATC codes say by themselves (an ICD code ends at its category, an ATC code at
    its therapeutic group) and what ``parents`` states, level by level; then, with the last word
    dropped, what other codes of several words say, but never their bare first word. In ICD-10-CM
    the seventh character takes along the ``X`` that only fill the places before it.

    >>> ancestors("ICD10CM/S00.03XA", {}), ancestors("ATC/A10BA02", {})
    (['ICD10CM/S00.03', 'ICD10CM/S00.0', 'ICD10CM/S00'], ['ATC/A10BA', 'ATC/A10B', 'ATC/A10'])
    >>> ancestors("LAB//50912//mg/dL", {"LAB//50912//mg/dL": ["LOINC/2160-0"]})
    ['LOINC/2160-0', 'LAB//50912']
    """

    def stated(below: str) -> Iterator[str]:
        yield from _above(below)
        yield from parents.get(below, ())

    def all_known(below: str) -> Iterator[str]:
        yield from stated(below)
        wider = below.rpartition("//")[0]
        if "//" in wider:
            yield wider

    line = [code]
    for above in (stated, all_known):
        for below in line:  # which grows meanwhile
            line += dict.fromkeys(found for found in above(below) if found not in line)
    return line[1:]


def parents_of(table: pa.Table) -> dict[str, list[str]]:
    """Code -> the codes above it, as MEDS metadata states them, all canonical (see CODES)."""
    lists = table.select([CODE, PARENTS]).drop_null().to_pydict()
    spelled = canonical(lists[CODE]).to_pylist()
    found: dict[str, list[str]] = {}
    for code, above in zip(spelled, lists[PARENTS], strict=True):
        more = canonical([word for word in above if word and word.strip()]).to_pylist()
        known = found.setdefault(code, [])
        known += [word for word in more if word != code and word not in known]
    return {code: above for code, above in found.items() if above}


def matches(codes: Codes, patterns: Sequence[str]) -> np.ndarray:
    """Mask of the codes that any of the patterns means.

    A pattern is a canonical code, which stands for itself and everything below it (``.`` and more
    digits in ICD, ``//`` and more words elsewhere), or a regular expression if it starts with
    ``^``.

    >>> matches(["ICD10CM/I50", "ICD10CM/I50.23", "ICD10CM/I51.0"], ["ICD10CM/I50"])
    array([ True,  True, False])
    >>> matches(["ICD9CM/250.01", "ICD9CM/250.02", "ICD9CM/250"], [r"^ICD9CM/250\\.\\d[02]$"])
    array([False,  True, False])

    Raises:
        InputError: a pattern is not canonical, or not a regular expression.
    """
    exact, below, expressions = set(), [], []
    for pattern in patterns:
        if pattern.startswith("^"):
            expressions.append(compiled(pattern))
            continue
        _check_pattern(pattern)
        exact.add(pattern)
        below.append(pattern + "//")
        if _DIAGNOSIS.match(pattern):
            below.append(pattern if "." in pattern else pattern + ".")
    starts = tuple(below)
    return mask(
        codes,
        lambda code: (
            code in exact
            or code.startswith(starts)
            or any(expression.search(code) for expression in expressions)
        ),
    )


def mask(codes: Codes, keep: Callable[[str], bool]) -> np.ndarray:
    """Mask of the codes for which ``keep`` is true, asked once for each distinct code."""

    def kept(distinct: list[str | None]) -> pa.Array:
        return pa.array([code is not None and keep(code) for code in distinct], pa.bool_())

    return _on_distinct(codes, kept).fill_null(False).to_numpy()


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression over codes, as the user gave it."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"code pattern {pattern!r} is not a regular expression: {error}; mend it, "
            "and mind that ( ) [ ] . + * ? have to be escaped to stand for themselves"
        ) from error


def _on_distinct(codes: Codes, function: Callable[[list[str | None]], pa.Array]) -> pa.ChunkedArray:
    if not isinstance(codes, pa.Array | pa.ChunkedArray):
        codes = pa.array(codes, pa.string())
    column = codes if isinstance(codes, pa.ChunkedArray) else pa.chunked_array([codes])
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    values = function(chunks[0].dictionary.to_pylist() if chunks else [])
    return pa.chunked_array([values.take(chunk.indices) for chunk in chunks], type=values.type)


def _spell(code: str | None) -> str | None:
    if code is None:
        return None
    code = code.strip()
    found = _SPELLING.fullmatch(code)
    if found is None:
        return code
    version, body = found["meds"] or found["icd"], found["body"].strip().upper()
    parts = (_ICD9 if version == "9" else _ICD10).fullmatch(body)
    if parts is None and version == "9":
        parts = _ICD9_SHORT.fullmatch(body)
    if parts is None:
        return code
    category, rest = parts[1].zfill(3), parts[2]
    return f"ICD{version}CM/{category}.{rest}" if rest else f"ICD{version}CM/{category}"


def _above(code: str) -> Iterator[str]:
    """The code above one of ICD or ATC, by its spelling; none above the others."""
    if found := _BELOW_CATEGORY.fullmatch(code):
        category, rest = found.groups()
        rest = rest[:-1].rstrip("X") if len(rest) == 4 else rest[:-1]
        yield f"{category}.{rest}" if rest else category
    elif code.startswith("ATC/") and (shorter := _ATC_LEVELS.get(len(code) - 4)):
        yield code[: 4 + shorter]


def _check_pattern(pattern: str) -> None:
    spelled = _spell(pattern)
    if spelled != pattern:
        raise InputError(
            f"code pattern {pattern!r} is not spelled canonically; write {spelled!r}, "
            "or a regular expression that starts with '^'"
        )
    system, _, body = pattern.partition("/")
    shape = {"ICD9CM": _ICD9, "ICD10CM": _ICD10}.get(system)
    if shape is not None and not shape.fullmatch(body):
        raise InputError(
            f"code pattern {pattern!r} is no whole ICD category (three characters, as in "
            "'ICD10CM/I50'); for a part of one use a regular expression that starts with '^'"
        )
