"""Flat tables: their columns, whatever they are called, as events and stated visits."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from drained import SECRET, drain, known, pairs, refused, stays

from medbert.data.sources.flat import Flat
from medbert.schema import STATED_VISITS

SYNTHETIC = Path(__file__).resolve().parents[3] / "data_synthetic" / "events.csv.gz"


def day(number):
    return datetime(2020, 1, number)


def flat(folder, text, name="events.csv"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def german(folder):
    text = (
        "Patient;Datum;Diagnose;Fall;Aufnahme;Entlassung;Art;Wert;Geschlecht;Geburtsdatum;Tod;Ärztin\n"
        "5;02.01.2020;E119;7.0;01.01.2020;04.01.2020;Inpatient;<5;Female;01.02.1950;;x\n"
        "5;09.01.2020; I50.9 ;;;;;3,5;F;01.02.1950;09.01.2020;x\n"
        "4;03.01.2020;LABÖR;8;03.01.2020;;outpatient;1e3;m;;;x\n"
        "4;03.01.2020;I10;8;03.01.2020;;outpatient;1.000;m;;;x\n"
        "4;04.01.2020;I10;9;04.01.2020;;Tagesklinik;;d;;;x\n"
    )
    columns = {"subject_id": "patient", "time": "datum", "code": "diagnose", "visit_id": "fall"}
    columns |= {"visit_start": "aufnahme", "visit_end": "entlassung", "visit_kind": "art"}
    columns |= {"numeric_value": "WERT", "sex": "geschlecht", "birth": "geburtsdatum"}
    return Flat(
        flat(folder, text.encode("latin-1"), "Fälle.csv"),
        columns=columns | {"death": "tod"},
        code_prefix="ICD10GM/",
        time_format="%d.%m.%Y",
        separator=";",
        decimal=",",
        encoding="latin-1",
    )


def test_a_german_csv(tmp_path):
    source = german(tmp_path)
    assert source.read().metadata == {"name": "Fälle", "time": "dates"}
    events, visits, names, found = drain(source)
    told = pairs(events, "subject_id", "time", "code", "numeric_value", "visit_id", "row")
    assert told == [
        (5, None, "GENDER//F", None, None, 0),
        (4, None, "GENDER//M", None, None, 2),
        (4, None, "GENDER//d", None, None, 4),
        (5, datetime(1950, 2, 1), "MEDS_BIRTH", None, None, 0),
        (5, day(9), "MEDS_DEATH", None, None, 1),
        (5, day(2), "ICD10GM/E119", None, 7, 0),
        (5, day(9), "ICD10GM/I50.9", 3.5, None, 1),
        (4, day(3), "ICD10GM/LABÖR", 1000.0, 8, 2),
        (4, day(3), "ICD10GM/I10", None, 8, 3),
        (4, day(4), "ICD10GM/I10", None, 9, 4),
    ]
    assert pairs(visits, *STATED_VISITS.names) == [
        (5, 7, day(1), day(4), "inpatient", None, 0),
        (4, 8, day(3), day(3), "outpatient", None, 2),
        (4, 9, day(4), None, None, None, 4),
    ]
    assert names == []
    assert {reason: said["first"] for reason, said in found.items()} == {
        "not_a_number": "Fälle.csv: column 'Wert': row 1, row 4",
        "unknown_visit_kind": "Fälle.csv: column 'Art': row 5",
    }


def test_a_german_csv_as_a_store(tmp_path, make_store):
    store = make_store(german(tmp_path).read())
    assert sorted(store.subject_ids) == [4, 5]
    assert sorted(stays(store)) == [
        (4, "outpatient", day(3), day(3), 0.0),
        (4, "unknown", day(4), day(4), None),
        (5, "day", day(9), None, None),
        (5, "inpatient", day(1), day(4), 3.0),
    ]
    assert {event for event in known(store) if event[2]} == {
        (5, "MEDS_BIRTH", datetime(1950, 2, 1)),
        (4, "ICD10GM/I10", day(3)),
        (4, "ICD10GM/LABÖR", day(3)),
        (5, "ICD10GM/E119", day(4)),  # a diagnosis of a stay, when it ends
        (4, "ICD10GM/I10", day(4)),
        (5, "MEDS_DEATH", day(9)),
        (5, "ICD10GM/I50.9", day(9)),
    }


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.TSV.gz", "e.parquet"])
def test_every_format_reads_the_same(tmp_path, name):
    table = pa.table(
        {
            "subject_id": [2, 1, 1],
            "time": ["2020-01-01", "2020-01-02T03:04:05", "2020-01-01 00:00"],
            "code": ["A", "B", "C"],
            "sex": ["1", "2", "2"],
        }
    )
    path = tmp_path / name
    if name.endswith("parquet"):
        times = pa.array([day(1), datetime(2020, 1, 2, 3, 4, 5), day(1)], pa.timestamp("ns"))
        table = table.set_column(1, "time", times).set_column(3, "sex", pa.array([1, 2, 2]))
        pq.write_table(table, path)
    else:
        separator = "\t" if "tsv" in name.lower() else ","
        stream = pa.CompressedOutputStream(str(path), "gzip") if "gz" in name else str(path)
        pacsv.write_csv(table, stream, pacsv.WriteOptions(delimiter=separator))
        if "gz" in name:
            stream.close()
    events, _, _, found = drain(Flat(str(path)))
    assert pairs(events, "subject_id", "time", "code") == [
        (2, None, "GENDER//1"),
        (1, None, "GENDER//2"),
        (2, day(1), "A"),
        (1, datetime(2020, 1, 2, 3, 4, 5), "B"),
        (1, day(1), "C"),
    ]
    assert found == {}


def test_a_folder_or_a_glob_is_one_part_a_file(tmp_path):
    header = "subject_id,time,code\n"
    flat(tmp_path, header + "1,2020-01-01,A\n", "part/a.csv")
    flat(tmp_path, header + "1,2020-01-02,B\n", "part/b.CSV")
    flat(tmp_path, "no table", "part/_SUCCESS")
    flat(tmp_path, "no table", "part/.a.csv")
    for path in (tmp_path, tmp_path / "part", tmp_path / "part" / "*.[cC]*"):
        source = Flat(str(path))
        assert pairs(drain(source)[0], "code", "row") == [("A", 0), ("B", 0)]
        assert [part.name for part in source.read().parts] == ["a.csv", "b.CSV"]
    assert Flat(str(tmp_path / "part")).read().metadata["name"] == "part"
    assert Flat(str(tmp_path / "*" / "*.csv")).read().metadata["name"] == "part"
    (tmp_path / "empty").mkdir()
    refused(Flat(str(tmp_path / "empty")), "empty", ".parquet", "source.path")
    refused(Flat(str(tmp_path / "*.none")), "*.none", "no such", "source.path")


def test_a_file_changes_its_stamp(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n")
    before = Flat(path).read().parts[0].stamp
    assert before == Flat(path).read().parts[0].stamp
    flat(tmp_path, "subject_id,time,code\n1,2020-01-01,AB\n")
    assert before != Flat(path).read().parts[0].stamp


def test_ids_that_are_no_numbers_become_numbers_of_their_own(tmp_path):
    header = "subject_id,time,code,visit_id\n"
    path = flat(tmp_path, header + "B,2020-01-01,X,v2\n7,2020-01-01,X,\n B ,2020-01-02,Y,v1\n")
    events, _, names, _ = drain(Flat(path))
    subjects = [event["subject_id"] for event in events]
    assert subjects[0] == subjects[2] >= 2**62
    assert subjects[1] == 7
    assert names == [{"subject_id": subjects[0], "name": "B"}]
    assert len({event["visit_id"] for event in events}) == 3
    path = flat(tmp_path, header + "B,2020-01-01,X,\n", "other.csv")
    assert drain(Flat(path))[0][0]["subject_id"] == subjects[0]


def test_codes_state_visits_where_no_column_does(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,visit_id\n1,2020-01-01,INN,3\n1,2020-01-01,I50,3\n1,2020-01-09,UT,3\n"
        "1,2020-01-09,UT,\n",
    )
    events, visits, _, _ = drain(Flat(path, admission="^INN$", discharge="^UT$"))
    assert len(events) == 4
    assert pairs(visits, "start", "end", "row") == [(day(1), None, 0), (None, day(9), 2)]
    refused(Flat(path, admission="("), "'('", "regular expression")
    refused(Flat(path, static="("), "'('", "regular expression")


def test_rows_without_code_or_time_are_kept_out_and_noted(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,sex,birth,death\n"
        "1,2020-01-01,A,F,1950,2021-01-02\n"
        "1,,GENDER//F,M,1951,2021-01-01\n"
        "1,,ICD10CM/I50,F,1950,\n"
        "1,2020-01-02, ,F,1950,\n",
    )
    events, _, _, found = drain(Flat(path))
    assert pairs(events, "time", "code", "row") == [  # which of two is right, others decide
        (None, "GENDER//F", 0),
        (None, "GENDER//M", 1),
        (datetime(1950, 1, 1), "MEDS_BIRTH", 0),
        (datetime(1951, 1, 1), "MEDS_BIRTH", 1),
        (datetime(2021, 1, 2), "MEDS_DEATH", 0),
        (datetime(2021, 1, 1), "MEDS_DEATH", 1),
        (day(1), "A", 0),
        (None, "GENDER//F", 1),
    ]
    assert found == {
        "no_code": {"count": 1, "first": "events.csv: column 'code': row 4"},
        "no_time": {"count": 1, "first": "events.csv: column 'time': row 3"},
    }
    events, _, _, _ = drain(Flat(path, columns={"sex": None, "birth": None, "death": None}))
    assert pairs(events, "code") == [("A",), ("GENDER//F",)]


def test_a_visit_of_two_dates_is_stated_twice(tmp_path):
    rows = "1,2020-01-01,A,3,2020-01-01,2020-01-04\n" * 3
    rows += "1,2020-01-01,B,3,2020-01-01,2020-01-05\n1,2020-01-01,B,,2020-01-01,\n"
    path = flat(tmp_path, "subject_id,time,code,visit_id,visit_start,visit_end\n" + rows)
    _, visits, _, _ = drain(Flat(path))
    assert pairs(visits, "visit_id", "end", "kind", "row") == [
        (3, day(4), None, 0),
        (3, day(5), None, 3),
    ]


def test_missing_column_is_refused(tmp_path):
    path = flat(tmp_path, f"subject_id,dato,code\n{SECRET},2020-01-01,A\n")
    refused(Flat(path), "events.csv", "'time'", "found subject_id, dato, code", "source.columns")


def test_a_first_line_that_may_be_a_patient_is_not_shown(tmp_path):
    path = flat(tmp_path, f"{SECRET},2020-01-01,A\n")
    said = refused(Flat(path), "events.csv", "'subject_id'", "header", "separator")
    assert "2020" not in said
    refused(Flat(flat(tmp_path, "subject_id;time;code\n1;2020-01-01;A\n")), "separator")


def test_a_separator_of_two_characters_is_refused(tmp_path):
    path = flat(tmp_path, "subject_id||time||code\n1||2020-01-01||A\n")
    refused(Flat(path, separator="||"), "events.csv", "'||'", "one character", "source.separator")


def test_a_column_there_twice_is_refused(tmp_path):
    path = flat(tmp_path, "subject_id,Time,TIME,code\n1,2020-01-01,2020-01-01,A\n")
    refused(Flat(path), "events.csv", "'time'", "2 times", "rename")


def test_names_that_are_not_ours_are_refused(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n")
    refused(Flat(path, columns={"date": "time"}), "date", "subject_id, time, code")
    refused(Flat(path, columns={"time": None}), "'time'", "source.columns")


def test_visit_columns_without_visit_are_refused(tmp_path):
    path = flat(tmp_path, "subject_id,time,code,visit_start\n1,2020-01-01,A,2020-01-01\n")
    refused(Flat(path), "'visit_start'", "'visit_id'", "source.columns")


def test_a_format_that_is_none_is_refused(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n")
    refused(Flat(path, time_format="%Q"), "time_format", "%Q")


def test_the_synthetic_lives_state_every_visit_once():
    columns = {"subject_id": "patient", "time": "event_time", "visit_id": "encounter"}
    columns |= {"visit_start": "admitted", "visit_end": "discharged", "visit_kind": "kind"}
    columns |= {"numeric_value": "value", "birth": "birth_date", "death": "death_date"}
    events, visits, _, found = drain(Flat(str(SYNTHETIC), columns=columns))
    assert found == {}
    assert len({visit["visit_id"] for visit in visits}) == len(visits) == 20_109
    assert sum(event["code"] == "MEDS_BIRTH" for event in events) == 968  # who has any code
