"""Synthea's CSV export: UUIDs, kinds of encounters, vocabularies, titles; and what is refused."""

from datetime import datetime
from functools import partial

import pyarrow as pa
from drained import drain, known, stays
from drained import refused as refused_by

from medbert.data.sources.columns import identifiers
from medbert.data.sources.synthea import Synthea

ADA, BOB = "034e9e3b-2def-4559-bb2a-7850888ae060", "10339b10-3cd1-4ac3-ac13-ec26728cb592"
ONE, TWO, SNF = "748f8357-6cc7-551d-f31a-32fa2cf84126", "b2e7a3c8-aaaa", "b2e7a3c8-bbbb"
refused = partial(refused_by, secrets=(ADA, BOB))
TABLES = {
    "patients": f"""Id,BIRTHDATE,DEATHDATE,SSN,FIRST,LAST,RACE,ETHNICITY,GENDER
{ADA},1959-10-14,2019-06-30,999-1,Ada9,X,white,nonhispanic,F
{BOB},1962-10-24,,999-2,Bob9,Y,black,nonhispanic,M
""",
    "encounters": f"""Id,START,STOP,PATIENT,ORGANIZATION,ENCOUNTERCLASS,CODE,DESCRIPTION
{ONE},2019-03-01T10:00:00Z,2019-03-04T10:00:00Z,{ADA},o,inpatient,1,Stay
{TWO},2019-05-01T10:00:00Z,2019-05-01T10:15:00Z,{BOB},o,urgentcare,2,Visit
{SNF},2019-06-01T10:00:00Z,2019-06-20T10:00:00Z,{ADA},o,snf,3,Care
b2e7a3c8-cccc,2019-07-01T10:00:00Z,2019-07-01T10:15:00Z,{BOB},o,wellness,4,Check
""",
    "conditions": f"""START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION
2019-03-01,,{ADA},{ONE},http://snomed.info/sct,44054006,Diabetes mellitus type 2 (disorder)
2019-05-01,,{BOB},{TWO},http://hl7.org/fhir/sid/icd-10-cm,J06.9,Acute infection
2019-05-01,,{BOB},{TWO},,160903007,Full-time employment (finding)
""",
    "medications": f"""START,STOP,PATIENT,PAYER,ENCOUNTER,CODE,DESCRIPTION,BASE_COST
2019-03-01T11:00:00Z,,{ADA},p,{ONE},860975,Metformin 500 MG,1.0
""",
    "procedures": f"""START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION,BASE_COST
2019-03-02T09:00:00Z,2019-03-02T10:00:00Z,{ADA},{ONE},SNOMED-CT,430193006,Reconciliation,1
""",
    "observations": f"""DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE
2019-03-01T10:00:00Z,{ADA},{ONE},vital-signs,8302-2,Body Height,165.5,cm,numeric
2019-03-01T10:00:00Z,{ADA},,social-history,72166-2,Tobacco status,Never smoker,,text
""",
}


