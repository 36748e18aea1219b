"""The simulation: chunks of lives, the records they leave, and the truth about them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from medbert.data.synthetic.lives import CHUNK, draw
from medbert.data.synthetic.records import TITLES, event_table, visit_table
from medbert.data.synthetic.truth import truth_table
from medbert.data.synthetic.visits import kept_visits, known
from medbert.schema import CODES, DATES, InputError


class Simulation(NamedTuple):
    """Tables that follow EVENTS (without a rank), VISITS and CODES, and the truth about them.

    ``truth``: one row per subject, its latent state (``true_risk``), times as timestamp[us].
    """

    events: pa.Table
    visits: pa.Table
    codes: pa.Table
    metadata: dict[str, Any]
    truth: pa.Table


def simulate(
    n_subjects: int,
    *,
    seed: int,
    start: date = date(2008, 1, 1),
    end: date = date(2020, 12, 31),
    born: tuple[date, date] = (date(1918, 1, 1), date(2020, 12, 31)),
) -> Simulation:
    """Records of subjects who were alive at some time between ``start`` and ``end`` (inclusive).

    Births are uniform over ``born``; who died before the records begin is drawn again, so the ages
    are those of survivors. The same arguments give the same tables.

    Raises:
        InputError: no subjects asked for, or dates in the wrong order.
    """
    if n_subjects < 1:
        raise InputError(f"n_subjects={n_subjects}: at least 1")
    if not (born[0] <= born[1] <= end and start < end):
        raise InputError(
            f"start={start}, end={end}, born={born}: expected start before end, and births in "
            "order and none after end"
        )
    days = np.array([start, end + timedelta(days=1), *born], "datetime64[D]")
    window = days.astype(np.int64).tolist()
    parts: list[tuple[pa.Table, ...]] = []
    first_visit = 1
    for chunk, first in enumerate(range(0, n_subjects, CHUNK)):
        rng = np.random.default_rng([seed, chunk])
        lives = draw(rng, min(CHUNK, n_subjects - first), window)
        pairs = known(rng, lives)
        visits = kept_visits(rng, lives, pairs)
        ids = {"first_subject": first + 1, "first_visit": first_visit}
        events = event_table(rng, lives, pairs, visits, **ids)
        truth = truth_table(lives, first_subject=first + 1)
        parts.append((events, visit_table(visits, **ids), truth))
        first_visit += len(visits.who)
    events, visit_rows, truth = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
    metadata = {
        "name": "synthetic",
        "time": DATES,
        "seed": seed,
        "n_subjects": n_subjects,
        "start": start.isoformat(),
        "end": end.isoformat(),
    }
    codes = pa.table([list(TITLES), list(TITLES.values()), [None] * len(TITLES)], schema=CODES)
    return Simulation(events, visit_rows, codes, metadata, truth)
