"""Models on several tasks, against one of them: who gains, by how much, and how sure that is.

Suffixes as in ``comparisons.over_items``: S seeds, N items, K counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medbert.evaluate.comparisons import Comparison, holm, over_items
from medbert.evaluate.figures import COLOURS, listed, new_axes, plain, whisker
from medbert.evaluate.intervals import Bootstrap, Difference, Interval
from medbert.evaluate.metrics import Array
from medbert.evaluate.reports.page import Picture, Section, Table
from medbert.evaluate.reports.verdict import interval, joined, p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAIN, NO_GAIN, WORSE = "gain", "no gain", "worse"
_SURE = 0.05
_METHOD = "paired bootstrap over items and seeds"


class Counted(NamedTuple):
    """A task as it was answered. ``measures``: (name, whether higher is better, of sums); the first
    is judged. ``counts``: of every model (S, N, K); those in ``beside`` are no models. ``groups``:
    what to look at apart, such as languages, (N,) names each."""

    measures: Sequence[tuple[str, bool, Callable[[Array], Array]]]
    counts: Mapping[str, Array]
    cluster_N: NDArray[Any]
    groups: Mapping[str, NDArray[Any]]
    beside: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """One model in one measure on some items: its value, and less the reference's."""

    value: Interval
    difference: Difference | None


@dataclass(frozen=True)
class Found:
    """A task, judged. ``seeds``: value of each training, in the first measure. ``parts``: group ->
    name -> (clusters, rows), in the first measure too."""

    task: str
    measures: tuple[tuple[str, bool], ...]
    items: int
    clusters: int
    rows: Mapping[str, Mapping[str, Row]]
    seeds: Mapping[str, tuple[float, ...]]
    parts: Mapping[str, Mapping[str, tuple[int, Mapping[str, Row]]]]
    comparisons: tuple[Comparison, ...]
    beside: tuple[str, ...]

    @property
    def higher(self) -> bool:
        return self.measures[0][1]

    def verdict(self, one: Comparison) -> str:
        if not one.adjusted_p < _SURE:
            return NO_GAIN
        return GAIN if (one.difference.value > 0) == self.higher else WORSE


def contest(
    tasks: Mapping[str, Counted],
    *,
    reference: str,
    pairs: Sequence[tuple[str, str]] = (),
    seed: int,
    n: int,
    level: float,
    min_clusters: int = 10,
) -> list[Found]:
    """Every model less the reference, and the ``pairs`` besides; p values are adjusted over all of
    these of all tasks. Groups of fewer than ``min_clusters`` are not shown."""
    found: list[Found] = []
    how: dict[str, Any] = {"seed": seed, "n": n, "level": level}
    for name, task in tasks.items():
        boots = {m[0]: over_items(task.counts, m[2], task.cluster_N, **how) for m in task.measures}
        first, _, of = task.measures[0]
        wanted = [(m, reference) for m in task.counts if m != reference]
        wanted += [pair for pair in pairs if {*pair} <= {*task.counts}]
        gains = [(a, b, boots[first].difference(a, minus=b, metric="metric")) for a, b in wanted]
        found.append(
            Found(
                task=name,
                measures=tuple((m[0], m[1]) for m in task.measures),
                items=len(task.cluster_N),
                clusters=len(np.unique(task.cluster_N)),
                rows={m: _rows(boot, task.counts, reference) for m, boot in boots.items()},
                seeds={m: tuple(map(float, of(c.sum(axis=1)))) for m, c in task.counts.items()},
                parts=_parts(task, reference, how, min_clusters),
                comparisons=tuple(Comparison(*gain, np.nan, _METHOD) for gain in gains),
                beside=tuple(task.beside),
            )
        )
    return _adjusted(found)


def _rows(boot: Bootstrap, models: Mapping[str, Any], reference: str) -> dict[str, Row]:
    return {
        m: Row(
            boot.interval(m, metric="metric"),
            None if m == reference else boot.difference(m, minus=reference, metric="metric"),
        )
        for m in models
    }


def _parts(
    task: Counted, reference: str, how: dict[str, Any], least: int
) -> dict[str, dict[str, tuple[int, dict[str, Row]]]]:
    made: dict[str, dict[str, tuple[int, dict[str, Row]]]] = {}
    for group, names_N in task.groups.items():
        made[group] = {}
        for name in np.unique(names_N):
            own_N = names_N == name
            clusters_n = task.cluster_N[own_N]
            if (n := len(np.unique(clusters_n))) >= least:
                counts = {m: c[:, own_N] for m, c in task.counts.items()}
                boot = over_items(counts, task.measures[0][2], clusters_n, **how)
                made[group][str(name)] = n, _rows(boot, counts, reference)
    return made


def _adjusted(found: Sequence[Found]) -> list[Found]:
    p = iter(holm([one.difference.p for task in found for one in task.comparisons]))
    adjusted = [[replace(c, adjusted_p=float(next(p))) for c in t.comparisons] for t in found]
    return [replace(t, comparisons=tuple(c)) for t, c in zip(found, adjusted, strict=True)]


