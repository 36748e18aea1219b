"""Two processes that share the work do what one does: gloo on the CPU, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import medbert
from medbert.data.batches import TokenBudgetSampler
from medbert.schema import InputError

TWO = ("trainer.devices=2", "trainer.strategy=ddp")
SETTINGS = (
    "store=store",
    "encoder=tiny",
    "encoder.dropout=0",  # the rest of the randomness does not depend on who does the work
    "batch_tokens=3000",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
)


def start(*words: str, cwd: Path) -> subprocess.Popen:
    program = [sys.executable, "-m", "medbert.commands.main", "pretrain", *SETTINGS, *words]
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(
            program, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )


def pretrain(*words: str, cwd: Path) -> None:
    assert start(*words, cwd=cwd).wait() == 0, (cwd / "log").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    medbert.synthesize(n_subjects=300, seed=5, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    pretrain(*TWO, "out=two", cwd=folder)
    return folder


def losses(run: Path) -> np.ndarray:
    return pd.read_csv(run / "logs" / "version_0" / "metrics.csv")["train/loss_step"].dropna()


def test_the_loss_of_every_step_is_that_of_one_process(place):
    pretrain("out=one", cwd=place)
    one, two = losses(place / "one"), losses(place / "two")
    assert len(one) == len(two) > 8
    np.testing.assert_allclose(two, one, atol=1e-3)
    measured = [json.loads((place / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert measured[0]["tuning/loss"] == pytest.approx(measured[1]["tuning/loss"], abs=1e-3)


def test_the_artefact_is_written_once_and_whole(place):
    assert {"model.safetensors", "vocabulary.parquet", "metrics.json", "settings.json"} <= {
        path.name for path in (place / "two").iterdir()
    }
    assert not list(place.glob("two.*")) and not list(place.rglob("*.ckpt"))
    assert (place / "log").read_text().count("made two;") == 1
    assert len(list((place / "two" / "logs").glob("version_*"))) == 1


def test_killed_and_taken_up_by_two(place):
    broken = start(*TWO, "out=broken", "checkpoint_minutes=0", cwd=place)
    checkpoints = place / "broken.partial" / "checkpoints"
    while broken.poll() is None and not any(int(f.stem) > 3 for f in checkpoints.glob("*.ckpt")):
        time.sleep(0.002)
    broken.kill()
    assert broken.wait() == -signal.SIGKILL
    pretrain(*TWO, "out=broken", "checkpoint_minutes=0", cwd=place)
    assert "taking up unfinished work" in (place / "log").read_text()
    weights = [load_file(place / name / "model.safetensors") for name in ("two", "broken")]
    for name, value in weights[0].items():
        assert value.allclose(weights[1][name], atol=1e-6), name


def test_processes_that_start_together_are_all_told_what_is_wrong(place):
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    program = [sys.executable, "-m", "medbert.commands.main", "pretrain", *SETTINGS, "out=two"]
    both = [
        subprocess.Popen(
            program,
            cwd=place,
            env=os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in both:
        assert "two: exists" in process.communicate(timeout=60)[1] and process.returncode == 2


def shared(lengths: np.ndarray, rank: int, world: int, monkeypatch, **settings) -> list[np.ndarray]:
    sampler = TokenBudgetSampler(lengths, seed=3, shared=True, **settings)
    monkeypatch.setattr(sampler, "_place", lambda: (rank, world))
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("world", [2, 3, 7])
def test_a_batch_is_cut_into_parts_of_nearly_equal_size(monkeypatch, world):
    lengths = np.random.default_rng(0).lognormal(4, 1, 500).astype(int) % 512
    settings = {"budget": 8192, "shuffle": True}
    whole = shared(lengths, 0, 1, monkeypatch, **settings)
    parts = [shared(lengths, rank, world, monkeypatch, **settings) for rank in range(world)]
    assert {len(batches) for batches in parts} == {len(whole)}
    assert sorted(np.concatenate([np.concatenate(p) for p in parts])) == list(range(500))
    for step in range(len(whole)):
        tokens = [lengths[batches[step]].sum() for batches in parts]
        longest = max(lengths[batches[step]].max() for batches in parts)
        assert min(map(len, (batches[step] for batches in parts))) > 0
        assert max(tokens) - min(tokens) <= longest + 0.1 * max(tokens)
    same = [set(whole[i]) == {r for p in parts for r in p[i]} for i in range(len(whole))]
    assert sum(same) >= len(whole) - 2  # the last two change places where too few are left


@pytest.mark.parametrize(("budget", "fewer"), [(500, False), (10**6, True)])
def test_tuning_batches_are_whole_and_each_is_seen(monkeypatch, budget, fewer):
    settings = {"budget": budget, "shuffle": False}
    lengths = np.full(40, 50)
    whole = [b.tolist() for b in shared(lengths, 0, 1, monkeypatch, **settings)]
    parts = [[b.tolist() for b in shared(lengths, r, 3, monkeypatch, **settings)] for r in range(3)]
    if fewer:  # than processes: each has all, and their mean is the same
        assert parts == [whole] * 3
    else:
        assert sorted(sum(parts, [])) == sorted(whole)


def test_fewer_subjects_than_processes_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"3 subjects cannot be shared by 4 processes"):
        shared(np.array([5, 5, 5]), 0, 4, monkeypatch, budget=100, shuffle=True)


def test_a_start_passes_over_batches_once():
    sampler = TokenBudgetSampler(np.full(40, 50), budget=500, seed=0, shuffle=True)
    whole = [b.tolist() for b in sampler]
    sampler.start = 3
    assert [b.tolist() for b in sampler] == whole[3:] and len(sampler) == len(whole)
    assert [b.tolist() for b in sampler] == whole
