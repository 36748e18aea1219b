"""A dataset card for people: in the terminal, in a notebook, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from medbert.evaluate.figures import COLOURS, new_axes, plain
from medbert.evaluate.reports import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Group

Rows = Sequence[Mapping[str, Any]]
QUANTILES = ("10%", "25%", "50%", "75%", "90%", "99%")
TABLES = {  # of the card, and their columns
    "splits": ["split", "subjects", "events", "share_unknown"],
    "sexes": ["sex", "subjects"],
    "spreads": ["name", "mean", *QUANTILES],
    "kinds": ["kind", "visits", "share_of_unknown_length", "share_prolonged"],
    "systems": ["system", "events", "share", "codes", "subjects", "share_unknown"],
    "top_codes": ["code", "title", "subjects", "share", "events"],
    "findings": ["reason", "done", "count", "codes"],
}
HEADS = {  # of columns that are not called so themselves
    "name": "",
    "50%": "Median",
    "system": "Code system",
    "share_unknown": "Unknown",
    "share_of_unknown_length": "Length unknown",
    "share_prolonged": "Prolonged",
    "reason": "Found",
    "done": "What was done",
    "count": "How often",
    "place": "The first",
}
WORDS = {"split", "sex", "name", "kind", "system", "code", "title", "reason", "done", "place"}
COUNTS = {"subjects", "visits", "events", "stays", "count"}  # None in these: too few
TILES = {  # facts, and words for them
    **{name: name for name in ("subjects", "visits", "events", "codes", "tokens", "stays")},
    "share_stays_of_unknown_length": "of the stays of unknown length",
    "share_unknown": "of the events unknown",
    "share_rolled_up": "of the events rolled up",
    "share_two_visits": "of the subjects with two visits or more",
    "share_birth_unknown": "of the births unknown",
    "share_longer": "of the subjects with more codes than the model reads",
}
NO_DATES = "The records have an order but no dates: nothing can be said of years or ages."
NO_ADVICE = "Nothing in these numbers asks for a change."
SHOWN_SYSTEMS = 6
HATCHES = ("", "////", "", "....", "", "\\\\\\\\")  # so that shades can be told apart in print
WIDE, NARROW, HEIGHT = 5.7, 3.8, 2.7  # inches


@dataclass(frozen=True)
class Card:
    """What ``medbert.data.card.describe`` found, and how it is shown."""

    numbers: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.numbers)

    def html(self) -> str:
        """One page that needs nothing else."""
        card = self.numbers
        tiles = "".join(
            f"<div><b>{escape(value)}</b><span>{words}</span></div>"
            for value, words in self._tiles()
        )
        advice = "".join(
            f"<li>{escape(one['says'])} <small>Rule: {escape(one['rule'])}.</small></li>"
            for one in card["advice"]
        )
        people = [row for row in card["spreads"] if row["of"] == "Subjects"]
        others = [row for row in card["spreads"] if row["of"] != "Subjects"]
        return page.fill(
            "card.html",
            title=escape(card["name"]),
            tiles=tiles,
            advice=f"<ul>{advice}</ul>" if advice else f"<p>{NO_ADVICE}</p>",
            min_count=str(card["min_count"]),
            prolonged=str(card["prolonged_days"]),
            calendar=f"<p>{self._calendar()}</p>",
            top_codes=self._top_codes(),
            **{name: self._html(name, card[name]) for name in TABLES if name != "top_codes"},
            people_pictures=_pictures(_histograms(people)),
            visits_pictures=_pictures(_histograms(others)),
            years_pictures=_pictures(_over_time(card["calendar"])),
        )

    def write_html(self, path: Path | str) -> None:
        page.write(path, self.html())

    def _repr_html_(self) -> str:
        return page.framed(self.html(), "Dataset card")

    def for_terminal(self, *, places: Mapping[str, str] | None = None) -> Group:
        """``places``: where the first of each finding is; for the owner of the records only."""
        from rich.console import Group
        from rich.text import Text

        card, where = self.numbers, places or {}
        rows = {name: card[name] for name in TABLES if name != "sexes"}
        rows["systems"] = rows["systems"][:12]
        rows["top_codes"] = [
            {**row, "title": shorten(row["title"] or "–", 40)} for row in card["top_codes"][:8]
        ]
        rows["findings"] = [
            {**row, "place": where.get(row["reason"], "")} for row in card["findings"]
        ]
        facts = ", ".join(map(" ".join, self._tiles()))
        return Group(
            Text(f"{card['name']}: {facts}.\n{self._calendar()}"),
            *(self._rich(name, found) for name, found in rows.items() if found),
            *(Text(f"! {one['says']}", style="yellow") for one in card["advice"]),
            Text("" if card["advice"] else NO_ADVICE),
        )

    def _tiles(self) -> Iterator[tuple[str, str]]:
        """What there is to say in numbers, and the words for it."""
        for name, words in TILES.items():
            if (value := self.numbers["facts"][name]) or name in COUNTS:
                yield self._cell(name, value), words

    def _cell(self, name: str, value: Any) -> str:
        if isinstance(value, str):
            return value.replace("_", " ").capitalize() if name == "reason" else value
        if value is None:
            return f"<{self.numbers['min_count']}" if name in COUNTS else "–"
        if name.startswith("share"):
            return f"{value:.1%}" if value >= 0.001 or not value else f"{value:.2%}"
        return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"

    def _cells(self, names: Iterable[str], rows: Rows) -> list[list[str]]:
        return [[self._cell(name, row.get(name, "")) for name in names] for row in rows]

    def _html(self, name: str, rows: Rows) -> str:
        columns = TABLES[name]
        table = page.Table([*map(_head, columns)], self._cells(columns, rows))
        return page.table(table) if rows else "<p>None.</p>"

    def _top_codes(self) -> str:
        """A table for each code system, of which the first is open."""
        by_system: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.numbers["top_codes"]:
            by_system.setdefault(row["system"], []).append(row)
        return "".join(
            f"<details{' open' * (not i)}><summary>{escape(system)}</summary>"
            f"{self._html('top_codes', rows)}</details>"
            for i, (system, rows) in enumerate(by_system.items())
        )

    def _rich(self, name: str, rows: Rows) -> Any:
        from rich import box
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        columns = TABLES[name] + ["place"] * (name == "findings")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            table.add_column(Text(_head(column)), justify="left" if column in WORDS else "right")
        for cells in self._cells(columns, rows):
            table.add_row(*map(Text, cells))
        return Padding(table, (1, 0, 0, 0))

    def _calendar(self) -> str:
        calendar = self.numbers["calendar"]
        if calendar is None:
            return NO_DATES
        years, withheld = calendar["years"], calendar["years_withheld"]
        span = f"Events from {years[0]} to {years[-1]}." if years else ""
        few = f"Years of fewer than {self.numbers['min_count']} subjects, not shown: {withheld}."
        return f"{span} {few if withheld else ''}".strip()


def _head(column: str) -> str:
    return HEADS.get(column, column.capitalize())


# --- pictures: caption, text for who cannot see it, axes -----------------------------------------

Drawn = tuple[str, str, "Axes"]


def _pictures(drawn: Iterable[Drawn]) -> str:
    return "".join(page.figure(*one) for one in drawn)


def _histograms(spreads: Rows) -> Iterator[Drawn]:
    for row in spreads:
        if row["bars"]:
            share = 100 * np.array(row["bars"]) / row["n"]
            names = [_between(*ends) for ends in pairwise(row["edges"])]
            axes = bars(names, share, ylabel=f"{row['of']} (%)")
            known = [q for q in QUANTILES if row[q] is not None]
            spoken = "; ".join(f"{q} have at most {row[q]:g}" for q in known)
            yield f"{row['name']}.", f"Histogram: {row['name']}. {spoken}", axes


def _between(left: int, right: int | None) -> str:
    inside = f"{left}" if right == left + 1 else f"{left}–{(right or 0) - 1}"
    return f"{left}+" if right is None else inside


def bars(names: Sequence[str], heights: Sequence[float] | np.ndarray, *, ylabel: str) -> Axes:
    """A bar for each name, under as many of the names as can be read."""
    axes = new_axes(width=NARROW, height=HEIGHT)
    axes.bar(range(len(names)), heights, width=0.86, color=COLOURS[0])
    every = 1 + sum(len(name) + 2 for name in names) // 45
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="y", integer=True)
    axes.set(ylabel=ylabel)
    return axes


def _over_time(calendar: Mapping[str, Any] | None) -> Iterator[Drawn]:
    if not calendar or len(calendar["years"]) < 2:
        return
    years, systems = calendar["years"], calendar["systems"]
    for what in ("subjects", "events"):
        picture = bars([str(year) for year in years], calendar[what], ylabel=what.capitalize())
        yield f"{what.capitalize()} of each year.", f"Bars: {what} of each year.", picture
    icd = [name for name in systems if name.startswith("ICD")]
    every_icd = [sum(n or 0 for n in year) for year in zip(*map(systems.get, icd), strict=True)]
    shares = ("Code", [*systems], calendar["events"]), ("ICD code", icd, every_icd)
    for names, chosen, total in shares:
        if len(chosen) > 1:
            spoken = f"Stacked bars {years[0]} to {years[-1]}: share of {', '.join(chosen)}."
            picture = stacked(calendar, chosen=chosen, total=total)
            yield f"{names} systems over time.", spoken, picture


def stacked(calendar: Mapping[str, Any], *, chosen: Sequence[str], total: Sequence[int]) -> Axes:
    """Share of ``total`` of the first of the ``chosen`` code systems; the rest in grey."""
    years, colours = calendar["years"], [*calendar["systems"]]
    axes = new_axes(width=WIDE, height=HEIGHT)
    base = np.zeros(len(years))
    for name in chosen[:SHOWN_SYSTEMS]:
        i = colours.index(name) % SHOWN_SYSTEMS
        share = 100 * np.array([n or 0 for n in calendar["systems"][name]]) / np.maximum(total, 1)
        style: dict[str, Any] = {"color": COLOURS[i], "hatch": HATCHES[i], "edgecolor": "white"}
        axes.bar(years, share, bottom=base, width=0.9, label=plain(name), linewidth=0.4, **style)
        base += share
    if (base < 99).any():
        rest = np.maximum(100 - base, 0)
        axes.bar(years, rest, bottom=base, width=0.9, color="0.85", label="others")
    axes.locator_params(axis="x", integer=True)
    axes.set(ylabel="Share of events (%)", ylim=(0, 100))
    handles, labels = axes.get_legend_handles_labels()
    where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8.5, **where)
    return axes
