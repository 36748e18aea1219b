"""Which trainings a benchmark asks for: all labels, fewer, other gaps, windows and times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medbert.commands.encoders.classifier import Rows, by_split
from medbert.commands.finetune import Task
from medbert.commands.study.arms import Frame, Trial
from medbert.data.store import Store
from medbert.data.tasks.cohorts import Cohort
from medbert.evaluate.subsets import nested
from medbert.schema import DATES, DAY_US, HELD_OUT, SPLITS, TRAIN, TUNING, InputError

EXTERNAL = "external store"
LEAST_TUNING = 5  # subjects of either kind in a tuning subset


class Asked(NamedTuple):
    """``curve`` by number of labelled subjects and draw, ``gaps`` and ``windows`` by days,
    ``later`` by its name; ``again`` is ``whole`` with other seeds."""

    whole: Trial
    curve: dict[tuple[int, int], Trial]
    gaps: dict[float | None, Trial]
    windows: dict[float | None, Trial]
    later: dict[str, Trial]
    again: list[Trial]

    def of_every_arm(self) -> list[Trial]:
        return [self.whole, *self.curve.values(), *self.later.values()]

    def of_some_arms(self) -> list[Trial]:
        return [*self.again, *self.gaps.values(), *self.windows.values()]


def whole(
    records: Store,
    cohort: Cohort,
    window_days: Sequence[int],
    *,
    outcome: Any,
    seed: int,
    name: str = "all labels",
) -> Trial:
    """All labels: trained on train, chosen on tuning, judged on held_out."""
    splits = by_split(records, cohort)
    rows = Rows(*(np.concatenate(part) for part in zip(*splits.values(), strict=True)))
    frame = Frame(records, rows, window_days, outcome)
    edges = np.cumsum([len(splits[split].rows) for split in SPLITS])
    places = dict(zip(SPLITS, np.split(np.arange(edges[-1]), edges[:-1]), strict=True))
    judged = {HELD_OUT: (frame, places[HELD_OUT])}
    return Trial(name, frame, places[TRAIN], places[TUNING], judged, seed)


def elsewhere(trial: Trial, task: Task, folder: str | None) -> Trial:
    """The same, also judged on every subject of another store."""
    if folder is None:
        return trial
    other, records = Store(folder), trial.frame.records
    if other.vocabulary.sha256 != records.vocabulary.sha256:
        raise InputError(
            f"external={folder}: has another vocabulary than {records.folder}; prepare it again "
            "with `medbert prepare ... vocabulary=ENCODER`"
        )
    cohort = task.build(other)
    rows, mine = Rows(cohort.rows, cohort.prediction_time, cohort.labels), trial.frame
    frame = Frame(other, rows, mine.window_days, mine.outcome)
    places = np.arange(len(cohort.rows))
    _check_both(frame, places, what=f"external={folder}")
    return trial._replace(judged={**trial.judged, EXTERNAL: (frame, places)})


def curve(trial: Trial, sizes: Sequence[int], *, draws: int) -> dict[tuple[int, int], Trial]:
    """Fewer labels, each size with a tuning subset in the proportion of all tuning to all train.

    Of ``sizes`` (subjects) only those below all of train are used.
    """
    labels, ids = trial.frame.rows.labels, trial.frame.subject_ids
    n_train, n_tuning = (len(np.unique(ids[places])) for places in (trial.train, trial.tuning))
    share = {size: max(1, round(size * n_tuning / n_train)) for size in sizes if size < n_train}

    def subsets(places: np.ndarray, sizes: Sequence[int], **how: int) -> dict[int, np.ndarray]:
        found = nested(labels[places], ids[places], sizes=sizes, **how)
        return {size: places[chosen] for size, chosen in found.items()}

    found = {}
    for draw in range(draws):
        seed = trial.seed + draw
        train = subsets(trial.train, [*share], seed=seed)
        tuning = subsets(trial.tuning, [*share.values()], seed=seed, least=LEAST_TUNING)
        for size in share:
            found[size, draw] = trial._replace(
                name=f"{size:,} labelled subjects, draw {draw + 1} of {draws}",
                train=train[size],
                tuning=tuning[share[size]],
                judged={HELD_OUT: trial.judged[HELD_OUT]},
            )
    return found


def gaps(trial: Trial, task: Any, days: Sequence[int]) -> dict[float | None, Trial]:
    """The same task with other gaps between the prediction and its outcome's window."""
    if days and not hasattr(getattr(task, "outcome", None), "gap_days"):
        raise InputError("gaps: the outcome of this task has no gap_days; say gaps=[]")
    found: dict[float | None, Trial] = {}
    records = trial.frame.records
    for gap in days:
        outcome, name = dataclasses.replace(task.outcome, gap_days=gap), f"gap of {gap} days"
        try:
            cohort = dataclasses.replace(task, outcome=outcome).build(records)
            found[gap] = _like(trial, records, cohort, outcome=outcome, name=name)
        except InputError as error:
            raise InputError(f"gaps: with {gap} days: {error}") from error
    return found


