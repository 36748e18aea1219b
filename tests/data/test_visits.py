from datetime import datetime

import pyarrow as pa
import pytest

from medbert.data.visits import from_events, known_at_discharge, sort_events
from medbert.schema import EVENTS, VISITS, InputError

IN, OUT = "HOSPITAL_ADMISSION//URGENT", "HOSPITAL_DISCHARGE//HOME"


def day(number, hour=0):
    return None if number is None else datetime(2020, 1, number, hour)


def events(*rows):
    """Rows of (subject_id, day, code, visit_id)."""
    columns = [{"subject_id": s, "time": day(t), "code": c, "visit_id": v} for s, t, c, v in rows]
    return pa.Table.from_pylist(columns, schema=EVENTS)


def visits_of(*rows, **options):
    table, set_aside = from_events(events(*rows), file="shard", **options)
    assert table.schema.equals(VISITS)
    return {row["visit_id"]: row for row in table.to_pylist()}, set_aside


def test_a_stay_runs_from_admission_to_discharge():
    found, set_aside = visits_of(
        (1, 1, "LAB", 7), (1, 2, IN, 7), (1, 9, OUT, 7), (1, 10, "LAB", 7), (1, 3, "LAB", None)
    )
    assert list(found) == [7]
    assert (found[7]["start"], found[7]["end"]) == (day(2), day(9))
    assert (found[7]["kind"], found[7]["length_of_stay"]) == ("inpatient", 7.0)
    assert set_aside == {}


def test_a_missing_discharge_leaves_the_stay_unknown():
    found, set_aside = visits_of((1, 2, IN, 7), (1, 5, "LAB", 7))
    assert (found[7]["start"], found[7]["end"], found[7]["length_of_stay"]) == (day(2), None, None)
    assert set_aside == {}


def test_the_kinds_of_visits_without_admission():
    found, _ = visits_of(
        (1, 2, "VISIT//OUTPATIENT", 1),
        (1, 3, "LAB", 2),
        (1, 5, "LAB", 2),
        (1, 6, "VISIT//EMERGENCY", 3),
        (1, 8, "VISIT//INPATIENT", 4),
        (1, 9, OUT, 4),
        (1, None, "LAB", 5),
    )
    assert [found[v]["kind"] for v in range(1, 6)] == [
        *("outpatient", "unknown", "emergency"),
        *("inpatient", "unknown"),
    ]
    assert [found[v]["length_of_stay"] for v in range(1, 6)] == [0.0, None, None, 1.0, None]
    assert (found[1]["start"], found[1]["end"]) == (day(2), day(2))
    assert (found[2]["start"], found[2]["end"]) == (day(3), day(5))
    assert (found[5]["start"], found[5]["end"]) == (None, None)


def test_visits_are_ordered_and_belong_to_their_subject():
    table, _ = from_events(
        events((2, 1, "LAB", 1), (1, 9, "LAB", 1), (1, 3, "LAB", 2)), file="shard"
    )
    assert table["subject_id"].to_pylist() == [1, 1, 2]
    assert table["visit_id"].to_pylist() == [2, 1, 1]


def test_a_few_swapped_stays_lose_their_length_and_are_counted():
    good = [row for v in range(1, 101) for row in ((1, 2, IN, v), (1, 4, OUT, v))]
    found, set_aside = visits_of(*good, (2, 9, IN, 200), (2, 8, OUT, 200))
    assert set_aside == {"discharge_before_admission": 1}
    assert (found[200]["start"], found[200]["end"]) == (day(9), None)
    assert found[200]["length_of_stay"] is None


def test_many_swapped_stays_stop():
    rows = [(98765, 3, "LAB", 1), (98765, 9, IN, 1), (98765, 8, OUT, 1)]
    with pytest.raises(InputError) as error:
        visits_of(*rows)
    said = str(error.value)
    assert "shard" in said
    assert "row 3" in said
    assert "discharge code" in said
    assert "swapped" in said
    assert "98765" not in said
    found, set_aside = visits_of(*rows, max_bad_share=1.0)
    assert set_aside == {"discharge_before_admission": 1}
    assert found[1]["length_of_stay"] is None


def test_other_admission_codes():
    found, _ = visits_of((1, 2, "INN", 7), (1, 3, "UT", 7), admission="^INN$", discharge="^UT$")
    assert found[7]["length_of_stay"] == 1.0
    with pytest.raises(InputError, match="regular expression"):
        visits_of((1, 2, IN, 7), admission="(")


def test_no_visits_at_all():
    assert visits_of((1, 2, "LAB", None)) == ({}, {})


def test_diagnoses_become_known_at_discharge_and_never_earlier():
    table = events(
        (1, 2, IN, 7),
        (1, 2, "ICD10CM/I50.9", 7),  # moved to day 5
        (1, None, "ICD10CM/E11.9", 7),  # static would be known from the first day on: moved
        (1, 3, "LAB", 7),
        (1, 5, OUT, 7),
        (1, 6, "ICD10CM/I10", 7),  # later than the discharge: stays
        (1, 6, "ICD10CM/I10", None),
        (2, 2, "ICD10CM/I50.9", 7),  # another subject's visit of that number: no end known
        (2, 2, IN, 7),
    )
    visits, _ = from_events(table, file="shard")
    found, moved = known_at_discharge(table, visits)
    assert moved == 2
    assert found.schema.equals(EVENTS)
    assert [(row["time"], row["code"]) for row in found.to_pylist()] == [
        (day(2), IN),
        (day(3), "LAB"),
        (day(5), "ICD10CM/I50.9"),
        (day(5), "ICD10CM/E11.9"),
        (day(5), OUT),
        (day(6), "ICD10CM/I10"),
        (day(6), "ICD10CM/I10"),
        (day(2), "ICD10CM/I50.9"),
        (day(2), IN),
    ]
    again, moved = known_at_discharge(found, visits)
    assert moved == 0
    assert again.equals(found)


def test_events_are_sorted_static_first_and_stable():
    table = events(
        *((2, 1, "b", None), (1, 3, "d", None), (1, 1, "z", None)),
        *((1, None, "s", None), (1, 1, "a", None)),
    )
    assert sort_events(table)["code"].to_pylist() == ["s", "z", "a", "d", "b"]
    assert sort_events(table.slice(0, 0)).num_rows == 0
