"""The numbers of a dataset card: what a store holds, in counts that may be shown to others.

A card may go where the records may not, so one rule holds for all of it: every count is rounded to
a multiple of ``min_count``, one of fewer is withheld (None), and a share is one of such counts.
Codes, code systems and years are named where so many subjects have them; a quantile is given where
so many values lie on either side; ages of 90 and more are one. No subject and no file is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from medbert.data.card.sentences import CHANGED, DONE, LEFT_OUT, advice
from medbert.data.card.totals import ANY, CODES, PROLONGED_DAYS, STAYS, VISITS, Tally, Totals
from medbert.data.store import Store
from medbert.schema import DATES, KINDS, SEX, SPECIAL_TOKENS, SPLITS

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
OTHERS = "other systems"
MAX_BARS = 20
_STEPS = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]

Row = dict[str, Any]


class Shown:
    """Counts as they may be shown."""

    def __init__(self, min_count: int) -> None:
        self.min_count = max(1, min_count)

    def __call__(self, count: int, *, subjects: int | None = None) -> int | None:
        """``subjects``: how many people it is about, where it does not count people itself."""
        unit, people = self.min_count, count if subjects is None else subjects
        return None if 0 < people < unit else round(int(count) / unit) * unit

    def share(self, part: int, whole: int) -> float | None:
        """None also where there is no whole."""
        some, every = self(part), self(whole)
        return round(some / every, 4) if some is not None and every else None

    def spread(self, name: str, tally: Tally) -> Row:
        """``bars`` are counts from each of ``edges`` to below the next, which may be None: no end;
        0 also for fewer than ``min_count``.
        """
        n, value = tally.total, np.arange(len(tally.counts)) / tally.scale
        row: Row = {"name": name, "of": tally.of, "n": self(n), "edges": [], "bars": []}
        below = np.cumsum(tally.counts)
        row["mean"] = round(float(value @ tally.counts / n), 2)
        for q in QUANTILES:
            enough = min(q, 1 - q) * n >= self.min_count - 1e-9
            row[f"{q:.0%}"] = float(value[np.searchsorted(below, q * n)]) if enough else None
        high = value[np.searchsorted(below, 0.95 * n)]
        most = min(MAX_BARS, max(2, n // (3 * self.min_count)))
        step = next(step for step in _STEPS if step * most > high)
        bar = np.minimum(value // step, high // step).astype(np.int64)
        bars = [self(int(count)) or 0 for count in np.bincount(bar, weights=tally.counts)]
        if filled := [i for i, count in enumerate(bars) if count]:
            first, end = filled[0], filled[-1] + 1
            last = end * step if end < len(bars) else None
            row["edges"] = [*range(first * step, end * step, step), last]
            row["bars"] = bars[first:end]
        return row


def describe(
    store: Store, *, max_tokens: int = 512, min_count: int = 10, top: int = 10
) -> dict[str, Any]:
    """The card of a store, plain enough for JSON; the records are read once, in pieces.

    ``max_tokens``: what a sequence may hold. ``top``: codes listed of each code system.
    """
    totals, shown = Totals(store), Shown(min_count)
    tallies = {k: tally for k, tally in totals.tallies.items() if tally.total >= shown.min_count}
    card = {
        "name": store.info["source"]["name"],
        "time": store.time,
        "min_count": shown.min_count,
        "max_tokens": max_tokens,
        "prolonged_days": PROLONGED_DAYS,
        "facts": _facts(totals, shown, max_tokens=max_tokens),
        "splits": _splits(totals, shown),
        "sexes": _sexes(totals, shown),
        "kinds": _kinds(totals, shown),
        "spreads": [shown.spread(name, tally) for name, tally in tallies.items()],
        "calendar": _calendar(totals, shown) if store.time == DATES else None,
        "systems": _systems(totals, shown),
        "top_codes": _top_codes(totals, shown, top=top),
        "findings": _findings(store.info, shown),
    }
    return {**card, "advice": advice(card)}


def _facts(totals: Totals, shown: Shown, *, max_tokens: int) -> Row:
    store, lengths, n = totals.store, totals.tallies[CODES], len(totals.store)
    inputs, unknown = int(totals.inputs_S.sum()), int(totals.unknown_S.sum())
    above_C = ~store.vocabulary.knows(store.codes)
    rolled_up = (totals.inputs_C - totals.unknown_C)[above_C].sum()
    days, days_known, prolonged = totals.kinds[:, STAYS].sum(axis=1)
    return {
        "subjects": shown(n),
        "visits": shown(totals.kinds[0].sum()),
        "events": shown(totals.events_S.sum()),
        "codes": int((totals.inputs_C > 0).sum()),
        "tokens": len(store.vocabulary) - len(SPECIAL_TOKENS),
        "share_unknown": shown.share(unknown, inputs),
        "share_rolled_up": shown.share(rolled_up, inputs),
        "stays": shown(days),
        "share_stays_of_unknown_length": shown.share(days - days_known, days),
        "share_stays_prolonged": shown.share(prolonged, days_known),
        "share_two_visits": shown.share(totals.tallies[VISITS].above(1), n),
        "share_birth_unknown": shown.share(totals.no_birth, n),
        "share_longer": shown.share(lengths.above(max_tokens), n),
        "share_empty": shown.share(lengths.counts[0], n),
    }


def _splits(totals: Totals, shown: Shown) -> list[Row]:
    return [
        {
            "split": split,
            "subjects": shown(totals.subjects_S[i]),
            "events": shown(totals.events_S[i], subjects=totals.subjects_S[i]),
            "share_unknown": shown.share(totals.unknown_S[i], totals.inputs_S[i]),
        }
        for i, split in enumerate(SPLITS)
    ]


def _sexes(totals: Totals, shown: Shown) -> list[Row]:
    counts = pd.Series(totals.subjects_C, index=totals.codes)
    stated = counts[counts.index.str.startswith(f"{SEX}//")]  # at most one for each subject
    female, male = (int(stated.get(f"{SEX}//{sex}", 0)) for sex in "FM")
    every, known = len(totals.store), int(stated.sum())
    found = {"Female": female, "Male": male, "Other": known - female - male}
    found["Unknown"] = every - known
    return [{"sex": name, "subjects": shown(n)} for name, n in found.items()]


def _kinds(totals: Totals, shown: Shown) -> list[Row]:
    return [
        {
            "kind": kind,
            "visits": shown(n),
            "share_of_unknown_length": shown.share(n - known, n),
            "share_prolonged": shown.share(prolonged, known),
        }
        for kind, (n, known, prolonged) in zip(KINDS, totals.kinds.T, strict=True)
        if n
    ]


def _ranked(totals: Totals, shown: Shown) -> list[int]:
    """The code systems of enough subjects, that of most events first."""
    order = np.argsort(-totals.by_system(totals.events_C), kind="stable")
    return [int(k) for k in order if totals.subjects_K[k] >= shown.min_count]


def _calendar(totals: Totals, shown: Shown) -> Row:
    """Events and subjects of each year that enough subjects have, and events by code system."""
    counts = totals.years.astype(np.int64)
    every = counts.xs(ANY, level="system")
    years = every.index[every["subjects"] >= shown.min_count]

    def events(system: int) -> list[int | None]:
        found = counts.xs(system, level="system").reindex(years, fill_value=0)
        return [shown(n, subjects=people) for n, people in found.to_numpy()]

    dated = counts.index.unique("system")
    return {
        "years": years.tolist(),
        "years_withheld": len(every) - len(years),
        "subjects": [shown(n) for n in every["subjects"].loc[years]],
        "events": events(ANY) if len(every) else [],
        "systems": {totals.systems[k]: events(k) for k in _ranked(totals, shown) if k in dated},
    }


def _systems(totals: Totals, shown: Shown) -> list[Row]:
    """Those of too few subjects are one line, without a count of subjects."""
    counts = totals.events_C, totals.inputs_C, totals.unknown_C, totals.events_C > 0
    events_K, inputs_K, unknown_K, codes_K = map(totals.by_system, counts)
    ranked = _ranked(totals, shown)
    rows = [
        {
            "system": totals.systems[k],
            "events": shown(events_K[k]),
            "share": shown.share(events_K[k], events_K.sum()),
            "codes": int(codes_K[k]),
            "subjects": shown(totals.subjects_K[k]),
            "share_unknown": shown.share(unknown_K[k], inputs_K[k]),
        }
        for k in ranked
    ]
    rest = np.setdiff1d(np.flatnonzero(events_K), ranked)
    n, codes = int(events_K[rest].sum()), int(codes_K[rest].sum())
    others = {"system": OTHERS, "events": shown(n), "share": shown.share(n, events_K.sum())}
    return [*rows, {**others, "codes": codes}] if n else rows


def _top_codes(totals: Totals, shown: Shown, *, top: int) -> list[Row]:
    """The inputs that most subjects have, ``top`` of each system, most frequent first."""
    store = totals.store
    vocabulary = dict(zip(store.vocabulary.codes, store.vocabulary.titles, strict=True))
    own = pq.read_table(store.folder / "codes.parquet", columns=["title"])["title"].to_pylist()
    order = np.lexsort((-totals.events_C, -totals.subjects_C))
    enough = (totals.inputs_C > 0) & (totals.subjects_C >= shown.min_count)
    listed = pd.Series(order[enough[order]])
    listed = listed.groupby(totals.system_C[listed]).head(top)
    return [
        {
            "system": totals.systems[totals.system_C[i]],
            "code": store.codes[i],
            "title": vocabulary.get(store.codes[i]) or own[i],
            "subjects": shown(totals.subjects_C[i]),
            "share": shown.share(totals.subjects_C[i], len(store)),
            "events": shown(totals.events_C[i]),
        }
        for i in listed
    ]


def _findings(info: Mapping[str, Any], shown: Shown) -> list[Row]:
    """What was found wrong or changed: how often, and what was done with it."""
    counts = {**info["source"], **info["counts"]}
    found = {reason: (one["count"], None) for reason, one in info["findings"].items()}
    found |= {name: (n, None) for name in CHANGED if (n := counts.get(name))}
    for outcome, told in info["recoding"].items():
        if outcome != "kept":
            found[f"recoding_{outcome}"] = told["events"], told["codes"]
    return [
        {"reason": reason, "done": DONE.get(reason, LEFT_OUT), "count": shown(n)}
        | ({"codes": codes} if codes else {})
        for reason, (n, codes) in sorted(found.items(), key=lambda item: -item[1][0])
    ]
