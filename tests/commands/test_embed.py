from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import records_of

import medbert
from medbert.commands.embed import embed
from medbert.commands.encoders import cohort_rows
from medbert.data.store import Store
from medbert.model.checkpoint import load_module, save_module
from medbert.model.encoder import BertEncoder
from medbert.schema import Batch, InputError

EVENTS = [
    (1, "2020-01-01", "A"),
    (1, "2021-01-01", "B"),
    (1, "2022-01-01", "C"),
    (2, "2020-05-05", "C"),
    (2, "2020-06-05", "A"),
    (3, None, "GENDER//F"),
    (4, "1970-01-01", "MEDS_BIRTH"),
    *[
        (s, f"20{10 + s}-0{m}-01", "ABC"[(s + m) % 3])
        for s in range(5, 12)
        for m in range(1, s - 3)
    ],
]


@pytest.fixture
def place(make_store, tmp_path) -> Path:
    """store/ and encoder/, of random weights."""
    store = make_store(records_of(EVENTS))
    torch.manual_seed(0)
    encoder = BertEncoder(
        vocabulary_size=len(store.vocabulary),
        layers=2,
        heads=2,
        hidden=8,
        feed_forward=8,
        dropout=0.5,
        attention_dropout=0.5,
        positions=16,
        visits=4,
    )
    torch.nn.init.normal_(encoder.codes.weight)
    (tmp_path / "encoder").mkdir()
    extra = {"vocabulary_sha256": store.vocabulary.sha256}
    save_module(tmp_path / "encoder", modules={"encoder": encoder}, extra=extra)
    return tmp_path


def embedded(place: Path, **settings) -> tuple[pa.Table, np.ndarray, dict[str, int]]:
    """The file, its vectors and the counts."""
    defaults = {
        "store": str(place / "store"),
        "encoder_dir": str(place / "encoder"),
        "cohort": None,
        "splits": None,
        "pooling": "mean",
        "max_tokens": 16,
        "batch_tokens": 64,
        "device": "cpu",
        "out": str(place / "embeddings"),
        "overwrite": True,
    }
    out = embed(**defaults | settings, settings={})
    table = pq.read_table(out / "embeddings.parquet")
    counts = json.loads((out / "counts.json").read_text())
    return table, np.stack(table["embedding"].to_numpy()), counts


def cohort_file(place: Path, rows: list[tuple], **columns) -> str:
    ids, times = zip(*rows, strict=True)
    moments = [None if t is None else datetime.fromisoformat(t) for t in times]
    table = {"subject_id": pa.array(ids, pa.int64()), "prediction_time": moments, **columns}
    pq.write_table(pa.table(table), place / "cohort.parquet")
    return str(place / "cohort.parquet")


def alone(place: Path, codes: list[str]) -> np.ndarray:
    """Mean hidden vector of one subject with a visit for each code, without any of our loops."""
    tokens = torch.from_numpy(Store(place / "store").vocabulary.encode(codes).astype(np.int64))
    visits = torch.arange(1, len(codes) + 1)
    ages = torch.full((len(codes),), torch.nan)
    batch = Batch(tokens, visits, ages, torch.tensor([0, len(codes)]), torch.tensor([0]))
    with torch.inference_mode():
        return load_module(place / "encoder", "encoder").eval()(batch).mean(dim=0).numpy()


def test_a_row_is_what_was_known_at_its_time_in_the_order_of_the_cohort(place, monkeypatch):
    monkeypatch.setattr(cohort_rows, "PIECE", 2)
    asked = [
        (2, "2020-12-31"),
        (1, "2021-01-01"),
        (1, "2020-12-31"),
        (2, "2020-06-04"),
        (1, "2030-01-01"),
    ]
    table, vectors, counts = embedded(place, cohort=cohort_file(place, asked))
    assert table["subject_id"].to_pylist() == [subject for subject, _ in asked]
    assert [f"{t:%Y-%m-%d}" for t in table["prediction_time"].to_pylist()] == [t for _, t in asked]
    known = ["CA", "AB", "A", "C", "ABC"]
    for vector, codes in zip(vectors, known, strict=True):
        np.testing.assert_allclose(vector, alone(place, list(codes)), atol=1e-5)
    assert counts == {"rows": 5, "without_codes": 0, "shortened": 0}
    assert pq.ParquetFile(place / "embeddings" / "embeddings.parquet").num_row_groups == 3


