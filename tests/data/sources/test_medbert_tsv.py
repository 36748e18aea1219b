"""Med-BERT's own table: visits by day of discharge, and the order of codes inside one."""

from datetime import datetime

import pytest
from conftest import SHARED
from drained import SECRET, drain, known, refused, stays

from medbert.data.sources.medbert_tsv import MedBertTable

HEADER = "patient_id\tvadate\tvddate\tdiag\tpoa\tdiagnosis_priority\tthird_party_ind\n"


def table(folder, *rows, header=HEADER, name="data_file.tsv"):
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / name
    place.write_text(header + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return str(place)


def in_order(events):
    return [e["code"] for e in sorted(events, key=lambda e: e["rank"])]


def test_order_inside_a_visit(tmp_path):
    stay = (1, "2020-01-01", "2020-01-05")
    rows = [
        (*stay, "unranked", "", "", ""),
        (*stay, "last poa", 9, 1, 0),
        (*stay, "no priority", 1, "", 0),
        (*stay, "billed", 1, 1, 1),
        (*stay, "tenth", 1, 10, 0),
        (*stay, "second", 1, 2, 0),
    ]
    wanted = ["second", "tenth", "no priority", "billed", "last poa", "unranked"]
    events, *_ = drain(MedBertTable(table(tmp_path, *rows)))
    assert in_order(events) == wanted
    extremes = [(*stay, "big", 10**6, 10**6, 10**6), (*stay, "small", -5, -5, -5)]
    events, *_ = drain(MedBertTable(table(tmp_path / "b", *extremes)))
    assert in_order(events) == ["small", "big"]


def test_visits_are_days_of_discharge(tmp_path):
    rows = [
        (1, "2020-01-01", "2020-01-05", "A", 1, 1, 0),
        (1, "2020-01-03", "2020-01-05", "B", 1, 1, 0),  # another admission, the same discharge
        (1, "2020-01-03", "2020-01-05", "C", 1, 1, 0),
        (2, "2020-01-05", "2020-01-05", "A", 1, 1, 0),
        (2, "2020-01-07", "2020-01-06", "A", 1, 1, 0),  # the engine's to settle
        (2, "", "2020-01-09", "A", 1, 1, 0),
    ]
    events, visits, names, found = drain(MedBertTable(table(tmp_path, *rows)))
    assert {e["time"] for e in events[:3]} == {datetime(2020, 1, 5, 23, 59, 59)}
    assert [e["visit_id"] for e in events] == [18266, 18266, 18266, 18266, 18267, 18270]
    said = ("subject_id", "visit_id", "kind", "length_of_stay", "row")
    assert [tuple(v[name] for name in said) for v in visits] == [
        (1, 18266, "inpatient", 4.0, 0),
        (1, 18266, "inpatient", 2.0, 1),
        (2, 18266, "unknown", 0.0, 3),
        (2, 18267, "unknown", None, 4),
        (2, 18270, None, None, 5),
    ]
    assert visits[3]["end"] < visits[3]["start"] == datetime(2020, 1, 7)
    assert (names, found) == ([], {})


def test_names_case_order_and_columns_beyond(tmp_path):
    header = "DIAG\tother\tVDDATE\tVaDate\tPatient_ID\n"
    place = table(
        tmp_path, ("A", "x", "05.01.2020", "01.01.2020", "p-7"), header=header, name="d.tsv.txt"
    )
    events, visits, names, _ = drain(MedBertTable(place, time_format="%d.%m.%Y"))
    assert names == [{"subject_id": events[0]["subject_id"], "name": "p-7"}]
    assert visits[0]["length_of_stay"] == 4.0
    records = MedBertTable(place).read()
    assert records.metadata == {"name": "d", "time": "dates"} and not records.own_visit_ids


def test_a_folder_has_a_part_per_file(tmp_path):
    for number in range(2):
        row = (number, "2020-01-01", "2020-01-05", "A", 1, 1, 0)
        table(tmp_path, row, name=f"{number}.tsv")
    records = MedBertTable(str(tmp_path)).read()
    assert [part.name for part in records.parts] == ["0.tsv", "1.tsv"]
    assert [e["subject_id"] for e in drain(MedBertTable(str(tmp_path)))[0]] == [0, 1]


def test_dirt_is_left_out_and_found(tmp_path):
    rows = [
        ("", "2020-01-01", "2020-01-05", "A", 1, 1, 0),
        (1, "2020-01-01", "2020-01-05", " ", 1, 1, 0),
        (1, "2020-01-01", "", "A", 1, 1, 0),
        (1, "2020-01-01", "soon", "A", 1, 1, 0),
        (1, "2020-01-01", "2020-01-05", "B", "Y", 1, 0),
    ]
    events, visits, _, found = drain(MedBertTable(table(tmp_path, *rows)))
    assert [(e["subject_id"], e["code"]) for e in events] == [(1, "B")]
    assert {(v["subject_id"], v["visit_id"]) for v in visits} == {(1, 18266)}
    reasons = {"no_subject", "no_code", "no_time", "not_a_date", "not_a_number"}
    assert {reason: each["count"] for reason, each in found.items()} == dict.fromkeys(reasons, 1)
    assert found["no_time"]["first"] == "data_file.tsv: column 'vddate': row 3"
    assert found["not_a_number"]["first"] == "data_file.tsv: column 'poa': row 5"
    assert drain(MedBertTable(table(tmp_path / "empty"))) == ([], [], [], {})


def test_what_is_refused(tmp_path):
    refused(MedBertTable(str(tmp_path / "nowhere.tsv")), "nowhere.tsv", "source.path")
    row = (SECRET, "2020-01-01", "2020-01-05", "A", 1, 1, 0)
    refused(MedBertTable(table(tmp_path, row, header="")), "data_file.tsv", "'patient_id'")
    refused(MedBertTable(table(tmp_path, row), separator=","), "data_file.tsv", "separator")
    bad = table(tmp_path, (SECRET, "1.1.2020", "5.1.2020", "A", 1, 1, 0))
    refused(MedBertTable(bad), "data_file.tsv", "'vadate'", "row 1", "source.time_format")
    (tmp_path / "none").mkdir()
    refused(MedBertTable(str(tmp_path / "none")), "none", ".tsv")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not on this machine")
def test_the_example_of_med_bert(make_store):
    source = MedBertTable(str(SHARED / "medbert_example" / "data_file.tsv"))
    events, visits, names, found = drain(source, max_bad_share=0.0)
    assert len(events) == 9 and {e["subject_id"] for e in events} == {1, 2}
    assert [v["length_of_stay"] for v in visits] == [0.0, 2.0, 0.0, 0.0, 12.0]
    assert (names, found) == ([], {})
    store = make_store(source.read())
    assert [(subject, days) for subject, *_, days in stays(store)] == [
        *((1, 0.0), (1, 2.0), (2, 0.0), (2, 0.0), (2, 12.0)),
    ]
    assert [code for _, code, _ in known(store, "2014-04-06")] == [  # before a stay ended
        *("ICD9CM/150.6", "ICD9CM/152.53"),
        *("ICD9CM/150", "ICD9CM/240.1", "ICD9CM/001.2", "ICD9CM/240.1"),
    ]
