import csv
import gzip
import json
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import SHARED

from medbert.data.sources.diabetes130 import COLUMNS, Diabetes130
from medbert.data.sources.flat import Flat
from medbert.data.sources.meds import Meds
from medbert.schema import CODES, EVENTS, LABELS, SUBJECT_SPLITS, VISITS, InputError

needs_data = pytest.mark.skipif(
    not SHARED.exists(), reason="the data for measuring (../shared/data) is not on this machine"
)
SECRET = 987654321  # a subject id that no message may show


def day(number):
    return None if number is None else datetime(2020, 1, number)


def check(records):
    """What every source promises."""
    assert records.events.schema.equals(EVENTS)
    assert records.visits.schema.equals(VISITS)
    records.events.validate(full=True)
    assert records.events["code"].null_count == 0
    keys = [(s, t or datetime.min) for s, t in pairs(records.events, "subject_id", "time")]
    assert keys == sorted(keys)
    assert {"name", "time", "set_aside"} <= set(records.metadata)
    json.dumps(records.metadata)
    return records


def pairs(table, *names):
    return [tuple(row[name] for name in names) for row in table.select(names).to_pylist()]


def refused(source, *words):
    """The message of the InputError that reading the source raises; it names all the words."""
    with pytest.raises(InputError) as error:
        source.read()
    said = str(error.value)
    assert [word for word in words if word not in said] == [], said
    assert str(SECRET) not in said
    return said


# ---- MEDS


def meds(folder, *shards, splits=None, **metadata):
    """Write a MEDS folder of shards of rows (subject_id, day, code, hadm_id)."""
    for number, rows in enumerate(shards):
        path = folder / "data" / "train" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, list):
            names = ("subject_id", "time", "code", "hadm_id")
            rows = pa.Table.from_pylist(
                [dict(zip(names, (s, day(t), c, v), strict=True)) for s, t, c, v in rows],
                schema=pa.schema(
                    [
                        ("subject_id", pa.int64()),
                        ("time", pa.timestamp("us")),
                        ("code", pa.dictionary(pa.int32(), pa.large_string())),
                        ("hadm_id", pa.float64()),
                    ]
                ),
            )
        pq.write_table(rows, path)
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    if splits:
        table = pa.table({"subject_id": list(splits[0]), "split": list(splits[1])})
        pq.write_table(table, folder / "metadata" / "subject_splits.parquet")
    for name, table in metadata.items():
        pq.write_table(table, folder / "metadata" / f"{name}.parquet")
    return str(folder)


STAY = [
    (1, None, "GENDER//F", None),
    (1, 2, "HOSPITAL_ADMISSION//A", 7.0),
    (1, 2, "DIAGNOSIS//ICD//10//I509", 7.0),
    (1, 4, "HOSPITAL_DISCHARGE//HOME", 7.0),
]


def test_meds_gives_canonical_codes_visits_splits_and_titles(tmp_path):
    codes = pa.table(
        {
            "code": ["DIAGNOSIS//ICD//10//I509", "ICD10CM/I50.9", "LAB"],
            "description": [None, "Heart failure", None],
            "parent_codes": pa.nulls(3, pa.list_(pa.string())),
        }
    )
    path = meds(tmp_path, STAY, [(2, 1, "LAB", None)], splits=([1, 2], ["train"] * 2), codes=codes)
    (tmp_path / "metadata" / "dataset.json").write_text('{"dataset_name": "toy"}')
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "truth.parquet").touch()
    found = check(Meds(path).read())
    assert pairs(found.events, "time", "code", "visit_id") == [
        (None, "GENDER//F", None),
        (day(2), "HOSPITAL_ADMISSION//A", 7),
        (day(4), "ICD10CM/I50.9", 7),
        (day(4), "HOSPITAL_DISCHARGE//HOME", 7),
        (day(1), "LAB", None),
    ]
    assert pairs(found.visits, "visit_id", "kind", "length_of_stay") == [(7, "inpatient", 2.0)]
    assert found.codes.schema.equals(CODES)
    assert pairs(found.codes, *CODES.names) == [("ICD10CM/I50.9", "Heart failure"), ("LAB", None)]
    assert found.splits.schema.equals(SUBJECT_SPLITS)
    assert found.metadata["name"] == "toy"
    assert found.metadata["time"] == "dates"
    assert found.metadata["moved_to_discharge"] == 1
    assert found.metadata["truth"] == str(tmp_path / "truth" / "truth.parquet")


