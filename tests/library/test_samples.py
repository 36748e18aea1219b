from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pandas as pd
import pytest
import torch

import medbert
from medbert.data.store import Store
from medbert.library import samples
from medbert.library.samples import Synthetic, load_synthetic
from medbert.model import checkpoint
from medbert.model.encoder import BertEncoder
from medbert.schema import InputError


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """The folder as it ships; until its encoder is in it, with a tiny one of random weights."""
    if (samples.SHIPPED / "encoder").is_dir():
        return samples.SHIPPED
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "meds").symlink_to(samples.SHIPPED / "meds")
    source = {"path": folder / "meds"}
    store = Store(medbert.prepare("source=meds", source=source, out=folder / "fitted"))
    torch.manual_seed(0)
    sizes = {"layers": 1, "heads": 2, "hidden": 8, "feed_forward": 8, "positions": 512, "visits": 9}
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    encoder = BertEncoder(vocabulary_size=len(store.vocabulary), **sizes, **still)
    (folder / "encoder").mkdir()
    known = {"vocabulary_sha256": store.vocabulary.sha256}
    checkpoint.save_module(folder / "encoder", modules={"encoder": encoder}, extra=known)
    store.vocabulary.save(folder / "encoder" / "vocabulary.parquet")
    return folder


@pytest.fixture(autouse=True)
def ships(shipped, monkeypatch) -> None:
    monkeypatch.setattr(samples, "SHIPPED", shipped)
    monkeypatch.delenv("MEDBERT_CACHE", raising=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_store_is_made_once_and_fits_the_encoder(cache):
    synthetic = load_synthetic(cache)
    made = (synthetic.store / "dataset.json").stat().st_mtime_ns
    assert load_synthetic(cache) == synthetic
    assert (synthetic.store / "dataset.json").stat().st_mtime_ns == made
    assert [folder.name for folder in cache.iterdir()] == [synthetic.store.name]
    assert len(Store(synthetic.store)) == 1_000
    with pytest.raises(dataclasses.FrozenInstanceError):
        synthetic.store = cache
    cohort = synthetic.cohort().head(20)
    vectors = medbert.MedBertEmbedder(synthetic.encoder, synthetic.store).fit_transform(cohort)
    assert len(vectors) == 20 and vectors.std() > 0


def test_a_cohort_is_that_of_the_task(cache):
    synthetic = load_synthetic(cache)
    cohort = synthetic.cohort("dhf", "task.outcome.window_days=730")
    assert cohort["boolean_value"].sum() > synthetic.cohort("dhf")["boolean_value"].sum() > 0
    assert list(cohort.columns) == ["subject_id", "prediction_time", "boolean_value", "split"]
    assert cohort["prediction_time"].dtype == "datetime64[us]"
    splits = pd.read_parquet(synthetic.store / "subject_splits.parquet")
    assert len(cohort.merge(splits, on=["subject_id", "split"])) == len(cohort)


def test_another_vocabulary_is_another_store(cache, shipped, tmp_path, monkeypatch):
    first = load_synthetic(cache).store
    (tmp_path / "meds").symlink_to(shipped / "meds")
    (tmp_path / "encoder").symlink_to(shipped / "encoder")
    monkeypatch.setattr(samples, "SHIPPED", tmp_path)
    assert load_synthetic(cache).store == first  # the place does not matter, the content does
    (tmp_path / "encoder").unlink()
    with pytest.raises(InputError, match="encoder: not found"):
        load_synthetic(cache)
    other = medbert.prepare(
        "source=meds", "rule=diagnoses", source={"path": shipped / "meds"}, out=tmp_path / "other"
    )
    (tmp_path / "encoder").symlink_to(other)
    assert load_synthetic(cache).store != first


def test_two_that_begin_together_share_one_store(tmp_path):
    together = Barrier(2)

    def load() -> Path:
        together.wait(30)
        return load_synthetic(tmp_path).store

    with ThreadPoolExecutor(2) as pool:
        stores = {made.result() for made in [pool.submit(load) for _ in range(2)]}
    assert [*tmp_path.iterdir()] == [*stores]
    assert len(Store(stores.pop())) == 1_000


def test_the_folder_for_caches_is_the_callers_else_the_users(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert samples._home(None).is_relative_to(tmp_path)
    monkeypatch.setenv("MEDBERT_CACHE", str(tmp_path / "elsewhere"))
    assert samples._home(None) == tmp_path / "elsewhere"
    assert samples._home(cache) == cache
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="MEDBERT_CACHE"):
        load_synthetic(tmp_path / "file")


def test_it_shows_itself_without_markup_in_paths(tmp_path, cache):
    store = load_synthetic(cache).store
    shown = Synthetic(Path("<events>"), Path("encoder"), store)._repr_html_()
    assert "&lt;events&gt;" in shown and "1,000" in shown and shown.count("<tr>") == 3
