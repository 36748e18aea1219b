"""More pictures of an evaluation: decision curves, subgroups, label efficiency and sweeps.

As in ``figures``: each draws on ``axes`` or on a new figure, and models keep their style by order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from medbert.evaluate import figures
from medbert.evaluate.benefit import TREAT_ALL, TREAT_NONE, DecisionCurve
from medbert.evaluate.efficiency import Efficiency
from medbert.evaluate.intervals import ORACLE_NAME, Interval, Results
from medbert.evaluate.reports.study import Sweep
from medbert.evaluate.reports.verdict import capital
from medbert.evaluate.subgroups import Subgroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gallery(
    results: Results, shown: Sequence[str], min_count: int = 10
) -> list[tuple[str, str, str, Callable[..., Axes]]]:
    """The four pictures of one evaluation: name, caption, text for who cannot see it, and how to
    draw it (on ``axes``)."""
    labels, reference = results.labels, results.reference
    models = {name: results.probabilities[name] for name in shown}
    names, risk = ", ".join(models), models[reference]
    everyone: dict[str, Any] = {"models": models, "oracle": results.probabilities.get(ORACLE_NAME)}
    return [
        (
            "roc",
            "ROC curves. Grey: chance.",
            f"ROC curves of {names}; the areas are in the table.",
            partial(figures.roc, labels, **everyone),
        ),
        (
            "precision_recall",
            "Precision and recall. Grey: prevalence.",
            f"Precision-recall curves of {names}; the areas are in the table.",
            partial(figures.precision_recall, labels, **everyone),
        ),
        (
            "calibration",
            "Calibration by groups of predicted risk, with 95% intervals. Grey: ideal.",
            f"Observed against predicted risk of {names}; the slopes are in the table.",
            partial(figures.calibration, labels, models=models, min_count=min_count),
        ),
        (
            "risk",
            f"Predicted risk of {reference}. Bars of fewer than {min_count} rows are left out.",
            f"Histograms of the predicted risk of {reference}, with and without the outcome.",
            partial(figures.risk_distribution, labels, probabilities=risk, min_count=min_count),
        ),
    ]


def decision_curves(
    curve: DecisionCurve, *, shown: Sequence[str] | None = None, axes: Axes | None = None
) -> Axes:
    """Net benefit per 1,000 rows against the threshold, up to the last that is of use to anyone;
    of the models ``shown``, else of all."""
    axes = axes or figures.new_axes(width=5.4)
    models = {name: curve.models[name] for name in shown or curve.models if name in curve.models}
    useful = np.max([*models.values(), curve.treat_all], axis=0) > 0
    last = int(np.flatnonzero(useful)[-1]) if useful.any() else curve.thresholds.size - 1
    left = slice(0, min(last + 2, curve.thresholds.size))
    x = 100 * curve.thresholds[left]
    axes.axhline(0, color="0.35", linewidth=0.9, label=TREAT_NONE)
    grey: dict[str, Any] = {"color": "0.6", "linewidth": 1.2, "label": TREAT_ALL}
    axes.plot(x, 1000 * curve.treat_all[left], **grey)
    for index, (name, values) in enumerate(models.items()):
        axes.plot(x, 1000 * values[left], label=figures.plain(name), **figures.style(index))
    top = 1000 * max(values[left].max() for values in (*models.values(), curve.treat_all))
    axes.set(xlabel="Threshold probability (%)", ylabel="Net benefit per 1,000")
    axes.set_ylim(-0.25 * max(top, 1e-3), 1.08 * max(top, 1e-3))
    axes.legend(loc="upper right", frameon=False, fontsize=8.5)
    return axes


def subgroup_forest(
    cells: Sequence[Subgroup], *, whole: Interval | None = None, axes: Axes | None = None
) -> Axes:
    """AUROC by subgroup with its interval; ``whole``, of all rows, is the grey line.

    Cells that are hidden are named, and left empty.
    """
    variables = [(name, list(group)) for name, group in groupby(cells, key=lambda c: c.variable)]
    lines = len(cells) + len(variables)
    axes = axes or figures.new_axes(width=6.0, height=max(2.0, 0.6 + 0.24 * lines))
    if whole is not None:
        axes.axvline(whole.value, color="0.6", linewidth=1.0, zorder=0)
        axes.axvspan(whole.low, whole.high, color="0.93", zorder=-1)
    names, place = [], 0
    for variable, group in variables:
        names.append(figures.plain(variable))
        axes.axhline(place, color="0.9", linewidth=0.7, zorder=-2)
        for cell in group:
            place += 1
            size = "few" if cell.hidden else f"{cell.positives:,} of {cell.rows:,}"
            names.append(f"{figures.plain(cell.category)}  ({size})")
            bounds = [cell.auroc.low, cell.auroc.high]
            axes.plot(bounds, [place, place], color=figures.COLOURS[0], linewidth=1.6)
            axes.plot(cell.auroc.value, place, marker="o", color=figures.COLOURS[0], markersize=5)
        place += 1
    figures.listed(axes, names, fontsize=8.5)
    axes.set(xlabel="AUROC (positives of rows beside the names)", ylim=(lines - 0.4, -0.6))
    return axes


def label_efficiency(
    found: Efficiency, *, limit: float | None = None, axes: Axes | None = None
) -> Axes:
    """AUROC against the number of labels: mean over draws, its interval, and every draw a dot.

    ``limit``: the oracle's AUROC.
    """
    axes = axes or figures.new_axes(width=5.8)
    if limit is not None:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1.2, label=ORACLE_NAME)
    for index, (name, curve) in enumerate(found.curves.items()):
        look = figures.marked(index, 1.5)
        colour = look["color"]
        axes.fill_between(curve.sizes, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
        axes.plot(curve.sizes, curve.mean, label=figures.plain(name), markersize=5, **look)
        x = np.repeat(curve.sizes, [len(draws) for draws in curve.points])
        axes.plot(x, np.concatenate(curve.points), ".", color=colour, markersize=3, alpha=0.55)
    sizes = np.unique(np.concatenate([curve.sizes for curve in found.curves.values()]))
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], rotation=45, fontsize=8.5)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="Labelled subjects", ylabel="AUROC")
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    _legend_below(axes)
    return axes


def sweep(found: Sweep, *, shown: Sequence[str], axes: Axes | None = None) -> Axes:
    """AUROC of the models ``shown``, with intervals, at every setting; the oracle in black.

    Settings are spaced evenly.
    """
    axes = axes or figures.new_axes(width=5.4)
    looks = {name: figures.marked(index, 1.6) for index, name in enumerate(shown)}
    looks[ORACLE_NAME] = {**figures.ORACLE_STYLE, "linewidth": 1.6, "marker": "*"}
    for name, look in looks.items():
        at = [
            (place, model.auroc.value, model.auroc.low, model.auroc.high)
            for place, point in enumerate(found.points)
            for model in point.results.models
            if model.name == name
        ]
        if at:
            places, values, low, high = zip(*at, strict=True)
            axes.fill_between(places, low, high, color=look["color"], alpha=0.12, lw=0)
            axes.plot(places, values, label=figures.plain(name), markersize=5, **look)
    names = ["whole" if p.value is None else f"{p.value:g}" for p in found.points]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel=f"{capital(found.name)} ({found.unit})", ylabel="AUROC")
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    _legend_below(axes)
    return axes


def _legend_below(axes: Axes) -> None:
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
    axes.legend(frameon=False, fontsize=8.5, **below)
