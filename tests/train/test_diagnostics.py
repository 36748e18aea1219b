"""What is told of a run: accuracy by frequency, the AUC of long stays, lines, advice."""

from __future__ import annotations

import logging
import re
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import records_of
from sklearn.metrics import roc_auc_score

from medbert.data.batches import Sequences, loader
from medbert.model.encoder import BertEncoder
from medbert.model.objectives import masked_code, masked_code_and_stay, prolonged_stay
from medbert.train import diagnostics
from medbert.train.diagnostics import EpochLine
from medbert.train.learning import (
    StayScores,
    advice,
    by_frequency,
    evaluating,
    frequency_groups,
    hide,
)
from medbert.train.module import TrainingModule
from medbert.train.optimizers import adamw

FINE = {
    "steps": 100_000,
    "warmup": 1_000,
    "lr": 2e-3,
    "subjects": 100_000,
    "codes": 10_000_000,
    "vocabulary_size": 5_000,
    "rate": 0.15,
    "unigram": 6.0,
    "visit_pairs": 5.0,
}


@pytest.fixture
def data(make_store):
    random = np.random.default_rng(0)
    events = [
        (s, f"20{random.integers(10, 20)}-0{random.integers(1, 9)}-11", f"C{int(code)}")
        for s in range(1, 80)
        for code in random.exponential(3, size=random.integers(2, 12))
    ]
    stays = [(s, s, "2021-01-01", "2021-01-12", "inpatient", float(s % 12)) for s in range(1, 80)]
    store = make_store(records_of(events, visits=stays))
    return Sequences(store, np.arange(len(store)), max_tokens=64)


@pytest.fixture
def encoder(data):
    torch.manual_seed(0)
    return BertEncoder(
        vocabulary_size=len(data.store.vocabulary),
        layers=1,
        heads=2,
        hidden=16,
        feed_forward=16,
        dropout=0.1,
        attention_dropout=0.0,
        positions=64,
        visits=32,
    )


def given(data) -> dict:
    counts = torch.from_numpy(data.store.vocabulary.counts.copy())
    return {"vocabulary_size": len(counts), "hidden": 16, "counts": counts}


MASKS = {"rate": 0.3, "static": False, "seed": 0}
BOTH = {"days": 7, "masked_code_weight": 1.0, "stay_weight": 1.0}


def test_groups_hold_equal_shares_of_the_events():
    counts = torch.tensor([1, 40, 9, 10, 10, 10, 10, 10])
    group = frequency_groups(counts)
    assert group[1] == group.min() and group[0] == group.max() == 9
    assert (group[counts.argsort(descending=True, stable=True)].diff() >= 0).all()
    even = frequency_groups(torch.full((1000,), 7))
    assert torch.bincount(even).tolist() == [100] * 10


def test_accuracy_by_frequency_adds_up_to_the_metrics(data, encoder):
    goal = masked_code(**given(data), **MASKS)
    with torch.no_grad():
        goal.terms["masked_code"].bias.copy_(given(data)["counts"])
    tuning = loader(data, budget=10**6)  # one batch: its metrics are those of all codes
    groups = by_frequency(encoder, goal, tuning, counts=given(data)["counts"])
    with evaluating(encoder, goal):
        (batch,) = tuning
        metrics = goal(encoder, batch).metrics
    hidden = [group["hidden"] for group in groups]
    assert sum(hidden) == len(hide(goal, batch)[2]) and len(groups) > 4
    assert sum(group["codes"] for group in groups) <= len(data.store.vocabulary) - 4
    for name in ("masked_code", "unigram", "top1", "top10"):
        mean = np.average([group[name] for group in groups], weights=hidden)
        assert mean == pytest.approx(float(metrics[name]), abs=1e-4)
    assert groups[0]["top1"] == 1 and groups[-1]["top1"] == 0  # it names the commonest code
    assert goal.training and encoder.training


def test_an_objective_that_hides_nothing_has_no_such_accuracy(data, encoder):
    goal = prolonged_stay(**given(data), days=7)
    assert by_frequency(encoder, goal, loader(data, budget=99), counts=given(data)["counts"]) == []