def folder_of(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (TABLES | tables).items():
        if text is not None:
            (folder / f"{name}.csv").write_text(text)
    return str(folder)


def number(*words):
    found = identifiers(pa.chunked_array([list(words)])).to_pylist()
    return found[0] if len(found) == 1 else found


def codes(events):
    return [(e["code"], e["time"]) for e in events if e.get("visit_id") or "LOINC" in e["code"]]


def test_events_visits_and_names(tmp_path):
    events, visits, names, found = drain(Synthea(folder_of(tmp_path)))
    ada, bob = number(ADA, BOB)
    assert {name["name"]: name["subject_id"] for name in names} == {ADA: ada, BOB: bob}
    assert ada > 2**62 and {row["subject_id"] for row in [*events, *visits]} == {ada, bob}
    kinds = ["inpatient", "emergency", "inpatient", "outpatient"]
    assert [v["kind"] for v in visits] == kinds
    assert visits[0] == {
        **{"subject_id": ada, "visit_id": number(ONE), "kind": "inpatient", "row": 0},
        **{"start": datetime(2019, 3, 1, 10), "end": datetime(2019, 3, 4, 10)},
    }
    assert codes(events) == [
        ("SNOMED/44054006", datetime(2019, 3, 1, 23, 59, 59)),
        ("ICD10CM/J06.9", datetime(2019, 5, 1, 23, 59, 59)),
        ("SNOMED/160903007", datetime(2019, 5, 1, 23, 59, 59)),
        ("SNOMED/430193006", datetime(2019, 3, 2, 9)),
        ("RxNorm/860975", datetime(2019, 3, 1, 11)),
        ("LOINC/8302-2", datetime(2019, 3, 1, 10)),
        ("LOINC/72166-2", datetime(2019, 3, 1, 10)),
    ]
    values = [(e["numeric_value"], e["visit_id"]) for e in events[-2:]]
    assert values == [(165.5, number(ONE)), (None, None)]  # an answer in words is no number
    people = [(e["subject_id"], e["code"], e.get("time")) for e in events if not e.get("visit_id")]
    assert set(people[:7]) == {
        (ada, "MEDS_BIRTH", datetime(1959, 10, 14)),
        (bob, "MEDS_BIRTH", datetime(1962, 10, 24)),
        (ada, "MEDS_DEATH", datetime(2019, 6, 30, 23, 59, 59)),
        (ada, "GENDER//F", None),
        (bob, "GENDER//M", None),
        (ada, "RACE//white", None),
        (bob, "RACE//black", None),
    }
    assert found == {}


def test_a_condition_of_a_stay_is_known_in_the_store_at_its_end(tmp_path, make_store):
    store = make_store(Synthea(folder_of(tmp_path / "csv")).read())
    ada, bob = number(ADA, BOB)
    left = datetime(2019, 3, 4, 10)
    assert sorted(stays(store), key=lambda stay: (stay[0], stay[2])) == sorted(
        [
            (ada, "inpatient", datetime(2019, 3, 1, 10), left, 3.0),
            (ada, "day", datetime(2019, 3, 1, 10), None, None),  # an answer outside any encounter
            (ada, "inpatient", datetime(2019, 6, 1, 10), datetime(2019, 6, 20, 10), 19.0),
            (bob, "emergency", datetime(2019, 5, 1, 10), datetime(2019, 5, 1, 10, 15), 0.01),
            (bob, "outpatient", datetime(2019, 7, 1, 10), datetime(2019, 7, 1, 10, 15), 0.01),
        ],
        key=lambda stay: (stay[0], stay[2]),
    )
    before = {code for subject, code, _ in known(store, "2019-03-04T09:59:59") if subject == ada}
    assert {"SNOMED/430193006", "RxNorm/860975", "LOINC/8302-2"} < before  # as they happened
    assert "SNOMED/44054006" not in before
    assert (ada, "SNOMED/44054006", left) in known(store, "2019-03-04T10:00:00")
    assert len(known(store)) == 14 and len(store) == 2


def test_the_ids_of_a_subject_do_not_depend_on_the_others(tmp_path):
    whole = drain(Synthea(folder_of(tmp_path / "a")))[2]
    alone = TABLES["patients"].splitlines()
    patients = "\n".join([alone[0], alone[2]]) + "\n"
    part = drain(Synthea(folder_of(tmp_path / "b", patients=patients)))[2]
    assert part == [name for name in whole if name["name"] == BOB]


def test_titles_of_the_codes_asked_for(tmp_path):
    again = f"2019-03-01,,{ADA},{ONE},,44054006,Diabetes\n"
    source = Synthea(folder_of(tmp_path, conditions=TABLES["conditions"] + again))
    asked = ["SNOMED/44054006", "LOINC/8302-2", "ICD10CM/J06.9", "GENDER//F"]
    resolved, titles, diagnoses = source.read().resolve(asked)
    assert resolved == asked
    assert diagnoses == {"SNOMED/44054006", "ICD10CM/J06.9", "SNOMED/160903007"}
    assert titles == {
        "SNOMED/44054006": "Diabetes",  # of several the first in the alphabet, whatever the rows
        "LOINC/8302-2": "Body Height",
        "ICD10CM/J06.9": "Acute infection",
    }


def test_older_exports_and_other_cases(tmp_path):
    older = {
        "conditions": f"start,stop,patient,encounter,code,description\n"
        f"2019-03-01,,{ADA},{ONE},44054006,Diabetes\n",
        "procedures": f"DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2019-03-02,{ADA},{ONE},43,x\n",
        "patients": TABLES["patients"].replace("Id,", "ID,").replace("RACE", "OTHER"),
        "medications": None,
    }
    place = folder_of(tmp_path, **older)
    (tmp_path / "conditions.csv").rename(tmp_path / "Conditions.CSV")
    records = Synthea(place).read()
    assert records.metadata == {
        **{"name": "synthea", "time": "dates"},
        "tables": ["patients", "encounters", "conditions", "procedures", "observations"],
    }
    events = drain(Synthea(place))[0]
    assert codes(events)[:2] == [
        ("SNOMED/44054006", datetime(2019, 3, 1, 23, 59, 59)),
        ("SNOMED/43", datetime(2019, 3, 2, 23, 59, 59)),
    ]
    assert not [e for e in events if e["code"].startswith("RACE")]


def test_dirt_is_left_out_and_found(tmp_path):
    conditions = TABLES["conditions"] + f"2019-03-01,,,{ONE},,1,x\n,,{ADA},{ONE},,2,x\n"
    conditions += f"2019-03-01,,{ADA},{ONE},, ,x\nyesterday,,{ADA},{ONE},,3,x\n"
    encounters = TABLES["encounters"] + f",2019-07-01T10:00:00Z,,{BOB},o,wellness,4,Check\n"
    place = folder_of(tmp_path, conditions=conditions, encounters=encounters)
    events, visits, _, found = drain(Synthea(place))
    assert len([e for e in events if e["code"].startswith(("SNOMED", "ICD"))]) == 4
    assert len(visits) == 4
    reasons = ("no_subject", "no_time", "no_code", "not_a_date", "no_visit_id")
    assert [found[reason]["count"] for reason in reasons] == [1] * 5
    assert found["not_a_date"]["first"] == "conditions.csv: column 'START': row 7"
    assert found["no_visit_id"]["first"] == "encounters.csv: column 'Id': row 5"


def test_an_empty_table_holds_nothing(tmp_path):
    header = {name: text.splitlines()[0] + "\n" for name, text in TABLES.items()}
    source = Synthea(folder_of(tmp_path, **header))
    assert drain(source) == ([], [], [], {})
    assert source.read().resolve([]) == ([], {}, set())


def test_what_is_refused(tmp_path):
    refused(Synthea(str(tmp_path / "nowhere")), "nowhere", "source.path")
    refused(Synthea(folder_of(tmp_path / "a", encounters=None)), "no encounters", "csv/")
    refused(Synthea(folder_of(tmp_path / "b"), tables=["claims"]), "source.tables", "claims")
    nameless = folder_of(tmp_path / "c", conditions=f"{ADA},{ONE}\n")
    refused(Synthea(nameless), "conditions.csv", "'PATIENT'", "header")
    refused(Synthea(str(tmp_path / "b" / "patients.csv")), "patients.csv", "not a folder")
    ragged = TABLES["observations"] + f"2019-03-01T10:00:00Z,{ADA},{ONE},a,b\n"
    refused(Synthea(folder_of(tmp_path / "d", observations=ragged)), "observations.csv", "row 3")
