"""Pictures of an evaluation, as matplotlib Axes.

Each function draws on ``axes``, or on a new figure that needs no display and no pyplot. Models keep
their colour, line and marker from picture to picture: they go by their order in ``models``. Colours
are those of Okabe and Ito, told apart by colour-blind readers; lines and markers differ as well.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from medbert.evaluate.intervals import ORACLE_NAME, Interval
from medbert.evaluate.metrics import Array, calibration_curve, check

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = ("-", (0, (7, 2)), "-.", (0, (1, 1.3)), (0, (7, 2, 1, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
ORACLE_STYLE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
FONT: Any = {"font.size": 10, "font.family": "DejaVu Sans", "svg.hashsalt": "medbert"}
_SHOWN = ContextVar("shown", default=False)
POINTS = 400  # a curve of more points than this is thinned; the eye sees no difference


def roc(
    labels: ArrayLike,
    *,
    models: Mapping[str, ArrayLike],
    oracle: ArrayLike | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Sensitivity against 1 - specificity; the oracle dashed in black."""
    from sklearn.metrics import roc_curve

    axes = axes or new_axes()
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8)
    for probabilities, look in _looks(models, oracle):
        false, true, _ = roc_curve(*check(labels, probabilities), drop_intermediate=False)
        axes.plot(*_thin(false, true), **look)
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.005))
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5)
    return axes