def to_dict(found: Sequence[Found]) -> dict[str, Any]:
    """For metrics.json; NaN becomes None."""
    made = {}
    for task in found:
        verdicts = [asdict(c) | {"verdict": task.verdict(c)} for c in task.comparisons]
        made[task.task] = {**asdict(task), "comparisons": verdicts}
    return json.loads(json.dumps(made), parse_constant=lambda _: None)


def words(found: Sequence[Found]) -> list[str]:
    """What was found, a sentence a comparison: gains first, then what is worse, then no gain."""
    said: dict[str, list[str]] = {GAIN: [], WORSE: [], NO_GAIN: []}
    for task in found:
        for one in task.comparisons:
            if one.model not in task.beside:
                verdict = task.verdict(one)
                lead = {GAIN: "gains over", WORSE: "is worse than", NO_GAIN: "no gain over"}
                said[verdict].append(
                    f"{task.task}: {one.model}{':' if verdict == NO_GAIN else ''} {lead[verdict]} "
                    f"{one.minus}, {_spoken(one.difference)} in {task.measures[0][0]} "
                    f"(adjusted p {p_value(one.adjusted_p)})."
                )
    return [*said[GAIN], *said[WORSE], *said[NO_GAIN], *filter(None, map(_ahead, found))]


def _ahead(task: Found) -> str:
    """Whether something simple is ahead of every model."""
    rows, sign = task.rows[task.measures[0][0]], 1 if task.higher else -1
    best = max(sign * row.value.value for name, row in rows.items() if name not in task.beside)
    ahead = [name for name in task.beside if sign * rows[name].value.value > best]
    return f"{task.task}: {joined(ahead)} ahead of every model here." if ahead else ""


def _spoken(found: Difference) -> str:
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def sections(found: Sequence[Found], *, reference: str, level: float) -> list[Section]:
    small = (
        f"Intervals of {level:.0%} by {_METHOD}: items of a cluster (a patient, a repeated "
        "question) are drawn together, and every model has the same draws. p is adjusted over all "
        "comparisons of all tasks in their first measure (Holm). A gain is one with an adjusted p "
        f"below {_SURE}."
    )
    verdict = Section(f"Against {reference}", "verdict", said=words(found), small=[small])
    return [verdict, *(_section(task, reference) for task in found)]


def _section(task: Found, reference: str) -> Section:
    n_seeds = len(next(iter(task.seeds.values())))
    trained = f"{n_seeds} seeds" if n_seeds > 1 else "not trained: one answer"
    size = f"{task.items:,} test items in {task.clusters:,} clusters; {trained}."
    tables = []
    for name, higher in task.measures:
        head = ["", f"{name}\n({'higher' if higher else 'lower'} is better)", f"less {reference}"]
        first = name == task.measures[0][0]
        p = {c.model: c.adjusted_p for c in task.comparisons if c.minus == reference}
        lines = [
            [model, interval(row.value), _less(row.difference)]
            + [p_value(p.get(model, np.nan))] * first
            for model, row in task.rows[name].items()
        ]
        tables.append(Table(head + ["p, adjusted"] * first, lines))
    others = [
        [f"{c.model} less {c.minus}", _less(c.difference), p_value(c.adjusted_p)]
        for c in task.comparisons
        if c.minus != reference
    ]
    if others:
        tables.append(Table(["", task.measures[0][0], "p, adjusted"], others))
    tables += [_part(task, group, names, reference) for group, names in task.parts.items() if names]
    about = f"{task.task}: {task.measures[0][0]} of every model with its interval, seeds as dots"
    drawn = Picture(f"task_{task.task}", about, about, picture(task))
    return Section(task.task, said=[size], tables=tables, pictures=[drawn])


def _part(task: Found, group: str, names: Mapping[str, Any], reference: str) -> Table:
    head = ["", *(f"{name}\n({n:,} clusters)" for name, (n, _) in names.items())]
    lines = []
    for model in task.seeds:
        cells = []
        for _, rows in names.values():
            row = rows[model]
            less = "" if row.difference is None else f"\n{_less(row.difference)}"
            cells.append(interval(row.value) + less)
        lines.append([model, *cells])
    return Table(head, lines, f"{task.measures[0][0]} by {group}; signed: less {reference}")


def _less(found: Difference | None) -> str:
    return "–" if found is None else _spoken(found).replace(" (", "\n(").replace("-", "−")


def picture(task: Found) -> Axes:
    """Every model a line: mean, interval, and a dot for each seed."""
    rows = task.rows[task.measures[0][0]]
    axes = new_axes(height=1 + 0.42 * max(len(rows), 3))
    for index, (name, row) in enumerate(rows.items()):
        colour = "0.5" if name in task.beside else COLOURS[index % len(COLOURS)]
        whisker(axes, row.value, index, color=colour)
        dots = task.seeds[name]
        axes.plot(dots, [index + 0.22] * len(dots), ".", color=colour, markersize=3.5, alpha=0.7)
    listed(axes, [plain(name) for name in rows])
    axes.set(xlabel=task.measures[0][0], ylim=(len(rows) - 0.5, -0.5))
    axes.grid(axis="x", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes
