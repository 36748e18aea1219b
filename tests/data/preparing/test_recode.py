from __future__ import annotations

from collections import Counter

import pytest
from conftest import SHARED

from medbert.data.codes import canonical
from medbert.data.preparing.recode import recode
from medbert.schema import InputError

DIAGNOSES = ["ICD9CM", "ICD10CM"]
ROWS = [
    ("0010", "A000", "00000"),
    ("00589", "A054", "10000"),
    ("00589", "A058", "10000"),
    ("01480", "A1832", "10000"),
    ("01480", "A1839", "10000"),
    ("0340", "J020", "10000"),
    ("0340", "J0300", "10000"),
    ("0730", "A70", "10111"),
    ("0730", "J17", "10112"),
    ("24951", "E08311", "10111"),
    ("24951", "E0839", "10000"),
    ("E8859", "W010XXA", "10000"),
    ("36570", "NoDx", "11000"),
]
EXPECTED = {
    "ICD9CM/001.0": ("ICD10CM/A00.0", "gem"),
    "ICD9CM/005.89": ("ICD10CM/A05", "gem_category"),
    "ICD9CM/014.80": ("ICD10CM/A18.3", "gem_category"),
    "ICD9CM/034.0": ("ICD9CM/034.0", "gem_ambiguous"),
    "ICD9CM/073.0": ("ICD9CM/073.0", "gem_ambiguous"),  # a combination: neither alone
    "ICD9CM/249.51": ("ICD10CM/E08.39", "gem"),  # the only one that stands alone
    "ICD9CM/E885.9": ("ICD10CM/W01.0XXA", "gem"),
    "ICD9CM/365.70": ("ICD9CM/365.70", "gem_no_map"),
    "ICD9CM/250": ("ICD9CM/250", "gem_no_map"),  # a category: not listed
    "ICD10CM/I10": ("ICD10CM/I10", "kept"),
    "ICD9Proc/00.10": ("ICD9Proc/00.10", "kept"),
}


def as_text() -> str:
    return "".join(f"{old:<5} {new:<7} {flags}\r\n" for old, new, flags in ROWS)


def as_csv() -> str:
    quoted = (f'"{old}","{new}","{flags}",1,0,0,0,0\n' for old, new, flags in ROWS)
    return '"icd9cm","icd10cm","flags","approximate","no_map"\n' + "".join(quoted)


@pytest.mark.parametrize("text", [as_text(), as_csv(), as_csv().replace('"', "")])
def test_icd9_becomes_what_the_gem_says(tmp_path, text):
    gem = tmp_path / "gem"
    gem.write_text(text)
    found = recode(list(EXPECTED), parents={}, use_parents=[], gem=gem)
    assert list(zip(found.codes, found.outcome, strict=True)) == list(EXPECTED.values())


def test_without_a_gem_icd9_is_kept():
    found = recode(list(EXPECTED), parents={}, use_parents=DIAGNOSES, gem=None)
    assert found.codes == list(EXPECTED) and set(found.outcome) == {"kept"}


def test_a_code_becomes_its_parent_in_a_wanted_system():
    parents = {
        "LOCAL": ["SNOMED/1"],
        "SNOMED/1": ["ICD10CM/E11.2", "ICD9CM/250.02"],
        "TWO": ["ICD10CM/E11.21", "ICD10CM/E11.9"],
        "FAR": ["ICD10CM/E11.9", "ICD10CM/I10"],
        "LAB//1": ["LOINC/1"],
        "ICD9CM/250.00": ["ICD10CM/E11.9"],
    }
    expected = {
        "LOCAL": ("ICD9CM/250.02", "parent"),
        "TWO": ("ICD10CM/E11", "parent"),
        "FAR": ("FAR", "kept"),
        "LAB//1": ("LAB//1", "kept"),
        "ICD9CM/250.00": ("ICD9CM/250.00", "kept"),
    }
    found = recode(list(expected), parents=parents, use_parents=DIAGNOSES, gem=None)
    assert dict(zip(expected, zip(*found, strict=True), strict=True)) == expected
    other = recode(["LOCAL"], parents=parents, use_parents=["ICD10CM"], gem=None)
    assert other.codes == ["ICD10CM/E11.2"]
    assert recode(["LOCAL"], parents=parents, use_parents=[], gem=None).outcome == ["kept"]


def test_a_parent_goes_through_the_gem(tmp_path):
    (tmp_path / "gem").write_text(as_text())
    parents = {"LOCAL": ["ICD9CM/001.0"]}
    found = recode(["LOCAL"], parents=parents, use_parents=DIAGNOSES, gem=tmp_path / "gem")
    assert found.codes == ["ICD10CM/A00.0"] and found.outcome == ["gem"]


def test_a_file_that_is_no_gem_is_refused_with_its_line(tmp_path):
    gem = tmp_path / "gem.csv"
    gem.write_text(as_csv().replace('"00000"', "0"))
    with pytest.raises(InputError, match=r"gem.csv: line 2 is not .* spreadsheet"):
        recode(["ICD9CM/001.0"], parents={}, use_parents=[], gem=gem)
    with pytest.raises(InputError, match=r"nowhere: cannot be read"):
        recode(["ICD9CM/001.0"], parents={}, use_parents=[], gem=tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_the_gem_of_cms():
    gem = SHARED / "code_tables" / "icd9toicd10cmgem.csv"
    lines = gem.read_text().splitlines()[1:]
    codes = sorted({f"ICD9CM/{line.split(',')[0].strip(chr(34))}" for line in lines})
    found = recode(canonical(codes).to_pylist(), parents={}, use_parents=[], gem=gem)
    assert Counter(found.outcome) == {
        "gem": 10_985,
        "gem_category": 2_075,
        "gem_ambiguous": 1_082,
        "gem_no_map": 425,
    }
    for code, outcome in zip(found.codes, found.outcome, strict=True):
        assert code.startswith("ICD10CM/") == (outcome in ("gem", "gem_category"))
