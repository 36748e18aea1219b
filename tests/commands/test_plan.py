"""``medbert plan``: what it tells is measured on training subjects, and adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest

import medbert
from medbert import InputError
from medbert.commands.encoders.building import training_sequences
from medbert.commands.plan import expected
from medbert.data.batches import Sequences, TokenBudgetSampler
from medbert.data.store import Store
from medbert.schema import TRAIN, TUNING

QUICK = {
    "encoder": "tiny",
    "batch_tokens": 2000,
    "max_tokens": 100,
    "steps": 4,
    "warmup_steps": 1,
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
}


QUICK_TIME = {name: value for name, value in QUICK.items() if name != "encoder"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    medbert.synthesize(n_subjects=400, seed=3, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    return folder / "store"


def test_the_plan_adds_up_and_reads_training_subjects_only(store, tmp_path, monkeypatch, capsys):
    read, history = [], Store.history
    monkeypatch.setattr(
        Store, "history", lambda self, rows, **kw: read.append(rows) or history(self, rows, **kw)
    )
    plan = medbert.plan(
        store=store, n_subjects=4_000_000, cost_per_hour=2, out=tmp_path / "plan", **QUICK
    )
    opened = Store(store)
    assert set(np.concatenate(read)) == set(opened.rows("train"))
    monkeypatch.undo()
    data = Sequences(opened, opened.rows("train"), max_tokens=100)
    sampler = TokenBudgetSampler(data.lengths, budget=2000, seed=0, shuffle=False)
    here, there = plan["runs"]
    assert here["tokens_per_epoch"] == data.lengths.sum() and here["subjects"] == len(data)
    assert here["steps_per_epoch"] == len(sampler) and here["steps"] == 3 * len(sampler)
    assert plan["share_of_subjects_shortened"] == data.n_shortened / len(data) > 0
    training = here["tokens_per_epoch"] / plan["tokens_per_second"]["mean"]
    assert training < here["seconds_per_epoch"] == pytest.approx(here["hours"] * 3600 / 3)
    assert there["hours"] / here["hours"] == pytest.approx(4e6 / len(data))
    assert there["cost"] == 2 * there["hours"] and plan["steps_measured"] == 4
    assert here["steps"] < 2000 and plan["advice"][0] and not plan["advice"][1]
    assert json.loads((tmp_path / "plan" / "plan.json").read_text()) == plan
    assert "4,000,000 subjects" in capsys.readouterr().out


def test_parameters_and_disk_are_those_of_the_encoder(store, tmp_path):
    plan = medbert.plan(store=store, **QUICK, objective="masked_code")
    weights = medbert.pretrain(
        store=store,
        encoder="tiny",
        objective="masked_code",
        batch_tokens=100_000,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=tmp_path / "encoder",
    )
    written = (weights / "model.safetensors").stat().st_size
    assert plan["encoder_bytes"] == pytest.approx(written, rel=0.02)
    assert plan["parameters"]["codes"] == 64 * len(Store(store).vocabulary)
    assert plan["checkpoint_bytes"] > 3 * plan["encoder_bytes"]
    assert not list(tmp_path.glob("plan*"))


def test_a_small_cohort_with_the_published_recipe_is_warned(store, caplog):
    caplog.set_level("INFO", logger="medbert")
    plan = medbert.plan(
        "experiment=published", "encoder=tiny", store=store, steps=2, warmup_steps=1
    )
    assert "10,000 of warm-up" in plan["advice"][0][0] and plan["advice"][0][0] in caplog.text


def test_what_more_subjects_bring_is_told_where_it_was_measured(store):
    plan = medbert.plan("experiment=foretell", store=store, n_subjects=1_000_000, **QUICK_TIME)
    few, many = (advice[0] for advice in plan["advice"])
    assert "an AUROC of about 0.85 " in many and "300,000 were measured: an extrapolation" in many
    assert "an extrapolation" in few and "about 0.77 " in few  # of some 280
    assert "0.81 " in expected(25_000) and "extrapolation" not in expected(25_000)
    assert "0.80 " in expected(10_000)  # as measured
    assert not any("AUROC" in text for text in medbert.plan(store=store, **QUICK)["advice"][0])


def test_what_cannot_be_planned_is_said(store):
    with pytest.raises(InputError, match="steps=0"):
        medbert.plan(store=store, **{**QUICK, "steps": 0})


def test_fewer_subjects_are_part_of_more_and_of_the_same_split(store):
    records, before = Store(store), set()
    for n in (20, 60, len(records.rows(TRAIN))):
        train = training_sequences(records, TRAIN, 100, n_subjects=n)
        tuning = training_sequences(records, TUNING, 100, n_subjects=n)
        assert len(train) == n and set(train.rows) <= set(records.rows(TRAIN))
        assert before <= set(train.rows)
        assert len(tuning) == -(-len(records.rows(TUNING)) * n // len(records.rows(TRAIN)))
        before = set(train.rows)
    with pytest.raises(InputError, match="n_subjects=9,999: train has"):
        training_sequences(records, TRAIN, 100, n_subjects=9999)
