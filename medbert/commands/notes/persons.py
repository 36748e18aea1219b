"""What the person table knows of the patients whose notes are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from medbert.schema import InputError
from medbert.text.notes import COLUMNS, Note


class Persons:
    """Rows of a table by patient: several rows of one patient (other names, addresses) are one."""

    def __init__(self, table: pa.Table, patient: str) -> None:
        self.table, self.columns = table, table.column_names
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(table[patient].to_pylist() if patient else ()):
            self._rows[str(value)].append(row)

    @classmethod
    def read(cls, path: str | None, patient: str | None) -> Persons:
        """A Parquet or CSV table; its column of patients is called ``patient``, or as usual.

        Raises InputError: no such file, no such column; nothing of the table is quoted.
        """
        if path is None:
            return cls(pa.table({}), "")
        try:
            if path.endswith(".parquet"):
                table = parquet.read_table(path)
            else:  # as text: a number may begin with 0
                table = pa.Table.from_pandas(pd.read_csv(path, dtype=str, encoding="utf-8-sig"))
        except (pa.ArrowException, OSError, ValueError):
            raise InputError(f"known={path}: no CSV or Parquet table can be read there") from None
        names = {patient, *COLUMNS["patient_id"]}
        if not (found := [name for name in table.column_names if name in names]):
            raise InputError(f"known={path}: no column {' or '.join(COLUMNS['patient_id'])}")
        return cls(table, found[0])

    def of(self, notes: Iterable[Note]) -> Iterator[tuple[dict[str, list[Any]] | None]]:
        """What is known of the patient of each note, column by column; None: nothing."""
        for note in notes:
            rows = self._rows.get(note.patient_id or "")
            yield (self.table.take(rows).to_pydict() if rows else None,)
