"""Small records made by hand, and the real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medbert.data.preparing.prepare import Settings, write_store
from medbert.data.sources.reading import InMemory
from medbert.data.store import Store
from medbert.data.visits import VisitRule
from medbert.data.vocabulary import Rule
from medbert.schema import Piece, Records

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

EVERY_CODE = Rule(
    min_subjects=1,
    include=[],
    exclude=["^MEDS_BIRTH", "^MEDS_DEATH"],
    roll_up=False,
    value_bins=0,
)
SETTINGS = partial(
    Settings,
    visit=VisitRule(by="auto", gap_days=1.0),
    fractions=(1.0, 0.0, 0.0),
    seed=0,
    memory_gb=1e-6,  # a few events a shard
    max_bad_share=1.0,
    use_parents=(),
    icd9_to_icd10=None,
    look_up_titles=False,
)


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
            "subject_id": pa.array([r[0] for r in rows], pa.int64()),
            "time": pa.array([moment(r[1]) for r in rows], pa.timestamp("us")),
            "code": pa.array([r[2] for r in rows], pa.string()),
            "numeric_value": pa.array([r[3] for r in rows], pa.float32()),
            "visit_id": pa.array([r[4] for r in rows], pa.int64()),
            "row": pa.array(range(len(rows)), pa.int64()),
        }
    )
    visits = visits or []
    stays = pa.table(
        {
            "subject_id": pa.array([v[0] for v in visits], pa.int64()),
            "visit_id": pa.array([v[1] for v in visits], pa.int64()),
            "start": pa.array([moment(v[2]) for v in visits], pa.timestamp("us")),
            "end": pa.array([moment(v[3]) for v in visits], pa.timestamp("us")),
            "kind": pa.array([v[4] for v in visits], pa.string()),
            "length_of_stay": pa.array([v[5] for v in visits], pa.float32()),
            "row": pa.array(range(len(visits)), pa.int64()),
        }
    )
    part = InMemory("handmade.csv", Piece(table, stays))
    return Records([part], {"name": "handmade", "time": "dates", **metadata})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Writes records into a new store under tmp_path and opens it; all subjects train."""

    def make(records: Records, *, name: str = "store", **settings: Any) -> Store:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        wanted: dict[str, Any] = {
            "vocabulary": EVERY_CODE,
            "splits": None,
            "executor": None,
            **{k: settings.pop(k) for k in ("vocabulary", "splits", "executor") if k in settings},
        }
        write_store(records, folder, **wanted, settings=SETTINGS(**settings))
        return Store(folder)

    return make
