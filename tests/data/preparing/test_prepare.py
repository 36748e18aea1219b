"""The store is a function of the records, not of their order, the executor or a killed run."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import records_of

from medbert.data.preparing import executors
from medbert.data.preparing.order import sorted_distinct
from medbert.data.sources.meds import Meds
from medbert.data.sources.reading import InMemory
from medbert.data.store import STATIC, Store
from medbert.schema import BIRTH, DAY_US, InputError, Piece

ROOT = Path(__file__).resolve().parents[3]
SYNTHETIC = ROOT / "data_synthetic" / "meds"


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file of a store that the records decide."""
    private = {"settings.json", "environment.json"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in private
    }


def lives(n: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(1, n + 1):
        rows += [(s, None, "GENDER//F"), (s, "1950-01-01", BIRTH)]
        for d in rng.integers(1, 29, 12):
            value = float(rng.integers(3)) if d % 3 == 0 else None
            rows.append((s, f"2010-02-{d:02d}", f"C{rng.integers(9)}", value, int(d % 4) or None))
    return rows


def shuffled(records, seed: int, n_parts: int):
    """The same rows in another order, in several parts of several pieces."""
    piece = records.parts[0].piece
    rows = np.random.default_rng(seed).permutation(piece.events.num_rows)
    parts = [
        InMemory("handmade.csv", Piece(piece.events.take(chunk), piece.visits if i == 0 else None))
        for i, chunk in enumerate(np.array_split(rows, n_parts))
    ]
    return records._replace(parts=parts)


def test_the_store_does_not_depend_on_the_order_or_the_division_of_the_rows(make_store):
    said = [(s, 1, "2010-02-01", "2010-02-05", "inpatient", None) for s in range(1, 40)]
    records = records_of(lives(60), visits=said)
    whole = make_store(records, name="whole")
    assert len(whole.info["shards"]) > 3 and len(whole) == 60
    for seed, n_parts in ((1, 1), (2, 5)):
        other = make_store(shuffled(records, seed, n_parts), name=f"other{n_parts}")
        assert digest(other.folder) == digest(whole.folder)


def test_more_memory_makes_fewer_shards_of_the_same_subjects(make_store):
    small = make_store(records_of(lives(60)), name="small")
    large = make_store(records_of(lives(60)), name="large", memory_gb=1.0)
    assert len(large.info["shards"]) == 1 < len(small.info["shards"])
    assert small.subject_ids.tolist() == large.subject_ids.tolist()
    a, b = (s.history(np.arange(60)) for s in (small, large))
    assert a.code_T.tolist() == b.code_T.tolist() and a.time_T.tolist() == b.time_T.tolist()


def test_files_that_fit_become_shards_as_they_are_with_the_same_subjects(make_store, monkeypatch):
    records = Meds(str(SYNTHETIC)).read()
    cut = make_store(records, name="cut", memory_gb=1e-3)
    monkeypatch.setattr(
        "medbert.data.preparing.spill._Writer.write", lambda *_: 1 / 0
    )  # nothing is spilled
    whole = make_store(records, name="whole", memory_gb=1.0)
    assert len(whole.info["shards"]) == 1 < len(cut.info["shards"])
    assert whole.subject_ids.tolist() == sorted(cut.subject_ids)
    a = whole.history(np.arange(len(whole)))
    b = cut.history(cut.rows_of(whole.subject_ids))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)
    counts = [{k: v for k, v in s.info.items() if k != "shards"} for s in (cut, whole)]
    assert counts[0] == counts[1]


def test_files_are_put_together_up_to_the_memory(make_store, tmp_path):
    folder = tmp_path / "meds"
    (folder / "data").mkdir(parents=True)
    table = pq.read_table(SYNTHETIC / "data")
    for i in range(9):
        keep = pa.array(table["subject_id"].to_numpy() % 9 == i)
        pq.write_table(table.filter(keep), folder / "data" / f"{i}.parquet")
    records = Meds(str(folder)).read()
    store = make_store(records, memory_gb=300 * 30_000 / 1e9)  # files have about 9,000 events
    assert len(store.info["shards"]) == 3 and len(store) == 1000
    assert (store.rows_of(store.subject_ids) == np.arange(1000)).all()


