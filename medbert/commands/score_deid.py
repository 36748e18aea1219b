"""``medbert score_deid``: what was found in notes, beside what should have been."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.evaluate.reports import page
from medbert.schema import InputError, Span
from medbert.text.notes import Note, check, read, spans_found
from medbert.text.scoring.browser import Browser
from medbert.text.scoring.measures import Scores, Terms
from medbert.text.scoring.policy import LabelPolicy
from medbert.text.spans import LABELS, coarse

log = logging.getLogger(__name__)

_RATES = ("recall", "precision", "f1", "f2", "gold", "missed", "found", "wrong")
_COLUMNS = {
    "notes with PHI": ("documents", "with_phi"),
    "leaking": ("documents", "leaking"),
    "without a leak": ("documents", "share_without_leak"),
    "leaking at most": ("documents", "leaking_at_most"),
    "spans": ("measures", "covered", "gold"),
    "covered": ("measures", "covered", "recall"),
    "token recall": ("measures", "token", "recall"),
    "token precision": ("measures", "token", "precision"),
    "strict F1": ("measures", "strict typed", "f1"),
    "notes without PHI": ("documents", "without_phi"),
    "touched": ("documents", "touched_of_these"),
    "other tokens lost": ("documents", "share_lost"),
    "terms": ("documents", "clinical_terms"),
    "terms lost": ("documents", "clinical_terms_lost"),
}


@withheld
def score_deid(
    *,
    gold: str,
    found: str,
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    labels: Mapping[str, str | None],
    fine: bool,
    policies: Mapping[str, LabelPolicy | None],
    terms: str | None,
    confidence: float,
    show_text: bool,
    most: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``out`` (score.json, report.html, errors.html), shows the leaks and returns scores."""
    scores = {
        name: Scores(label=str if fine else coarse, terms=_terms(terms), confidence=confidence)
        for name in policies
    }
    browser, counts = Browser(show_text=show_text, most=most), Counter[str]()
    how = {"format": format, "columns": columns, "encoding": encoding}
    for note, both in pairs(gold, found, labels, counts, **how):
        for i, (name, policy) in enumerate(policies.items()):
            cut = [policy.apply(note.text, side) if policy else side for side in both]
            sides = scores[name].add(note, *cut)
            if i == 0:
                browser.add(note.note_id, sides)
    told = {name: one.to_dict() for name, one in scores.items()}
    result = {"notes": counts["notes"], "not_in_found": counts["without"], "policies": told}
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        write_json(folder / "score.json", result)
        body = "\n".join(map(page.section, _sections(told, confidence)))
        text = page.fill("report.html", title="De-identification", contents="", sections=body)
        page.write(folder / "report.html", text)
        page.write(folder / "errors.html", browser.html())
    Console().print(_rich(_whole(told)))
    log.info("made %s; open %s and errors.html beside it", out, Path(out) / "report.html")
    return result


def pairs(
    gold: str, found: str, labels: Mapping[str, str | None], counts: Counter[str], **how: Any
) -> Iterator[tuple[Note, list[list[Span]]]]:
    """Each note of ``gold``, read as ``how`` says, its spans there and those found in it, all with
    labels of ours."""
    there, foreign = dict(spans_found(found)), set()
    for n, note in enumerate(read(gold, **how), start=1):
        if note.spans is None:
            raise InputError(f"gold: note {n} has no spans; give only notes that were annotated")
        spans = there.get(note.note_id, ())
        for span in spans:
            check([span], note.text, None, where=f"{found}: the note that is number {n} of gold")
        both = [
            [s._replace(label=ours) for s in side if (ours := labels.get(s.label, s.label))]
            for side in (note.spans, spans)
        ]
        foreign |= {s.label for side in both for s in side if coarse(s.label) not in LABELS}
        counts.update(notes=1, without=note.note_id not in there)
        yield note, both
    if counts["notes"] == counts["without"]:
        raise InputError(f"{found}: it has no note of {gold}; do their ids differ?")
    if counts["without"]:
        log.warning("%s: %d notes of gold are not there: no span", found, counts["without"])
    if foreign:
        said = ", ".join(sorted(foreign))
        log.warning("no labels of ours: %s; say what they are: +labels.LABEL=NAME", said)


def _terms(path: str | None) -> Terms | None:
    try:
        return Terms(Path(path).read_text(encoding="utf-8").splitlines()) if path else None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"terms={path}: no UTF-8 text with one term a line") from None


def _sections(told: Mapping[str, Any], confidence: float) -> list[page.Section]:
    first = next(iter(told.values()))
    small = (
        f"At most: Clopper and Pearson's one-sided bound, {confidence:.0%}. It holds for notes "
        "like these, drawn at random, and for what their annotators saw. Policies differ in "
        "what they count as PHI."
    )
    said = ["A note leaks if one word character of its PHI is not covered."]
    parts = [page.Section("Leaks and losses", said=said, tables=[_whole(told)], small=[small])]
    measures = [
        page.Table(
            ["measure", *_RATES],
            [
                [measure, *(_cell(m[rate]) for rate in _RATES)]
                for measure, m in sorted(one["all"]["all"]["measures"].items())
            ],
            policy,
        )
        for policy, one in told.items()
    ]
    parts.append(page.Section("Tokens and spans", tables=measures))
    return parts + [
        page.Section(f"By {group}", tables=[_table(first[group])])
        for group in ("label", "language", "kind", "length")
        if group in first
    ]


def _whole(told: Mapping[str, Any]) -> page.Table:
    return _table({policy: groups["all"]["all"] for policy, groups in told.items()})


def _table(groups: Mapping[str, Any]) -> page.Table:
    """A line for each group, without the columns that none of them has."""
    columns = [["", *groups]]
    for name, path in _COLUMNS.items():
        values = (reduce(lambda of, key: of.get(key, {}), path, one) for one in groups.values())
        cells = [_cell(value) for value in values]
        columns += [[name, *cells]] if any(cells) else []
    head, *rows = zip(*columns, strict=True)
    return page.Table(head, rows)


def _cell(value: Any) -> str:
    if value is None or value == {}:  # as of a measure that was not taken
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}"


def _rich(told: page.Table) -> Table:
    """For the terminal: a policy a column."""
    table = Table()
    for first, *_ in (("",), *told.rows):
        table.add_column(first, justify="right" if first else "left")
    for name, *cells in list(zip(told.head, *told.rows, strict=True))[1:]:
        table.add_row(name, *cells)
    return table
