"""``medbert plan``: what a pretraining would take, from a few measured steps of it."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from medbert.commands.encoders.building import pretraining, pretraining_advice, training_sequences
from medbert.commands.output.artefacts import artefact, write_json
from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.model.layers.attention import places
from medbert.schema import TRAIN, TUNING, Batch, InputError
from medbert.train.diagnostics import duration, peak_memory
from medbert.train.module import TrainingModule

log = logging.getLogger(__name__)

Plan = dict[str, Any]

MEASURED = 1_000, 300_000  # training subjects


def plan(
    *,
    store: str,
    encoder: Callable[..., torch.nn.Module],
    objective: Callable[..., torch.nn.Module],
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    max_tokens: int,
    batch_tokens: int,
    compiler: str | None,
    seed: int,
    steps: int,
    warmup_steps: int,
    n_subjects: int | None,
    cost_per_hour: float | None,
    out: str | None,
    overwrite: bool,
    settings: dict[str, Any],
) -> Plan:
    """Tells the plan in the terminal, writes ``out``/plan.json if named, and returns it.

    The measured batches are evenly spaced among all batches of the training subjects sorted by
    length, so that tokens a second are those of an epoch; on one device. Tuning is measured on the
    same batches, without gradients. Only training subjects are read.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: at least one step has to be measured")
    records = Store(store)
    data = training_sequences(records, TRAIN, max_tokens)
    parts = {"encoder": encoder, "objective": objective, "optimizer": optimizer}
    module: Any = pretraining(records, **parts, compiler=compiler, seed=seed)
    batches = list(loader(data, budget=batch_tokens).sampler)
    codes = module.encoder.codes.weight.numel()
    every = sum(p.numel() for p in module.parameters())
    measured = _measure(module, data, batches, trainer, steps=steps, warmup=warmup_steps, seed=seed)
    here: Plan = {
        "device": measured.pop("device"),
        "training_subjects": len(data),
        "share_of_subjects_shortened": data.n_shortened / len(data),
        "parameters": {"codes": codes, "others": every - codes},
        **measured,
    }
    size = {"subjects": len(data), "tokens": int(data.lengths.sum()), "batches": len(batches)}
    share = len(records.rows(TUNING)) / len(data)
    asked = [1.0] if n_subjects is None else [1.0, n_subjects / len(data)]
    here["runs"] = [
        _run({k: v * times for k, v in size.items()}, here, settings, share, cost_per_hour)
        for times in asked
    ]
    here["advice"] = [_advice(run, settings, records) for run in here["runs"]]
    if out is not None:
        with artefact(out, overwrite=overwrite, settings=settings) as folder:
            write_json(folder / "plan.json", here)
    Console().print(_table(here))
    for text in dict.fromkeys(text for texts in here["advice"] for text in texts):
        log.info("note: %s", text)
    log.info("next: medbert pretrain store=%s out=encoder/ (with the same settings)", store)
    return here


# --- measuring ----------------------------------------------------------------------------------


