"""MIMIC-IV's hosp/ tables: stays, what is known when, and what is left out."""

import gzip
from datetime import datetime

from drained import SECRET, drain, known, refused, stays

from medbert.data.sources.mimic import MimicIV

HOSP = {
    "patients": """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
10,F,52,2180,2014 - 2016,2180-09-09
11,M,91,2150,2011 - 2013,
12,F,30,2160,2011 - 2013,2161-03-01
13,,20,2170,2011 - 2013,
""",
    "admissions": """subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,\
admission_location,discharge_location,insurance,race
10,200,2180-05-06 22:23:00,2180-05-07 17:15:00,,URGENT,TRANSFER FROM HOSPITAL,HOME,Other,WHITE
10,201,2180-08-05 23:44:00,2180-08-07 17:50:00,2180-08-07 17:50:00,EW EMER.,EMERGENCY ROOM,,O,OTHER
11,202,2150-01-01 08:00:00,2150-01-11 08:00:00,,ELECTIVE,PHYSICIAN REFERRAL,HOME,Other,
""",
    "diagnoses_icd": """subject_id,hadm_id,seq_num,icd_code,icd_version
10,200,1,5723,9
10,200,2,78959 ,9
10,201,1,I5023,10
11,202,1,E119,10
12,999,1,I10,10
10,200,3,,9
10,200,4,4280,8
""",
    "procedures_icd": """subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version
10,200,1,2180-05-07,5491,9
11,202,1,2150-01-03,02HV33Z,10
11,202,2,,02HV33Z,10
""",
    "prescriptions": """subject_id,hadm_id,pharmacy_id,starttime,stoptime,drug_type,drug
10,200,1,2180-05-07 00:00:00,,MAIN,Furosemide
10,200,2,2180-05-07 01:00:00,,MAIN,
""",
    "labevents": """labevent_id,subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom
1,10,,50912,2180-05-06 23:00:00,0.5,0.5,mg/dL
2,10,200,50800,2180-05-06 23:00:00,ART.,,
""",
    "d_icd_diagnoses": """icd_code,icd_version,long_title
5723,9,Portal hypertension
I5023,10,"Acute on chronic systolic heart failure"
""",
    "d_icd_procedures": "icd_code,icd_version,long_title\n5491,9,Percutaneous abdominal drainage\n",
    "d_labitems": "itemid,label,fluid,category\n50912,Creatinine,Blood,Chemistry\n",
}


def hosp(folder, *, under="hosp", gz=("labevents", "admissions"), **tables):
    """A folder of HOSP, with other texts (None: no such file) for some tables."""
    for name, text in (HOSP | tables).items():
        place = folder / under / f"{name}.csv"
        place.parent.mkdir(parents=True, exist_ok=True)
        if text is not None and name in gz:
            place.with_suffix(".csv.gz").write_bytes(gzip.compress(text.encode()))
        elif text is not None:
            place.write_text(text)
    return str(folder)


def of(events, start):
    """(subject, code, time, visit, rank) of the codes that start so."""
    names = ("subject_id", "code", "time", "visit_id", "rank")
    rows = [tuple(event.get(name) for name in names) for event in events]
    return [row for row in rows if row[1].startswith(start)]


