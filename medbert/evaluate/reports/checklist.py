"""TRIPOD+AI (Collins 2024, BMJ 385:e078378): what a study reports already, what authors must add.

Item numbers and topics are the statement's; the wording is ours and shorter. What is for the
authors stays so until somebody who knows it writes it: a default would be an invention.
"""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Mapping

from medbert.evaluate.reports.study import Study

AUTHORS = "For the authors"
HEAD = ("Item", "Topic", "What is asked", "Reported here")


def items() -> list[list[str]]:
    """Number, topic, what is asked, and the name of the fact or part of the study that answers."""
    file = importlib.resources.files(__package__).joinpath("tripod_ai.csv")
    return list(csv.reader(file.read_text(encoding="utf-8").splitlines()))[1:]


def checklist(study: Study) -> list[list[str]]:
    """A line per item; ``study.facts`` come before what the study itself shows."""
    answers = {**_shown(study), **study.facts}
    return [
        [number, topic, asked, answers.get(key) or AUTHORS] for number, topic, asked, key in items()
    ]


def _shown(study: Study) -> Mapping[str, str]:
    """What the parts of the study answer by being there."""
    apart = ", ".join(study.elsewhere)
    thresholds = ", ".join(f"{t:.1%}" for t in sorted({b.threshold for b in study.benefits}))
    shown = {
        "measures": "AUROC, AUPRC, Brier score, calibration (curve, slope, intercept, ICI, "
        "observed/expected)" + (", net benefit" if study.benefits else ""),
        "performance": "Results, with intervals" + ("; Subgroups" if study.subgroups else ""),
        "limitations": "What this does not show; the rest is for the authors",
        "output": "a probability" + (f"; thresholds {thresholds}" if thresholds else ""),
    }
    optional = {
        "title": study.title,
        "fairness": "performance by subgroup; no method was applied" if study.subgroups else "",
        "flow": "Who was counted" if study.flow else "",
        "characteristics": "Table 1" if study.table_one else "",
        "development": "Table 1" if study.table_one else "",
        "differences": f"Other times and places: {apart}" if apart else "",
        "preparation": "What the linter found" if study.findings is not None else "",
    }
    return shown | optional