def windows(trial: Trial, cohort: Cohort, days: Sequence[int | None]) -> dict[float | None, Trial]:
    """The same rows, of which every model sees the last days only (None: all)."""
    found: dict[float | None, Trial] = {}
    for day in days:
        name = "whole history" if day is None else f"last {day} days"
        recent = trial.frame.records.recent(day)
        found[day] = _like(trial, recent, cohort, outcome=trial.frame.outcome, name=name)
    return found


def _like(trial: Trial, records: Store, cohort: Cohort, *, outcome: Any, name: str) -> Trial:
    days = trial.frame.window_days
    return whole(records, cohort, days, outcome=outcome, seed=trial.seed, name=name)


def later(trial: Trial, task: Any, date: str | None) -> dict[str, Trial]:
    """Trained on rows whose outcome was known before a date, judged from that date on."""
    if date is None:
        return {}
    outcome, rows = getattr(task, "outcome", None), trial.frame.rows
    days = getattr(outcome, "window_days", getattr(outcome, "days", None))
    if trial.frame.records.time != DATES or days is None:
        raise InputError(
            f"out_of_time={date}: needs a store with dates, and an outcome that is known after a "
            "number of days (window_days or days); say out_of_time=null"
        )
    try:
        first = int(np.datetime64(date, "us").astype(np.int64))
    except ValueError as error:
        raise InputError(f"out_of_time={date}: not a date such as 2015-01-01") from error
    known = rows.until + (days + getattr(outcome, "gap_days", 0)) * DAY_US <= first
    held_out = trial.judged[HELD_OUT][1]
    train, tuning = (places[known[places]] for places in (trial.train, trial.tuning))
    held_out = held_out[rows.until[held_out] >= first]
    for split, places in ((TRAIN, train), (TUNING, tuning), (HELD_OUT, held_out)):
        _check_both(trial.frame, places, what=f"out_of_time={date}: {split}")
    judged, name = {HELD_OUT: (trial.frame, held_out)}, f"out of time (from {date})"
    return {name: trial._replace(name=name, train=train, tuning=tuning, judged=judged)}


def again(trial: Trial, seeds: int) -> list[Trial]:
    """The same, judged on held_out, with the other seeds."""
    judged = {HELD_OUT: trial.judged[HELD_OUT]}
    return [
        trial._replace(name=f"seed {extra + 1} of {seeds}", judged=judged, seed=trial.seed + extra)
        for extra in range(1, seeds)
    ]


def _check_both(frame: Frame, places: np.ndarray, *, what: str) -> None:
    labels = frame.rows.labels[places]
    if labels.all() or not labels.any():
        counts = f"{len(labels)} rows, {int(labels.sum())} positive"
        raise InputError(f"{what} has {counts}: it needs rows with and without the outcome")
