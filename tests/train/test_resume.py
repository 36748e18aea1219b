"""A run that is broken off anywhere and taken up ends with the weights of an unbroken one."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from test_fit import OPTIMIZER, TRAINER, one_thread, pretraining, run, same, store  # noqa: F401

import medbert
from medbert.commands.encoders import building
from medbert.model.hazards import TimeToEvent
from medbert.model.modern import ModernEncoder
from medbert.model.objectives import combined
from medbert.schema import InputError, Unfinished
from medbert.train import fit as fitting
from medbert.train.checkpoints import Checkpoints, Signals, WholeFiles
from medbert.train.module import TrainingModule

STORE = ["store=store", "encoder=tiny", "batch_tokens=4096", "trainer.accelerator=cpu"]
EVERY_STEP = {"checkpoint_minutes": 0.0, "trainer": partial(TRAINER, max_epochs=2)}


class Killed(RuntimeError):
    pass


@pytest.fixture
def at_step(monkeypatch):
    """``at_step(n, do)`` calls ``do`` when training step ``n`` begins."""

    def plan(step, do):
        def begin(self, trainer, module, batch, batch_idx):
            if trainer.global_step == step:
                do()

        monkeypatch.setattr(Checkpoints, "on_train_batch_start", begin)

    return plan


def kill() -> None:
    raise Killed


def foretelling(store) -> TrainingModule:  # noqa: F811
    sizes = {"layers": 1, "heads": 2, "hidden": 16, "feed_forward": 16, "dropout": 0.1}
    causal = {"attention_dropout": 0.1, "causal": True, "edges": [0, 90]}
    terms = {"time_to_event": partial(TimeToEvent, moments=0.7, sampled=6)}
    return building.pretraining(
        store,
        encoder=partial(ModernEncoder, **sizes, **causal),
        objective=partial(combined, terms=terms, weights=dict.fromkeys(terms, 1.0)),
        optimizer=OPTIMIZER,
        compiler=None,
        seed=0,
    )


@pytest.mark.parametrize("pretraining", [pretraining, foretelling])
def test_killed_at_any_step(store, tmp_path, at_step, pretraining):  # noqa: F811
    unbroken = pretraining(store)
    metrics = run(unbroken, store, tmp_path / "unbroken", **EVERY_STEP)
    steps = int(Path(fitting.latest_checkpoint(tmp_path / "unbroken" / "checkpoints")).stem)
    assert steps > 10
    for step in range(steps):
        folder = tmp_path / str(step)
        at_step(step, kill)
        with pytest.raises(Killed):
            run(pretraining(store), store, folder, **EVERY_STEP)
        at_step(-1, kill)
        resumed = pretraining(store)
        assert run(resumed, store, folder, **EVERY_STEP) == metrics
        assert same(unbroken, resumed), f"killed at step {step}"


@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": 0.5},
        {"accumulate_grad_batches": 3},
        {"limit_train_batches": 4},
        {"max_steps": 12},
        {"check_val_every_n_epoch": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_whatever_the_trainer_is_told(store, tmp_path, at_step, settings):  # noqa: F811
    wanted = EVERY_STEP | {"trainer": partial(TRAINER, max_epochs=4, **settings)}
    unbroken = pretraining(store)
    run(unbroken, store, tmp_path / "unbroken", **wanted)
    for step in (2, 5, 8):
        at_step(step, kill)
        try:
            run(pretraining(store), store, tmp_path / str(step), **wanted)
        except Killed:
            at_step(-1, kill)
            resumed = pretraining(store)
            run(resumed, store, tmp_path / str(step), **wanted)
            assert same(unbroken, resumed), f"killed at step {step}"


def test_a_run_that_stopped_early_is_not_trained_further(store, tmp_path, monkeypatch):  # noqa: F811
    settings = {"trainer": partial(TRAINER, max_epochs=30), "patience": 1}
    unbroken = pretraining(store)
    metrics = run(unbroken, store, tmp_path / "unbroken", **settings)
    assert metrics["best_epoch"] < 25
    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "validate", lambda *_, **__: kill())
        with pytest.raises(Killed):
            run(pretraining(store), store, tmp_path / "broken", **settings)
    before = sorted((tmp_path / "broken" / "checkpoints").iterdir())
    resumed = pretraining(store)
    assert run(resumed, store, tmp_path / "broken", **settings) == metrics
    assert same(unbroken, resumed)
    assert sorted((tmp_path / "broken" / "checkpoints").iterdir()) == before


def test_the_damaged_last_checkpoint_gives_way_to_the_one_before(store, tmp_path, at_step, caplog):  # noqa: F811
    unbroken = pretraining(store)
    run(unbroken, store, tmp_path / "unbroken", **EVERY_STEP)
    at_step(7, kill)
    with pytest.raises(Killed):
        run(pretraining(store), store, tmp_path / "broken", **EVERY_STEP)
    first, last = sorted((tmp_path / "broken" / "checkpoints").glob("*.ckpt"))
    last.write_bytes(last.read_bytes()[:-1000])
    at_step(-1, kill)
    resumed = pretraining(store)
    run(resumed, store, tmp_path / "broken", **EVERY_STEP)
    assert same(unbroken, resumed)
    assert f"{last} is damaged" in caplog.text
    assert first.name not in {f.name for f in (tmp_path / "broken" / "checkpoints").iterdir()}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(store, tmp_path, at_step, name):  # noqa: F811
    unbroken = pretraining(store)
    run(unbroken, store, tmp_path / "unbroken", trainer=EVERY_STEP["trainer"])
    at_step(3, lambda: signal.raise_signal(signal.Signals[name]))
    with pytest.raises(Unfinished, match=f"{name} came at step 4; everything is saved"):
        run(pretraining(store), store, tmp_path / "broken", trainer=EVERY_STEP["trainer"])
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL
    assert [f.name for f in (tmp_path / "broken" / "checkpoints").iterdir()] == ["000000004.ckpt"]
    at_step(-1, kill)
    resumed = pretraining(store)
    run(resumed, store, tmp_path / "broken", trainer=EVERY_STEP["trainer"])
    assert same(unbroken, resumed)


def test_a_launcher_that_listens_itself_is_told_once_all_is_saved(store, tmp_path, at_step):  # noqa: F811
    saved = []

    def requeue(number, frame):
        saved.append([f.name for f in (tmp_path / "checkpoints").iterdir()])
        raise SystemExit(-1)

    earlier = signal.signal(signal.SIGUSR2, requeue)
    try:
        at_step(3, lambda: signal.raise_signal(signal.SIGUSR2))
        with pytest.raises(SystemExit):
            run(pretraining(store), store, tmp_path, trainer=EVERY_STEP["trainer"])
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert saved == [["000000004.ckpt"]]


def test_the_time_limit_saves_and_stops(store, tmp_path):  # noqa: F811
    with pytest.raises(Unfinished, match="time is up at step 1;"):
        run(pretraining(store), store, tmp_path, deadline=time.monotonic())
    assert fitting.latest_checkpoint(tmp_path / "checkpoints")


def test_signals_are_left_alone_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    files, path = WholeFiles(), tmp_path / "a.ckpt"
    files.save_checkpoint({"step": torch.tensor(1)}, path)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save_checkpoint({"step": torch.tensor(2)}, path)
    assert torch.load(path, weights_only=True)["step"] == 1


def test_a_head_is_not_trained_on_several_devices(store, tmp_path):  # noqa: F811
    two = partial(TRAINER, devices=2, strategy="ddp")
    with pytest.raises(InputError, match=r"trainer\.devices"):
        run(pretraining(store), store, tmp_path, trainer=two, resumable=False)


def command(*words: str, cwd: Path, log: Path) -> subprocess.Popen:
    program = [sys.executable, "-m", "medbert.commands.main", "pretrain", *STORE, *words]
    with log.open("ab") as sink:
        return subprocess.Popen(
            program, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=sink, stderr=sink
        )


def wait_for_step(process: subprocess.Popen, checkpoints: Path, step: int) -> None:
    """Until a checkpoint of that step or a later one is there, or the process has ended."""
    while process.poll() is None:
        if any(int(file.stem) >= step for file in checkpoints.glob("*.ckpt")):
            return
        time.sleep(0.001)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    medbert.synthesize(n_subjects=300, seed=5, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    return folder


def test_the_command_killed_again_and_again_makes_the_same_encoder(place):
    words = ["checkpoint_minutes=0.0002", "trainer.max_epochs=6"]
    unbroken = command(*words, "out=unbroken", cwd=place, log=place / "unbroken.log")
    draws = random.Random(0)
    kills = 0
    for step in (draws.randint(1, 12), draws.randint(13, 22), 30):
        broken = command(*words, "out=broken", cwd=place, log=place / "broken.log")
        if step < 30:
            wait_for_step(broken, place / "broken.partial" / "checkpoints", step)
            time.sleep(draws.random() / 20)
            broken.kill()
        kills += broken.wait() == -signal.SIGKILL
    assert unbroken.wait() == 0, (place / "unbroken.log").read_text()
    assert kills == 2, (place / "broken.log").read_text()
    assert (place / "broken.log").read_text().count("taking up unfinished work") == 2
    weights = [(place / name / "model.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert weights[0] == weights[1]


def test_the_command_says_that_it_is_to_be_repeated(place, monkeypatch):
    log = place / "signal.log"
    stopped = command("out=signal", "trainer.max_epochs=500", cwd=place, log=log)
    wait_for_step(stopped, place / "signal.partial" / "checkpoints", 1)
    stopped.terminate()
    assert stopped.wait() == 75
    last = log.read_text().splitlines()[-1]
    assert last.startswith("medbert pretrain: SIGTERM came at step ")
    assert last.endswith("everything is saved: repeat the command to go on")
    assert not (place / "signal").exists()
    assert list((place / "signal.partial" / "checkpoints").glob("*.ckpt"))
    monkeypatch.chdir(place)
    with pytest.raises(Unfinished, match="time is up"):  # the limit may differ, the rest may not
        medbert.pretrain(*STORE, "trainer.max_epochs=500", out="signal", time_limit=0)
