"""The report of a run: what it predicts, on whom, and with what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medbert.commands.output.artefacts import read_json
from medbert.data.store import Store
from medbert.evaluate.reports.report import write_study_html
from medbert.evaluate.reports.study import Study

PRETRAINED, UNTRAINED = "Med-BERT, pretrained", "Med-BERT, untrained"


def write_report(study: Study, path: Path, *, run: Path, min_count: int) -> Study:
    """Writes the page for a study of the run in the folder ``run``; returns the study with all
    that the run tells."""
    cohort, begun = read_json(run / "cohort.json"), read_json(run / "settings.json")
    records, about = Store(begun["store"]), cohort["task"]
    heads = begun["heads"] if "heads" in begun else [begun["head"]["_target_"].rpartition(".")[2]]
    used = {
        "source": records.info["source"]["name"],
        "subjects": f"{len(records):,}",
        "vocabulary": f"{len(records.vocabulary):,} tokens",
        "encoder": begun["encoder_dir"] or "untrained",
        "head": ", ".join(heads).replace("_", " ") or "none, only asked",
        "seed": begun["seed"],
    }
    software = read_json(run / "environment.json")
    known = {
        "source": f"{used['source']}, {used['subjects']} subjects",
        "eligibility": "; ".join(step for step, *_ in cohort["flow"][1:]),
        "outcome": about.get("outcome", ""),
        "index": about.get("index", ""),
        "predictors": f"{used['vocabulary']}; none preselected",
        "split": "by subject, made once, stored with the records",
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
    }
    whole = replace(
        study,
        title=about["task"],
        flow=cohort["flow"],
        settings={**about, **used, **software, **study.settings},
        notes=[*study.notes, *(begun["task"].get("notes") or [])],
        facts={**known, **study.facts},
    )
    write_study_html(whole, path, min_count=min_count)
    return whole
