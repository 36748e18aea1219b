"""The parts of which our HTML pages are made. A page is one file that needs nothing else."""

from __future__ import annotations

import base64
import importlib.resources
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, cast

from medbert.evaluate import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def fill(template: str, **parts: str) -> str:
    """The page of a template of this package; ``parts`` are HTML."""
    here = importlib.resources.files(__package__)
    style = here.joinpath("page.css").read_text(encoding="utf-8")
    return Template(here.joinpath(template).read_text(encoding="utf-8")).substitute(
        style=style, **parts
    )


def write(path: Path | str, text: str) -> None:
    """Writes the whole page or nothing."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, roles: Sequence[str] = ()) -> str:
    """``roles``: a CSS class for each row."""
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = []
    for index, (first, *others) in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        role = f" class='{roles[index]}'" if roles else ""
        body.append(f"<tr{role}><th scope='row'>{escape(first)}</th>{cells}</tr>")
    return (
        f"<div class='scroll'><table><thead><tr>{top}</tr></thead>"
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
