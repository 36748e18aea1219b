"""What is each part of ``experiment=foretell`` worth? One encoder without each, in one benchmark.

    medbert synthesize n_subjects=145000 seed=31 out=events/
    medbert synthesize n_subjects=150000 seed=38 out=others/
    medbert prepare source=meds source.path=events/ out=store/
    medbert prepare source=meds source.path=others/ vocabulary=store/ out=other/ \
        fractions=[0.47,0.13,0.40]
    python benchmarks/ablation.py store/ other/ ablation/ --subjects 20000 --controls 10
    python benchmarks/ablation.py d130/ d130/ ablation130/ --task dhf_next

Pretrains on the first store and judges on the second: AUROC without labels and with 300, 1,000 and
all of them, means over five draws, each difference paired; first those that can be asked, then the
others, frozen. (Two invented lives of one number may be alike by chance:
``--allow held_out_in_pretraining``.) A row again, alone: ``--rows no_silence``. The published
preset has as many seconds of the clock as the whole recipe took of the CPU. Encoders that are there
already are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import medbert
from medbert.evaluate.intervals import bootstrap, percentiles
from medbert.evaluate.metrics import auroc

BERT = (
    *("encoder=modern", "encoder.layers=2", "encoder.heads=4"),
    *("encoder.hidden=64", "encoder.feed_forward=128"),
)
ROWS: dict[str, tuple[str, ...]] = {
    "foretell": ("experiment=foretell",),
    "no_silence": (
        *("experiment=foretell", "encoder.silence=false"),
        "objective.terms.time_to_event.later=0",
    ),
    "no_regression": ("experiment=foretell", "encoder.linear=0"),
    "no_recent": ("experiment=foretell", "encoder.recent=null"),
    "no_sum": ("experiment=foretell", "encoder.ever=false"),
    "attention_alone": ("experiment=foretell", "encoder.ever=false", "encoder.linear=0"),
    "no_age_or_sex": ("experiment=foretell", "encoder.ages=false", "encoder.sex=false"),
    "order_for_days": ("experiment=foretell", "encoder.time=order"),
    "one_layer": ("experiment=foretell", "encoder.layers=1"),
    "masked_codes": (*BERT, "objective=masked_code"),
    "published": ("experiment=published",),
}
FROZEN = ("masked_codes", "published")
SIZES = (300, 1_000)


def pretrained(name: str, chosen: argparse.Namespace, seconds: dict[str, float]) -> Path:
    """The encoder of a row, made if it is not there."""
    out = chosen.out / name
    if (out / "config.json").exists():
        return out
    own: dict[str, Any] = {"trainer": {"max_epochs": chosen.epochs}}
    if name == "published":
        limit = time.strftime("%H:%M:%S", time.gmtime(seconds["foretell"]))
        own = {"trainer": {"max_time": "00:" + limit, "max_epochs": 1_000}}
    else:
        own |= {"optimizer": {"lr": chosen.rate}, "max_tokens": 256, "batch_tokens": chosen.tokens}
    begun = time.process_time()
    medbert.pretrain(*ROWS[name], store=chosen.store, n_subjects=chosen.subjects, out=out, **own)
    seconds[name] = time.process_time() - begun
    (chosen.out / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    return out


def told(one: dict[str, Any], *, points: bool) -> str:
    sign, times, digits = ("+", 100, 1) if points else ("", 1, 3)
    value, low, high = (f"{times * one[k]:{sign}.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="to pretrain on")
    parser.add_argument("judged", help="store with the labels")
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=None)
    parser.add_argument("--task", default="dhf")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--controls", type=int, default=None, help="rows for each positive: faster")
    parser.add_argument("--allow", nargs="*", default=[], help="findings of the linter")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = chosen.out / "seconds.json"
    seconds = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    rows = ["foretell", *(name for name in chosen.rows if name != "foretell")]
    folders = {name: pretrained(name, chosen, seconds) for name in rows}
    asked = {name: folder for name, folder in folders.items() if name not in FROZEN}
    frozen = {name: folder for name, folder in folders.items() if name in FROZEN}
    judge("asked", {name: asked[name] for name in list(asked)[1:]}, folders["foretell"], chosen)
    if frozen:
        judge("frozen", frozen, folders["foretell"], chosen)
    sys.stdout.write(f"CPU-seconds of pretraining: {seconds}\n")


def judge(kind: str, others: dict[str, Path], whole: Path, chosen: argparse.Namespace) -> None:
    """One benchmark of the whole recipe and others: what they answer when they are asked, or what
    those that cannot be, and an untrained one, are worth frozen, beside counts."""
    words = [f"+encoders.{name}={folder}" for name, folder in others.items()]
    if kind == "asked":
        words += ["~head@heads.frozen_logistic", "untrained=false"]
    if chosen.controls is not None:
        words.append(f"++task.controls={chosen.controls}")
    medbert.benchmark(
        *("task=" + chosen.task, "~head@heads.sum", *words),
        store=chosen.judged,
        encoder_dir=whole,
        label_sizes=list(SIZES),
        allow=chosen.allow,
        out=chosen.out / kind,
        overwrite=True,
    )
    metrics = json.loads((chosen.out / kind / "metrics.json").read_text(encoding="utf-8"))
    sys.stdout.write(f"{kind}: {metrics['positives']} positives in {metrics['rows']} rows\n")
    for lead in metrics["leads"]:
        cells = [told(one, points=True) for one in (*lead["by_size"].values(), lead["whole"])]
        sys.stdout.write("| " + " | ".join([lead["over"], *cells]) + " |\n")
    for model in metrics["models"]:
        sys.stdout.write(f"{model['name']}: {told(model['auroc'], points=False)}\n")
    table = pq.read_table(chosen.out / kind / "predictions.parquet").to_pandas()
    said = {name: table[name] for name in table if name.endswith("(query, no labels)")}
    sets = table["boolean_value"], said, table["subject_id"]
    boot = bootstrap({"auroc": auroc}, *sets, seed=0)
    first, *rest = said
    for name in rest:
        value, samples = (
            part[first, "auroc"] - part[name, "auroc"] for part in (boot.values, boot.samples)
        )
        low, high = percentiles(samples, 0.95)
        one = {"value": value, "low": low, "high": high}
        sys.stdout.write(f"without labels, over {name}: {told(one, points=True)}\n")


if __name__ == "__main__":
    main()
