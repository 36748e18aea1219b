"""Whom to score and as of when, and the loop that does it: shared by ``embed`` and ``predict``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from torch import Tensor

from medbert.commands.encoders.building import load_encoder
from medbert.commands.output.artefacts import read_json, write_json
from medbert.commands.output.progress import follow
from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.schema import (
    BOOLEAN_VALUE,
    PREDICTION_TIME,
    SPLITS,
    STATIC,
    SUBJECT_ID,
    Batch,
    InputError,
    row_names,
)
from medbert.train.score import place, score

log = logging.getLogger(__name__)

PIECE = 8_192  # rows that are read, scored and written at once: memory does not grow with the rest
_KEYS = pa.schema([(SUBJECT_ID, pa.int64()), (PREDICTION_TIME, pa.timestamp("us"))])
_COLUMNS = _KEYS.append(pa.field(BOOLEAN_VALUE, pa.bool_()))


Values = Callable[[Sequences], np.ndarray]


class CohortRows(NamedTuple):
    """Rows of a store in the order asked for; ``until`` in microseconds, STATIC where nothing of
    the subject is dated; ``labels`` are null where none were given."""

    rows: np.ndarray
    until: np.ndarray
    labels: pa.ChunkedArray


def cohort_rows(
    records: Store, *, cohort: str | None, splits: Sequence[str] | str | None
) -> CohortRows:
    """The rows of a Parquet (``subject_id, prediction_time``, perhaps ``boolean_value``), or every
    subject at its last event; of subjects in ``splits`` only. Raises InputError if there are none.
    """
    found = _whole_records(records) if cohort is None else _given(records, cohort)
    if splits is not None:
        wanted = [splits] if isinstance(splits, str) else list(splits)
        if unknown := set(wanted) - set(SPLITS):
            raise InputError(f"splits: {sorted(unknown)} is none of {', '.join(SPLITS)}")
        keep = np.isin(records.split_of_row[found.rows], wanted)
        found = CohortRows(found.rows[keep], found.until[keep], found.labels.filter(pa.array(keep)))
    if not len(found.rows):
        where = "" if splits is None else f" in the splits {splits}"
        raise InputError(f"{cohort or records.folder}: no rows to score{where}")
    return found


def _whole_records(records: Store) -> CohortRows:
    rows, last = np.arange(len(records)), np.full(len(records), STATIC)
    for here in _pieces(len(rows)):
        history = records.history(rows[here])  # in the order of time
        some = np.diff(history.offsets_B1) > 0
        last[here][some] = history.time_T[history.offsets_B1[1:][some] - 1]
    return CohortRows(rows, last, pa.chunked_array([pa.nulls(len(rows), pa.bool_())]))


def _given(records: Store, path: str) -> CohortRows:
    try:
        data = pa.dataset.dataset(path, format="parquet")
        table = data.to_table(columns=[c for c in _COLUMNS.names if c in data.schema.names])
        if BOOLEAN_VALUE not in table.column_names:
            table = table.append_column(BOOLEAN_VALUE, pa.nulls(len(table), pa.bool_()))
        table = table.select(_COLUMNS.names).cast(_COLUMNS)
    except (OSError, KeyError, pa.ArrowException) as error:
        needs = ", ".join(f"{field.name} ({field.type})" for field in _KEYS)
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a Parquet with the columns {needs}: {reason}") from error
    for name in _KEYS.names:
        refuse(path, name, table[name].is_null().to_numpy(), "have none", "fill them or drop them")
    rows = records.rows_of(table[SUBJECT_ID].to_numpy()) if len(table) else np.zeros(0, np.int64)
    cure = "drop them, or prepare a store that has their records"
    refuse(path, SUBJECT_ID, rows < 0, f"are of subjects that {records.folder} lacks", cure)
    return CohortRows(rows, table[PREDICTION_TIME].to_numpy().view(np.int64), table[BOOLEAN_VALUE])


def refuse(path: str, column: str, bad: np.ndarray, what: str, cure: str) -> None:
    if bad.any():
        places = row_names(np.flatnonzero(bad))
        count = f"{int(bad.sum()):,} of {len(bad):,} rows"
        raise InputError(f"{path}: {column}: {count} {what} ({places}); {cure}")


class Scoring(NamedTuple):
    """An encoder, in its place, and the rows it is wanted for."""

    records: Store
    model: Any
    cohort: CohortRows
    max_tokens: int
    batch_tokens: int
    device: torch.device

    @classmethod
    def of(
        cls,
        folder: str,
        *,
        store: str,
        cohort: str | None,
        splits: Sequence[str] | None,
        max_tokens: int | None,
        batch_tokens: int | None,
        device: str,
    ) -> Scoring:
        """The encoder of a folder that `pretrain` or `finetune` made; a null number is the one it
        was trained with. Raises InputError for what cannot be used."""
        records, there = Store(store), place(device)
        model: Any = load_encoder(folder, records).to(there).eval()
        begun = read_json(Path(folder) / "settings.json", missing={})
        longest = begun.get("max_tokens", 512) if max_tokens is None else max_tokens
        most = model.config.get("positions") or math.inf
        if not 0 < longest <= most:
            raise InputError(f"max_tokens={longest}: {folder} has {most} positions; say {most}")
        rows = cohort_rows(records, cohort=cohort, splits=splits)
        budget = batch_tokens or begun.get("batch_tokens", 8192)
        return cls(records, model, rows, longest, budget, there)

    def each(self, function: Callable[[Batch], Tensor]) -> Values:
        """One value, or row of values, per row: ``function`` of every batch."""

        def values(data: Sequences) -> np.ndarray:
            batches = loader(data, budget=self.batch_tokens)
            return score(function, batches, device=self.device).numpy()

        return values

    def write(
        self,
        file: Path,
        *,
        values: Values,
        columns: Callable[[np.ndarray, slice], dict[str, Any]],
        fields: Sequence[pa.Field],
    ) -> None:
        """A row group for each piece of the cohort: subject_id, prediction_time, and the
        ``columns`` (of ``fields``) that are made of its ``values`` and their place.

        ``counts.json`` beside the file: rows, those without any code, those that keep only the
        latest of their codes.
        """
        counts = {"rows": len(self.cohort.rows), "without_codes": 0, "shortened": 0}
        schema = pa.schema([*_KEYS, *fields])

        def work(writer: pq.ParquetWriter) -> Iterator[int]:
            for here in _pieces(len(self.cohort.rows)):
                rows, until = self.cohort.rows[here], self.cohort.until[here]
                data = Sequences(self.records, rows, until=until, max_tokens=self.max_tokens)
                found = values(data)
                times = pa.array(until.view("datetime64[us]"))  # STATIC is NaT, so null
                keys = {SUBJECT_ID: self.records.subject_ids[rows], PREDICTION_TIME: times}
                writer.write_table(pa.table({**keys, **columns(found, here)}, schema))
                counts["without_codes"] += int((data.lengths == 0).sum())
                counts["shortened"] += data.n_shortened
                yield int(data.lengths.sum())

        with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
            for _ in follow(work(writer), file.stem, len(_pieces(counts["rows"]))):
                pass
        write_json(file.with_name("counts.json"), counts)
        text = "%s rows; %s without any code; %s keep only their latest %s codes"
        log.info(text, *(f"{n:,}" for n in (*counts.values(), self.max_tokens)))


def _pieces(total: int) -> list[slice]:
    return [slice(first, first + PIECE) for first in range(0, total, PIECE)]