def test_the_stay_auc_is_that_of_the_scores_of_all_batches(data, encoder):
    goal = masked_code_and_stay(**given(data), **MASKS, **BOTH)
    term, scores, said = goal.terms["prolonged_stay"], StayScores(goal), []
    labels = []
    with evaluating(encoder, goal):
        for batch in loader(data, budget=100):
            goal(encoder, batch)
            scores.add(batch)
            shown, _, _ = hide(goal, batch)
            hidden_TD = encoder(shown)
            for i, (a, b) in enumerate(
                zip(batch.offsets_B1[:-1], batch.offsets_B1[1:], strict=True)
            ):
                said.append(float(term.output(hidden_TD[a:b].sum(0))))
                labels.append(bool(term.labels(batch)[1][i]))
    scores.close()
    assert scores.auroc() == pytest.approx(roc_auc_score(labels, said), abs=1e-4)
    assert np.isnan(scores.auroc())


def trained(data, encoder, *, line: EpochLine, epochs: int = 2) -> pl.Trainer:
    goal = masked_code_and_stay(**given(data), **MASKS, **BOTH)
    settings = {"weight_decay": 0.0, "encoder_lr_factor": 1.0, "lazy_rows": False}
    optimizer = partial(adamw, lr=1e-2, warmup=0.1, **settings)
    module = TrainingModule(encoder=encoder, objective=goal, optimizer=optimizer, seed=0)
    machine = pl.Trainer(
        callbacks=[line],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    machine.fit(module, loader(data, budget=100, shuffle=True), loader(data, budget=100))
    return machine


def test_every_epoch_has_a_line_with_what_chance_would_score(data, encoder, caplog):
    caplog.set_level(logging.INFO, logger="medbert")
    line = EpochLine(visit_pairs=1.234, places=lambda batch: 2 * len(batch.tokens_T))
    machine = trained(data, encoder, line=line)
    first, last = (r.getMessage() for r in caplog.records if r.name == diagnostics.__name__)
    for text in ("pairs of codes 1.234", "top10", "padding in attention 100.0%", "GB", "tokens/s"):
        assert text in first
    assert first.startswith("epoch 1/2") and " left" in first and " left" not in last
    assert 0 <= float(machine.callback_metrics["tuning/stay_auroc"]) <= 1
    tokens, subjects = (
        float(re.search(rf"([\d,]+) {what}/s", first)[1].replace(",", ""))
        for what in ("tokens", "subjects")
    )
    assert tokens / subjects == pytest.approx(data.lengths.mean(), rel=0.05)


def test_a_long_epoch_has_lines_between(data, encoder, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="medbert")
    monkeypatch.setattr(diagnostics, "_LINE_EVERY_S", 0.0)
    trained(data, encoder, line=EpochLine(), epochs=1)
    batches = len(loader(data, budget=100))
    said = [r.getMessage() for r in caplog.records if f"/{batches}" in r.getMessage()]
    assert len(said) == batches and all("loss" in text for text in said)


def test_a_run_that_learns_is_left_alone():
    assert advice(**FINE, loss=4.5) == []
    assert advice(**{**FINE, "unigram": None, "visit_pairs": None}) == []
    (text,) = advice(**FINE, loss=5.5)
    assert "longer" in text


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"steps": 3_000, "warmup": 10_000, "lr": 5e-5}, "optimizer.warmup"),
        ({"steps": 30_000, "lr": 5e-5}, "optimizer.lr=2e-3"),
        ({"steps": 500, "warmup": 50}, "max_epochs"),
        ({"steps": 10_000, "rate": None}, "objective=medbert"),
        ({"codes": 100_000}, "min_subjects"),
        ({"subjects": 900}, "vocabulary extend"),
        ({"visit_pairs": 5.99}, "medbert inspect"),
    ],
)
def test_at_the_unigram_entropy_the_cause_at_hand_is_named_and_no_other(told, word):
    first, *causes = advice(**{**FINE, **told}, loss=5.98)
    assert "no more" in first
    assert "not even" in advice(**{**FINE, **told}, loss=7.5)[0]
    assert [word in cause for cause in causes if "so there is more" not in cause] == [True]


def test_a_plan_is_advised_before_any_loss_is_known():
    (text,) = advice(**{**FINE, "steps": 3_000, "warmup": 10_000, "lr": 5e-5})
    assert "3,000 steps with 10,000 of warm-up" in text and "1.5e-05" in text