def test_stays_and_what_is_known_when(tmp_path):
    events, visits, names, found = drain(MimicIV(hosp(tmp_path)))
    left = datetime(2180, 5, 7, 17, 15)
    assert [tuple(v.values()) for v in visits[:2]] == [
        (10, 200, datetime(2180, 5, 6, 22, 23), left, "inpatient", 0),
        (10, 201, datetime(2180, 8, 5, 23, 44), datetime(2180, 8, 7, 17, 50), "inpatient", 1),
    ]
    assert len(visits) == 3 and names == []
    assert of(events, "ICD9CM") == [
        (10, "ICD9CM/5723", left, 200, 1),
        (10, "ICD9CM/78959", left, 200, 2),
    ]
    assert of(events, "ICD10CM")[0] == (
        *(10, "ICD10CM/I5023", datetime(2180, 8, 7, 17, 50)),
        *(201, 1),
    )
    assert of(events, "ICD9PROC") + of(events, "ICD10PCS") == [
        (10, "ICD9PROC/5491", datetime(2180, 5, 7, 23, 59, 59), 200, 1),
        (11, "ICD10PCS/02HV33Z", datetime(2150, 1, 3, 23, 59, 59), 202, 1),
    ]
    assert of(events, "DRUG") == [(10, "DRUG//Furosemide", datetime(2180, 5, 7), 200, None)]
    labs = [e for e in events if e["code"].startswith("LAB")]
    assert [(e["code"], e["numeric_value"], e["visit_id"]) for e in labs] == [
        ("LAB//50912//mg/dL", 0.5, None),
        ("LAB//50800//UNK", None, 200),
    ]
    assert [row[1] for row in of(events, "HOSPITAL")] == [
        *("HOSPITAL_ADMISSION//URGENT", "HOSPITAL_ADMISSION//EW EMER."),
        *("HOSPITAL_ADMISSION//ELECTIVE", "HOSPITAL_DISCHARGE//HOME"),
        *("HOSPITAL_DISCHARGE//UNK", "HOSPITAL_DISCHARGE//HOME"),
    ]
    counts = {reason: each["count"] for reason, each in found.items()}
    assert counts == {
        "unknown_admission": 1,
        "unknown_icd_version": 1,
        "no_code": 2,
        "no_time": 1,
        "age_over_89_published_as_91": 1,
    }
    assert found["unknown_admission"]["first"] == "diagnoses_icd.csv: column 'hadm_id': row 5"
    assert not of(events, "ICD10CM/I10")


def test_as_a_store(tmp_path, make_store):
    store = make_store(MimicIV(hosp(tmp_path / "mimic")).read())
    assert sorted(store.subject_ids) == [10, 11, 12, 13]
    left = datetime(2180, 5, 7, 17, 15)
    assert [stay for stay in stays(store) if stay[1] != "day"] == [
        (10, "inpatient", datetime(2180, 5, 6, 22, 23), left, 0.786),
        (10, "inpatient", datetime(2180, 8, 5, 23, 44), datetime(2180, 8, 7, 17, 50), 1.754),
        (11, "inpatient", datetime(2150, 1, 1, 8), datetime(2150, 1, 11, 8), 10.0),
    ]
    assert len(stays(store)) == 4 and len(known(store)) == 25
    assert [event for event in known(store) if event[1].startswith("ICD9CM")] == [
        (10, "ICD9CM/572.3", left),
        (10, "ICD9CM/789.59", left),
    ]


def test_people(tmp_path):
    events, *_ = drain(MimicIV(hosp(tmp_path)))
    assert sorted(row[:3] for row in of(events, "MEDS_BIRTH")) == [
        (10, "MEDS_BIRTH", datetime(2128, 1, 1)),
        (11, "MEDS_BIRTH", datetime(2059, 1, 1)),
        (12, "MEDS_BIRTH", datetime(2130, 1, 1)),
        (13, "MEDS_BIRTH", datetime(2150, 1, 1)),
    ]
    # at the first deathtime in hospital, else at the end of dod
    assert sorted(row[:3] for row in of(events, "MEDS_DEATH")) == [
        (10, "MEDS_DEATH", datetime(2180, 8, 7, 17, 50)),
        (12, "MEDS_DEATH", datetime(2161, 3, 1, 23, 59, 59)),
    ]
    assert [row[:2] for row in of(events, "RACE")] == [(10, "RACE//WHITE")]
    sexes = [(10, "GENDER//F"), (11, "GENDER//M"), (12, "GENDER//F")]
    assert [row[:2] for row in of(events, "GENDER")] == sexes


def test_titles_of_the_codes_asked_for(tmp_path):
    resolve = MimicIV(hosp(tmp_path)).read().resolve
    asked = ["ICD9CM/5723", "ICD10CM/I5023", "ICD9PROC/5491", "LAB//50912//mg/dL", "DRUG//x"]
    resolved, titles, _ = resolve(asked)  # ICD diagnoses are known to be some
    assert resolved == asked
    assert titles == {
        "ICD9CM/5723": "Portal hypertension",
        "ICD10CM/I5023": "Acute on chronic systolic heart failure",
        "ICD9PROC/5491": "Percutaneous abdominal drainage",
        "LAB//50912//mg/dL": "Creatinine",
    }
    bare = hosp(tmp_path / "b", d_icd_diagnoses=None, d_icd_procedures=None, d_labitems=None)
    assert MimicIV(bare).read().resolve(["ICD9CM/5723"])[:2] == (["ICD9CM/5723"], {})


