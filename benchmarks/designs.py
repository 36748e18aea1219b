"""How much of an AUC is the design's? Case-control and landmark heart failure on one cohort.

    medbert synthesize n_subjects=20000 seed=1 out=events/
    medbert prepare source=meds source.path=events/ out=store/
    python benchmarks/designs.py store/                 # half a minute on one core

Tuned baselines are trained on the rows of one design and judged on the held-out rows of each, with
the same splits. What a model gains from being judged on cases and controls instead of landmarks is
the design's. The oracle is the simulator's risk of the landmark window: the limit there, elsewhere
one more score. Prints a Markdown table of AUROC [95% interval over subjects].
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from medbert.commands.encoders.classifier import Rows, by_split
from medbert.data.counts import count_codes
from medbert.data.store import Store
from medbert.data.synthetic import true_risk
from medbert.evaluate.baselines import AgeSexBaseline, Features, LightGBMBaseline, LogisticBaseline
from medbert.evaluate.intervals import bootstrap, percentiles
from medbert.evaluate.metrics import auroc
from medbert.schema import HELD_OUT, TRAIN, TUNING

TASKS = {"landmark": "dhf", "case-control": "dhf_casecontrol", "as published": "dhf_published"}
WINDOW: Any = {"outcome": "heart_failure", "gap_days": 30, "window_days": 365}  # of task=dhf


def labelled(store: Store, task: str) -> dict[str, tuple[Features, Rows]]:
    """Features and labels of each split."""
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        made = instantiate(compose("finetune", overrides=[f"task={task}"]).task, _convert_="all")
    found = {}
    for split, rows in by_split(store, made.build(store)).items():
        counts = count_codes(store, rows.rows, until=rows.until, window_days=[None, 365])
        dense = np.column_stack([counts.age, counts.female])
        found[split] = Features(counts.codes, dense, counts.sets), rows
    return found


def judged(rows: list[Rows], subjects: np.ndarray, score: np.ndarray) -> list[str]:
    """AUROC on the rows of each design, and what the second is above the first."""
    design = np.repeat(np.arange(len(rows)), [len(each.rows) for each in rows])

    def on(place: int) -> Any:
        here = design == place
        return lambda labels, score, *, weights=None: auroc(
            labels[here], score[here], weights=None if weights is None else weights[here]
        )

    labels, asked = np.concatenate([r.labels for r in rows]), {str(i): on(i) for i in range(3)}
    found = bootstrap(asked, labels, score, subjects, seed=0)
    told = [(found.values["model", m], found.samples["model", m]) for m in asked]
    told.append((told[1][0] - told[0][0], told[1][1] - told[0][1]))
    ends = [(value, *percentiles(samples, found.level)) for value, samples in told]
    return [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ends]


def main() -> None:
    store = Store(sys.argv[1])
    data = {name: labelled(store, task) for name, task in TASKS.items()}
    held = [splits[HELD_OUT] for splits in data.values()]
    rows = [each for _, each in held]
    ids = np.concatenate([store.subject_ids[each.rows] for each in rows])
    until = np.concatenate([each.until for each in rows]).view("datetime64[us]")
    truth = pq.read_table(store.folder / "truth.parquet")
    limit = true_risk(truth, subject_id=ids, prediction_time=until, **WINDOW)
    sizes = [f"({len(r.rows):,} rows, {r.labels.sum()} cases)" for r in rows]
    titles = map(" ".join, zip(data, sizes, strict=True))
    lines = [["trained on", "model", *titles, "case-control minus landmark"], ["---"] * 6]
    lines.append(["", "oracle", *judged(rows, ids, limit)])
    for name, splits in data.items():
        (given, train), (tuning, judge) = splits[TRAIN], splits[TUNING]
        for model in (AgeSexBaseline(), LogisticBaseline(), LightGBMBaseline()):
            fit = model.fit(given, train.labels, tuning, judge.labels, seed=0, threads=1)
            score = np.concatenate([fit.predict_proba(features) for features, _ in held])
            lines.append([name, model.name, *judged(rows, ids, score)])
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
