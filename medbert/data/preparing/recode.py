"""From the codes of a dataset to the codes meant, before anything is counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medbert.data.codes import ancestors, canonical
from medbert.schema import InputError

_ICD_DIAGNOSES = ("ICD9CM/", "ICD10CM/")
_LINE = re.compile(r'"?(\w+)"?[,\s]+"?(\w+)"?[,\s]+"?([01]{3}\d\d)"?(?:[,\s].*)?')


class Recoded(NamedTuple):
    """The new code of each code, and what became of it.

    ``kept``; ``parent``: became its MEDS parent; ``gem``: ICD-9 that means one ICD-10 code;
    ``gem_category``: the nearest code above all its alternatives, so that their difference is lost;
    ``gem_ambiguous``: nothing is above all of them, stays ICD-9; ``gem_no_map``: ICD-10 has no
    such thing, or the file does not list the code; stays ICD-9.
    """

    codes: list[str]
    outcome: list[str]


def recode(
    codes: Sequence[str],
    *,
    parents: Mapping[str, Sequence[str]],
    use_parents: Sequence[str],
    gem: str | Path | None,
) -> Recoded:
    """The codes meant by (distinct, canonical) ``codes``; two may become one.

    A code that is no ICD diagnosis, but has one of the systems ``use_parents`` above it, becomes
    that code: of several systems the first named, of several codes the nearest that is above all.
    ``gem`` names a file of CMS's General Equivalence Mappings from ICD-9-CM to ICD-10-CM: its text
    (``2018_I9gem.txt``) or a CSV whose first three columns are the same.
    """
    above = [_parent(code, parents, use_parents) for code in codes]
    found = [new or code for new, code in zip(above, codes, strict=True)]
    outcome = ["kept" if new is None else "parent" for new in above]
    if gem is not None:
        targets = _read_gem(Path(gem))
        for i, code in enumerate(found):
            if code.startswith("ICD9CM/"):
                found[i], outcome[i] = _forward(code, targets.get(code, []))
    return Recoded(found, outcome)


def _parent(
    code: str, parents: Mapping[str, Sequence[str]], use_parents: Sequence[str]
) -> str | None:
    if code.startswith(_ICD_DIAGNOSES):
        return None
    line = ancestors(code, parents)
    for system in use_parents:
        wanted = [above for above in line if above.startswith(f"{system}/")]
        below = {higher for above in wanted for higher in ancestors(above, parents)}
        if nearest := [above for above in wanted if above not in below]:
            return _common(nearest)
    return None


def _forward(code: str, targets: Sequence[tuple[str, bool]]) -> tuple[str, str]:
    """The ICD-10 code and the outcome; ``targets``: codes, and whether one of a combination."""
    single = [target for target, combined in targets if not combined]
    if len(single) == 1:
        return single[0], "gem"
    if not targets:
        return code, "gem_no_map"
    common = _common([target for target, _ in targets])
    return (code, "gem_ambiguous") if common is None else (common, "gem_category")


def _common(codes: Sequence[str]) -> str | None:
    """The nearest code that is each of ``codes`` or above it, by spelling."""
    first, *others = [[code, *ancestors(code, {})] for code in codes]
    return next((code for code in first if all(code in other for other in others)), None)


def _read_gem(path: Path) -> dict[str, list[tuple[str, bool]]]:
    """ICD-9 code -> its ICD-10 codes, each with: is it one of a combination; none: no map."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name the GEM file of CMS") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line.strip())
        if found:
            rows.append(found.groups())
        elif line.strip() and not (number == 1 and line.count(",") >= 2):  # the header of a CSV
            raise InputError(
                f"{path}: line {number} is not an ICD-9 code, an ICD-10 code and five flags (as in "
                "'0020 A0100 10000'); give CMS's 2018_I9gem.txt or a CSV with these "
                "as its first columns, as text: a spreadsheet drops leading zeros"
            )
    old = canonical([f"ICD9CM/{row[0]}" for row in rows]).to_pylist()
    new = canonical([f"ICD10CM/{row[1]}" for row in rows]).to_pylist()
    targets: dict[str, list[tuple[str, bool]]] = {}
    for code, target, (_, _, flags) in zip(old, new, rows, strict=True):
        known = targets.setdefault(code, [])
        if flags[1] == "0":
            known.append((target, flags[2] == "1"))
    return targets