def test_meds_needs_only_three_columns_and_counts_rows_without_code(tmp_path):
    table = pa.table(
        {
            "subject_id": [1, 1],
            "time": pa.array([day(1), day(2)], pa.timestamp("ns", "UTC")),
            "code": pa.array([" LAB ", None], pa.large_string()),
            "numeric_value": [float("nan"), 1.5],
        }
    )
    found = check(Meds(meds(tmp_path, table)).read())
    assert pairs(found.events, "time", "code", "numeric_value") == [(day(1), "LAB", None)]
    assert found.visits.num_rows == 0
    assert found.codes is None
    assert found.splits is None
    assert found.metadata["set_aside"] == {"no_code": 1}


def test_meds_visit_column_can_be_named(tmp_path):
    table = pa.table({"subject_id": [1], "time": [day(1)], "code": ["A"], "stay": ["12"]})
    path = meds(tmp_path, table)
    assert Meds(path, visit_column="stay").read().visits["visit_id"].to_pylist() == [12]
    refused(Meds(path, visit_column="hadm"), "0.parquet", "'hadm'", "found", "stay")


def test_meds_refuses_a_folder_without_data(tmp_path):
    refused(Meds(str(tmp_path)), str(tmp_path), "data/**/*.parquet", "source.path")
    refused(Meds(str(tmp_path / "no")), str(tmp_path / "no"), "no such", "source.path")


def test_meds_refuses_a_missing_column(tmp_path):
    path = meds(tmp_path, pa.table({"patient_id": [SECRET], "time": [day(1)], "code": ["A"]}))
    refused(Meds(path), "0.parquet", "'subject_id'", "patient_id", "MEDS")


def test_meds_refuses_a_subject_in_two_shards(tmp_path):
    rows = [(SECRET, 1, "A", None)]
    refused(Meds(meds(tmp_path, rows, rows)), "1 subjects", "0.parquet", "1.parquet", "single")


def test_meds_refuses_a_subject_with_two_splits(tmp_path):
    path = meds(tmp_path, STAY, splits=([SECRET, SECRET], ["train", "tuning"]))
    refused(Meds(path), "subject_splits.parquet", "'subject_id'", "1 rows repeat", "remove")


def test_meds_refuses_an_unknown_split(tmp_path):
    path = meds(tmp_path, STAY, splits=([1, SECRET], ["train", "validation"]))
    refused(Meds(path), "subject_splits.parquet", "'split'", "row 2", "held_out", "rename")


def test_meds_refuses_a_truncated_shard(tmp_path):
    path = meds(tmp_path, STAY)
    shard = tmp_path / "data" / "train" / "0.parquet"
    shard.write_bytes(shard.read_bytes()[:-40])
    refused(Meds(path), str(shard), "truncated", "copy")


def test_meds_refuses_rows_without_subject(tmp_path):
    path = meds(tmp_path, [(1, 1, "A", None), (None, 1, "A", None)])
    refused(Meds(path), "0.parquet", "'subject_id'", "row 2", "remove")


@pytest.mark.parametrize(("column", "cure"), [("subject_id", "int64"), ("hadm_id", "visit_column")])
def test_meds_refuses_ids_that_are_no_numbers(tmp_path, column, cure):
    columns = {"subject_id": ["1"], "time": [day(1)], "code": ["A"], "hadm_id": ["2"]}
    path = meds(tmp_path, pa.table(columns | {column: ["A1"]}))
    refused(Meds(path), "0.parquet", f"'{column}'", "whole numbers", cure)


def test_meds_refuses_a_broken_dataset_json(tmp_path):
    path = meds(tmp_path, STAY)
    (tmp_path / "metadata" / "dataset.json").write_text("{")
    refused(Meds(path), "dataset.json", "JSON", "mend")


def test_meds_names_the_rows_of_swapped_stays_by_shard(tmp_path):
    swapped = [(2, 4, "HOSPITAL_ADMISSION", 8.0), (2, 2, "HOSPITAL_DISCHARGE", 8.0)]
    path = meds(tmp_path, STAY, swapped)
    refused(Meds(path), str(tmp_path), "data/train/1.parquet row 2", "admission", "swapped")
    found = check(Meds(path, max_bad_share=0.5).read())
    assert found.metadata["set_aside"] == {"discharge_before_admission": 1}


