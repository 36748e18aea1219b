"""Pictures of what is inside a model: what moved a prediction, which codes are alike, a life.

Arrays in, Axes out, as in ``figures``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np

from medbert.evaluate.figures import COLOURS, MARKERS, listed, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place: TypeAlias = tuple[float, float, float]  # of a name: left and right (points), and its row
NO_CHAPTER = "no diagnosis of ICD"
_ICD = re.compile(r"ICD(9|10)(?!PCS|PROC)[A-Z]*/(\w{3})")
_LANES = (COLOURS[0], *COLOURS[2:])  # the risk has the other one
_ROWS, _NAMED = 6, 40  # names in a lane above each other; names on a map
# Each begins with a category, and ends where the next one of its system begins.
_FILE = files(__package__) / "icd_chapters.csv"
_TABLE = [*csv.DictReader(_FILE.read_text("utf-8").splitlines())]
CHAPTERS = [row["chapter"] for row in _TABLE]


def chapter(code: str) -> str:
    """The chapter of a (canonical) code of ICD-9 or ICD-10, in a short name.

    >>> chapter("ICD10CM/D49.0"), chapter("ICD9CM/250.00"), chapter("ICD9CM/V70.0")
    ('Neoplasms', 'Endocrine and metabolic', 'Contact with health care')
    """
    if (found := _ICD.match(code)) is None:
        return NO_CHAPTER
    first = f"icd{found[1]}"
    begun = [(row[first], row["chapter"]) for row in _TABLE if "" < row[first] <= found[2]]
    return max(begun, default=("", NO_CHAPTER))[1]


def bars(names: Sequence[str], values: np.ndarray, *, axes: Axes | None = None) -> Axes:
    """A bar for each name, from the top down: orange above 0, blue below."""
    axes = axes or new_axes(width=7.0, height=0.9 + 0.26 * max(len(names), 3))
    colours = [COLOURS[1] if value > 0 else COLOURS[0] for value in values]
    axes.barh(range(len(names)), values, color=colours, height=0.7)
    axes.axvline(0, color="0.35", linewidth=0.9)
    listed(axes, [plain(_short(name, 60)) for name in names], fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return axes


def code_map(
    place_C2: np.ndarray, *, groups: Sequence[str], names: Sequence[str], axes: Axes | None = None
) -> Axes:
    """A point for each code, in the colour and marker of its chapter; the first that leave each
    other room have their name beside them."""
    axes = axes or new_axes(width=9.5, height=6.2)
    group_C = np.array(groups, dtype=object)
    looks = [(".", "0.75"), *((marker, colour) for marker in MARKERS for colour in COLOURS)]
    for group, (marker, colour) in zip([NO_CHAPTER, *CHAPTERS], looks, strict=False):
        here = place_C2[group_C == group]
        if len(here):
            x, y = here.T
            axes.scatter(x, y, s=26, color=colour, marker=marker, label=group, linewidths=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    cast("Figure", axes.figure).draw_without_rendering()  # only then it is known what is in the way
    taken: list[Place] = []
    for name, at in zip(names, place_C2, strict=True):
        if len(taken) < _NAMED:
            row = float(axes.transData.transform(at)[1]) * _points(axes) / 9
            _name(axes, name=name, at=at, row=row, taken=taken)
    return axes


class Lane(NamedTuple):
    """Events of one kind; with ``names``, the first in the list are the first to find room."""

    kind: str
    start: np.ndarray
    end: np.ndarray
    names: Sequence[str] = ()


def timeline(
    time: np.ndarray, *, risk: np.ndarray, lanes: Sequence[Lane], axes: Axes | None = None
) -> Axes:
    """The risk above (it holds until it is asked again; from a dotted line on it is null), and the
    lanes below, on one axis of time (datetime64, or numbers)."""
    own, axes = axes is None, axes or new_axes(width=10.5)
    top = float(np.nanmax(risk, initial=0)) or 1.0
    unit = top / 12  # a row of a lane, on the axis of the risk
    axes.step(time, risk, ".-", where="post", color=COLOURS[1], linewidth=1.4, markersize=5)
    for never in time[np.isnan(risk)][:1]:
        axes.axvline(never, color=COLOURS[1], linestyle=":")
    edges = np.concatenate([time, *(each for lane in lanes for each in lane[1:3])])
    axes.plot(edges, np.zeros(len(edges)), alpha=0)
    axes.set_xlim(axes.get_xlim())
    ticks = {share * top: f"{100 * share * top:.3g}%" for share in (0, 0.5, 1)}
    level = -unit
    for i, lane in enumerate(lanes):
        axes.axhline(level, color="0.9", linewidth=0.7, zorder=0)
        foot = level - unit * _draw(lane, axes=axes, level=level, unit=unit, colour=_LANES[i % 5])
        ticks[(level + foot) / 2], level = lane.kind, foot
    axes.set_yticks([*ticks], [*ticks.values()], fontsize=8.5)
    axes.set_ylim(level, 1.06 * top)
    if own:
        cast("Figure", axes.figure).set_figheight(1.2 + 0.17 * (1.06 * top - level) / unit)
    return axes


def _draw(lane: Lane, *, axes: Axes, level: float, unit: float, colour: str) -> int:
    """How many rows it took; events whose name found no room are lines in the last one."""
    taken: list[Place] = []
    unnamed, height = np.ones(len(lane.start), bool), 0
    for e, name in enumerate(lane.names):
        x = float(axes.convert_xunits(lane.start[e]))
        for row in range(_ROWS):
            at = (x, level - unit * (row + 0.5))
            if _name(axes, name=name, at=at, row=row, taken=taken):
                axes.plot(*at, "o", color=colour, markersize=3.5)
                unnamed[e], height = False, max(height, row + 1)
                break
    y_U = np.full(unnamed.sum(), level - unit * (height + 0.5))
    axes.plot(lane.start[unnamed], y_U, "|", color=colour, markersize=7)
    axes.hlines(y_U, lane.start[unnamed], lane.end[unnamed], color=colour, linewidth=5)
    return height + bool(unnamed.any())


def _name(axes: Axes, *, name: str, at: Any, row: float, taken: list[Place]) -> bool:
    """Writes it beside a point, unless one that is ``taken``, in about that row, is in the way."""
    text = _short(name, 28)
    x, width = axes.transData.transform(at)[0] * _points(axes), 4.1 * len(text) + 9
    side = -1 if x + width > axes.bbox.x1 * _points(axes) else 1
    left, right = sorted((x, x + side * width))
    if any(a < right and left < b and abs(row - other) < 1 for a, b, other in taken):
        return False
    taken.append((left, right, row))
    beside: Any = {"xytext": (4 * side, -2.5), "ha": "left" if side > 0 else "right"}
    axes.annotate(plain(text), at, textcoords="offset points", fontsize=7.5, **beside)
    return True


def _points(axes: Axes) -> float:
    """In a pixel."""
    return 72 / axes.figure.dpi


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
