"""All that one study found, in one parcel: what a report is made of, and ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from medbert.evaluate.benefit import Benefit, DecisionCurve, benefits, decision_curve
from medbert.evaluate.comparisons import Comparison, SeedSpread, compare
from medbert.evaluate.efficiency import Crossing, Efficiency, LabelMultiple, Lead
from medbert.evaluate.intervals import ORACLE_NAME, Results
from medbert.evaluate.leaks.findings import Finding
from medbert.evaluate.reports import page
from medbert.evaluate.subgroups import Subgroup, subgroups

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One setting of a sweep; ``value`` None: the whole history."""

    value: float | None
    results: Results


@dataclass(frozen=True)
class Sweep:
    """The same question asked with other settings, such as name "prediction gap", unit "days"."""

    name: str
    unit: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Study:
    """``results``: all models, all labels, held-out rows. What is empty was not looked at.

    ``comparisons``: the reference minus each other model. ``elsewhere``: by what is other, such as
    "out of time (from 2015-01-01)". ``seeds``: by model, and "reference minus best baseline".
    ``findings`` of the linter: empty where it found nothing, None where it was not asked.
    ``table_one``: column ("train", ...) -> characteristic -> text, small counts already hidden.
    ``flow``: (step, subjects left, rows left). ``timing``: what -> seconds. ``settings`` may be
    nested. ``notes``: what the numbers do not show, a sentence each. ``facts``: for the checklist,
    by the names that ``checklist.items`` asks for.
    """

    results: Results
    comparisons: tuple[Comparison, ...] = ()
    decision: DecisionCurve | None = None
    benefits: tuple[Benefit, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    efficiency: Efficiency | None = None
    leads: tuple[Lead, ...] = ()
    multiples: tuple[LabelMultiple, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    elsewhere: Mapping[str, Results] = field(default_factory=dict)
    seeds: Mapping[str, SeedSpread] = field(default_factory=dict)
    table_one: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    flow: Sequence[tuple[str, int, int]] = ()
    findings: Sequence[Finding] | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def table(self) -> pd.DataFrame:
        """See ``Results.table``: exact numbers, one line for each model."""
        return self.results.table()

    def plot(self, picture: str = "roc", *, ax: Axes | None = None) -> Axes:
        """One picture of the report: auroc, roc, precision_recall, calibration, risk, and, where it
        was looked at, net_benefit, subgroups, label_efficiency or the name of a sweep."""
        from medbert.evaluate.reports.report import plot

        return plot(self, picture, ax)

    def _repr_html_(self) -> str:
        """The whole report."""
        from medbert.evaluate.reports.report import study_html

        return page.framed(study_html(self), "Report")

    def to_dict(self) -> dict[str, Any]:
        """For ``metrics.json``, the results on top; nothing of single rows, and exact counts.

        What is empty is left out. NaN and infinite (a number of labels not reached) become None.
        """
        found = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        top = found.pop("results")
        return {**top, **{name: value for name, value in found.items() if value}}


def analyse(
    results: Results,
    subject_ids: ArrayLike,
    *,
    groups: Mapping[str, Any],
    over: str | None,
    seed: int,
    n: int = 1000,
    min_count: int = 10,
) -> Study:
    """What the rows of ``results`` still tell; fill in the rest with ``dataclasses.replace``.

    The reference minus each other model; decision curves of all; net benefit at half, once and
    twice the prevalence, against ``over`` too, such as a logistic regression; and the reference in
    ``groups`` (variable -> category of each row). Models are those of ``results``, no oracle.
    """
    labels, models = results.labels, dict(results.probabilities)
    models.pop(ORACLE_NAME, None)
    rows, reference = (labels, models, subject_ids), results.reference
    pairs = [(reference, name) for name in models if name != reference]
    prevalence = results.prevalence
    thresholds = [times * prevalence for times in (0.5, 1, 2) if times * prevalence < 1]
    again: dict[str, Any] = {"seed": seed, "n": n, "level": results.level}
    own = labels, models[reference], groups, subject_ids
    return Study(
        results,
        comparisons=compare(*rows, pairs=pairs, **again) if pairs else (),
        decision=decision_curve(labels, models),
        benefits=benefits(*rows, thresholds=thresholds, reference=over, **again),
        subgroups=subgroups(*own, min_count=min_count, **again),
    )


def _plain(value: Any) -> Any:
    """What JSON can hold; fields kept out of ``repr`` are rows or resamples, and left out."""
    if isinstance(value, Results):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
