"""The same numbers from the command line, the library, scikit-learn and an ONNX graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import medbert
from medbert import Encoder, InputError, MedBertEmbedder, Store
from medbert.data.batches import Sequences
from medbert.library.frames import store_rows
from medbert.model.checkpoint import save_module
from medbert.model.encoder import BertEncoder
from medbert.model.formats.onnx import INPUTS, padded
from medbert.model.modern import ModernEncoder

QUERY = {"query": ["ICD9CM/401", "ICD10CM/I10"], "horizon": "365d", "gap": 30}


def encoder_folder(folder: Path, module: torch.nn.Module, store: Store, **settings) -> None:
    """A folder as `pretrain` leaves it, of weights that all matter."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    folder.mkdir()
    extra = {"vocabulary_sha256": store.vocabulary.sha256}
    save_module(folder, modules={"encoder": module}, extra=extra)
    store.vocabulary.save(folder / "vocabulary.parquet")
    (folder / "settings.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """store/, bert/ and causal/ of random weights, cohort.parquet of times in the middle."""
    folder = tmp_path_factory.mktemp("made")
    medbert.synthesize(n_subjects=60, seed=3, out=folder / "events")
    source = ("source=meds", f"source.path={folder / 'events'}")
    medbert.prepare(*source, rule="diagnoses", out=folder / "store")
    store = Store(folder / "store")
    torch.manual_seed(0)
    sizes = {
        "vocabulary_size": len(store.vocabulary),
        "layers": 1,
        "heads": 2,
        "hidden": 16,
        "feed_forward": 24,
        "dropout": 0.1,
        "attention_dropout": 0.0,
    }
    bert = BertEncoder(**sizes, positions=12, visits=6, ages=90)
    encoder_folder(folder / "bert", bert, store, max_tokens=12)
    causal = ModernEncoder(**sizes, causal=True, edges=[0, 30, 365])
    encoder_folder(folder / "causal", causal, store, max_tokens=9)
    ids = np.random.default_rng(1).permutation(store.subject_ids)[:25]
    times = np.array(["2015-06-01", "1990-01-01"], "datetime64[us]")[np.arange(25) % 5 // 4]
    cohort = pa.table({"subject_id": ids, "prediction_time": times})
    pq.write_table(cohort, folder / "cohort.parquet")
    return folder


@pytest.mark.parametrize("name", ["bert", "causal"])
def test_command_library_scikit_learn_and_onnx_agree(made, name, tmp_path):
    store, cohort = made / "store", pd.read_parquet(made / "cohort.parquet")
    asked = {"store": store, "encoder_dir": made / name, "cohort": made / "cohort.parquet"}
    out = medbert.embed(**asked, device="cpu", out=tmp_path / "embeddings")
    table = pq.read_table(out / "embeddings.parquet")
    command = np.stack(table["embedding"].to_numpy())
    encoder = Encoder.from_pretrained(made / name)
    vectors = encoder.embed(cohort, store=store)
    learned = MedBertEmbedder(encoder=str(made / name), store=str(store)).fit_transform(cohort)
    question = {**QUERY, "store": store} if name == "causal" else {}
    graph, about = onnx_graph(made / name, tmp_path / "onnx", **question)
    records = Store(store)
    rows, until = store_rows(records, cohort)
    longest = encoder.settings["max_tokens"]
    batch = Sequences(records, rows, until=until, max_tokens=longest)[np.arange(len(rows))]
    given = padded(batch)
    assert given.keys() == INPUTS.keys() == about["inputs"].keys()
    said = dict(zip(about["outputs"], graph.run(None, given), strict=True))
    assert 0 < (batch.lengths_B == 0).sum() < len(rows) and batch.lengths_B.max() == longest
    for other in (vectors.to_numpy(), np.asarray(learned), said["embeddings"]):
        np.testing.assert_allclose(other, command, atol=1e-5)
    assert (command[batch.lengths_B.numpy() == 0] == 0).all() and command.std() > 0.1
    alone = graph.run(None, {k: v[:1] for k, v in given.items()})[0]
    np.testing.assert_allclose(alone, command[:1], atol=1e-5)
    if question:
        foretold = encoder.predict(cohort, store=store, **QUERY)
        risk = foretold["predicted_boolean_probability"].to_numpy()
        first = ~np.isnan(risk)
        np.testing.assert_allclose(said["risk"][first], risk[first], atol=5e-5)


def onnx_graph(encoder: Path, out: Path, **settings):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    medbert.convert(path=encoder, to="onnx", out=out, **settings)
    assert {f.name for f in out.iterdir()} == {"model.onnx", "inputs.json", "vocabulary.parquet"}
    session = runtime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    return session, json.loads((out / "inputs.json").read_text())


def test_predictions_are_those_of_the_command(made, tmp_path):
    encoder = Encoder.from_pretrained(made / "causal")
    cohort = pd.read_parquet(made / "cohort.parquet").set_index(np.arange(25) * 2)
    said = encoder.predict(cohort, store=made / "store", **QUERY)
    given = {"encoder_dir": made / "causal", "store": made / "store", **QUERY}
    out = medbert.predict(
        **given, cohort=made / "cohort.parquet", device="cpu", out=tmp_path / "said"
    )
    told = pd.read_parquet(out / "predictions.parquet")
    assert said.index.equals(cohort.index)
    assert said["subject_id"].tolist() == told["subject_id"].tolist()
    probability = "predicted_boolean_probability"
    np.testing.assert_allclose(said[probability], told[probability].to_numpy(), atol=1e-6)
    had = said[probability].isna()
    assert 0 < had.sum() < len(said)
    assert (said["predicted_boolean_value"].isna() == had).all()
    with pytest.raises(InputError, match="does not foretell"):
        Encoder.from_pretrained(made / "bert").predict(cohort, store=made / "store", **QUERY)


def test_rows_and_index_are_the_cohort_s_in_any_frame(made):
    encoder, store = Encoder.from_pretrained(made / "bert"), Store(made / "store")
    cohort = pd.read_parquet(made / "cohort.parquet").set_index(pd.Index(list("abcde") * 5))
    vectors = encoder.embed(cohort, store=store)
    assert vectors.index.equals(cohort.index)
    assert vectors.columns.tolist() == [f"embedding_{i}" for i in range(16)]
    assert (vectors.dtypes == np.float32).all()
    order = np.arange(25)[::-1]
    backward = encoder.embed(cohort.iloc[order], store=store, batch_tokens=50)
    np.testing.assert_allclose(backward, vectors.iloc[order], atol=1e-5)
    arrow = encoder.embed(pa.table(cohort.reset_index(drop=True)), store=store)
    np.testing.assert_array_equal(arrow, vectors)
    assert len(encoder.embed(store=store)) == len(store)


def test_what_cannot_be_asked_is_said(made, tmp_path):
    encoder = Encoder.from_pretrained(made / "bert")
    for settings, words in (
        ({"pooling": "median"}, "mean"),
        ({"max_tokens": 13}, "the encoder has 12 positions"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ):
        with pytest.raises(InputError, match=words):
            encoder.embed(store=made / "store", **settings)
    source = ("source=meds", f"source.path={made / 'events'}", "rule.min_subjects=30")
    other = medbert.prepare(*source, out=tmp_path / "other")
    with pytest.raises(InputError, match="not prepared with the vocabulary of this encoder"):
        encoder.embed(store=other)


def test_it_is_told_in_a_table(made):
    encoder = Encoder.from_pretrained(made / "bert")
    assert "BertEncoder" in repr(encoder) and "hidden 16" in repr(encoder)
    html = encoder._repr_html_()
    assert html.startswith("<table>") and "ICD10CM" in html and "<th>Audit</th>" in html
