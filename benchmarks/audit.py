"""Does the audit tell an encoder that remembers its subjects from a sound one? What does DP cost?

    OMP_NUM_THREADS=1 python benchmarks/audit.py     # ten minutes of one core; leaves nothing
    python benchmarks/audit.py --keep folder/        # takes up what is there; --only many: half

Invented lives (`medbert synthesize`), encoder=tiny, objective=masked_code, 128 codes a subject. The
stores have canaries: sequences of 12 random codes that one, 4 and 16 subjects have (few: 8 of each,
many: 16). Of about 500 training subjects: 100 epochs; and with differential privacy, 15.
Of about 5,500: 8 epochs; and with privacy, 5. Vocabulary and code counts are not covered by that
privacy, so the private encoders take those of other lives, of the encoder that is shipped. Each is
audited on up to 2,000 members and 2,000 others. A logistic regression on the frozen encoder then
predicts death within a year.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

import medbert
from medbert.evaluate.intervals import bootstrap
from medbert.evaluate.metrics import auroc

TASK = "mortality_1y"
OTHERS = f"vocabulary={Path(medbert.__file__).parents[1] / 'data_synthetic' / 'encoder'}"
NO_DROPOUT = ("encoder.dropout=0", "optimizer.lr=1e-2")  # there is noise enough
RUNS = {
    "few, 100 epochs": ("few", 100, []),
    "few, private": ("few_others", 15, ["privacy=dp", "privacy.batch_subjects=256", *NO_DROPOUT]),
    "many, 8 epochs": ("many", 8, []),
    "many, private": ("many_others", 5, ["privacy=dp", *NO_DROPOUT]),
}


def store(folder: Path, name: str, fractions: str, n_canaries: int, *words: str) -> None:
    prepared = folder / f"{name}_plain"
    if (folder / name).is_dir():
        return
    medbert.prepare(
        *words,
        "source=meds",
        f"source.path={folder}/events",
        f"fractions={fractions}",
        out=prepared,
    )
    medbert.audit_plant(store=prepared, n_canaries=n_canaries, out=folder / name)


def made(folder: Path, name: str) -> dict[str, Any]:
    """Pretrains and audits; what both say, and the seconds of this process they took."""
    records, epochs, words = RUNS[name]
    encoder = folder / name.replace(", ", "_").replace(" ", "_")
    begun = time.process_time()
    if not encoder.is_dir():
        medbert.pretrain(
            *words,
            store=folder / records,
            encoder="tiny",
            objective="masked_code",
            max_tokens=128,
            batch_tokens=2048 if records.startswith("few") else 8192,
            patience=epochs,
            trainer={"max_epochs": epochs, "accelerator": "cpu"},
            out=encoder,
        )
    trained = time.process_time()
    audit = encoder.with_name(f"{encoder.name}_audit")
    if not audit.is_dir():
        medbert.audit(store=folder / records, encoder_dir=encoder, device="cpu", out=audit)
    told, seconds = json.loads((audit / "audit.json").read_text()), time.process_time() - trained
    metrics = json.loads((encoder / "metrics.json").read_text())
    loss = f"{metrics['tuning/masked_code']:.2f} ({metrics['tuning/unigram']:.2f})"
    took = {"training": trained - begun, "audit": seconds}
    return {"encoder": encoder, "store": folder / records, "loss": loss, "took": took, **told}


def predicted(run: dict[str, Any]) -> pd.DataFrame:
    """Held-out rows, by a logistic regression on the frozen encoder."""
    out = run["encoder"].with_name(f"{run['encoder'].name}_run")
    if not out.is_dir():
        medbert.finetune(
            store=run["store"],
            encoder_dir=run["encoder"],
            task=TASK,
            head="frozen_logistic",
            max_tokens=128,
            out=out,
        )
    return pd.read_parquet(out / "predictions.parquet")


def line(name: str, run: dict[str, Any]) -> str:
    auc, tpr, canaries, *_ = run["findings"]
    found = [f"{of['found']} of {len(of['bits'])}" for of in canaries["by_repeats"].values()]
    cells = [name, f"{run['privacy']['epsilon']:.2f}" if run["privacy"] else "", run["verdict"]]
    cells += [f"{told(of)}: {of['verdict']}" for of in (auc, tpr, canaries)]
    cells += [*found, run["loss"], *(f"{seconds:.0f}" for seconds in run["took"].values())]
    return f"| {' | '.join(cells)} |\n"


def told(of: Any) -> str:
    value, low, high = (of[name] for name in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def cost(runs: dict[str, dict[str, Any]]) -> str:
    """AUROC of the encoders of many subjects, and what privacy takes from it."""
    names = ["many, 8 epochs", "many, private"]
    tables = [predicted(runs[name]) for name in names]
    labels, ids = tables[0]["boolean_value"].astype(float), tables[0]["subject_id"]
    both = {n: t["predicted_boolean_probability"] for n, t in zip(names, tables, strict=True)}
    made = bootstrap({"auroc": auroc}, labels, both, ids, seed=0)
    each = [f"{name} {told(asdict(made.interval(name, metric='auroc')))}" for name in names]
    less = asdict(made.difference(names[0], minus=names[1], metric="auroc"))
    return (
        f"AUROC of {TASK} ({len(labels):,} held-out rows of {ids.nunique():,} subjects, "
        f"{int(labels.sum())} positive): {', '.join(each)}; difference {told(less)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="a folder for what is made")
    parser.add_argument("--subjects", type=int, default=8000)
    parser.add_argument("--only", default="", help="few, many: the encoders of which store")
    arguments = parser.parse_args()
    head = ["encoder", "epsilon", "verdict", "AUC", "TPR at 1% FPR", "bits of canaries (once)"]
    head += ["found: once", "4 times", "16 times", "tuning loss (unigram)"]
    head += ["training, CPU-s", "audit, CPU-s"]
    with TemporaryDirectory() as place:
        folder = arguments.keep or Path(place)
        if not (folder / "events").is_dir():
            medbert.synthesize(n_subjects=arguments.subjects, seed=1, out=folder / "events")
        share = 500 / arguments.subjects
        for name, words in {"": (), "_others": (OTHERS,)}.items():
            store(folder, f"few{name}", f"[{share},0.02,{0.98 - share}]", 8, *words)
            store(folder, f"many{name}", "[0.7,0.1,0.2]", 16, *words)
        sys.stdout.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
        runs = {}
        for name in (name for name in RUNS if name.startswith(arguments.only)):
            runs[name] = made(folder, name)
            sys.stdout.write(line(name, runs[name]))
            sys.stdout.flush()
        if arguments.only != "few":
            sys.stdout.write(cost(runs))


if __name__ == "__main__":
    main()
