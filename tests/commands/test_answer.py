"""Fine-tuning that starts from what an encoder foretells, from the command to the run's folder."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
from scipy.special import expit

import medbert
from medbert import InputError, Store
from medbert.commands.encoders.classifier import Recipe, Rows, predict, train_classifier
from medbert.commands.encoders.questions import ask, of_words, told
from medbert.commands.output.artefacts import read_json
from medbert.data.batches import Sequences, loader
from medbert.model.checkpoint import load_module
from medbert.model.hazards import foretell
from medbert.model.heads import Answer
from medbert.schema import DAY_US, TRAIN, TUNING
from medbert.train.optimizers import adamw
from medbert.train.score import score

QUICK = {"max_epochs": 2, "accelerator": "cpu"}
ASKED = {"query": ["^ICD9CM/401", "ICD10CM/I10"], "gap": 60, "horizon": 700}
TASK = {
    **{"max_tokens": 64, "task": "dhf", "task.population": [], "task.seen_within_days": None},
    **{"task.index.every_days": 1000, "task.outcome.codes": ASKED["query"]},
    **{"task.outcome.gap_days": ASKED["gap"], "task.outcome.window_days": ASKED["horizon"]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """store/, and encoder/ that foretells codes."""
    folder = tmp_path_factory.mktemp("made")
    medbert.synthesize(n_subjects=400, seed=3, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    small = ("encoder.layers=1", "encoder.hidden=16", "encoder.feed_forward=16")
    medbert.pretrain(
        *small,
        store=folder / "store",
        encoder="causal",
        objective="time_to_event",
        trainer=QUICK,
        out=folder / "encoder",
    )
    return folder


def probabilities(folder: Path) -> np.ndarray:
    return pq.read_table(folder / "predictions.parquet")["predicted_boolean_probability"].to_numpy()


def test_training_that_does_harm_leaves_the_answer_as_it_was(made, tmp_path):
    records, model = Store(made / "store"), load_module(made / "encoder", "encoder")
    question = of_words(ASKED["query"], records, gap=ASKED["gap"], horizon=ASKED["horizon"])
    rows, until = np.arange(len(records)), np.full(len(records), 1_262_304_000_000_000)  # 2010
    sizes = {"max_tokens": 64, "batch_tokens": 2048}
    data = Sequences(records, rows, until=until, max_tokens=64)
    answer = ask(data, deepcopy(model), question, batch_tokens=2048)
    likely = answer > np.median(answer)
    splits = {TRAIN: Rows(rows, until, ~likely), TUNING: Rows(rows, until, likely)}
    learning = {"weight_decay": 0, "warmup": 1, "encoder_lr_factor": 1, "lazy_rows": False}
    recipe = Recipe(
        head=partial(Answer, **told(Answer, model, question)),
        optimizer=partial(adamw, lr=0.01, **learning),
        trainer=partial(pl.Trainer, **QUICK),
        **{**sizes, "freeze": False, "patience": 3, "seed": 0, "device": "cpu"},
    )
    head, metrics = train_classifier(records, splits, model, recipe, folder=tmp_path)
    assert metrics["best_epoch"] == 0 and metrics["steps"] > 2
    assert metrics["tuning/auroc"] == pytest.approx(1, abs=1e-3)
    after = predict(records, splits[TUNING], model, head, recipe)
    np.testing.assert_allclose(after, expit(answer), rtol=1e-4)


@pytest.mark.parametrize("days", [None, 700])
def test_asked_at_several_times_a_subject_is_read_once_and_says_the_same(made, days):
    records, model = Store(made / "store").recent(days), load_module(made / "encoder", "encoder")
    question = of_words(ASKED["query"], records, gap=ASKED["gap"], horizon=ASKED["horizon"])
    draw = np.random.default_rng(0)
    rows, day = draw.integers(0, len(records), 900), draw.integers(11_000, 18_000, 900)
    until = day * DAY_US  # before any event, too, and when there is no room for all
    data = Sequences(records, rows, until=until, max_tokens=48)
    assert {1, 48} <= {*data.lengths.tolist()} and len(np.unique(rows)) < 400
    told = partial(foretell, model.eval(), **question._asdict())
    alone = score(told, loader(data, budget=2048)).double().numpy()
    together = ask(data, model, question, batch_tokens=2048)
    np.testing.assert_allclose(together, alone, atol=2e-4)


def test_a_benchmark_without_heads_asks_alone_and_says_whom_it_cannot_ask(made, tmp_path):
    words = ("~head@heads.sum", "~head@heads.frozen_logistic")
    few = {"baseline": {}, "label_sizes": [], "n_bootstrap": 20}
    given = {"store": made / "store", "encoder_dir": made / "encoder", **TASK, **few}
    medbert.benchmark(*words, untrained=False, **given, out=tmp_path / "report")
    table = pq.read_table(tmp_path / "report" / "predictions.parquet").to_pandas()
    assert "Med-BERT, pretrained (query, no labels)" in table
    assert not table.columns.str.contains("frozen|sum").any()
    with pytest.raises(InputError, match="Med-BERT, untrained: .* needs a head; say"):
        medbert.benchmark(*words, **given, out=tmp_path / "no")


def test_a_run_holds_its_question_and_is_read_as_any_other(made, tmp_path):
    given = {"store": made / "store", "encoder_dir": made / "encoder", "head": "answer"}
    run = medbert.finetune(**given, **TASK, trainer=QUICK, out=tmp_path / "run")
    records = Store(made / "store")
    asked = read_json(run / "config.json")["head"]["arguments"]
    codes = np.array(records.vocabulary.codes)[asked["tokens"]]
    assert len(codes) and all(code.startswith(("ICD9CM/401", "ICD10CM/I10")) for code in codes)
    assert (asked["gap"], asked["window"]) == (60, 700)
    rows = {"cohort": run / "labels.parquet", "splits": ["held_out"], "device": "cpu"}
    medbert.predict(run=run, store=made / "store", **rows, out=tmp_path / "again")
    np.testing.assert_allclose(probabilities(tmp_path / "again"), probabilities(run), atol=1e-6)
    results = medbert.evaluate("baseline={}", run=run, n_bootstrap=20, out=tmp_path / "report")
    assert {"Med-BERT, pretrained", "Med-BERT, untrained"} <= {*results.table()["model"]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"encoder_dir": None, "encoder": "tiny"},
            "head=answer: this encoder does not foretell codes; make one",
        ),
        ({"task": "prolonged_los"}, "head=answer: this task does not ask whether a code.*head=sum"),
        ({"task.outcome.codes": ["ICD10CM/Q99.9"]}, "head=answer: this task does not ask"),
    ],
    ids=str,
)
def test_what_has_no_answer_is_refused_in_one_line(made, tmp_path, other, message):
    task = other if "task" in other else {**TASK, **other}
    given = {"store": made / "store", "encoder_dir": made / "encoder", **task}
    with pytest.raises(InputError, match=message) as refused:
        medbert.finetune(**given, head="answer", out=tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_benchmark_has_it_as_a_head_and_refuses_it_before_anything_is_trained(made, tmp_path):
    words = ("~head@heads.sum", "~head@heads.frozen_logistic", "+head@heads.answer=answer")
    few = {"baseline": {}, "label_sizes": [], "n_bootstrap": 20, "trainer": QUICK}
    given = {"store": made / "store", "encoder_dir": made / "encoder", **TASK, **few}
    medbert.benchmark(*words, "optimizer.lr=0", **given, out=tmp_path / "report")
    table = pq.read_table(tmp_path / "report" / "predictions.parquet").to_pandas()
    kinds = ("query, no labels", "answer")
    alone, head = (table[f"Med-BERT, pretrained ({kind})"] for kind in kinds)
    np.testing.assert_allclose(head, alone, rtol=1e-5)
    with pytest.raises(InputError, match="head=answer: this task does not ask"):
        medbert.benchmark(*words, "+task.outcome.min_value=3", **given, out=tmp_path / "no")
