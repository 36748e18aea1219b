import numpy as np
import pyarrow as pa
import pytest

from medbert.data.codes import ancestors, canonical, compiled, is_diagnosis, matches, parents_of
from medbert.schema import CODES, InputError

SPELLINGS = {
    "DIAGNOSIS//ICD//10//M25511": "ICD10CM/M25.511",
    "DIAGNOSIS//ICD//9//43820": "ICD9CM/438.20",
    "ICD9_150.6": "ICD9CM/150.6",
    "ICD10_C50": "ICD10CM/C50",
    "ICD10CM/E119": "ICD10CM/E11.9",
    "ICD10CM/E11.65": "ICD10CM/E11.65",
    "ICD-10-CM:E11.9": "ICD10CM/E11.9",
    "icd9cm/4280": "ICD9CM/428.0",
    "ICD9CM/E8859": "ICD9CM/E885.9",
    "ICD9CM/E885": "ICD9CM/E885",
    "ICD9CM/V5867": "ICD9CM/V58.67",
    "ICD9CM/V58": "ICD9CM/V58",
    "ICD9CM/8": "ICD9CM/008",
    "ICD9CM/38.1": "ICD9CM/038.1",
    "ICD9CM/250.": "ICD9CM/250",
    "ICD10CM//S0003XA ": "ICD10CM/S00.03XA",
    "ICD10CM/C7A1": "ICD10CM/C7A.1",
    " LAB//50912//mg/dL ": "LAB//50912//mg/dL",
    "PROCEDURE//ICD//9//3893": "PROCEDURE//ICD//9//3893",
    "ICD10PCS/067G3DZ": "ICD10PCS/067G3DZ",
    "ICD9Proc/38.93": "ICD9Proc/38.93",
    "ICD10GM/E11.9": "ICD10GM/E11.9",
    "DIAGNOSIS//ICD//9//NoDx": "DIAGNOSIS//ICD//9//NoDx",
    "ICD10CM/": "ICD10CM/",
}


@pytest.mark.parametrize(("given", "expected"), SPELLINGS.items())
def test_every_spelling_becomes_the_canonical_one(given, expected):
    assert canonical([given]).to_pylist() == [expected]


def test_canonical_is_idempotent():
    once = canonical(list(SPELLINGS))
    assert canonical(once).equals(once)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "utf8")])
def test_canonical_takes_any_text_column_and_keeps_nulls(kind):
    column = pa.chunked_array([["ICD9_4280", None], [], ["LAB", "ICD9_4280"]], pa.string())
    found = canonical(column.cast(kind))
    assert found.type == pa.string()
    assert found.to_pylist() == ["ICD9CM/428.0", None, "LAB", "ICD9CM/428.0"]


def test_empty_columns():
    assert canonical([]).to_pylist() == []
    assert canonical(pa.chunked_array([], pa.string())).to_pylist() == []
    assert matches([], ["ICD10CM/I50"]).tolist() == []


def test_diagnoses_are_told_from_procedures():
    codes = ["ICD9CM/428", "ICD10CM/I50", "ICD10GM/I50.1", "DIAGNOSIS//ICD//9//NoDx"]
    others = ["ICD10PCS/0JD", "ICD9Proc/38.9", "PROCEDURE//ICD//9//3893", "DRUG//insulin", None]
    assert is_diagnosis(codes).all()
    assert not is_diagnosis(others).any()


def test_a_pattern_means_the_code_and_what_is_below_it():
    codes = ["ICD10CM/I50", "ICD10CM/I50.9", "ICD10CM/I50.23", "ICD10CM/I51", "ICD9CM/428.0", None]
    assert matches(codes, ["ICD10CM/I50"]).tolist() == [True, True, True, False, False, False]
    assert matches(codes, ["ICD10CM/I50.2", "ICD9CM/428"]).tolist() == [
        *(False, False, True),
        *(False, True, False),
    ]
    assert isinstance(matches(codes, []), np.ndarray)
    assert not matches(codes, []).any()


