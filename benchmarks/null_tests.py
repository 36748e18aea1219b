"""Do the statistics keep their promises? Levels and coverage on simulated data, and their speed.

    python benchmarks/null_tests.py                     # 1,000 simulations; about ten minutes
    python benchmarks/null_tests.py --simulations 200

Scores are binormal with known AUC; a subject has one label and one to five rows whose scores share
its own error, so that no pair of rows comes from one subject and the AUC of rows is exact. Prints a
Markdown table: what was asked, how often it held, and what is due.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, ndtr

from medbert.evaluate.comparisons import compare, holm
from medbert.evaluate.intervals import bootstrap, delong_auroc
from medbert.evaluate.metrics import METRICS, auroc

SUBJECTS, RESAMPLES, PREVALENCE, GAP, LEVEL = 400, 400, 0.25, 1.2, 0.95
TRUE_AUC = float(ndtr(GAP / np.sqrt(2)))


def subjects(seed: int, *, clustered: bool) -> tuple[np.ndarray, ...]:
    """Labels, two scores of the same quality, and the subject of each row."""
    rng = np.random.default_rng(seed)
    label_S = rng.random(SUBJECTS) < PREVALENCE
    subject = np.arange(SUBJECTS)
    if clustered:
        subject = np.repeat(subject, rng.integers(1, 6, SUBJECTS))
    own = rng.normal(size=(2, SUBJECTS))
    shared = rng.normal(size=SUBJECTS)
    # the error of a score: half of it both models', then the subject's and the row's own
    error = np.sqrt(0.5) * shared + np.sqrt(0.3) * own
    each = rng.normal(size=(2, subject.size)) * np.sqrt(0.2)
    scores = expit(GAP * label_S[subject] + error[:, subject] + each)
    return label_S[subject].astype(int), scores[0], scores[1], subject


def covers(seed: int, *, clustered: bool, by_rows: bool = False) -> bool:
    labels, score, _, subject = subjects(seed, clustered=clustered)
    ids = np.arange(labels.size) if by_rows else subject
    found = bootstrap({"m": auroc}, labels, score, ids, seed=seed, n=RESAMPLES, level=LEVEL)
    interval = found.interval("model", metric="m")
    return interval.low <= TRUE_AUC <= interval.high


def covers_delong(seed: int) -> bool:
    labels, score, _, _ = subjects(seed, clustered=False)
    interval = delong_auroc(labels, score, level=LEVEL)
    return interval.low <= TRUE_AUC <= interval.high


def shuffled(seed: int, *, clustered: bool) -> bool:
    """Labels shuffled among subjects: the interval holds 0.5."""
    labels, score, _, subject = subjects(seed, clustered=clustered)
    first = np.unique(subject, return_index=True)[1]
    labels = np.random.default_rng([seed, 1]).permutation(labels[first])[subject]
    found = bootstrap({"m": auroc}, labels, score, subject, seed=seed, n=RESAMPLES, level=LEVEL)
    interval = found.interval("model", metric="m")
    return interval.low <= 0.5 <= interval.high


def rejects(seed: int, *, clustered: bool) -> bool:
    """Two models of the same quality are called different."""
    labels, first, second, subject = subjects(seed, clustered=clustered)
    models = {"a": first, "b": second}
    found = compare(labels, models, subject, pairs=[("a", "b")], seed=seed, n=RESAMPLES)
    return found[0].difference.p < 1 - LEVEL


def rejects_any(seed: int) -> bool:
    """Of five models of the same quality, one is called different from the first after Holm."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(SUBJECTS) < PREVALENCE).astype(int)
    shared = GAP * labels + np.sqrt(0.5) * rng.normal(size=SUBJECTS)
    models = {str(i): expit(shared + np.sqrt(0.5) * rng.normal(size=SUBJECTS)) for i in range(5)}
    pairs = [("0", str(i)) for i in range(1, 5)]
    found = compare(labels, models, np.arange(SUBJECTS), pairs=pairs, seed=seed)
    assert np.array_equal([one.adjusted_p for one in found], holm([c.difference.p for c in found]))
    return min(one.adjusted_p for one in found) < 1 - LEVEL


def identical(seed: int) -> bool:
    labels, score, _, subject = subjects(seed, clustered=True)
    models = {"a": score, "b": score.copy()}
    found = compare(labels, models, subject, pairs=[("a", "b")], seed=seed, n=20)
    return found[0].difference.p == 1 and found[0].difference.value == 0


CHECKS: tuple[tuple[str, str, float, float, Callable[..., bool], dict[str, Any]], ...] = (
    ("95% bootstrap interval holds the true AUC", "one row", 93, 97, covers, {"clustered": False}),
    ("the same", "1 to 5 rows", 93, 97, covers, {"clustered": True}),
    ("95% DeLong interval holds the true AUC", "one row", 93, 97, covers_delong, {}),
    ("shuffled labels: interval holds 0.5", "one row", 93, 97, shuffled, {"clustered": False}),
    ("the same", "1 to 5 rows", 93, 97, shuffled, {"clustered": True}),
    ("two equal models differ at p < 0.05 (DeLong)", "one row", 3.5, 6.5, rejects,
     {"clustered": False}),
    ("the same (paired bootstrap)", "1 to 5 rows", 3.5, 6.5, rejects, {"clustered": True}),
    ("any of four equal models differs after Holm", "one row", 0, 6.5, rejects_any, {}),
    ("a model differs from itself by 0, p = 1", "1 to 5 rows", 100, 100, identical, {}),
    ("for contrast: rows drawn as if independent", "1 to 5 rows", float("nan"), float("nan"),
     covers, {"clustered": True, "by_rows": True}),
)  # fmt: skip


def speed(rows: int, resamples: int) -> list[str]:
    """CPU seconds of the bootstrap, all metrics of one model."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-2.5, 1.2, rows)
    labels, risk = rng.random(rows) < expit(logits), expit(logits)
    lines = []
    for name in (*METRICS, "all"):
        chosen = METRICS if name == "all" else {name: METRICS[name]}
        begun = time.process_time()
        bootstrap(chosen, labels, risk, np.arange(rows), seed=0, n=resamples)
        lines.append(f"| {name} | {time.process_time() - begun:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    out = sys.stdout.write
    out(f"{options.simulations:,} simulations of {SUBJECTS} subjects, {PREVALENCE:.0%} positive, ")
    out(f"true AUC {TRUE_AUC:.4f}, {RESAMPLES} resamples.\n\n")
    out("| question | rows a subject | held (%) | due (%) |\n| --- | --- | ---: | ---: |\n")
    for question, per_subject, low, high, check, given in CHECKS:
        held = 100 * np.mean([check(seed, **given) for seed in range(options.simulations)])
        due = "less" if np.isnan(low) else f"{low:g} to {high:g}"
        verdict = "" if np.isnan(low) or low <= held <= high else " **not held**"
        out(f"| {question} | {per_subject} | {held:.1f}{verdict} | {due} |\n")
        sys.stdout.flush()
    out(
        f"\nBootstrap, {options.resamples:,} resamples of {options.rows:,} subjects, one model:\n\n"
    )
    out("| metric | CPU seconds |\n| --- | ---: |\n")
    out("\n".join(speed(options.rows, options.resamples)) + "\n")


if __name__ == "__main__":
    main()
