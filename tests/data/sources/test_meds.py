"""MEDS folders: events, stated visits, codes and splits; and what is refused."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from drained import SECRET, drain, pairs, refused

from medbert.data.sources.meds import Meds
from medbert.schema import CODES, SUBJECT_SPLITS, Findings

SYNTHETIC = Path(__file__).resolve().parents[3] / "data_synthetic" / "meds"


def day(number):
    return None if number is None else datetime(2020, 1, number)


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
        pq.write_table(rows, path, row_group_size=2)
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


def test_events_are_as_written_and_codes_state_visits(tmp_path):
    other = [(2, 1, "VISIT//OUTPATIENT", 8.0), (2, 3, "VISIT//EMERGENCY", 9.0)]
    other += [(2, 3, "LAB", 9.0), (2, 5, "VISIT//INPATIENT", 10.0), (2, 6, "VISIT//OTHER", 11.0)]
    other += [(2, 9, "HOSPITAL_ADMISSION", None), (2, None, "HOSPITAL_ADMISSION", 12.0)]
    events, visits, names, found = drain(Meds(meds(tmp_path, STAY, other)))
    assert pairs(events, "subject_id", "time", "code", "visit_id")[:4] == [
        (s, day(t), c, v) for s, t, c, v in STAY
    ]
    assert pairs(events, "row") == [(row,) for row in [*range(4), *range(7)]]
    assert pairs(visits, "visit_id", "start", "end", "kind", "row") == [
        (7, day(2), None, "inpatient", 1),
        (7, None, day(4), "inpatient", 3),
        (8, day(1), day(1), "outpatient", 0),
        (9, None, None, "emergency", 1),
        (10, None, None, "inpatient", 3),
        (12, None, None, "inpatient", 6),
    ]
    assert (names, found) == ([], {})


def test_patterns_can_be_chosen(tmp_path):
    path = meds(tmp_path, [(1, 1, "INN//OUTPATIENT", 3), (1, 9, "UT", 3)])
    _, visits, _, _ = drain(Meds(path, admission="^INN", discharge="^UT$"))
    assert pairs(visits, "start", "end") == [(day(1), None), (None, day(9))]
    _, visits, _, _ = drain(Meds(path, admission="^(INN|UT)", discharge="^(INN|UT)"))
    assert pairs(visits, "start", "end", "kind") == [(day(d), day(d), "inpatient") for d in (1, 9)]
    refused(Meds(path, discharge="("), "'('", "regular expression")


def test_codes_splits_and_truth_are_given(tmp_path):
    codes = pa.table(
        {
            "code": [" A", "A", "A", "LAB", None],
            "description": [None, "First", "Second", None, "x"],
            "parent_codes": pa.array([None, None, ["B", "C"], None, None], pa.list_(pa.string())),
        }
    )
    path = meds(tmp_path, STAY, splits=([1, 2], ["train"] * 2), codes=codes)
    (tmp_path / "metadata" / "dataset.json").write_text('{"dataset_name": "toy"}')
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "truth.parquet").touch()
    found = Meds(path).read()
    assert found.codes.schema.equals(CODES)
    assert pairs(found.codes.to_pylist(), *CODES.names) == [
        ("A", "First", ["B", "C"]),
        ("LAB", None, None),
    ]
    assert found.splits.schema.equals(SUBJECT_SPLITS)
    assert found.metadata == {"name": "toy", "time": "dates", "dataset": {"dataset_name": "toy"}}
    assert found.files == {"truth.parquet": str(tmp_path / "truth" / "truth.parquet")}
    assert found.one_file_each


def test_codes_without_parents_and_empty_tables(tmp_path):
    codes = pa.table({"code": ["A", "A"], "description": [None, "x"]})
    found = Meds(meds(tmp_path, STAY, codes=codes)).read()
    assert found.codes.to_pylist() == [{"code": "A", "description": "x", "parent_codes": None}]
    empty = pa.table({"subject_id": pa.array([], pa.int64()), "split": pa.array([], pa.string())})
    found = Meds(meds(tmp_path, STAY, codes=codes.slice(2), subject_splits=empty)).read()
    assert found.codes.num_rows == found.splits.num_rows == 0
    assert found.codes.schema.equals(CODES)


def test_three_columns_are_enough(tmp_path):
    table = pa.table(
        {
            "subject_id": [1, 1],
            "time": pa.array([day(1), day(2)], pa.timestamp("ns", "UTC")),
            "code": pa.array([" LAB ", None], pa.large_string()),
            "numeric_value": [float("nan"), 1.5],
        }
    )
    source = Meds(meds(tmp_path, table))
    events, visits, _, found = drain(source)
    assert pairs(events, "time", "code", "numeric_value") == [(day(1), "LAB", None)]
    assert visits == []
    assert source.read().codes is source.read().splits is None
    assert found["no_code"]["count"] == 1
    assert found["no_code"]["first"] == "data/train/0.parquet: column 'code': row 2"
    assert found["times_with_a_zone_read_as_utc"]["count"] == 2


def test_codes_with_blanks_are_trimmed(tmp_path):
    rows = [(1, 1, " A ", None), (1, 2, "A", None), (1, 3, "  ", None), (1, 4, "B\t", None)]
    events, _, _, found = drain(Meds(meds(tmp_path, rows)))
    assert pairs(events, "code") == [("A",), ("A",), ("B",)]
    assert found["no_code"]["first"].endswith("0.parquet: column 'code': row 3")


def test_visit_column_can_be_named(tmp_path):
    table = pa.table({"subject_id": [1], "time": [day(1)], "code": ["A"], "stay": ["12"]})
    path = meds(tmp_path, table)
    assert pairs(drain(Meds(path, visit_column="stay"))[0], "visit_id") == [(12,)]
    refused(Meds(path, visit_column="hadm"), "0.parquet", "'hadm'", "found", "stay")


def test_ids_that_are_no_numbers_are_the_same_in_data_and_splits(tmp_path):
    table = pa.table({"subject_id": ["A1", "7"], "time": [day(1)] * 2, "code": ["A", "B"]})
    source = Meds(meds(tmp_path, table, splits=(["A1", "7"], ["train", "tuning"])))
    events, _, names, _ = drain(source)
    ids = source.read().splits["subject_id"].to_pylist()
    assert pairs(events, "subject_id") == [(one,) for one in ids]
    assert ids[1] == 7
    assert names == [{"subject_id": ids[0], "name": "A1"}]


def test_folder_without_data_is_refused(tmp_path):
    refused(Meds(str(tmp_path)), str(tmp_path), "data/**/*.parquet", "source.path")
    refused(Meds(str(tmp_path / "no")), str(tmp_path / "no"), "no such", "source.path")


def test_missing_column_is_refused(tmp_path):
    path = meds(tmp_path, pa.table({"patient_id": [SECRET], "time": [day(1)], "code": ["A"]}))
    refused(Meds(path), "0.parquet", "'subject_id'", "patient_id", "MEDS")


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (([SECRET, SECRET], ["train", "tuning"]), ("'subject_id'", "1 rows repeat", "remove")),
        (([1, SECRET], ["train", "validation"]), ("'split'", "row 2", "held_out", "Rename")),
        (([1, SECRET], ["train", None]), ("'split'", "row 2", "held_out", "Rename")),
        (([1, None], ["train", "train"]), ("'subject_id'", "row 2", "remove")),
    ],
)
def test_unclear_splits_are_refused(tmp_path, splits, words):
    refused(Meds(meds(tmp_path, STAY, splits=splits)), "subject_splits.parquet", *words)


def test_truncated_shard_is_refused(tmp_path):
    path = meds(tmp_path, STAY)
    shard = tmp_path / "data" / "train" / "0.parquet"
    shard.write_bytes(shard.read_bytes()[:-40])
    refused(Meds(path), "data/train/0.parquet", "truncated", "copy")


def test_few_rows_without_subject_are_kept_out_and_many_are_refused(tmp_path):
    rows = [(1, 1, "A", 5.0)] * 299 + [(None, 1, "HOSPITAL_ADMISSION", 5.0)]
    events, visits, _, found = drain(Meds(meds(tmp_path, rows)))
    assert len(events) == 299
    assert visits == []
    assert found["no_subject"] == {
        "count": 1,
        "first": "data/train/0.parquet: column 'subject_id': row 300",
    }
    path = meds(tmp_path, [(1, 1, "A", None), (None, 1, "A", None)])
    refused(Meds(path), "0.parquet", "'subject_id'", "row 2", "remove")


def test_broken_dataset_json_is_refused(tmp_path):
    path = meds(tmp_path, STAY)
    (tmp_path / "metadata" / "dataset.json").write_text("{")
    refused(Meds(path), "dataset.json", "JSON", "mend")


def test_synthetic_lives():
    events, visits, _, found = drain(Meds(str(SYNTHETIC)))
    assert found == {}
    assert len({event["subject_id"] for event in events}) == 1000
    inside = {event["visit_id"] for event in events} - {None}
    assert {visit["visit_id"] for visit in visits} == inside
    assert all(
        (visit["start"] == visit["end"]) == (visit["kind"] in ("outpatient", "emergency"))
        for visit in visits
    )


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not on this machine")
def test_mimic_demo():
    source = Meds(str(SHARED / "mimic4_demo_meds"))
    findings, events, visits = Findings(), [], []
    for part in source.read().parts:
        for piece in part.pieces(findings):
            events.append(piece.events)
            visits.append(piece.visits)
    events, visits = pa.concat_tables(events).unify_dictionaries(), pa.concat_tables(visits)
    assert events.num_rows == 916_166
    assert len(events["subject_id"].unique()) == 100
    assert len(visits["visit_id"].unique()) == 275
    assert visits["start"].null_count == visits["end"].null_count == 275
    assert visits["kind"].unique().to_pylist() == ["inpatient"]
    assert findings.to_dict() == {}
    codes = events["code"].cast(pa.string())
    assert pc.sum(pc.starts_with(codes, "DIAGNOSIS//ICD//")).as_py() == 4506
    assert source.read().splits.num_rows == 100
