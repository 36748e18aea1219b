"""The report of a run: what it predicts, on whom, and with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbert.commands.artefacts import read_json
from medbert.data.store import Store
from medbert.evaluate import report

PRETRAINED, UNTRAINED = "Med-BERT, pretrained", "Med-BERT, untrained"


def write_report(results: report.Results, path: Path, *, run: Path, min_count: int) -> None:
    """Writes the page for ``results`` of the run in the folder ``run``."""
    cohort, begun = read_json(run / "cohort.json"), read_json(run / "settings.json")
    report.write_html(
        results,
        path,
        title=cohort["task"]["task"],
        flow=cohort["flow"],
        settings={**cohort["task"], **_what_was_used(begun), **read_json(run / "environment.json")},
        notes=list(begun["task"].get("notes") or []),
        min_count=min_count,
    )


def _what_was_used(begun: dict[str, Any]) -> dict[str, str]:
    records = Store(begun["store"])
    return {
        "source": records.info["source"]["name"],
        "subjects": f"{len(records):,}",
        "vocabulary": f"{len(records.vocabulary):,} tokens",
        "encoder": begun["encoder_dir"] or "untrained",
        "head": begun["head"]["_target_"].rpartition(".")[2],
        "seed": begun["seed"],
    }
