"""From predictions to a report: results with intervals, the verdict in words, one HTML page.

``summarise`` makes the Results; their JSON and table hold exact counts and stay with the run. What
is made to be passed on (the page, the terminal table) hides counts under ``min_count``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medbert.evaluate import figures, page
from medbert.evaluate.intervals import (
    ORACLE,
    ORACLE_NAME,
    REFERENCE,
    UNTRAINED,
    Difference,
    Interval,
    ModelResult,
    Results,
    summarise,
)

__all__ = ["ModelResult", "Results", "rich_table", "summarise", "verdict", "write_html"]

if TYPE_CHECKING:
    from rich.table import Table

ORACLE_NOTE = "The oracle sees the simulator's hidden state: it is the upper bound, not a rival."
INTERCEPT = "Calibration intercept\n(ideal 0)"
PAGE_ONLY = ("Brier", INTERCEPT)  # a terminal is narrow
FLOW_HEAD = ["Step", "Subjects", "Left out", "Rows"]
FEW_EVENTS = 100  # below this, validation is unreliable (Collins 2016, Stat Med 35:214)


def verdict(results: Results) -> list[str]:
    """What the numbers say about the reference, in sentences; gains only where the interval says.

    A baseline that is as good, or better, is named as such.
    """
    reference, ci = results.reference, f"{100 * results.level:.0f}% CI"
    by_outcome: dict[str, list[str]] = {"better than": [], "worse than": [], _TIE: []}
    names: dict[str, list[str]] = {key: [] for key in by_outcome}
    sentences = []
    for model in results.models:
        gain = model.gain
        if gain is None or model.role == ORACLE:
            continue
        points = f"{_points(gain.value)} points"
        bounds = f"{_points(gain.low)} to {_points(gain.high)}"
        outcome = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else _TIE
        if model.role == UNTRAINED:
            sentences.append(
                f"Pretraining changed AUROC by {points} ({ci} {bounds}) over the same encoder "
                f"untrained: {_PRETRAINING[outcome]}."
            )
            continue
        by_outcome[outcome].append(f"{model.name} ({points}, {ci} {bounds})")
        names[outcome].append(model.name)
    compared = [f"{key} {_and(parts)}" for key, parts in by_outcome.items() if parts]
    if not compared:
        return [*sentences, "No other baseline was evaluated, so nothing is known of its worth."]
    sentences.append(f"{reference} is {'; '.join(compared)}.")
    if names["worse than"]:
        sentences.append(f"On these data, prefer {_and(names['worse than'])}.")
    elif names[_TIE]:
        sentences.append(
            f"These data give no reason to prefer {reference} to {_and(names[_TIE])}; that is not "
            "proof that they are equal: the interval says how far apart they may be."
        )
    return sentences


_TIE = "not distinguishable from"
_PRETRAINING = {
    "better than": "a gain",
    "worse than": "a loss",
    _TIE: "no difference that these data can show",
}


def rich_table(results: Results, *, min_count: int = 10) -> Table:
    """The results for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_size(results, min_count)), caption=Text(_method(results)))
    lines = [_cells(results, model) for model in results.models]
    columns = [name for name in lines[0] if name not in PAGE_ONLY]
    for name in columns:
        table.add_column(Text(name), justify="left" if name == "Model" else "right")
    for model, line in zip(results.models, lines, strict=True):
        style = {REFERENCE: "bold", ORACLE: "dim"}.get(model.role)
        table.add_row(*(Text(line[name]) for name in columns), style=style)
    return table


def write_html(
    results: Results,
    path: Path | str,
    *,
    title: str,
    flow: Sequence[tuple[str, int, int]] = (),
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    min_count: int = 10,
) -> None:
    """One page that needs nothing else, written whole or not at all.

    ``flow``: (step, subjects left, rows left) from the source to the evaluated rows. ``settings``
    may be nested. ``notes``: what the numbers do not show, one sentence each.
    """
    lines = [_cells(results, model) for model in results.models]
    text = page.fill(
        "report.html",
        title=escape(title),
        verdict="".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(results)),
        size=escape(_size(results, min_count)),
        results=page.table(
            list(lines[0]),
            [list(line.values()) for line in lines],
            roles=[model.role for model in results.models],
        ),
        method=escape(_method(results)),
        pictures=_pictures(results, min_count),
        flow=_section("Who was counted", FLOW_HEAD, _flow(flow, min_count)),
        notes="".join(f"<li>{escape(note)}</li>" for note in (*_own_notes(results), *notes)),
        settings=_section("Settings", ["Setting", "Value"], _flatten(settings or {})),
    )
    page.write(path, text)


