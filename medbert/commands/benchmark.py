"""``medbert benchmark``: a store and a task to a report that shows what an encoder is worth."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console

from medbert.commands.encoders.classifier import Recipe
from medbert.commands.encoders.questions import of_outcome
from medbert.commands.encoders.trained_on import seen_in_pretraining
from medbert.commands.finetune import Task
from medbert.commands.lint import leaks, washed_out
from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.output.progress import show
from medbert.commands.study import trials
from medbert.commands.study.arms import BaselineArm, Trial, encoder_arms
from medbert.commands.study.beside import beside_counts
from medbert.commands.study.judging import labelled, write_predictions
from medbert.commands.study.reporting import write_report
from medbert.commands.study.studies import Judge
from medbert.commands.study.trainings import Answer, train_all
from medbert.commands.study.trials import EXTERNAL, Asked
from medbert.data.store import Store
from medbert.data.tasks.cohorts import Cohort
from medbert.evaluate.baselines import LightGBMBaseline, LogisticBaseline
from medbert.evaluate.intervals import ORACLE_NAME
from medbert.evaluate.leaks.findings import Finding, refuse, rich_table
from medbert.evaluate.reports import report
from medbert.evaluate.reports.markdown import write_study_markdown
from medbert.evaluate.reports.study import Study
from medbert.schema import HELD_OUT, TRAIN, TUNING

log = logging.getLogger(__name__)

_NONE = {"": torch.nn.Identity}  # heads: encoders are only asked
KEPT = "trained"  # where a run that was stopped finds what was trained


def benchmark(
    *,
    store: str,
    encoder_dir: str | None,
    encoders: Mapping[str, str | None],
    encoder: Callable[..., torch.nn.Module],
    task: Task,
    heads: Mapping[str, Callable[..., torch.nn.Module]],
    baseline: Mapping[str, LogisticBaseline | LightGBMBaseline],
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    untrained: bool,
    label_sizes: Sequence[int],
    draws: int,
    gaps: Sequence[int],
    windows: Sequence[int | None],
    out_of_time: str | None,
    external: str | None,
    seeds: int,
    allow: Sequence[str],
    window_days: Sequence[int],
    freeze: bool,
    max_tokens: int,
    batch_tokens: int,
    patience: int,
    n_bootstrap: int,
    min_count: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Study:
    """Writes ``out`` (report.html, report.md, metrics.json, lint.json, predictions); returns the
    study. Everything is trained on train, chosen on tuning and judged on held_out.

    Raises InputError where the linter finds an error that is not among ``allow``.
    """
    records = Store(store)
    how = optimizer, trainer, freeze, max_tokens, batch_tokens, patience, seed
    recipes = {name: Recipe(head, *how) for name, head in (heads or _NONE).items()}
    trained = encoder_arms(records, recipes, encoder_dir, encoder, encoders, untrained, settings)
    outcome, on_counts = getattr(task, "outcome", None), [*baseline.values()]
    arms = beside_counts(trained, on_counts, of_outcome(outcome, records))
    arms += map(BaselineArm, on_counts)
    cohort = task.build(records)
    whole = trials.whole(records, cohort, window_days, outcome=outcome, seed=seed)
    asked = Asked(
        trials.elsewhere(whole, task, external),
        trials.curve(whole, label_sizes, draws=draws),
        trials.gaps(whole, task, gaps),
        trials.windows(whole, cohort, windows),
        trials.later(whole, task, out_of_time),
        trials.again(whole, seeds),
    )
    who = asked.whole, task, encoder_dir, encoders
    found = look_for_leaks(*who, allow=allow, min_count=min_count)
    with artefact(out, overwrite=overwrite, settings=settings, free=()) as folder:
        judge = Judge(arms, settings["task"], seed, n_bootstrap, min_count)
        answers = train_all(asked, arms, judge.core, folder / KEPT)
        study = judge.study(asked, answers, found)
        study = write(study, whole, cohort, answers[whole.name], folder, min_count=min_count)
    show(report.rich_table(study.results, study.comparisons, min_count=min_count))
    log.info("made %s; open %s", out, Path(out) / "report.html")
    return study


def look_for_leaks(
    trial: Trial,
    task: Task,
    encoder_dir: str | None,
    encoders: Mapping[str, str | None],
    *,
    allow: Sequence[str],
    min_count: int,
) -> list[Finding]:
    """Of the rows of all splits, and whom each encoder has seen of them and of another store; they
    are shown, too. Raises InputError for an error that is not allowed."""
    refuse([], allow=allow, where="")
    frame, held_out = trial.frame, trial.judged[HELD_OUT][1]
    splits = {TRAIN: trial.train, TUNING: trial.tuning, HELD_OUT: held_out}
    codes, washout_days = washed_out(getattr(task, "outcome", None))
    found = leaks(
        frame.records,
        {split: frame.at(places) for split, places in splits.items()},
        outcome=codes,
        washout_days=washout_days,
        features={split: frame.counts.at(places) for split, places in splits.items()},
        encoder_dir=encoder_dir,
    )
    asked = [(name, each, (frame, held_out)) for name, each in encoders.items() if each]
    if encoder_dir is not None and EXTERNAL in trial.judged:
        asked.append((EXTERNAL, encoder_dir, trial.judged[EXTERNAL]))
    for name, folder, (judged, places) in asked:
        rows = np.unique(judged.rows.rows[places])
        one = seen_in_pretraining(judged.records, rows, np.full(len(rows), HELD_OUT), folder)
        if one is not None:
            found.append(dataclasses.replace(one, details=(*one.details, name)))
    Console().print(rich_table(found, min_count=min_count))
    refuse(found, allow=allow, where="the table above")
    return found


def write(
    study: Study,
    trial: Trial,
    cohort: Cohort,
    answers: Mapping[str, Answer],
    folder: Path,
    *,
    min_count: int,
) -> Study:
    """Predictions, numbers and pages; what was kept for resuming goes. Returns the whole study."""
    frame, places = trial.judged[HELD_OUT]
    models = {k: v for k, v in study.results.probabilities.items() if k != ORACLE_NAME}
    (folder / "predictions").mkdir(exist_ok=True)
    judged = frame.records, frame.at(places)
    pq.write_table(labelled(*judged, models), folder / "predictions.parquet")
    reference = models[study.results.reference]
    write_predictions(folder / "predictions" / "reference.parquet", *judged, reference)
    about = {"flow": [tuple(step) for step in cohort.flow], "task": cohort.task}
    write_json(folder / "cohort.json", about)
    found = [one.to_dict(min_count=min_count) for one in study.findings or ()]
    write_json(folder / "lint.json", {"findings": found})
    study = write_report(study, folder / "report.html", run=folder, min_count=min_count)
    searches = {name: answer.chosen for name, answer in answers.items()}
    write_json(folder / "metrics.json", {**study.to_dict(), "searches": searches})
    write_study_markdown(study, folder / "report.md", min_count=min_count)
    shutil.rmtree(folder / KEPT, ignore_errors=True)
    return study
