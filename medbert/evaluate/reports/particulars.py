"""Who was counted, what was checked, with what settings, and what all of it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medbert.evaluate.intervals import ORACLE_NAME
from medbert.evaluate.leaks.findings import CHECKS, ERROR
from medbert.evaluate.reports.study import Study
from medbert.evaluate.reports.verdict import count, joined

FEW_EVENTS = 100  # below this, validation is unreliable (Collins 2016, Stat Med 35:214)
ORACLE_NOTE = (
    "The oracle knows the simulator and all of a subject's state but the hidden stage before the "
    "outcome, of which it sees what is recorded: an upper bound, not a rival."
)


def limits(study: Study) -> list[str]:
    """What the numbers do not show, by what was done and what was not."""
    results, places = study.results, " ".join(study.elsewhere)
    fewer = min(results.positives, results.rows - results.positives)
    seeds = " (these have their own table)" if study.seeds else ""
    several = results.rows > results.subjects
    hidden = any(cell.hidden for cell in study.subgroups)
    told = [
        (
            True,
            f"Intervals show sampling error on this test set, not the spread over seeds{seeds}.",
        ),
        (several, "Calibration bars take rows as independent, though subjects have several."),
        (
            fewer < FEW_EVENTS,
            f"One class has fewer than {FEW_EVENTS} rows: a difference that matters may go unseen.",
        ),
        (ORACLE_NAME in results.probabilities, ORACLE_NOTE),
        ("external" not in places, "One source of data: other hospitals were not looked at."),
        ("out of time" not in places, "Splits are by subject: later years were not looked at."),
        (not study.subgroups, "No subgroups: a mean can hide those whom a model fails."),
        (hidden, "Subgroups of few subjects are hidden: whether models are fair to them is open."),
        (True, "The outcome is what was recorded: who had it uncoded counts as free of it."),
        (True, "Predictions are associations: they do not say what a treatment would change."),
    ]
    return [*(note for holds, note in told if holds), *study.notes]


def flow_rows(flow: Sequence[tuple[str, int, int]], min_count: int) -> list[list[str]]:
    """Counts by step; all rounded where any is so small that a difference would give it away.

    A step that has subjects and no rows comes before rows are made.
    """
    counts = np.array([[subjects, rows] for _, subjects, rows in flow], dtype=int).reshape(-1, 2)
    left_out = -np.diff(counts, axis=0, prepend=counts[:1])
    every = np.concatenate([counts, left_out])
    rounded = bool(((every > 0) & (every < min_count)).any())
    return [
        [
            step,
            *(count(n, min_count, rounded=rounded) for n in (subjects, lost)),
            "–" if subjects and not rows else count(rows, min_count, rounded=rounded),
        ]
        for (step, subjects, rows), lost in zip(flow, left_out[:, 0].tolist(), strict=True)
    ]


def finding_rows(study: Study, min_count: int) -> tuple[list[list[str]], list[str]]:
    """A line per finding; and in words, what was looked for and not found."""
    if study.findings is None:
        return [], []
    rows = [
        [
            each.name.replace("_", " "),
            "error, allowed by name" if each.severity == ERROR else each.severity,
            f"{count(each.count, min_count)} {each.unit}" if each.count else "",
            each.meaning,
            each.cure,
        ]
        for each in study.findings
    ]
    found = {each.name for each in study.findings}
    clean = [name.replace("_", " ") for name in CHECKS if name not in found]
    return rows, [f"Looked for and not found: {joined(clean)}."] if clean else []


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested settings as lines of name and value."""
    lines: list[list[str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", " ")
        short = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines += flat(value, f"{name}: ") if isinstance(value, Mapping) else [[name, short]]
    return lines
