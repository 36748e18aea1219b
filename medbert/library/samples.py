"""The invented cohort that ships with medbert, ready for the first three lines."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from hydra.utils import instantiate

from medbert.commands import call, compose
from medbert.data.store import FORMAT, Store
from medbert.library.frames import in_html
from medbert.schema import BOOLEAN_VALUE, PREDICTION_TIME, SUBJECT_ID, InputError

SHIPPED = Path(str(files("medbert.data_synthetic")))


@dataclass(frozen=True)
class Synthetic:
    """Invented lives, in three folders: ``events`` (MEDS; their truth beside them, which is never
    an input), an ``encoder``, and a ``store`` that speaks its vocabulary."""

    events: Path
    encoder: Path
    store: Path

    def cohort(self, task: str = "dhf", *overrides: str) -> pd.DataFrame:
        """Columns subject_id, prediction_time, boolean_value, and the split of the subject.

        ``task`` is one of conf/task; ``overrides`` are words of the command line.
        """
        records = Store(self.store)
        chosen = compose("finetune", *overrides, task=task).task
        cohort = instantiate(chosen, _convert_="all").build(records)
        return pd.DataFrame(
            {
                SUBJECT_ID: records.subject_ids[cohort.rows],
                PREDICTION_TIME: cohort.prediction_time.view("datetime64[us]"),
                BOOLEAN_VALUE: cohort.labels,
                "split": records.split_of_row[cohort.rows],
            }
        )

    def _repr_html_(self) -> str:
        told = {
            "events": (self.events, "invented lives (MEDS)"),
            "encoder": (self.encoder, "a small encoder, trained on invented lives"),
            "store": (self.store, f"{len(Store(self.store)):,} of them, as that encoder reads"),
        }
        return in_html({name: f"{what}, in {path}" for name, (path, what) in told.items()})


def load_synthetic(cache: str | Path | None = None) -> Synthetic:
    """The cohort and the encoder that ship with medbert.

    The store is made on first use, in the folder ``cache`` (default: MEDBERT_CACHE, else that of
    the user for caches), under a name that changes with what it is made of.
    """
    events, encoder = SHIPPED / "meds", SHIPPED / "encoder"
    if not (encoder / "vocabulary.parquet").is_file():
        raise InputError(f"{encoder}: not found; install medbert anew, or make the encoder first")
    told = hashlib.sha256(f"{version('medbert')} {FORMAT}".encode())
    for file in [*sorted(events.rglob("*.parquet")), encoder / "vocabulary.parquet"]:
        told.update(file.read_bytes())
    store = _home(cache) / f"synthetic-{told.hexdigest()[:16]}"
    if not store.exists():
        _prepare(events, encoder, store)
    return Synthetic(events, encoder, store)


def _prepare(events: Path, encoder: Path, store: Path) -> None:
    """Several processes may do so at once: each makes its own, and the first one stays."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=store.parent, prefix="unfinished-") as work:
            folders = {"source": {"path": events}, "vocabulary": encoder, "out": f"{work}/store"}
            call("prepare", "source=meds", **folders).rename(store)
    except OSError as error:
        if not store.is_dir():
            cure = "name another folder: load_synthetic(cache=...) or MEDBERT_CACHE"
            raise InputError(f"{store.parent}: cannot be written to ({error}); {cure}") from error


def _home(cache: str | Path | None) -> Path:
    """The folder for what can be made again."""
    if given := cache or os.environ.get("MEDBERT_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "medbert" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "medbert"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medbert"