def test_a_pattern_over_other_codes_ends_at_a_word():
    codes = ["DRUG//insulin", "DRUG//insulin//Up", "DRUG//insulin glargine"]
    assert matches(codes, ["DRUG//insulin"]).tolist() == [True, True, False]


def test_type_2_diabetes_by_the_fifth_digit():
    codes = ["ICD9CM/250.00", "ICD9CM/250.02", "ICD9CM/250.01", "ICD9CM/250"]
    assert matches(codes, [r"^ICD9CM/250\.\d[02]$"]).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("ICD10CM/E119", "'ICD10CM/E11.9'"),
        ("ICD9CM/42", "ICD9CM/042"),
        ("ICD10CM/I5", "no whole ICD category"),
        ("^ICD10CM/(", "not a regular expression"),
    ],
)
def test_a_pattern_that_would_match_nothing_is_refused(pattern, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")) as error:
        matches(["ICD10CM/E11.9"], [pattern])
    assert pattern in str(error.value)


def test_a_bad_regular_expression_says_so():
    with pytest.raises(InputError, match="not a regular expression"):
        compiled("^HOSPITAL(")


ABOVE = {
    "ICD10CM/E11.21": ["ICD10CM/E11.2", "ICD10CM/E11"],
    "ICD10CM/E11": [],
    "ICD10CM/S00.03XA": ["ICD10CM/S00.03", "ICD10CM/S00.0", "ICD10CM/S00"],
    "ICD10CM/W19.XXXA": ["ICD10CM/W19"],
    "ICD10CM/T36.0X1A": [f"ICD10CM/T36{rest}" for rest in (".0X1", ".0X", ".0", "")],
    "ICD9CM/250.01": ["ICD9CM/250.0", "ICD9CM/250"],
    "ICD9CM/E885.9": ["ICD9CM/E885"],
    "ICD9CM/V58.67": ["ICD9CM/V58.6", "ICD9CM/V58"],
    "ICD9Proc/38.93": ["ICD9Proc/38.9", "ICD9Proc/38"],
    "ATC/A10BA02": ["ATC/A10BA", "ATC/A10B", "ATC/A10"],
    "LAB//50912//mg/dL": ["LAB//50912"],
    "LAB//50912": [],
    "MEDS_BIRTH": [],
    "": [],
}


@pytest.mark.parametrize(("code", "expected"), ABOVE.items())
def test_what_is_above_a_code(code, expected):
    assert ancestors(code, {}) == expected


def test_what_is_stated_comes_before_what_is_dropped_and_level_by_level():
    parents = {"PROC//ICD//3893": ["ICD9Proc/38.93", "SNOMED/1"], "SNOMED/1": ["SNOMED/0"]}
    assert ancestors("PROC//ICD//3893", parents) == [
        *("ICD9Proc/38.93", "SNOMED/1", "ICD9Proc/38.9", "SNOMED/0", "ICD9Proc/38"),
        "PROC//ICD",
    ]


def test_loops_among_parents_end():
    parents = {"A": ["B", "A"], "B": ["C"], "C": ["A", "D"]}
    assert ancestors("A", parents) == ["B", "C", "D"]


@pytest.mark.parametrize("code", ABOVE)
def test_whatever_is_above_a_code_has_its_own_ancestors_above_it_too(code):
    line = ancestors(code, {"ICD10CM/E11": ["X//Y//Z"], "LAB//50912": ["LOINC/1"]})
    assert all(set(ancestors(above, {})) <= set(line) for above in line)


def test_parents_of_metadata_are_canonical():
    codes = ["DIAGNOSIS//ICD//10//M25511", "LAB//1", "LAB//2", "LOCAL", "LOCAL "]
    lists = [["ICD10CM/M25511"], None, [None], ["icd9cm/4280", " LOINC/1 "], ["LOINC/1", "LOINC/2"]]
    table = pa.table([codes, pa.nulls(5, pa.string()), lists], schema=CODES)
    assert parents_of(table) == {"LOCAL": ["ICD9CM/428.0", "LOINC/1", "LOINC/2"]}