@needs_data
def test_mimic_demo():
    found = Meds(str(SHARED / "mimic4_demo_meds")).read()
    assert found.events.num_rows == 916_166
    assert len(found.events["subject_id"].unique()) == 100
    assert found.visits["kind"].value_counts().to_pylist() == [
        {"values": "inpatient", "counts": 275}
    ]
    assert found.visits["length_of_stay"].null_count == 0
    assert found.metadata["moved_to_discharge"] == 0  # diagnoses are stamped at discharge there
    assert found.metadata["set_aside"] == {}
    codes = found.events["code"].unique()
    assert not pc.any(pc.starts_with(codes, "DIAGNOSIS//")).as_py()
    assert pc.sum(pc.match_substring_regex(found.events["code"], "^ICD(9|10)CM/")).as_py() == 4506
    assert found.splits.num_rows == 100


# ---- flat


def flat(folder, text, name="events.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_flat_reads_a_csv_with_its_own_names(tmp_path):
    path = flat(
        tmp_path,
        "\ufeffPatNr,Dato,ICD,Kontakt,Inn,Ut,Type,Verdi,Tekst,Kjonn,Fodt,Dod\n"
        '5,02.01.2020,E119,7.0,01.01.2020,04.01.2020,Inpatient,"<5","a ""b"", c",Female,'
        "01.02.1950,\n"
        "5,09.01.2020, i50.9 ,,,,,3.5,,F,01.02.1950,09.01.2020\n"
        "4,03.01.2020,I10,8,03.01.2020,,outpatient,,,m,,\n",
    )
    columns = {"subject_id": "patnr", "time": "dato", "code": "icd", "visit_id": "kontakt"}
    columns |= {"visit_start": "inn", "visit_end": "ut", "visit_kind": "type"}
    columns |= {"numeric_value": "verdi", "text_value": "tekst"}
    columns |= {"sex": "kjonn", "birth": "fodt", "death": "dod"}
    found = check(
        Flat(path, columns=columns, code_prefix="ICD10CM/", time_format="%d.%m.%Y").read()
    )
    assert pairs(found.events, "subject_id", "time", "code", "visit_id") == [
        (4, None, "GENDER//M", None),
        (4, day(3), "ICD10CM/I10", 8),
        (5, None, "GENDER//F", None),
        (5, datetime(1950, 2, 1), "MEDS_BIRTH", None),
        (5, day(4), "ICD10CM/E11.9", 7),
        (5, day(9), "MEDS_DEATH", None),
        (5, day(9), "ICD10CM/I50.9", None),
    ]
    assert found.events["numeric_value"].drop_null().to_pylist() == [3.5]
    assert found.events["text_value"].drop_null().to_pylist() == ['a "b", c']
    assert pairs(found.visits, "visit_id", "kind", "length_of_stay") == [
        (8, "outpatient", 0.0),
        (7, "inpatient", 3.0),
    ]
    assert found.metadata["set_aside"] == {"numeric_value_not_a_number": 1}


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.TSV.gz", "e.parquet"])
def test_flat_reads_the_same_from_every_format(tmp_path, name):
    table = pa.table(
        {
            "subject_id": [2, 1, 1],
            "time": ["2020-01-01", "2020-01-02T03:04:05", "2020-01-01 00:00"],
            "code": ["A", "B", "C"],
        }
    )
    path = tmp_path / name
    if name.endswith("parquet"):
        times = pa.array([day(1), datetime(2020, 1, 2, 3, 4, 5), day(1)], pa.timestamp("ns"))
        pq.write_table(table.set_column(1, "time", times), path)
    else:
        separator = "\t" if "tsv" in name.lower() else ","
        stream = pa.CompressedOutputStream(str(path), "gzip") if "gz" in name else str(path)
        pacsv.write_csv(table, stream, pacsv.WriteOptions(delimiter=separator))
        if "gz" in name:
            stream.close()
    found = check(Flat(str(path)).read())
    assert pairs(found.events, "subject_id", "time", "code") == [
        (1, day(1), "C"),
        (1, datetime(2020, 1, 2, 3, 4, 5), "B"),
        (2, day(1), "A"),
    ]


def test_flat_numbers_ids_that_are_no_numbers(tmp_path):
    header = "subject_id,time,code,visit_id\n"
    path = flat(tmp_path, header + "B,2020-01-01,X,v2\nA,2020-01-01,X,\n B ,2020-01-02,Y,v1\n")
    found = check(Flat(path).read())
    assert pairs(found.events, "subject_id", "code", "visit_id") == [
        (1, "X", None),
        (2, "X", 2),
        (2, "Y", 1),
    ]
    assert "numbered" in found.metadata["subject_ids"]
    path = flat(tmp_path, header + "007,2020-01-01,X,\n7,2020-01-01,X,\n")
    assert len(Flat(path).read().events["subject_id"].unique()) == 2


def test_flat_rebuilds_visits_from_codes_and_moves_diagnoses(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,visit_id\n1,2020-01-01,INN,3\n1,2020-01-01,ICD10_I50,3\n"
        "1,2020-01-09,UT,3\n",
    )
    found = check(Flat(path, admission="^INN$", discharge="^UT$").read())
    assert found.visits["length_of_stay"].to_pylist() == [8.0]
    assert pairs(found.events, "time", "code")[1] == (day(9), "ICD10CM/I50")


def test_flat_sets_rows_aside_and_counts_them(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,sex,birth,death\n"
        "1,2020-01-01,A,F,1950,2021-01-02\n"
        "1,,GENDER//F,M,1951,2021-01-01\n"
        "1,,ICD10CM/I50,F,1950,\n"
        "1,2020-01-02,,F,1950,\n",
    )
    found = check(Flat(path).read())
    assert pairs(found.events, "time", "code") == [
        (None, "GENDER//F"),
        (day(1), "A"),
        (datetime(2021, 1, 1), "MEDS_DEATH"),
    ]
    assert found.metadata["set_aside"] == {
        "no_code": 1,
        "no_time": 1,
        "conflicting_sex": 1,
        "conflicting_birth": 1,
        "conflicting_death": 1,
    }
    found = check(Flat(path, columns={"sex": None, "birth": None, "death": None}).read())
    assert found.metadata["set_aside"] == {"no_code": 1, "no_time": 1}


def test_flat_a_visit_of_two_dates_has_no_length(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,visit_id,visit_start,visit_end\n"
        "1,2020-01-01,A,3,2020-01-01,2020-01-04\n1,2020-01-01,B,3,2020-01-01,2020-01-05\n",
    )
    found = check(Flat(path).read())
    assert pairs(found.visits, "end", "length_of_stay") == [(day(5), None)]
    assert found.metadata["set_aside"] == {"visits_of_several_dates": 1}


def test_flat_refuses_a_missing_column(tmp_path):
    path = flat(tmp_path, f"subject_id,dato,code\n{SECRET},2020-01-01,A\n")
    refused(Flat(path), "events.csv", "'time'", "found subject_id, dato, code", "source.columns")


def test_flat_does_not_show_a_first_line_that_may_be_a_patient(tmp_path):
    path = flat(tmp_path, f"{SECRET},2020-01-01,A\n")
    said = refused(Flat(path), "events.csv", "'subject_id'", "header", "separator")
    assert "2020" not in said
    refused(Flat(flat(tmp_path, "subject_id;time;code\n1;2020-01-01;A\n")), "separator")


def test_flat_refuses_a_separator_of_two_characters(tmp_path):
    path = flat(tmp_path, "subject_id||time||code\n1||2020-01-01||A\n")
    refused(Flat(path, separator="||"), "events.csv", "'||'", "one character", "source.separator")


def test_flat_refuses_a_column_there_twice(tmp_path):
    path = flat(tmp_path, "subject_id,Time,TIME,code\n1,2020-01-01,2020-01-01,A\n")
    refused(Flat(path), "events.csv", "'time'", "2 times", "rename")


def test_flat_refuses_names_that_are_not_ours(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n")
    refused(Flat(path, columns={"date": "time"}), "date", "subject_id, time, code")
    refused(Flat(path, columns={"time": None}), "'time'", "source.columns")


def test_flat_refuses_visit_columns_without_visit(tmp_path):
    path = flat(tmp_path, "subject_id,time,code,visit_start\n1,2020-01-01,A,2020-01-01\n")
    refused(Flat(path), "'visit_start'", "'visit_id'", "source.columns")


@pytest.mark.parametrize("form", [None, "%d.%m.%Y"])
def test_flat_refuses_what_is_no_date_without_showing_it(tmp_path, form):
    good = "2020-01-01" if form is None else "01.01.2020"
    path = flat(tmp_path, f"subject_id,date,code\n1,{good},A\n1,31/12/1987,B\n")
    said = refused(
        Flat(path, columns={"time": "date"}, time_format=form),
        *("events.csv", "'date'", "row 2", "not a date", "time_format"),
    )
    assert "1987" not in said


def test_flat_refuses_a_format_that_is_none(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n")
    refused(Flat(path, time_format="%Q"), "time_format", "%Q")


def test_flat_refuses_rows_without_subject(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,2020-01-01,A\n ,2020-01-01,B\n")
    refused(Flat(path), "events.csv", "'subject_id'", "row 2", "remove")


def test_flat_refuses_swapped_stays(tmp_path):
    path = flat(
        tmp_path,
        "subject_id,time,code,visit_id,visit_start,visit_end\n"
        f"{SECRET},2020-01-01,A,3,2020-01-04,2020-01-01\n",
    )
    refused(Flat(path), "events.csv", "visit_start", "visit_end", "row 1", "swapped")


def test_flat_refuses_another_encoding(tmp_path):
    text = "subject_id,time,code\n" + "1,2020-01-01,A\n" * 5000 + "1,2020-01-01,RØD\n"
    path = flat(tmp_path, text.encode("latin-1"))
    refused(Flat(path), "events.csv", "line 5002", "utf-8", "source.encoding", "latin-1")
    assert Flat(path, encoding="latin-1").read().events["code"][-1].as_py() == "RØD"
    refused(Flat(path, encoding="klingon"), "events.csv", "klingon")


def test_flat_refuses_a_truncated_gz(tmp_path):
    content = gzip.compress(b"subject_id,time,code\n" + b"1,2020-01-01,A\n" * 50_000)
    path = flat(tmp_path, content[: len(content) // 2], "events.csv.gz")
    refused(Flat(path), "events.csv.gz", "truncated", "copy")
    path = flat(tmp_path, b"subject_id,time,code\n", "events.csv.gz")
    refused(Flat(path), "events.csv.gz", "not what its ending says")


def test_flat_refuses_a_truncated_csv_without_showing_the_row(tmp_path):
    path = flat(tmp_path, f"subject_id,time,code\n1,2020-01-01,A\n{SECRET},2020")
    refused(Flat(path), "events.csv", "row 2", "2 columns", "header 3", "export")


@pytest.mark.parametrize("text", ["", "subject_id,time,code\n"])
def test_flat_refuses_an_empty_file(tmp_path, text):
    refused(Flat(flat(tmp_path, text)), "events.csv")


def test_flat_refuses_a_file_without_a_usable_row(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n1,,A\n1,2020-01-01,\n")
    refused(Flat(path), "events.csv", "none of its 2 rows", "source.columns")


def test_flat_refuses_a_parquet_that_is_none(tmp_path):
    path = flat(tmp_path, "subject_id,time,code\n", "events.parquet")
    refused(Flat(path), "events.parquet", "Parquet", "export")


# ---- diabetes130


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


def test_diabetes130_orders_the_encounters_of_a_subject(tmp_path):
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
    found = check(Diabetes130(path).read())
    assert pairs(found.visits, "subject_id", "visit_id", "length_of_stay") == [
        (4, 11, 3.0),
        (5, 10, 3.0),
        (5, 20, 9.0),
    ]
    assert [t.second for t in found.visits["start"].to_pylist()] == [2, 2, 4]
    assert [t.second for t in found.visits["end"].to_pylist()] == [3, 3, 5]
    assert set(found.visits["kind"].to_pylist()) == {"inpatient"}
    first = found.events.filter(pc.equal(found.events["visit_id"], 10)).to_pylist()
    told = [(row["time"].second, row["code"], row["numeric_value"]) for row in first]
    assert told == [
        (2, "AGE//[70-80)", 75.0),
        (2, "ADMISSION_TYPE//1", None),
        (2, "ADMISSION_SOURCE//7", None),
        (2, "WEIGHT//[75-100)", None),
        (2, "PRIOR_OUTPATIENT//0", 0.0),
        (2, "PRIOR_EMERGENCY//0", 0.0),
        (2, "PRIOR_INPATIENT//3+", 4.0),
        (3, "ICD9CM/008", None),
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
    static = found.events.filter(pc.is_null(found.events["time"]))
    assert pairs(static, "subject_id", "code") == [(5, "GENDER//F"), (5, "RACE//Asian")]
    assert found.metadata["time"] == "order"
    assert found.codes is None


def test_diabetes130_readmission_is_a_label_and_never_an_event(tmp_path):
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
    assert month["prediction_time"].to_pylist() == found.visits["end"].to_pylist()[:3]
    assert found.metadata["set_aside"] == {"labels_after_death_or_hospice": 2}
    assert not pc.any(pc.match_substring(found.events["code"], "READM", ignore_case=True)).as_py()


def test_diabetes130_reads_the_file_its_folder_and_the_zip_alike(tmp_path):
    path = Path(encounters(tmp_path / "d", encounter(1, 1), encounter(2, 2)))
    titles = path.with_name("IDS_mapping.csv")
    titles.write_text("admission_type_id,description\n1,Emergency\n6,NULL\n,\nfoo_id,x\n9,y\n")
    packed = tmp_path / "diabetes.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "dataset/diabetic_data.csv")
        archive.write(titles, "dataset/IDs_mapping.csv")
    sources = [Diabetes130(str(place)).read() for place in (path, path.parent, packed)]
    assert all(found.events.equals(sources[0].events) for found in sources)
    assert all(
        pairs(found.codes, *CODES.names) == [("ADMISSION_TYPE//1", "Emergency")]
        for found in sources
    )
    packed.write_bytes(packed.read_bytes()[:-100])
    refused(Diabetes130(str(packed)), "diabetes.zip", "truncated", "download")


def test_diabetes130_refuses_a_foreign_file(tmp_path):
    path = encounters(tmp_path, encounter(1, 1), columns=[c for c in COLUMNS if c != "insulin"])
    refused(Diabetes130(path), "diabetic_data.csv", "'insulin'", "found", "Download")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.csv", "a,b\n")
    refused(Diabetes130(str(tmp_path / "other.zip")), "other.zip", "diabetic_data.csv")
    (tmp_path / "empty").mkdir()
    refused(Diabetes130(str(tmp_path / "empty")), "empty", "diabetic_data.csv", "source.path")


def test_diabetes130_refuses_a_truncated_file(tmp_path):
    path = Path(encounters(tmp_path, encounter(1, 1), encounter(SECRET, 2)))
    path.write_bytes(path.read_bytes()[:-60])
    refused(Diabetes130(str(path)), "diabetic_data.csv", "row 2", "truncated")


def test_diabetes130_refuses_impossible_values(tmp_path):
    path = encounters(tmp_path, encounter(1, 1), encounter(1, 2, time_in_hospital="?"))
    refused(Diabetes130(path), "diabetic_data.csv", "'time_in_hospital'", "row 2", "download")
    path = encounters(tmp_path, encounter(1, 1), encounter(1, 2, readmitted="?"))
    refused(Diabetes130(path), "diabetic_data.csv", "'readmitted'", "row 2", "download")
    path = encounters(tmp_path, encounter(SECRET, 1), encounter(SECRET, 1))
    refused(Diabetes130(path), "diabetic_data.csv", "'encounter_id'", "row 2", "twice")


@needs_data
def test_diabetes130_as_published():
    found = Diabetes130(str(SHARED / "diabetes130")).read()
    assert len(found.visits["subject_id"].unique()) == 42_779
    assert found.visits.num_rows == 60_557
    assert pc.max(found.visits["length_of_stay"]).as_py() == 14
    labels = found.labels["readmission_30d"]
    assert labels.num_rows == 60_557 - 1_438
    assert 0.11 < pc.mean(labels["boolean_value"].cast(pa.int8())).as_py() < 0.12
    diagnoses = pc.sum(pc.starts_with(found.events["code"], "ICD9CM/")).as_py()
    assert diagnoses == 180_600
    short = pc.match_substring_regex(found.events["code"].unique(), r"^ICD9CM/\d{1,2}(\.|$)")
    assert not pc.any(short).as_py()
    assert found.codes.num_rows > 50
