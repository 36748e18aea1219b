"""Bad input at the door: every message says which file, row and column, and what to do."""

import gzip
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drained import SECRET, drain, refused

from medbert.data.sources import reading
from medbert.data.sources.columns import numbers, pick
from medbert.data.sources.flat import Flat
from medbert.data.sources.meds import Meds
from medbert.schema import Findings

HEADER = "subject_id,time,code\n"


def values(rows, name):
    return [row[name] for row in rows]


def flat(folder, content, name="events.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Flat(str(path))


def meds(folder, name="0.parquet", **columns):
    path = folder / "data" / name
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    return Meds(str(folder))


# ---- damage to files


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_truncated_gz(tmp_path, kept):
    rows = "".join(f"{row},2020-01-01,{row * 7919 % 65537}\n" for row in range(50_000))
    content = gzip.compress((HEADER + rows).encode())
    source = flat(tmp_path, content[: int(len(content) * kept)], "events.csv.gz")
    refused(source, "events.csv.gz", "truncated", "copy")


def test_a_gz_that_is_none(tmp_path):
    refused(flat(tmp_path, HEADER, "events.csv.gz"), "events.csv.gz", "not what its ending says")


def test_truncated_and_damaged_parquet(tmp_path):
    rows = 5000
    source = meds(tmp_path, subject_id=range(rows), time=[None] * rows, code=map(str, range(rows)))
    path = tmp_path / "data" / "0.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    refused(source, "data/0.parquet", "Parquet", "truncated", "copy")
    path.write_bytes(content[:1000] + bytes(4000) + content[5000:])
    refused(source, "data/0.parquet", "Parquet", "truncated", "copy")
    refused(flat(tmp_path, HEADER, "e.parquet"), "e.parquet", "Parquet", "export")


def test_truncated_csv_does_not_show_its_row(tmp_path):
    source = flat(tmp_path, HEADER + f"1,2020-01-01,A\n{SECRET},2020")
    refused(source, "events.csv", "row 2", "2 columns", "header 3", "export")


@pytest.mark.parametrize("content", ["", "\n", "subject_id,time,code"])
def test_empty_file(tmp_path, content):
    refused(flat(tmp_path, content), "events.csv")


def test_latin_1_in_a_utf_8_column(tmp_path):
    rows = '1,2020-01-01,"A,B"\n' * 5000 + '1,"2020-01-01",RØD\n'
    content = ("\ufeff" + HEADER).encode() + rows.encode("latin-1")
    words = ("events.csv", "row 5001", "'code'", "utf-8", "source.encoding", "latin-1")
    refused(flat(tmp_path, content), *words)
    for line in ("subject_id,time,KØDE\n", f"{SECRET},KØDE"):  # it may be a patient
        said = refused(flat(tmp_path, line.encode("latin-1")), "line 1 (the header)", "utf-8")
        assert "K" not in said and "\ufffd" not in said
    small = flat(tmp_path, (HEADER + "1,2020-01-01,RØD\n").encode("latin-1"))
    refused(small, "events.csv", "row 1", "'code'", "utf-8")
    nameless = flat(tmp_path, f"{SECRET},2020-01-01,A\n1,2020-01-01,RØD\n".encode("latin-1"))
    refused(nameless, "header", "separator")
    path = flat(tmp_path, (HEADER + rows).encode("latin-1")).path
    assert values(drain(Flat(path, encoding="latin-1"))[0], "code")[-1] == "RØD"
    refused(Flat(path, encoding="klingon"), "events.csv", "klingon")


# ---- dirt in rows


@pytest.mark.parametrize("form", [None, "%d.%m.%Y"])
def test_a_third_of_the_dates_in_another_format_stops(tmp_path, form):
    good, bad = "2020-01-01", "31/12/1987"
    good = "01.01.2020" if form else good
    text = "subject_id,date,code\n" + f"1,{good},A\n1,{good},A\n1,{bad},A\n" * 200
    source = Flat(flat(tmp_path, text).path, columns={"time": "date"}, time_format=form)
    said = refused(source, "events.csv", "'date'", "row 3, row 6", "not a date", "time_format")
    assert "200 of 600 rows" in said
    assert "1987" not in said


@pytest.mark.parametrize("bad", [1, 250, 500])
def test_one_date_of_500_is_kept_out(tmp_path, bad):
    rows = [f"1,2020-01-01,{row}" for row in range(1, 501)]
    rows[bad - 1] = f"1,1.1.2020,{bad}"
    events, _, _, found = drain(flat(tmp_path, HEADER + "\n".join(rows)))
    assert len(events) == 499
    assert str(bad) not in values(events, "code")
    where = f"events.csv: column 'time': row {bad}"
    assert found == {"not_a_date": {"count": 1, "first": where}}


def test_the_share_is_that_of_the_file_not_of_its_last_block(tmp_path):
    rows = 1001  # row groups of 1000
    times = pa.array(["2020-01-01"] * (rows - 1) + ["soon"])
    events, _, _, found = drain(
        meds(tmp_path, subject_id=[1] * rows, time=times, code=["A"] * rows)
    )
    assert found["not_a_date"]["first"] == "data/0.parquet: column 'time': row 1001"
    assert len(events) == 1000  # in MEDS no time would mean static
    source = meds(tmp_path, "1.parquet", subject_id=[2], time=["soon"], code=["A"])
    refused(source, "data/1.parquet", "'time'", "row 1", "1 of 1 rows")
    assert drain(source)[3]["not_a_date"]["count"] == 2


def test_times_with_an_offset_become_utc(tmp_path):
    rows = "1,2020-01-01T01:30:00+02:00,A\n1,2020-01-01T12:00:00Z,B\n1,2020-01-01 12:00,C\n"
    events, _, _, found = drain(flat(tmp_path, HEADER + rows))
    assert values(events, "time") == [
        datetime(2019, 12, 31, 23, 30),
        datetime(2020, 1, 1, 12),
        datetime(2020, 1, 1, 12),
    ]
    assert found == {
        "times_with_a_zone_read_as_utc": {"count": 1, "first": "events.csv: column 'time'"}
    }
    zone = timezone(timedelta(hours=2))
    times = pa.array([datetime(2020, 1, 1, 1, 30, tzinfo=zone), None], pa.timestamp("ms", "+02:00"))
    events, _, _, found = drain(meds(tmp_path, subject_id=[1, 1], time=times, code=["A", "B"]))
    assert values(events, "time") == [datetime(2019, 12, 31, 23, 30), None]
    assert found["times_with_a_zone_read_as_utc"] == {
        "count": 1,
        "first": "data/0.parquet: column 'time'",
    }


def test_a_few_rows_without_subject_are_kept_out_and_many_stop(tmp_path):
    rows = [f"{row},2020-01-01,A" for row in range(1, 501)]
    rows[299] = " ,2020-01-01,A"
    events, _, _, found = drain(flat(tmp_path, HEADER + "\n".join(rows)))
    assert 300 not in values(events, "subject_id")
    assert len(events) == 499
    where = "events.csv: column 'subject_id': row 300"
    assert found == {"no_subject": {"count": 1, "first": where}}
    source = flat(tmp_path, HEADER + "1,2020-01-01,A\n,2020-01-01,B\n")
    refused(source, "events.csv", "'subject_id'", "row 2", "complete or remove")


def test_codes_with_blanks_around_them_are_one_code(tmp_path):
    events, _, _, found = drain(flat(tmp_path, HEADER + '1,2020-01-01," A"\n1,2020-01-01,A\t\n'))
    assert values(events, "code") == ["A", "A"]
    codes = pa.array(["A ", "A", " ", "B"]).dictionary_encode()
    source = meds(tmp_path, subject_id=[1] * 4, time=pa.nulls(4, pa.timestamp("us")), code=codes)
    events, _, _, found = drain(source)
    assert values(events, "code") == ["A", "A", "B"]
    assert found == {"no_code": {"count": 1, "first": "data/0.parquet: column 'code': row 3"}}


def test_values_that_are_no_numbers_are_noted(tmp_path):
    header = "subject_id,time,code,numeric_value\n"
    rows = "1,2020-01-01,A,1.5\n1,2020-01-01,A,<5\n1,2020-01-01,A,NULL\n1,2020-01-01,A,1e999\n"
    events, _, _, found = drain(flat(tmp_path, header + rows))
    assert values(events, "numeric_value") == [1.5, None, None, None]
    where = "events.csv: column 'numeric_value': row 2"
    assert found == {"not_a_number": {"count": 1, "first": where}}
    column = pa.chunked_array([["1,5", "1.234", "2", None]])
    read, unread = numbers(column, decimal=",")
    assert read.to_pylist() == [1.5, None, 2.0, None]
    assert unread.tolist() == [False, True, False, False]


# ---- the pieces that other sources use


def test_rows_are_counted_through_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 300)
    rows = "".join(f'1,2020-01-01,"{row}\n"\n' for row in range(100))
    events, *_ = drain(flat(tmp_path, HEADER + rows))
    assert values(events, "code") == [str(row) for row in values(events, "row")]
    assert values(events, "row") == list(range(100))


def test_whole_is_all_blocks_of_a_small_file(tmp_path):
    rows = 2500
    meds(tmp_path, subject_id=range(rows), time=[None] * rows, code=["A"] * rows)
    for path, n_rows in ((tmp_path / "data" / "0.parquet", rows), (tmp_path / "none.csv", 0)):
        if not path.exists():
            path.write_text(HEADER)
        file = reading.open_file(path, dictionary=["code"])
        wanted = pick(file.names(), {"who": "Subject_ID", "code": "code"}, file="f", cure="")
        block = reading.whole(file, wanted, Findings())
        assert block.subjects("who").to_pylist() == list(range(n_rows))
        assert block.text("code").to_pylist() == ["A"] * n_rows