@pytest.mark.parametrize("memory_gb", [1e-3, 1.0], ids=["buckets", "files"])
@pytest.mark.parametrize("name", ["processes", "dask"])
def test_any_executor_gives_the_serial_store(make_store, name, memory_gb):
    if name == "dask":
        pytest.importorskip("distributed", reason="pip install 'medbert[dask]'")
    records = Meds(str(SYNTHETIC)).read()
    serial = make_store(records, name="serial", memory_gb=memory_gb)
    make = {"processes": executors.processes, "dask": executors.dask}[name]
    options = {"processes": {"workers": 2}, "dask": {"address": None, "workers": 2}}[name]
    with make(**options) as executor:
        other = make_store(records, name=name, memory_gb=memory_gb, executor=executor)
    assert digest(other.folder) == digest(serial.folder)


def test_an_error_in_a_worker_is_the_users_error(make_store):
    records = records_of([(1, "2010-01-01", "A"), (2, "2010-01-01", "B")])
    parts = [InMemory(name, records.parts[0].piece) for name in ("a.parquet", "b.parquet")]
    with (
        executors.processes(workers=2) as executor,
        pytest.raises(InputError, match=r"b\.parquet: column 'subject_id': row \d: .* a\.parquet"),
    ):
        make_store(records._replace(parts=parts, one_file_each=True), executor=executor)


def test_no_dask_scheduler_is_the_users_error():
    pytest.importorskip("distributed", reason="pip install 'medbert[dask]'")
    with (
        pytest.raises(InputError, match="no Dask scheduler answers"),
        executors.dask(address="tcp://127.0.0.1:1", workers=1, timeout_s=0.5),
    ):
        pass


def prepare(out: Path, *words: str) -> subprocess.Popen:
    medbert = str(Path(sys.executable).with_name("medbert"))
    settings = ["source=meds", f"source.path={SYNTHETIC}", "memory_gb=0.00005", f"out={out}"]
    return subprocess.Popen(
        [medbert, "prepare", *settings, *words], stderr=subprocess.PIPE, text=True
    )


def test_killed_at_ten_random_moments_the_store_is_the_same(tmp_path):
    unbroken = prepare(tmp_path / "unbroken")
    begun = time.monotonic()
    assert unbroken.wait() == 0, unbroken.stderr.read()
    whole = time.monotonic() - begun
    moments = random.Random(0)
    killed = 0
    while killed < 10:
        run = prepare(tmp_path / "broken")
        time.sleep(moments.uniform(0.3, 1.0) * whole)
        run.send_signal(signal.SIGKILL)
        if run.wait() == 0:  # too late: it was done
            shutil.rmtree(tmp_path / "broken")
        killed += 1
    last = prepare(tmp_path / "broken", "overwrite=true")
    assert last.wait() == 0, last.stderr.read()
    assert digest(tmp_path / "broken") == digest(tmp_path / "unbroken")
    assert not (tmp_path / "broken.partial").exists()


def test_finished_parts_are_not_read_again(make_store, tmp_path, monkeypatch):
    records = Meds(str(SYNTHETIC)).read()
    monkeypatch.setattr("medbert.data.preparing.prepare.write_shard", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_store(records)
    monkeypatch.undo()
    monkeypatch.setattr(type(records.parts[0]), "pieces", lambda *_: 1 / 0)
    folder = tmp_path / "store"
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("part.json")}
    assert times
    assert make_store(records).info["counts"]["subjects"] == 1000


def test_a_source_that_changed_is_read_anew(make_store, tmp_path, monkeypatch):
    first = records_of([(1, "2010-01-01", "A")])
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("medbert.data.preparing.prepare.write_shard", lambda job: 1 / 0)
        make_store(first)
    part = InMemory("handmade.csv", records_of([(1, "2010-01-01", "B")]).parts[0].piece, "newer")
    assert "B" in make_store(first._replace(parts=[part])).codes