def test_without_a_cohort_every_subject_at_its_last_event(place):
    table, vectors, counts = embedded(place)
    store = Store(place / "store")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert table["subject_id"].to_pylist() == store.subject_ids.tolist()
    of = dict(zip(store.subject_ids.tolist(), range(len(store)), strict=True))
    times = table["prediction_time"].to_pylist()
    assert times[of[1]] == datetime(2022, 1, 1) and times[of[3]] is None
    np.testing.assert_allclose(vectors[of[1]], alone(place, list("ABC")), atol=1e-5)
    assert counts["without_codes"] == 1 and not vectors[of[4]].any() and vectors[of[3]].any()


@pytest.mark.parametrize("change", [{"batch_tokens": 3}, {"batch_tokens": 1000}, {"piece": 3}])
def test_packing_and_pieces_do_not_matter(place, monkeypatch, change):
    _, before, _ = embedded(place)
    monkeypatch.setattr(cohort_rows, "PIECE", change.pop("piece", cohort_rows.PIECE))
    np.testing.assert_allclose(embedded(place, **change)[1], before, atol=1e-5)


def test_long_subjects_keep_their_latest_codes_and_are_counted(place):
    path = cohort_file(place, [(1, "2030-01-01"), (2, "2030-01-01")])
    _, vectors, counts = embedded(place, cohort=path, max_tokens=2, pooling="sum")
    assert counts["shortened"] == 1
    _, whole, _ = embedded(place, cohort=path, pooling="sum")
    assert not np.allclose(vectors[0], whole[0], atol=1e-3)
    np.testing.assert_allclose(vectors[1], whole[1], atol=1e-5)


def test_max_tokens_is_that_of_training_and_fits_the_encoder(place):
    (place / "encoder" / "settings.json").write_text('{"max_tokens": 2}')
    assert embedded(place, max_tokens=None)[2]["shortened"] == 6  # subjects 1 and 7 to 11
    with pytest.raises(InputError, match="has 16 positions; say 16"):
        embedded(place, max_tokens=17)


def test_labels_files_with_empty_columns_are_cohorts(place):
    rows = [(1, "2021-06-01"), (2, "2021-06-01")]
    nothing = {"integer_value": pa.nulls(2), "boolean_value": pa.nulls(2)}
    assert embedded(place, cohort=cohort_file(place, rows, **nothing))[0].num_rows == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "2021-01-01"), (77, "2021-01-01"), (78, None)], r"prediction_time: 1 of 3 .*row 3\)"),
        (
            [(1, "2021-01-01"), (77, "2021-01-01"), (7, "2021-01-01")],
            r"subject_id: 1 of 3 .*row 2\)",
        ),
        ([(None, "2021-01-01")], r"subject_id: 1 of 1 rows have none \(row 1\)"),
    ],
)
def test_rows_that_cannot_be_scored_are_named_and_nothing_is_left(place, rows, message):
    path = cohort_file(place, rows)
    with pytest.raises(InputError, match=message) as error:
        embedded(place, cohort=path)
    assert path in str(error.value) and "77" not in str(error.value)
    assert not list(place.glob("embeddings*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "median"}, "mean"),
        ({"device": "abacus"}, "device=auto"),
        ({"splits": ["test"]}, "held_out"),
        ({"splits": ["tuning"]}, "no rows to score in the splits"),
        ({"cohort": "nowhere.parquet"}, "nowhere.parquet: not a Parquet with the columns"),
    ],
)
def test_what_cannot_be_used_is_said(place, settings, message):
    with pytest.raises(InputError, match=message):
        embedded(place, **settings)


def test_a_cohort_without_times_is_refused(place):
    pq.write_table(pa.table({"subject_id": [1]}), place / "ids.parquet")
    with pytest.raises(InputError, match="prediction_time"):
        embedded(place, cohort=str(place / "ids.parquet"))


def test_it_is_a_verb(place):
    given = {"store": place / "store", "encoder_dir": place / "encoder", "max_tokens": 16}
    out = medbert.embed(**given, out=place / "by_name")
    assert {"embeddings.parquet", "settings.json"} <= {file.name for file in out.iterdir()}