def _cells(results: Results, model: ModelResult) -> dict[str, str]:
    """Column name -> text of one line of the table."""
    gain, share = model.gain or Difference(), model.share_of_oracle
    p = "<0.001" if gain.p < 0.001 else f"{gain.p:.3f}"
    cells = {
        "Model": model.name,
        "AUROC": _interval(model.auroc),
        f"Gain of\n{results.reference}\n(AUROC points)": _gain(gain) if model.gain else "–",
        "p": p if gain.p >= 0 else "–",
        "AUPRC": _interval(model.auprc),
        "Brier": _interval(model.brier),
        "Calibration slope\n(ideal 1)": _interval(model.calibration_slope, digits=2),
        INTERCEPT: _interval(model.calibration_intercept, digits=2),
    }
    return cells if share is None else cells | {"Share of\nthe oracle": f"{share:.0%}"}


def _size(results: Results, min_count: int) -> str:
    rows, positives = results.rows, results.positives
    count, share = f"{positives:,}", f"{results.prevalence:.1%}"
    if positives < min_count:
        count, share = f"<{min_count}", f"<{min(1, min_count / rows):.1%}"
    elif rows - positives < min_count:
        count, share = f">{rows - min_count:,}", f">{1 - min_count / rows:.1%}"
    subjects = _count(results.subjects, min_count)
    return (
        f"{_count(rows, min_count)} rows of {subjects} subjects, {count} positives "
        f"(prevalence {share}, the AUPRC of chance)"
    )


def _method(results: Results) -> str:
    dropped = f" ({results.dropped:,} more held one class only)" if results.dropped else ""
    share = " Share of the oracle: of the way from AUROC 0.5 to that of the oracle."
    share = share if ORACLE_NAME in results.probabilities else ""
    return (
        f"In brackets: {100 * results.level:.0f}% intervals by bootstrap over subjects, "
        f"{results.resamples:,} resamples{dropped}. Gains: AUROC of {results.reference} minus that "
        f"of the line's model, in hundredths, on the same rows; intervals and two-sided p by "
        f"{results.method}, not adjusted for the number of comparisons.{share}"
    )


def _own_notes(results: Results) -> list[str]:
    fewer = min(results.positives, results.rows - results.positives)
    notes = ["Intervals show sampling error on this test set, not the spread over training seeds."]
    if results.rows > results.subjects:
        notes.append("Calibration bars take rows as independent, though subjects have several.")
    if fewer < FEW_EVENTS:
        notes.append(
            f"One class has fewer than {FEW_EVENTS} rows: a difference that matters may go unseen."
        )
    return notes + ([ORACLE_NOTE] if ORACLE_NAME in results.probabilities else [])


def _pictures(results: Results, min_count: int) -> str:
    """The figures, each an embedded SVG with its alternative text."""
    auroc = {model.name: model.auroc for model in results.models}
    spoken = "; ".join(f"{name} {_interval(auroc[name])}" for name in auroc).replace("\n", " ")
    drawn = [("AUROC with intervals", f"AUROC: {spoken}.", figures.forest(auroc))]
    omitted = ""
    if min(results.positives, results.rows - results.positives) < min_count:
        omitted = f"<p>Curves are left out: one class has fewer than {min_count} rows.</p>"
    else:
        models = {k: v for k, v in results.probabilities.items() if k != ORACLE_NAME}
        drawn += figures.gallery(
            results.labels,
            models=models,
            reference=results.reference,
            oracle=results.probabilities.get(ORACLE_NAME),
            min_count=min_count,
        )
    return "".join(page.figure(*one) for one in drawn) + omitted


def _flow(flow: Sequence[tuple[str, int, int]], min_count: int) -> list[list[str]]:
    """Counts by step; all rounded where any is so small that a difference would give it away."""
    counts = np.array([[subjects, rows] for _, subjects, rows in flow], dtype=int).reshape(-1, 2)
    left_out = -np.diff(counts, axis=0, prepend=counts[:1])
    every = np.concatenate([counts, left_out])
    rounded = bool(((every > 0) & (every < min_count)).any())
    return [
        [step, *(_count(n, min_count, rounded=rounded) for n in (subjects, lost, rows))]
        for (step, subjects, rows), lost in zip(flow, left_out[:, 0].tolist(), strict=True)
    ]


def _count(number: int, min_count: int, *, rounded: bool = False) -> str:
    if 0 < number < min_count:
        return f"<{min_count}"
    return f"≈ {round(number / min_count) * min_count:,}" if rounded and number else f"{number:,}"


def _section(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"<h2>{title}</h2>{page.table(head, rows)}" if rows else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    lines: list[list[str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        lines += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [[name, str(value)]]
    return lines


def _interval(interval: Interval, *, digits: int = 3) -> str:
    if math.isnan(interval.value):
        return "not estimable"
    value, low, high = (
        f"{number:.{digits}f}".replace("-", "−")
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}\n({low} to {high})"


def _gain(gain: Difference) -> str:
    return f"{_points(gain.value)}\n({_points(gain.low)} to {_points(gain.high)})"


def _points(difference: float) -> str:
    """AUROC points (hundredths) with their sign."""
    if math.isnan(difference):
        return "?"
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
