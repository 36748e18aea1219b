"""More pictures of an evaluation: decision curves, subgroups, label efficiency and sweeps.

As in ``figures``: each draws on ``axes`` or on a new figure, and models keep their style by order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from medbert.evaluate.benefit import TREAT_ALL, TREAT_NONE, DecisionCurve
from medbert.evaluate.efficiency import Efficiency
from medbert.evaluate.figures import COLOURS, LINES, MARKERS, new_axes, plain
from medbert.evaluate.intervals import ORACLE_NAME, Interval
from medbert.evaluate.reports.study import Sweep
from medbert.evaluate.reports.verdict import capital
from medbert.evaluate.subgroups import Subgroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def decision_curves(curve: DecisionCurve, *, axes: Axes | None = None) -> Axes:
    """Net benefit per 1,000 rows against the threshold, up to the last that is of use to anyone."""
    axes = axes or new_axes(width=5.4)
    useful = np.max([*curve.models.values(), curve.treat_all], axis=0) > 0
    last = int(np.flatnonzero(useful)[-1]) if useful.any() else curve.thresholds.size - 1
    shown = slice(0, min(last + 2, curve.thresholds.size))
    x = 100 * curve.thresholds[shown]
    axes.axhline(0, color="0.35", linewidth=0.9, label=TREAT_NONE)
    grey: dict[str, Any] = {"color": "0.6", "linewidth": 1.2, "label": TREAT_ALL}
    axes.plot(x, 1000 * curve.treat_all[shown], **grey)
    for index, (name, values) in enumerate(curve.models.items()):
        axes.plot(x, 1000 * values[shown], label=plain(name), linewidth=1.7, **_style(index))
    top = 1000 * max(values[shown].max() for values in (*curve.models.values(), curve.treat_all))
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
    axes = axes or new_axes(width=6.0, height=max(2.0, 0.6 + 0.24 * lines))
    if whole is not None:
        axes.axvline(whole.value, color="0.6", linewidth=1.0, zorder=0)
        axes.axvspan(whole.low, whole.high, color="0.93", zorder=-1)
    names, place = [], 0
    for variable, group in variables:
        names.append(plain(variable))
        axes.axhline(place, color="0.9", linewidth=0.7, zorder=-2)
        for cell in group:
            place += 1
            size = "few" if cell.hidden else f"{cell.positives:,} of {cell.rows:,}"
            names.append(f"{plain(cell.category)}  ({size})")
            bounds = [cell.auroc.low, cell.auroc.high]
            axes.plot(bounds, [place, place], color=COLOURS[0], linewidth=1.6)
            axes.plot(cell.auroc.value, place, marker="o", color=COLOURS[0], markersize=5)
        place += 1
    axes.set_yticks(range(lines), names, fontsize=8.5)
    axes.set(xlabel="AUROC (positives of rows beside the names)", ylim=(lines - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return axes


def label_efficiency(
    found: Efficiency, *, limit: float | None = None, axes: Axes | None = None
) -> Axes:
    """AUROC against the number of labels: mean over draws, its interval, and every draw a dot.

    ``limit``: the oracle's AUROC.
    """
    axes = axes or new_axes(width=5.8)
    if limit is not None:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1.2, label=ORACLE_NAME)
    for index, (name, curve) in enumerate(found.curves.items()):
        style, marker = _style(index), MARKERS[index % len(MARKERS)]
        axes.fill_between(
            curve.sizes, curve.low, curve.high, color=style["color"], alpha=0.15, lw=0
        )
        axes.plot(curve.sizes, curve.mean, marker=marker, markersize=5, label=plain(name), **style)
        x = np.repeat(curve.sizes, [len(draws) for draws in curve.points])
        dots = np.concatenate([np.asarray(draws) for draws in curve.points])
        axes.plot(x, dots, ".", color=style["color"], markersize=3, alpha=0.55)
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
    axes = axes or new_axes(width=5.4)
    styles = {name: {**_style(index), "marker": MARKERS[index]} for index, name in enumerate(shown)}
    styles[ORACLE_NAME] = {"color": "black", "linestyle": "--", "marker": "*"}
    for name, style in styles.items():
        at = {
            place: model.auroc
            for place, point in enumerate(found.points)
            for model in point.results.models
            if model.name == name
        }
        if not at:
            continue
        low, high = [each.low for each in at.values()], [each.high for each in at.values()]
        axes.fill_between([*at], low, high, color=style["color"], alpha=0.12, lw=0)
        values = [each.value for each in at.values()]
        axes.plot([*at], values, label=plain(name), markersize=5, linewidth=1.6, **style)
    names = ["whole" if p.value is None else f"{p.value:g}" for p in found.points]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel=f"{capital(found.name)} ({found.unit})", ylabel="AUROC")
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    _legend_below(axes)
    return axes


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


def _legend_below(axes: Axes) -> None:
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
    axes.legend(frameon=False, fontsize=8.5, **below)