class _Clock(pl.Callback):
    """When each step was done, all of its kernels included."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.append(_now())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.times.append(_now())
        self.tokens.append(len(batch.tokens_T))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _measure(
    module: TrainingModule,
    data: Sequences,
    batches: list[np.ndarray],
    trainer: Callable[..., Any],
    *,
    steps: int,
    warmup: int,
    seed: int,
) -> Plan:
    """Trains and tunes on a few batches: seconds a token of both, memory, sizes."""
    middles = ((np.arange(steps) + 0.5) * len(batches) / steps).astype(int)
    middles = np.random.default_rng(seed).permutation(middles)
    first = np.linspace(len(batches) - 1, 0, max(1, warmup)).astype(int)  # the longest, memory
    few = DataLoader(data, batch_size=None, sampler=[batches[i] for i in [*first, *middles]])
    again = DataLoader(data, batch_size=None, sampler=[batches[i] for i in middles])
    clock = _Clock()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    machine = trainer(
        callbacks=[clock],
        max_epochs=1,
        max_steps=-1,
        devices=1,
        num_nodes=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        machine.fit(module, few)
        begun = _now()
        machine.validate(module, again, verbose=False)
        tuned = _now() - begun
    seconds, tokens = (np.array(x)[len(first) :] for x in (np.diff(clock.times), clock.tokens))
    states = [state for optimizer in machine.optimizers for state in optimizer.state.values()]
    kept = [x for state in states for x in state.values() if isinstance(x, torch.Tensor)]
    return {
        "device": str(machine.strategy.root_device),
        "steps_measured": len(seconds),
        "seconds_per_batch": _spread(seconds),
        "tokens_per_second": {**_spread(tokens / seconds), "mean": tokens.sum() / seconds.sum()},
        "tuning_tokens_per_second": tokens.sum() / tuned,
        "padding_in_attention": _padding(machine, module.encoder, again),
        "peak_memory_bytes": peak_memory(),
        "encoder_bytes": _bytes(module.encoder.parameters()),
        "checkpoint_bytes": 2 * _bytes(module.parameters()) + _bytes(kept),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("p10", "median", "p90")
    told = dict(zip(names, np.quantile(values, (0.1, 0.5, 0.9)).tolist(), strict=True))
    return {"mean": float(values.mean()), **told}


def _padding(machine: pl.Trainer, encoder: Any, batches: DataLoader) -> float:
    device = machine.strategy.root_device
    with machine.precision_plugin.forward_context():
        told = [
            (places(encoder, b._replace(offsets_B1=b.offsets_B1.to(device))), b) for b in batches
        ]
    return sum(n for n, _ in told) / sum(len(batch.tokens_T) for _, batch in told) - 1


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


# --- telling ------------------------------------------------------------------------------------


def _run(
    size: dict[str, float],
    measured: Plan,
    settings: dict[str, Any],
    tuning_share: float,
    cost_per_hour: float | None,
) -> Plan:
    """Steps and time of a whole run; several devices are taken to share the work without loss."""
    wanted = settings["trainer"]
    devices = [wanted.get(name, 1) for name in ("devices", "num_nodes")]
    at_once = int(np.prod([n if isinstance(n, int) and n > 0 else 1 for n in devices]))
    steps = size["batches"] / at_once / wanted.get("accumulate_grad_batches", 1)
    train_s = size["tokens"] / measured["tokens_per_second"]["mean"] / at_once
    tuning_s = size["tokens"] * tuning_share / measured["tuning_tokens_per_second"] / at_once
    epochs = wanted.get("max_epochs") or 1
    hours = epochs * (train_s + tuning_s) / 3600
    return {
        "subjects": round(size["subjects"]),
        "devices": at_once,
        "tokens_per_epoch": round(size["tokens"]),
        "steps_per_epoch": max(1, round(steps)),
        "seconds_per_epoch": train_s + tuning_s,
        "epochs": epochs,
        "steps": max(1, round(steps)) * epochs,
        "hours": hours,
        "cost": None if cost_per_hour is None else hours * cost_per_hour,
    }


def expected(subjects: int) -> str:
    """What foretelling reached from so many subjects: AUROC = a + b log10(n), by least squares over
    six trainings, which were 0.002 off it on average; see Records in RESULTS.md."""
    reached = 0.8095 + 0.0243 * (math.log10(subjects) - 4.2386)
    within = MEASURED[0] <= subjects <= MEASURED[1]
    measured = "" if within else " ({:,} to {:,} were measured: an extrapolation)".format(*MEASURED)
    return (
        f"on invented records, {subjects:,} training subjects gave an AUROC of about "
        f"{reached:.2f} for heart failure without labels{measured}, and three times as many add "
        "0.012: see whether a smaller n_subjects does as well before paying for more"
    )


def _advice(run: Plan, settings: dict[str, Any], records: Store) -> list[str]:
    foretells = "time_to_event" in settings["objective"].get("terms", {})
    size = [expected(run["subjects"])] if foretells else []
    return size + pretraining_advice(
        settings,
        steps=run["steps"],
        subjects=run["subjects"],
        codes=run["tokens_per_epoch"],
        vocabulary_size=len(records.vocabulary),
    )


def _table(plan: Plan) -> Table:
    """The plan, a column for each number of subjects."""
    columns = [f"{run['subjects']:,} subjects" for run in plan["runs"]]
    table = Table(f"on {plan['device']}", *columns, box=None, header_style="bold")
    parameter, batch = plan["parameters"], plan["seconds_per_batch"]
    speed = plan["tokens_per_second"]
    same = {
        "parameters (codes + others)": f"{parameter['codes']:,} + {parameter['others']:,}",
        "subjects that lose codes": f"{plan['share_of_subjects_shortened']:.2%}",
        "seconds a batch": f"{batch['mean']:.3g} ({batch['p10']:.3g} to {batch['p90']:.3g})",
        "tokens a second": f"{speed['mean']:,.0f} ({speed['p10']:,.0f} to {speed['p90']:,.0f})",
        "padding in attention": f"{plan['padding_in_attention']:.1%}",
        "peak memory": f"{plan['peak_memory_bytes'] / 1e9:.2f} GB",
        "disk, a checkpoint": f"{plan['checkpoint_bytes'] / 1e6:,.0f} MB",
        "disk, the encoder": f"{plan['encoder_bytes'] / 1e6:,.0f} MB",
    }
    for name, text in same.items():
        table.add_row(name, *[text if i == 0 else "" for i in range(len(columns))])
    for name, tell in {
        "tokens an epoch": lambda run: f"{run['tokens_per_epoch']:,}",
        "steps an epoch": lambda run: f"{run['steps_per_epoch']:,}",
        "time of an epoch": lambda run: duration(run["seconds_per_epoch"]),
        "epochs, at most": lambda run: f"{run['epochs']:,}",
        "time of all": lambda run: duration(3600 * run["hours"]),
        "cost": lambda run: f"{run['cost'] or 0:,.2f}",
    }.items():
        if name != "cost" or plan["runs"][0]["cost"] is not None:
            table.add_row(name, *[tell(run) for run in plan["runs"]])
    return table