def test_any_case_either_folder_and_fewer_tables(tmp_path):
    upper = {name: text.upper() for name, text in HOSP.items()}
    place = hosp(tmp_path / "upper", under=".", **upper)
    for file in (tmp_path / "upper").iterdir():
        file.rename(file.with_name(file.name.upper()))
    whole = hosp(tmp_path / "whole")
    assert len(drain(MimicIV(place))[0]) == len(drain(MimicIV(whole))[0])
    inside = MimicIV(str(tmp_path / "whole" / "hosp"))
    assert drain(inside) == drain(MimicIV(whole))
    few = hosp(tmp_path / "few", labevents=None, prescriptions=None)
    records = MimicIV(few, tables=["diagnoses_icd", "labevents"]).read()
    assert records.metadata["tables"] == ["patients", "admissions", "diagnoses_icd"]
    assert str(tmp_path) not in str(records.metadata)
    older = HOSP["admissions"].replace(",race", ",ethnicity")
    assert not of(drain(MimicIV(hosp(tmp_path / "older", admissions=older)))[0], "RACE")


def test_an_empty_table_holds_nothing(tmp_path):
    header = {name: text.splitlines()[0] + "\n" for name, text in HOSP.items()}
    events, visits, names, found = drain(MimicIV(hosp(tmp_path, **header)))
    assert (events, visits, names, found) == ([], [], [], {})


def test_dirt_is_left_out_and_found(tmp_path):
    dirty = {
        "patients": HOSP["patients"] + ",F,30,2160,2011 - 2013,\n14,F,old,2160,x,soon\n",
        "admissions": HOSP["admissions"] + ",203,2150-01-01,2150-01-02,,A,B,C,D,E\n"
        "12,,2150-01-01,2150-01-02,,A,B,C,D,E\n12,204,2150-01-01,,,A,B,C,D,E\n",
        "diagnoses_icd": HOSP["diagnoses_icd"] + "12,204,1,I10,10\n",
    }
    events, visits, _, found = drain(MimicIV(hosp(tmp_path, **dirty)))
    assert all(row["subject_id"] is not None for row in [*events, *visits])
    assert [v["visit_id"] for v in visits] == [200, 201, 202, 204]
    counts = {reason: each["count"] for reason, each in found.items()}
    assert counts["no_subject"] == 2 and counts["no_visit_id"] == 1
    assert counts["not_a_number"] == 1 and counts["not_a_date"] == 1
    assert counts["no_time"] == 2  # a diagnosis of a stay that has not ended, and a procedure
    assert found["not_a_date"]["first"] == "patients.csv: column 'dod': row 6"


def test_what_is_refused(tmp_path):
    refused(MimicIV(str(tmp_path / "nowhere")), "nowhere", "source.path")
    refused(MimicIV(hosp(tmp_path / "a", patients=None)), "no patients", "hosp/")
    refused(MimicIV(hosp(tmp_path / "b"), tables=["omr"]), "source.tables", "omr", "labevents")
    lacking = hosp(tmp_path / "c", labevents=f"subject_id,hadm_id\n{SECRET},1\n")
    refused(MimicIV(lacking), "labevents.csv.gz", "'charttime'", "'itemid'")
    place = hosp(tmp_path / "d")
    (tmp_path / "d" / "hosp" / "labevents.csv").write_text(HOSP["labevents"])
    refused(MimicIV(place), "labevents.csv and labevents.csv.gz", "remove one")
    place = hosp(tmp_path / "e")
    gz = tmp_path / "e" / "hosp" / "labevents.csv.gz"
    gz.write_bytes(gz.read_bytes()[:-20])
    refused(MimicIV(place), "labevents.csv.gz", "truncated")
    swapped = HOSP["procedures_icd"].replace("2180-05-07", "7.5.2180")
    place = hosp(tmp_path / "f", procedures_icd=swapped)
    refused(MimicIV(place), "procedures_icd.csv", "'chartdate'", "row 1")


def test_the_stamp_changes_with_the_admissions(tmp_path):
    place = hosp(tmp_path, gz=())
    before = [part.stamp for part in MimicIV(place).read().parts]
    (tmp_path / "hosp" / "admissions.csv").write_text(HOSP["admissions"].replace("HOME", "REHAB"))
    after = [part.stamp for part in MimicIV(place).read().parts]
    assert all(old != new for old, new in zip(before, after, strict=True))
