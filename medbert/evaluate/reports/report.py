"""The report of a study: for the terminal, picture by picture, and as one page.

All of it is made to be passed on, and hides counts under ``min_count``; the JSON and the table of
``Results`` hold exact counts and stay with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medbert.evaluate import figures
from medbert.evaluate.comparisons import Comparison
from medbert.evaluate.figures import pictures
from medbert.evaluate.intervals import ORACLE, REFERENCE, Results
from medbert.evaluate.reports import page
from medbert.evaluate.reports.sections import sections, shown
from medbert.evaluate.reports.study import Study
from medbert.evaluate.reports.verdict import adjusted_p, cells, interval, method, size
from medbert.schema import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

LONG = 8  # sections from which a page has a table of contents


def rich_table(
    results: Results, comparisons: Sequence[Comparison] = (), *, min_count: int = 10
) -> Table:
    """The results for the terminal; p is adjusted where ``comparisons`` are given."""
    from rich.table import Table
    from rich.text import Text

    adjusted = adjusted_p(results, comparisons)
    told = Text(method(results, len(adjusted)))
    table = Table(title=Text(size(results, min_count)), caption=told)
    lines = [
        cells(results, model, adjusted)
        | {"Slope\n(ideal 1)": interval(model.calibration_slope, digits=2)}
        for model in results.models
    ]
    if adjusted:  # narrow, so that words stay whole
        lines = [{name: text for name, text in line.items() if name != "p"} for line in lines]
    for name in lines[0]:
        table.add_column(Text(name), justify="left" if name == "Model" else "right")
    for model, line in zip(results.models, lines, strict=True):
        style = {REFERENCE: "bold", ORACLE: "dim"}.get(model.role)
        table.add_row(*map(Text, line.values()), style=style)
    return table


def plot(study: Study, picture: str, axes: Axes | None = None) -> Axes:
    """See ``Study.plot``."""
    results, names = study.results, shown(study.results)
    auroc = {model.name: model.auroc for model in results.models}
    drawn: dict[str, Callable[..., Axes]] = {
        "auroc": partial(figures.forest, auroc, coloured=names),
        **{name: draw for name, _, _, draw in pictures.gallery(results, names)},
    }
    if study.decision is not None:
        drawn["net_benefit"] = partial(pictures.decision_curves, study.decision, shown=names)
    if study.subgroups:
        whole = auroc[results.reference]
        drawn["subgroups"] = partial(pictures.subgroup_forest, study.subgroups, whole=whole)
    if study.efficiency:
        drawn["label_efficiency"] = partial(pictures.label_efficiency, study.efficiency)
    for sweep in study.sweeps:
        drawn[sweep.name] = partial(pictures.sweep, sweep, shown=names)
    if picture not in drawn:
        raise InputError(f"picture={picture}: choose one of {', '.join(drawn)}")
    with figures.shown():
        return drawn[picture](axes=axes)


def write_study_html(study: Study, path: Path | str, *, min_count: int = 10) -> None:
    """One page that needs nothing else, written whole or not at all."""
    page.write(path, study_html(study, min_count=min_count))


def study_html(study: Study, *, min_count: int = 10) -> str:
    parts = sections(study, min_count=min_count)
    links = "".join(f"<li><a href='#{p.anchor}'>{escape(p.title)}</a></li>" for p in parts)
    return page.fill(
        "report.html",
        title=escape(study.title or "Report"),
        contents=f"<nav aria-label='Contents'><ul>{links}</ul></nav>" if len(parts) > LONG else "",
        sections="\n".join(page.section(part) for part in parts),
    )
