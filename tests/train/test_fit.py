from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import records_of
from pytorch_lightning.loggers import CSVLogger

from medbert.data.batches import Sequences, loader
from medbert.model.encoder import BertEncoder
from medbert.model.heads import Pooled
from medbert.model.objectives import masked_code_and_stay
from medbert.train import fit as fitting
from medbert.train.diagnostics import EpochLine
from medbert.train.module import TrainingModule
from medbert.train.optimizers import adamw
from medbert.train.score import score

OPTIMIZER = partial(
    adamw, lr=1e-2, weight_decay=0.01, warmup=0.2, encoder_lr_factor=1.0, lazy_rows=False
)
TRAINER = partial(pl.Trainer, max_epochs=4, accelerator="cpu", gradient_clip_val=1.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are no work for several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(make_store):
    random = np.random.default_rng(0)
    events = [
        (s, f"20{random.integers(10, 20)}-0{random.integers(1, 9)}-11", f"C{random.integers(12)}")
        for s in range(1, 80)
        for _ in range(random.integers(2, 12))
    ]
    stays = [(s, s, "2021-01-01", "2021-01-12", "inpatient", float(s % 12)) for s in range(1, 80)]
    return make_store(records_of(events, visits=stays))


def pretraining(store, *, seed: int = 0) -> TrainingModule:
    torch.manual_seed(seed)
    size = len(store.vocabulary)
    encoder = BertEncoder(
        vocabulary_size=size,
        layers=1,
        heads=2,
        hidden=16,
        feed_forward=16,
        dropout=0.1,
        attention_dropout=0.1,
        positions=64,
        visits=32,
    )
    objective = masked_code_and_stay(
        vocabulary_size=size,
        hidden=16,
        counts=torch.from_numpy(store.vocabulary.counts.copy()),
        rate=0.3,
        static=False,
        days=7,
        masked_code_weight=1.0,
        stay_weight=1.0,
        seed=0,
        start_at_unigram=False,  # so that every epoch betters the one before
    )
    return TrainingModule(encoder=encoder, objective=objective, optimizer=OPTIMIZER, seed=seed)


def run(module, store, folder, **settings):
    data = Sequences(store, np.arange(len(store)), max_tokens=64)
    defaults = {"trainer": TRAINER, "monitor": "tuning/loss", "mode": "min", "patience": 9}
    return fitting.fit(
        module,
        train=loader(data, budget=100, seed=1, shuffle=True),
        tuning=loader(data, budget=100),
        folder=folder,
        **defaults | settings,
    )


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Killed(RuntimeError):
    pass


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(store, tmp_path, monkeypatch):
    unbroken = pretraining(store)
    run(unbroken, store, tmp_path / "unbroken")

    def die(self, trainer, module):
        if trainer.current_epoch == 2:
            raise Killed

    broken = pretraining(store)
    with monkeypatch.context() as patch:
        patch.setattr(EpochLine, "on_train_epoch_start", die)
        with pytest.raises(Killed):
            run(broken, store, tmp_path / "broken")
    assert not same(unbroken, broken)
    resumed = pretraining(store, seed=0)
    run(resumed, store, tmp_path / "broken")
    assert same(unbroken, resumed)


def test_a_damaged_checkpoint_is_passed_over(store, tmp_path, caplog):
    run(pretraining(store), store, tmp_path, trainer=partial(TRAINER, max_epochs=1))
    good = fitting.latest_checkpoint(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "later.ckpt").write_bytes(b"half a checkpoint")
    assert fitting.latest_checkpoint(tmp_path / "checkpoints") == good
    assert "damaged" in caplog.text


def test_training_lowers_the_loss_below_code_frequencies_on_learnable_data(make_store, tmp_path):
    # three kinds of subject, each with three codes of its own: ln 3 can be reached, ln 9 is chance
    events = [
        (s, f"2010-01-{d:02d}", f"C{s % 3}{(s + d * d) % 3}")
        for s in range(60)
        for d in range(1, 9)
    ]
    store = make_store(records_of(events))
    module = pretraining(store)
    metrics = run(module, store, tmp_path, trainer=partial(TRAINER, max_epochs=25))
    assert metrics["tuning/masked_code"] < 0.8 * metrics["tuning/unigram"]


def head(store, labels, **settings):
    torch.manual_seed(0)
    encoder = pretraining(store).encoder
    module = TrainingModule(
        encoder=encoder,
        objective=Pooled(hidden=16, pooling="mean"),
        optimizer=OPTIMIZER,
        seed=0,
        **settings,
    )
    data = Sequences(store, np.arange(len(store)), labels=labels, max_tokens=64)
    return module, data


def test_the_best_epoch_is_kept_not_the_last(store, tmp_path):
    labels = np.random.default_rng(3).random(len(store)) < 0.5
    module, data = head(store, labels)
    metrics = fitting.fit(
        module,
        train=loader(data, budget=100, seed=1, shuffle=True),
        tuning=loader(data, budget=100),
        trainer=partial(TRAINER, max_epochs=6),
        folder=tmp_path,
        monitor="tuning/auroc",
        mode="max",
        patience=9,
        resumable=False,
    )
    logged = np.genfromtxt(
        tmp_path / "logs" / "version_0" / "metrics.csv", delimiter=",", names=True
    )
    assert metrics["tuning/auroc"] == pytest.approx(np.nanmax(logged["tuningauroc"]), abs=1e-6)
    assert not (tmp_path / "checkpoints").exists()


def test_a_frozen_encoder_stays_as_it_was(store, tmp_path):
    module, data = head(store, np.arange(len(store)) % 2 == 0, freeze_encoder=True)
    before = {k: v.clone() for k, v in module.encoder.state_dict().items()}
    fitting.fit(
        module,
        train=loader(data, budget=100, seed=1, shuffle=True),
        tuning=loader(data, budget=100),
        trainer=partial(TRAINER, max_epochs=1),
        folder=tmp_path,
        monitor="tuning/auroc",
        mode="max",
        patience=1,
        resumable=False,
    )
    assert all(torch.equal(v, before[k]) for k, v in module.encoder.state_dict().items())


def test_scores_come_back_in_the_order_of_the_dataset(store):
    data = Sequences(store, np.arange(len(store)), max_tokens=64)
    rows = score(lambda b: b.rows_B.float(), loader(data, budget=50, seed=3, shuffle=True))
    assert rows.tolist() == list(range(len(store)))


def test_the_learning_rate_warms_up_and_falls_to_zero(store):
    made = adamw(
        pretraining(store),
        total_steps=100,
        lr=1.0,
        weight_decay=0.1,
        warmup=0.1,
        encoder_lr_factor=0.5,
        lazy_rows=False,
    )
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    encoder, objective = np.array(rates).T[[0, -1]]
    assert objective.max() == 1.0 and encoder.max() == 0.5
    assert (
        np.argmax(objective) == 9 and objective[-1] < 0.02 and (np.diff(objective[:10]) > 0).all()
    )
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}


def test_a_logger_of_the_trainer_is_told_the_same(store, tmp_path):
    own = CSVLogger(tmp_path / "elsewhere")
    trainer = partial(TRAINER, max_epochs=1, logger=own)
    run(pretraining(store), store, tmp_path / "here", trainer=trainer)
    files = [next((tmp_path / name).rglob("metrics.csv")) for name in ("elsewhere", "here")]
    assert files[0].read_text() == files[1].read_text() and "tuning/loss" in files[0].read_text()
