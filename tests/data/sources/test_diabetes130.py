"""UCI Diabetes 130: encounters in their order, without dates."""

import csv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import SHARED
from drained import SECRET, drain, pairs, refused

from medbert.data.codes import canonical
from medbert.data.sources.diabetes130 import COLUMNS, Diabetes130
from medbert.schema import CODES, LABELS, Findings


def encounters(folder, *rows, columns=COLUMNS, name="diabetic_data.csv"):
    plain = dict.fromkeys(COLUMNS, "No") | {
        **dict.fromkeys(("weight", "medical_specialty", "payer_code"), "?"),
        **dict.fromkeys(("diag_1", "diag_2", "diag_3"), "?"),
        **dict.fromkeys(("A1Cresult", "max_glu_serum"), "None"),
        **dict.fromkeys([name for name in COLUMNS if name.startswith("num")], "0"),
        **{"race": "?", "gender": "Female", "age": "[70-80)", "time_in_hospital": "3"},
        **{"admission_type_id": "1", "admission_source_id": "7"},
        **{"discharge_disposition_id": "1", "readmitted": "NO"},
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(plain | row for row in rows)
    return str(path)


def encounter(subject, number, **values):
    return {"patient_nbr": str(subject), "encounter_id": str(number)} | values


def test_orders_the_encounters_of_a_subject(tmp_path):
    path = encounters(
        tmp_path,
        encounter(5, 20, time_in_hospital="9", race="Asian", readmitted=">30"),
        encounter(4, 11, gender="Unknown/Invalid"),
        encounter(
            *(5, 10),
            **{"diag_1": "8", "diag_2": "250.83", "diag_3": "V27", "insulin": "Up"},
            **{"A1Cresult": ">8", "change": "Ch", "diabetesMed": "Yes", "weight": "[75-100)"},
            **{"number_inpatient": "4", "num_medications": "17", "readmitted": "<30"},
        ),
    )
    events, visits, *_ = drain(Diabetes130(path))
    assert pairs(visits, "subject_id", "visit_id", "length_of_stay", "kind", "row") == [
        (4, 11, 3.0, "inpatient", 1),
        (5, 10, 3.0, "inpatient", 2),
        (5, 20, 9.0, "inpatient", 0),
    ]
    assert [visit["start"].second for visit in visits] == [2, 2, 4]
    assert [visit["end"].second for visit in visits] == [3, 3, 5]
    first = [row for row in events if row.get("visit_id") == 10]
    ranks = [row["rank"] for row in first]
    assert ranks == sorted(set(ranks))
    told = [(row["time"].second, row["code"], row["numeric_value"]) for row in first]
    assert told == [
        (2, "AGE//[70-80)", 75.0),
        (2, "ADMISSION_TYPE//1", None),
        (2, "ADMISSION_SOURCE//7", None),
        (2, "WEIGHT//[75-100)", None),
        (2, "PRIOR_OUTPATIENT//0", 0.0),
        (2, "PRIOR_EMERGENCY//0", 0.0),
        (2, "PRIOR_INPATIENT//3+", 4.0),
        (3, "ICD9CM/8", None),
        (3, "ICD9CM/250.83", None),
        (3, "ICD9CM/V27", None),
        (3, "DRUG//insulin//Up", None),
        (3, "A1C//>8", None),
        (3, "MAX_GLU_SERUM//None", None),
        (3, "CHANGE//Ch", None),
        (3, "DIABETES_MED//Yes", None),
        (3, "DISCHARGE_DISPOSITION//1", None),
        (3, "N_LAB_PROCEDURES//0-19", 0.0),
        (3, "N_PROCEDURES//0", 0.0),
        (3, "N_MEDICATIONS//16-20", 17.0),
        (3, "N_DIAGNOSES//0-3", 0.0),
    ]
    static = [row for row in events if row.get("time") is None]
    assert pairs(static, "subject_id", "code") == [(5, "GENDER//F"), (5, "RACE//Asian")]
    found = Diabetes130(path).read()
    assert found.metadata == {"name": "diabetes130", "time": "order"}
    assert found.codes is None


def test_readmission_is_a_label_and_never_an_event(tmp_path):
    path = encounters(
        tmp_path,
        encounter(1, 1, readmitted="<30"),
        encounter(1, 2, readmitted=">30"),
        encounter(1, 3),
        encounter(1, 4, discharge_disposition_id="13"),
        encounter(2, 5, discharge_disposition_id="11"),
    )
    found = Diabetes130(path).read()
    month, ever = found.labels["readmission_30d"], found.labels["readmission_any"]
    assert month.schema.equals(LABELS)
    assert month["boolean_value"].to_pylist() == [True, False, False]
    assert ever["boolean_value"].to_pylist() == [True, True, False]
    events, visits, _, noted = drain(Diabetes130(path))
    assert month["prediction_time"].to_pylist() == [visit["end"] for visit in visits[:3]]
    assert noted["labels_after_death_or_hospice"]["count"] == 2
    assert not any("READM" in event["code"].upper() for event in events)


def test_one_sex_and_race_a_subject_and_others_are_noted(tmp_path):
    path = encounters(
        tmp_path,
        encounter(1, 2, gender="Male", race="Asian"),
        encounter(1, 1, race="Other"),
        encounter(1, 3),
    )
    events, _, _, noted = drain(Diabetes130(path))
    assert pairs(events, "code")[:2] == [("GENDER//F",), ("RACE//Other",)]
    assert {reason: found["count"] for reason, found in noted.items()} == {
        "other_gender_of_a_subject": 1,
        "other_race_of_a_subject": 1,
    }


def test_reads_the_file_its_folder_and_the_zip_alike(tmp_path):
    path = Path(encounters(tmp_path / "d", encounter(1, 1), encounter(2, 2)))
    titles = path.with_name("IDS_mapping.csv")
    titles.write_text("admission_type_id,description\n1,Emergency\n6,NULL\n,\nfoo_id,x\n9,y\n")
    packed = tmp_path / "diabetes.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "dataset/diabetic_data.csv")
        archive.write(titles, "dataset/IDs_mapping.csv")
    sources = [Diabetes130(str(place)) for place in (path, path.parent, packed)]
    assert all(drain(source) == drain(sources[0]) for source in sources)
    for found in (source.read() for source in sources):
        assert found.codes.schema.equals(CODES)
        assert pairs(found.codes.to_pylist(), "code", "description") == [
            ("ADMISSION_TYPE//1", "Emergency")
        ]
        assert len(found.parts[0].stamp) > 10
    packed.write_bytes(packed.read_bytes()[:-100])
    refused(Diabetes130(str(packed)), "diabetes.zip", "truncated", "download")


def test_refuses_a_foreign_file(tmp_path):
    path = encounters(tmp_path, encounter(1, 1), columns=[c for c in COLUMNS if c != "insulin"])
    refused(Diabetes130(path), "diabetic_data.csv", "'insulin'", "found", "Download")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.csv", "a,b\n")
    refused(Diabetes130(str(tmp_path / "other.zip")), "other.zip", "diabetic_data.csv")
    (tmp_path / "empty").mkdir()
    refused(Diabetes130(str(tmp_path / "empty")), "empty", "diabetic_data.csv", "source.path")


def test_refuses_a_truncated_file(tmp_path):
    path = Path(encounters(tmp_path, encounter(1, 1), encounter(SECRET, 2)))
    path.write_bytes(path.read_bytes()[:-60])
    refused(Diabetes130(str(path)), "diabetic_data.csv", "row 2", "truncated")


def test_refuses_impossible_values(tmp_path):
    path = encounters(tmp_path, encounter(1, 1), encounter(1, 2, time_in_hospital="?"))
    refused(Diabetes130(path), "diabetic_data.csv", "'time_in_hospital'", "row 2", "Download")
    path = encounters(tmp_path, encounter(1, 1), encounter(1, 2, readmitted="?"))
    refused(Diabetes130(path), "diabetic_data.csv", "'readmitted'", "row 2", "Download")
    path = encounters(tmp_path, encounter(SECRET, 1), encounter(SECRET, 1))
    refused(Diabetes130(path), "diabetic_data.csv", "'encounter_id'", "row 2", "twice")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not on this machine")
def test_as_published():
    found = Diabetes130(str(SHARED / "diabetes130")).read()
    findings = Findings()
    *_, (events, visits, _) = found.parts[0].pieces(findings)
    assert len(visits["subject_id"].unique()) == 42_779
    assert visits.num_rows == 60_557
    assert pc.max(visits["length_of_stay"]).as_py() == 14
    labels = found.labels["readmission_30d"]
    assert labels.num_rows == 60_557 - findings.counts["labels_after_death_or_hospice"]
    assert findings.counts["labels_after_death_or_hospice"] == 1_438
    assert 0.11 < pc.mean(labels["boolean_value"].cast(pa.int8())).as_py() < 0.12
    assert pc.sum(pc.starts_with(events["code"], "ICD9CM/")).as_py() == 180_600
    codes = canonical(events["code"]).unique()
    assert not pc.any(pc.match_substring_regex(codes, r"^ICD9CM/\d{1,2}(\.|$)")).as_py()
    assert found.codes.num_rows > 50
