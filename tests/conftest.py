"""Small records made by hand, and the real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medbert.data.prepare import write_store
from medbert.data.store import Store
from medbert.data.vocabulary import Rule
from medbert.schema import EVENTS, VISITS, Records

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

EVERY_CODE = Rule(min_subjects=1, include=[], exclude=["^MEDS_BIRTH", "^MEDS_DEATH"])


def records_of(
    events: list[
        tuple[int, str | None, str] | tuple[int, str | None, str, float | None, int | None]
    ],
    *,
    visits: list[tuple[int, int, str | None, str | None, str, float | None]] | None = None,
    **metadata: Any,
) -> Records:
    """Records from (subject, ISO time or None, code[, value, visit]) and
    (subject, visit, start, end, kind, length of stay)."""

    def moment(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text)

    rows = [(*e, None, None)[:5] for e in events]
    table = pa.table(
        {
            "subject_id": [r[0] for r in rows],
            "time": pa.array([moment(r[1]) for r in rows], pa.timestamp("us")),
            "code": [r[2] for r in rows],
            "numeric_value": pa.array([r[3] for r in rows], pa.float32()),
            "text_value": pa.nulls(len(rows), pa.large_string()),
            "visit_id": pa.array([r[4] for r in rows], pa.int64()),
        }
    ).cast(EVENTS)
    visits = visits or []
    stays = pa.table(
        {
            "subject_id": pa.array([v[0] for v in visits], pa.int64()),
            "visit_id": pa.array([v[1] for v in visits], pa.int64()),
            "start": pa.array([moment(v[2]) for v in visits], pa.timestamp("us")),
            "end": pa.array([moment(v[3]) for v in visits], pa.timestamp("us")),
            "kind": pa.array([v[4] for v in visits], pa.string()),
            "length_of_stay": pa.array([v[5] for v in visits], pa.float32()),
        }
    ).cast(VISITS)
    return Records(table, stays, {"name": "handmade", "time": "dates", **metadata})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Writes records into a new store under tmp_path and opens it; all subjects train."""

    def make(records: Records, *, name: str = "store", **settings: Any) -> Store:
        folder = tmp_path / name
        folder.mkdir()
        defaults: dict[str, Any] = {
            "vocabulary": EVERY_CODE,
            "splits": None,
            "fractions": (1.0, 0.0, 0.0),
            "seed": 0,
            "shard_subjects": 2,
        }
        write_store(records, folder, **defaults | settings)
        return Store(folder)

    return make
