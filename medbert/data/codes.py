"""Clinical codes: one spelling of ICD, which codes are diagnoses, and patterns over codes.

Everything works on the distinct codes of a column, so the cost hardly grows with its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from medbert.schema import InputError

Codes: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str | None]

_SPELLING = re.compile(
    r"(?:DIAGNOSIS//ICD//(?P<meds>9|10)//|ICD[-_ ]?(?P<icd>9|10)(?:[-_ ]?CM)?[-/:_| ]+)"
    r"(?P<body>.+)",
    re.IGNORECASE,
)
_ICD9 = re.compile(r"(\d{3}|V\d{2}|E\d{3})\.?(\d{0,2})")
_ICD9_SHORT = re.compile(r"(\d{1,2})(?:\.(\d{0,2}))?")  # 38 or 8.45: leading zeros were lost
_ICD10 = re.compile(r"([A-Z]\d[0-9A-Z])\.?([0-9A-Z]{0,4})")
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
