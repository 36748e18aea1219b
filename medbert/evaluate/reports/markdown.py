"""The report of a study (or any sections) as a Markdown page, with its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from medbert.evaluate import figures
from medbert.evaluate.reports import page
from medbert.evaluate.reports.sections import sections
from medbert.evaluate.reports.study import Study

FIGURES = "figures"


def write_study_markdown(study: Study, path: Path | str, *, min_count: int = 10) -> None:
    """Writes ``path``, and ``figures/NAME.svg`` beside it."""
    write_markdown(sections(study, min_count=min_count), path, title=study.title or "Report")


def write_markdown(parts: Iterable[page.Section], path: Path | str, *, title: str) -> None:
    """As above, of any sections."""
    path = Path(path)
    (path.parent / FIGURES).mkdir(exist_ok=True)
    blocks = [f"# {_text(title)}"]
    for part in parts:
        for picture in part.pictures:
            file = path.parent / FIGURES / f"{picture.name}.svg"
            file.write_bytes(figures.svg(picture.axes))
        blocks += _blocks(part)
    page.write(path, "\n\n".join(blocks) + "\n")


def _blocks(part: page.Section) -> Iterator[str]:
    yield f"## {_text(part.title)}"
    yield from map(_text, part.said)
    for table in part.tables:
        if table.caption:
            yield f"**{_text(table.caption)}**"
        align = "---" if part.kind == "words" else "--:"
        rule = ["---", *[align] * (len(table.head) - 1)]
        lines = [[*map(_text, line)] for line in (table.head, *table.rows)]
        yield "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
    for picture in part.pictures:
        yield f"![{_text(picture.alt)}]({FIGURES}/{picture.name}.svg)"
        yield f"*{_text(picture.caption)}*"
    if part.points:
        yield "\n".join(f"- {_text(point)}" for point in part.points)
    yield from map(_text, part.small)


def _text(text: str) -> str:
    """On one line, and read as it stands."""
    return re.sub(r"([\\`*_\[\]<>|$~])", r"\\\1", " ".join(text.split()))
