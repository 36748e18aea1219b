"""Table 1: whom the models were trained, chosen and judged on. Small counts are hidden."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medbert.commands.encoders.classifier import Rows
from medbert.data.counts import count_codes
from medbert.data.store import Store
from medbert.schema import DATES, DAY_US, DAYS_PER_YEAR, HELD_OUT, SPECIAL_TOKENS, STATIC

_HIDDEN = "hidden"


def table_one(
    records: Store, splits: Mapping[str, Rows], *, min_count: int
) -> dict[str, dict[str, str]]:
    """Column -> characteristic -> text; ``held_out`` also by outcome.

    Ages and histories are those of rows, at their prediction times. All counts are rounded to
    ``min_count`` where one of them is smaller than that, and what is hidden with or without the
    outcome is hidden on both sides, or it would follow from the whole.
    """
    columns, judged = dict(splits), splits[HELD_OUT]
    sides = [f"{HELD_OUT}, {word} the outcome" for word in ("with", "without")]
    for side, mask in zip(sides, (judged.labels, ~judged.labels), strict=True):
        columns[side] = Rows(*(part[mask] for part in judged))
    counts = {
        name: {
            "subjects": len(np.unique(rows.rows)),
            "rows": len(rows.rows),
            "rows with the outcome": int(rows.labels.sum()),
        }
        for name, rows in columns.items()
    }
    rounded = any(0 < n < min_count for column in counts.values() for n in column.values())

    def said(number: int) -> str:
        if 0 < number < min_count:
            return f"<{min_count}"
        return (
            f"≈ {round(number / min_count) * min_count:,}" if rounded and number else f"{number:,}"
        )

    about = {name: _described(records, rows, min_count) for name, rows in columns.items()}
    for side in sides:
        for what in [what for what, text in about[side].items() if text == _HIDDEN]:
            about |= {other: {**about[other], what: _HIDDEN} for other in sides}
    return {
        name: {what: said(number) for what, number in counts[name].items()} | about[name]
        for name in columns
    }


def _described(records: Store, rows: Rows, min_count: int) -> dict[str, str]:
    names = [f"{what}, median (quartiles)" for what in ("years of history", "codes", "visits")]
    names = ["age, mean (SD)", "women", *names]
    if len(np.unique(rows.rows)) < min_count:
        return dict.fromkeys(names, _HIDDEN)
    given = count_codes(records, rows.rows, until=rows.until, window_days=[None])
    history = records.history(rows.rows, until=rows.until)
    row_T = np.repeat(np.arange(len(rows.rows)), np.diff(history.offsets_B1))
    first, coded = rows.until.copy(), history.token_T >= len(SPECIAL_TOKENS)
    dated = coded & (history.time_T != STATIC)
    np.minimum.at(first, row_T[dated], history.time_T[dated])
    years = (rows.until - first) / DAY_US / DAYS_PER_YEAR
    texts = (
        _mean(given.age),
        _share(given.female, rows.rows, min_count),
        _quartiles(years, digits=1) if records.time == DATES else "unknown",
        _quartiles(np.bincount(row_T[coded], minlength=len(rows.rows))),
        _quartiles(np.diff(history.visit_offsets_B1)),
    )
    return dict(zip(names, texts, strict=True))


def _mean(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.1f} ({known.std():.1f})" if known.size else "unknown"


def _share(female: np.ndarray, subjects: np.ndarray, min_count: int) -> str:
    known = ~np.isnan(female)
    of_each = [len(np.unique(subjects[known & (female == sex)])) for sex in (0, 1)]
    if not known.any():
        return "unknown"
    return _HIDDEN if min(of_each) < min_count else f"{female[known].mean():.1%}"


def _quartiles(values: np.ndarray, *, digits: int = 0) -> str:
    low, middle, high = (f"{q:,.{digits}f}" for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{middle} ({low} to {high})"