def test_shards_of_other_splits_are_made_anew(make_store, monkeypatch):
    records = records_of(lives(30))
    ids = list(range(1, 31))
    first = pa.table({"subject_id": ids, "split": ["train"] * 30})
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("medbert.data.preparing.finish.Made.finish", lambda *_: 1 / 0)
        make_store(records, splits=first)
    second = pa.table({"subject_id": ids, "split": ["train"] * 20 + ["tuning"] * 10})
    store = make_store(records, splits=second)
    assert sorted(store.subject_ids[store.rows("tuning")]) == ids[20:]


def test_a_full_disk_keeps_the_work_and_says_so(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        run = prepare(disk / "store")
        assert run.wait() == 2
        text = run.stderr.read()
        assert re.search(r"medbert prepare: .*No space left on device; .*keeps what was done", text)
        subprocess.run([*mount[:3], "-o", "remount,size=64m", str(disk)], check=True)
        again = prepare(disk / "store")
        assert again.wait() == 0, again.stderr.read()
        assert Store(disk / "store").info["counts"]["subjects"] == 1000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- dirt that shows only when all of a subject is seen -------------------------------------------


def codes_of(store: Store, subject: int) -> list[str]:
    h = store.history(store.rows_of(np.array([subject])))
    return [store.codes[c] for c in h.code_T]


def test_a_birth_after_most_events_is_kept_out_and_its_row_named(make_store):
    events = [(1, "2010-01-01", "A"), (1, "2011-01-01", "B"), (1, "2012-05-05", BIRTH)]
    events += [(2, "2010-01-01", "A"), (2, "1960-01-01", BIRTH)]
    store = make_store(records_of(events))
    h = store.history(store.rows_of(np.array([1, 2])))
    assert h.birth_B[0] == STATIC and h.birth_B[1] != STATIC
    assert codes_of(store, 1) == ["A", "B"]
    found = store.info["findings"]["born_after_visit"]
    assert found == {"count": 1, "first": "handmade.csv: birth: row 3"}


def test_single_events_before_the_birth_or_past_120_are_kept_out_and_counted(make_store):
    events = [(1, f"2010-01-{d:02d}", f"C{d}") for d in range(1, 9)]
    events += [(1, "1960-01-01T15:00", BIRTH), (1, "1960-01-01T08:00", "NEWBORN")]
    events += [(1, "1900-01-01", "EARLY"), (1, "2100-01-01", "LATE")]
    store = make_store(records_of(events))
    assert codes_of(store, 1) == ["NEWBORN", BIRTH, *(f"C{d}" for d in range(1, 9))]
    found = {"count": 1, "first": "handmade.csv: birth: row 9"}  # of the birth they contradict
    assert store.info["findings"] == {"events_before_birth": found, "events_after_age_120": found}


def test_an_age_over_120_at_most_events_is_a_wrong_birth(make_store):
    store = make_store(records_of([(1, "2010-01-01", "A"), (1, "1870-01-01", BIRTH)]))
    assert store.history(np.array([0])).birth_B.tolist() == [STATIC]
    found = store.info["findings"]["age_over_120"]
    assert found == {"count": 1, "first": "handmade.csv: birth: row 2"}


def test_two_births_or_sexes_of_a_subject_are_none(make_store):
    events = [(1, "2010-01-01", "A"), (1, "1960-01-01", BIRTH), (1, "1961-01-01", BIRTH)]
    events += [(1, None, "GENDER//F"), (1, None, "GENDER//M")]
    events += [(2, None, "GENDER//F"), (2, "2010-01-01", "GENDER//F")]
    store = make_store(records_of(events), memory_gb=1.0)
    assert codes_of(store, 1) == ["A"] and codes_of(store, 2) == ["GENDER//F"] * 2
    counts = {reason: f["count"] for reason, f in store.info["findings"].items()}
    assert counts == {"conflicting_birth": 1, "conflicting_sex": 1}


def test_a_subject_in_two_files_of_a_meds_set_is_refused_by_name(make_store, tmp_path):
    folder = tmp_path / "meds"
    shutil.copytree(SYNTHETIC, folder)
    shards = sorted((folder / "data").glob("*.parquet"))
    shutil.copy(shards[0], folder / "data" / "copy.parquet")
    with pytest.raises(
        InputError, match=r"copy\.parquet: column 'subject_id': row \d+: .*data/0\.parquet"
    ):
        make_store(Meds(str(folder)).read())


def test_spellings_of_a_code_become_one_and_are_counted(make_store):
    events = [(1, "2010-01-01", "ICD10CM/E11.9"), (1, "2010-01-02", "icd10cm/e119")]
    events += [(1, "2010-01-03", "ICD-10-CM:E11.9")]
    store = make_store(records_of(events))
    assert codes_of(store, 1) == ["ICD10CM/E11.9"] * 3
    assert store.info["recoding"]["respelled"] == {"codes": 2, "events": 2}


def test_names_of_subjects_stay_in_the_store(make_store):
    piece = records_of([(1, "2010-01-01", "A"), (2, "2010-01-01", "B")]).parts[0].piece
    names = pa.table({"subject_id": [1, 2, 1], "name": ["anna", "bo", "anna"]})
    records = records_of([])._replace(parts=[InMemory("x", piece._replace(names=names))])
    store = make_store(records, memory_gb=1.0)
    table = pq.read_table(store.folder / "subjects" / "0.parquet")
    assert sorted(zip(*table.to_pydict().values(), strict=True)) == [(1, "anna"), (2, "bo")]


def test_two_names_of_one_id_are_refused(make_store):
    piece = records_of([(1, "2010-01-01", "A")]).parts[0].piece
    names = pa.table({"subject_id": [1, 1], "name": ["anna", "bo"]})
    records = records_of([])._replace(parts=[InMemory("x", piece._replace(names=names))])
    with pytest.raises(InputError, match="same hash"):
        make_store(records)


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 1_000_000, DAY_US])
@pytest.mark.parametrize("columns", [(), ("value",), ("stay", "rank"), ("value", "stay", "rank")])
def test_sorting_is_the_plain_sort_by_columns(unit, columns):
    rng = np.random.default_rng(unit % 97)
    n = 3_000
    time = rng.integers(0, 40, n) * unit + rng.integers(-5, 5) * unit
    events = {
        "subject": rng.integers(0, 30, n),
        "time": np.where(rng.random(n) < 0.05, STATIC, time),
        "code": rng.integers(0, 5, n).astype(np.int32),
        "value": rng.choice([np.nan, 1.5, -2.0], n).astype(np.float32),
        "stay": rng.integers(-1, 3, n),
        "rank": rng.integers(0, 3, n).astype(np.int16),
    }
    events = {k: v for k, v in events.items() if k in ("subject", "time", "code", *columns)}
    names = [k for k in ("subject", "time", "rank", "code", "value", "stay") if k in events]
    bits = {k: v.view(np.int32) if k == "value" else v for k, v in events.items()}
    rows = sorted(zip(*(bits[k].tolist() for k in names), strict=True))
    plain = [tuple(v for k, v in zip(names, row, strict=True) if k != "rank") for row in rows]
    plain = [row for i, row in enumerate(plain) if i == 0 or row != plain[i - 1]]
    found = sorted_distinct({k: v.copy() for k, v in events.items()})
    found = {k: v.view(np.int32) if k == "value" else v for k, v in found.items()}
    kept = [k for k in names if k != "rank"]
    assert list(zip(*(found[k].tolist() for k in kept), strict=True)) == plain


def test_times_too_fine_for_one_key_are_sorted_all_the_same():
    rng = np.random.default_rng(0)
    far = rng.integers(0, 2**61, 500)
    events = {"subject": rng.integers(0, 9, 500), "time": far, "code": rng.integers(0, 9, 500)}
    found = sorted_distinct({k: v.copy() for k, v in events.items()})
    rows = sorted(set(zip(*(v.tolist() for v in events.values()), strict=True)))
    assert list(zip(*(found[k].tolist() for k in events), strict=True)) == rows


def test_jobs_can_travel():
    for part in Meds(str(SYNTHETIC)).read().parts:
        assert pickle.loads(pickle.dumps(part)) == part
    assert os.path.isabs(str(Meds(str(SYNTHETIC)).read().parts[0].path))
