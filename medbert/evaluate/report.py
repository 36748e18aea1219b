"""From predictions to a report: results with intervals, the verdict in words, one page.

``summarise`` makes the Results; their JSON and table hold exact counts and stay with the run. What
is made to be passed on (the pages, the terminal table) hides counts under ``min_count``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medbert.evaluate import page
from medbert.evaluate.comparisons import Comparison
from medbert.evaluate.intervals import ORACLE, REFERENCE, ModelResult, Results, summarise
from medbert.evaluate.markdown import write_study_markdown
from medbert.evaluate.sections import sections
from medbert.evaluate.study import Study
from medbert.evaluate.verdict import adjusted_p, cells, interval, method, size, verdict

__all__ = [
    "ModelResult",
    "Results",
    "rich_table",
    "summarise",
    "verdict",
    "write_study_html",
    "write_study_markdown",
]

if TYPE_CHECKING:
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


def write_study_html(study: Study, path: Path | str, *, min_count: int = 10) -> None:
    """One page that needs nothing else, written whole or not at all."""
    parts = sections(study, min_count=min_count)
    links = "".join(f"<li><a href='#{p.anchor}'>{escape(p.title)}</a></li>" for p in parts)
    text = page.fill(
        "report.html",
        title=escape(study.title or "Report"),
        contents=f"<nav aria-label='Contents'><ul>{links}</ul></nav>" if len(parts) > LONG else "",
        sections="\n".join(page.section(part) for part in parts),
    )
    page.write(path, text)
