"""How much do more records, and a larger encoder, help? Pretraining on 1,000 to 300,000 subjects.

    medbert synthesize n_subjects=800000 seed=31 out=events/
    medbert synthesize n_subjects=150000 seed=32 out=others/
    medbert prepare source=meds source.path=events/ out=store/
    medbert prepare source=meds source.path=others/ vocabulary=store/ out=other/ \
        fractions=[0.47,0.13,0.40]
    python benchmarks/sizes.py store/ other/ encoders/    # hours of a core; goes on
    python benchmarks/sizes.py store/ other/ encoders/ causal-1000 causal-3000    # some of them

Every encoder is trained on the first n training subjects of the one store (nested), and asked on
train and tuning of the other, whom none has seen: the loss of time to event (nats a moment, 4,000
subjects), and AUROC of its answer without any label to two tasks. Curves a + b n^-c are fitted.
Prints Markdown; held_out of the other store is not read.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from scipy.optimize import curve_fit
from scipy.special import expit

import medbert
from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.classifier import by_split
from medbert.commands.encoders.questions import ask, of_outcome
from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.evaluate.intervals import bootstrap, percentiles
from medbert.evaluate.metrics import auroc
from medbert.model.hazards import TimeToEvent
from medbert.schema import TRAIN, TUNING

EPOCHS = {1_000: 30, 3_000: 15, 10_000: 8, 30_000: 3, 100_000: 3, 300_000: 2}
SHAPES = {"plain": ["encoder.ever=false"], "causal": []}
TASKS = ("dhf", "paca")
NEGATIVES = 20_000  # rows without the outcome, drawn: AUROC does not depend on their number
SIZES = {"max_tokens": 256, "batch_tokens": 8192}


def pretrained(store: str, folder: Path, shape: str, n: int) -> Path:
    """The encoder of n subjects; made if it is not there."""
    out = folder / f"{shape}-{n}"
    if not (out / "config.json").exists():
        words = ["experiment=foretell", *SHAPES[shape]]
        epochs = {"max_epochs": EPOCHS[n]}
        medbert.pretrain(*words, store=store, n_subjects=n, trainer=epochs, out=str(out))
    return out


def loss(model: Any, records: Store) -> float:
    """Of the first 4,000 tuning subjects, as pretraining counts it."""
    counts = torch.from_numpy(records.vocabulary.counts.copy())
    term = TimeToEvent(
        vocabulary_size=len(counts), hidden=model.hidden, counts=counts, moments=0.6, later=0.7
    ).eval()
    data = Sequences(records, records.rows(TUNING)[:4000], max_tokens=SIZES["max_tokens"])
    total = moments = 0.0
    with torch.no_grad():
        for batch in loader(data, budget=4096):
            shown, target = term.corrupt(batch)
            if n := len(target.place_M):
                total += n * float(term.loss(model, model(shown), shown, target).loss)
                moments += n
    return total / moments


def rows(records: Store, task: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The question of a task, and rows, times and labels of train and tuning."""
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        made = instantiate(compose("finetune", overrides=[f"task={task}"]).task, _convert_="all")
    some = [
        r for split, r in by_split(records, made.build(records)).items() if split in (TRAIN, TUNING)
    ]
    row, until, label = (np.concatenate(part) for part in zip(*some, strict=True))
    without = np.flatnonzero(~label)
    drawn = np.random.default_rng(0).permutation(without)[:NEGATIVES]
    row, until, label = (part[np.r_[np.flatnonzero(label), drawn]] for part in (row, until, label))
    return of_outcome(made.outcome, records), row, until, label


def fitted(sizes: list[int], values: list[float]) -> tuple[float, float, float] | None:
    """a, b, c of a + b (n / 1,000)^-c; None where no such curve is found."""
    x, y = np.array(sizes) / 1000, np.array(values)
    start = (y[-1], y[0] - y[-1], 0.5)
    try:
        return tuple(curve_fit(lambda n, a, b, c: a + b * n**-c, x, y, p0=start, maxfev=20_000)[0])
    except RuntimeError:
        return None


def main() -> None:
    store, other, folder = sys.argv[1], Store(sys.argv[2]), Path(sys.argv[3])
    asked = {task: rows(other, task) for task in TASKS}
    told = folder / "sizes.json"
    found: dict[str, dict[str, Any]] = json.loads(told.read_text()) if told.exists() else {}
    for shape, n in itertools.product(SHAPES, EPOCHS):
        if sys.argv[4:] and f"{shape}-{n}" not in sys.argv[4:]:
            continue
        out = pretrained(store, folder, shape, n)
        if out.name in found:
            continue
        model = load_encoder(out, other).eval()
        one: dict[str, Any] = {"shape": shape, "subjects": n, "loss": loss(model, other)}
        for task, (question, row, until, label) in asked.items():
            data = Sequences(other, row, until=until, max_tokens=SIZES["max_tokens"])
            said = expit(ask(data, model, question, batch_tokens=SIZES["batch_tokens"]))
            boot = bootstrap({"auroc": auroc}, label, said, other.subject_ids[row], seed=0)
            one[task] = [
                boot.values["model", "auroc"],
                *percentiles(boot.samples["model", "auroc"], 0.95),
            ]
        found[out.name] = one
        told.write_text(json.dumps(found, indent=1))
    counts = {task: (len(r[1]), int(r[3].sum())) for task, r in asked.items()}
    print(f"rows, positives: {counts}\n\n| encoder | subjects | loss | {' | '.join(TASKS)} |")
    print("|---|---|---|" + "---|" * len(TASKS))
    for one in found.values():
        cells = [f"{v:.3f} ({low:.3f} to {high:.3f})" for v, low, high in (one[t] for t in TASKS)]
        print(f"| {one['shape']} | {one['subjects']:,} | {one['loss']:.2f} | {' | '.join(cells)} |")
    for shape, name in itertools.product(SHAPES, ("loss", *TASKS)):
        mine = [one for one in found.values() if one["shape"] == shape]
        if len(mine) < 3:  # numbers of a curve
            continue
        values = [one[name] if name == "loss" else one[name][0] for one in mine]
        curve = fitted([one["subjects"] for one in mine], values)
        if curve:
            a, b, c = curve
            at = ", ".join(f"{n:,}: {a + b * (n / 1000) ** -c:.3f}" for n in (25_000, 1_000_000))
            print(f"\n{shape} {name}: {a:.4f} {b:+.4f} (n / 1,000)^-{c:.3f}; at {at}")


if __name__ == "__main__":
    main()
