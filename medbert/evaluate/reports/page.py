"""The parts of which our HTML pages are made. A page is one file that needs nothing else."""

from __future__ import annotations

import base64
import importlib.resources
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple, cast

from medbert.evaluate import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """``roles``: what kind of line each is, such as that of the reference."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    roles: Sequence[str] = ()


class Picture(NamedTuple):
    """``name`` for a file, ``alt`` for who cannot see it."""

    name: str
    caption: str
    alt: str
    axes: Axes


@dataclass(frozen=True)
class Section:
    """``said`` before the tables, ``small`` print after them; ``kind``: how tables are set."""

    title: str
    kind: str = "numbers"
    said: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    points: Sequence[str] = ()
    small: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())

    def __bool__(self) -> bool:
        return bool(self.said or self.tables or self.pictures or self.points)


def fill(template: str, **parts: str) -> str:
    """The page of a template of this package; ``parts`` are HTML."""
    here = importlib.resources.files(__package__)
    page, style = (here.joinpath(f).read_text(encoding="utf-8") for f in (template, "page.css"))
    return Template(page).substitute(style=style, **parts)


def framed(html: str, title: str) -> str:
    """A whole page inside a notebook."""
    return (
        f"<iframe title='{title}' srcdoc='{escape(html)}' "
        "style='width: 100%; height: 50rem; border: 1px solid #ccc'></iframe>"
    )


def write(path: Path | str, text: str) -> None:
    """Writes the whole page or nothing."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def table(of: Table) -> str:
    """Roles are CSS classes of the rows."""
    over = f"<caption>{escape(of.caption)}</caption>" if of.caption else ""
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in of.head)
    body = []
    for index, (first, *others) in enumerate(of.rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        role = f" class='{of.roles[index]}'" if of.roles else ""
        body.append(f"<tr{role}><th scope='row'>{escape(first)}</th>{cells}</tr>")
    return (
        f"<div class='scroll'><table>{over}<thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(caption: str, alt: str, axes: Axes) -> str:
    """A picture with what it shows and the text for who cannot see it.

    A style sheet may ask for its width, in inches: ``var(--inches)``.
    """
    inches = cast("Figure", axes.figure).get_figwidth()
    data = base64.b64encode(figures.svg(axes)).decode()
    return (
        f"<figure style='--inches: {inches:g}'>"
        f"<img src='data:image/svg+xml;base64,{data}' alt='{escape(alt)}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(part: Section) -> str:
    """Headed, in the order said, tables, pictures, points, small print."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in part.said)
    tables = "".join(map(table, part.tables))
    drawn = "".join(figure(each.caption, each.alt, each.axes) for each in part.pictures)
    drawn = f"<div class='pictures'>{drawn}</div>" if drawn else ""
    body = f"<div class='beside'>{tables}{drawn}</div>" if tables or drawn else ""
    points = "".join(f"<li>{escape(point)}</li>" for point in part.points)
    points = f"<ul>{points}</ul>" if points else ""
    small = "".join(f"<p class='small'>{escape(line)}</p>" for line in part.small)
    return (
        f"<section id='{part.anchor}' class='{part.kind}'><h2>{escape(part.title)}</h2>"
        f"{said}{body}{points}{small}</section>"
    )