def precision_recall(
    labels: ArrayLike,
    *,
    models: Mapping[str, ArrayLike],
    oracle: ArrayLike | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Precision against sensitivity; a grey line at the prevalence, where chance lies."""
    from sklearn.metrics import precision_recall_curve

    axes = axes or new_axes()
    prevalence = float(np.mean(np.asarray(labels, dtype=np.float64)))
    axes.axhline(prevalence, color="0.75", linewidth=0.8)
    for probabilities, look in _looks(models, oracle):
        precision, true, _ = precision_recall_curve(*check(labels, probabilities))
        axes.plot(*_thin(true[-2::-1], precision[-2::-1]), **look)  # from the highest threshold
    axes.set(xlabel="Sensitivity (recall)", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.005))
    axes.set_aspect("equal")
    axes.legend(loc="upper right", frameon=False, fontsize=8.5)
    return axes


def calibration(
    labels: ArrayLike,
    *,
    models: Mapping[str, ArrayLike],
    min_count: int = 10,
    axes: Axes | None = None,
) -> Axes:
    """Observed against predicted risk by tenths of the rows, with Wilson intervals.

    Fewer groups are made where ten would hold fewer than ``min_count`` rows each, and a group of
    tied probabilities that is still smaller is left out.
    """
    axes = axes or new_axes()
    bins = int(np.clip(np.size(np.asarray(labels)) // max(2 * min_count, 1), 1, 10))
    top = 0.0
    for index, (name, probabilities) in enumerate(models.items()):
        curve = calibration_curve(labels, probabilities, bins=bins)
        shown = np.array([point for point in curve if point.n >= min_count]).reshape(-1, 5)
        _, x, y, low, high = shown.T
        # rounding can put the observed share a hair outside its own interval
        below, above = np.maximum(0, y - low), np.maximum(0, high - y)
        look = {**marked(index, 1.2), "markersize": 4.5, "elinewidth": 0.7}
        axes.errorbar(x, y, [below, above], label=plain(name), **look)
        top = max([top, *x, *(y + above)])
    top = min(1.0, 1.04 * top)
    axes.plot([0, top], [0, top], color="0.75", linewidth=0.8, zorder=0)
    axes.set(xlabel="Predicted risk", ylabel="Observed risk", xlim=(0, top), ylim=(0, top))
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    return axes


def risk_distribution(
    labels: ArrayLike,
    *,
    probabilities: ArrayLike,
    min_count: int = 10,
    axes: Axes | None = None,
) -> Axes:
    """How the predicted risk spreads in those without and those with the outcome, in percent.

    Bars of fewer than ``min_count`` rows are left out.
    """
    axes = axes or new_axes()
    labels_N, probabilities_N = check(labels, probabilities)
    edges = np.linspace(0, float(probabilities_N.max()) or 1.0, 31)
    hatched: Any = {"facecolor": "none", "edgecolor": COLOURS[1], "hatch": "////"}
    groups = ("without the outcome", {"color": "0.6"}), ("with the outcome", hatched)
    for label, (name, look) in enumerate(groups):
        counts = np.histogram(probabilities_N[labels_N == label], bins=edges)[0]
        shown = np.where(counts >= min_count, 100 * counts / counts.sum(), 0)
        axes.bar(edges[:-1], shown, width=np.diff(edges), align="edge", label=name, **look)
    axes.set(xlabel="Predicted risk", ylabel="Share of the group (%)", xlim=(0, edges[-1]))
    axes.legend(loc="upper right", frameon=False, fontsize=8.5)
    return axes


def forest(
    intervals: Mapping[str, Interval], *, coloured: Sequence[str], axes: Axes | None = None
) -> Axes:
    """AUROC of every model with its interval, one line each, in the order given.

    ``coloured``: those that the other pictures show, in their order; the others are grey.
    """
    axes = axes or new_axes(height=1 + 0.42 * max(len(intervals), 3))
    for index, (name, interval) in enumerate(intervals.items()):
        colour, marker = ("black", "*") if name == ORACLE_NAME else ("0.5", "o")
        if name in coloured and name != ORACLE_NAME:
            place = coloured.index(name)
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        whisker(axes, interval, index, color=colour, marker=marker)
    low = min(interval.low for interval in intervals.values())
    if low < 0.55:
        axes.axvline(0.5, color="0.75", linewidth=0.8)
    listed(axes, [plain(name) for name in intervals])
    axes.set(xlabel="AUROC", ylim=(len(intervals) - 0.5, -0.5))
    axes.grid(axis="x", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def whisker(axes: Axes, found: Interval, line: int, *, color: str, marker: str = "o") -> None:
    """A value and its interval, on a line of its own."""
    axes.plot([found.low, found.high], [line, line], color=color, linewidth=1.8)
    axes.plot(found.value, line, marker=marker, color=color, markersize=7)


def listed(axes: Axes, names: Sequence[str], **text: Any) -> None:
    """A name for each line, instead of an axis."""
    axes.set_yticks(range(len(names)), names, **text)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def svg(axes: Axes) -> bytes:
    """The picture as an SVG that loads nothing from elsewhere, the same bytes each time."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(FONT):
        cast("Figure", axes.figure).savefig(
            buffer, format="svg", bbox_inches="tight", metadata=metadata
        )
    return buffer.getvalue()


@contextmanager
def shown() -> Iterator[None]:
    """New figures are meanwhile those of pyplot, if it is used or this is a notebook, which then
    shows them. Pages are drawn without: they leave nothing behind."""
    token = _SHOWN.set(bool({"ipykernel", "matplotlib.pyplot"} & sys.modules.keys()))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def new_axes(*, width: float = 4.6, height: float = 4.4) -> Axes:
    import matplotlib
    from matplotlib.figure import Figure

    figure: Any = Figure
    if _SHOWN.get():
        from matplotlib.pyplot import figure
    made = figure(figsize=(width, height), layout="constrained")
    with matplotlib.rc_context(FONT):
        axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plain(name: str) -> str:
    return name.replace("$", r"\$")  # matplotlib reads a pair of dollars as mathematics


def style(index: int, linewidth: float = 1.7) -> dict[str, Any]:
    """Colour and line of the model at that place."""
    colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
    return {"color": colour, "linestyle": line, "linewidth": linewidth}


def marked(index: int, linewidth: float) -> dict[str, Any]:
    return {**style(index, linewidth), "marker": MARKERS[index % len(MARKERS)]}


def _looks(
    models: Mapping[str, ArrayLike], oracle: ArrayLike | None
) -> Iterator[tuple[ArrayLike, dict[str, Any]]]:
    """What each model says, and how it is drawn; the oracle last, if there is one."""
    for index, (name, probabilities) in enumerate(models.items()):
        yield probabilities, {"label": plain(name), **style(index)}
    if oracle is not None:
        yield oracle, {"label": ORACLE_NAME, **ORACLE_STYLE}


def _thin(x: Array, y: Array) -> Sequence[Array]:
    """At most POINTS points, even along the curve."""
    if x.size <= POINTS:
        return x, y
    along = np.r_[0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))]
    kept = np.searchsorted(along, np.linspace(0, along[-1], POINTS))
    kept = np.minimum(kept, x.size - 1)
    return x[kept], y[kept]
