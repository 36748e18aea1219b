"""OMOP CDM 5.3 and 5.4 in PostgreSQL: its tables streamed as Arrow, through ADBC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from medbert.data.sources.columns import Block
from medbert.data.sources.omop import ALL_TABLES, Cdm
from medbert.schema import Findings, InputError, Records

_BATCH_BYTES = 1 << 26
# What comes as an Arrow type of its own; anything else, such as numeric, is asked for as text.
_PLAIN = {"smallint", "integer", "bigint", "real", "double precision", "text", "date"}
_PLAIN |= {"character varying", "character", "timestamp without time zone"}
_PLAIN |= {"timestamp with time zone"}
_COLUMNS = """
    SELECT table_schema::text, table_name::text, column_name::text, data_type::text
    FROM information_schema.columns
    WHERE lower(table_schema) = lower($1) AND lower(table_name) = ANY (string_to_array($2, ','))
    ORDER BY table_schema, table_name, ordinal_position
"""


@dataclass(frozen=True)
class OmopPostgres(Cdm):
    """The tables of a schema; see `Omop`, which reads the same from files.

    Args:
        uri: ``postgresql://user@host:5432/database``. The password is not part of it: it is taken
            from PGPASSWORD or ~/.pgpass, as psql does.
        schema: the schema of person, visit_occurrence, ...
        vocabulary_schema: a schema with a concept table beside the one in ``schema``.
    """

    uri: str
    schema: str
    vocabulary_schema: str | None = None

    def __post_init__(self) -> None:
        """Refuses a password before anything is written: settings are kept beside the store."""
        beyond_scheme = re.sub(r"^\w+:/*", "", unquote(self.uri))
        if re.search(r":.*@|password\s*=", beyond_scheme, re.IGNORECASE):
            raise InputError(
                "source.uri: holds a password, which would be written to settings.json; leave it "
                "out and give it by PGPASSWORD or in ~/.pgpass"
            )

    def read(self) -> Records:
        found = self._queries(self.schema)
        if self.vocabulary_schema is not None:
            more = self._queries(self.vocabulary_schema)["concept"]
            if not more:
                raise InputError(
                    f"schema {self.vocabulary_schema!r}: no table 'concept' that this user may "
                    "read; check source.vocabulary_schema"
                )
            found["concept"] += more
        place = f"schema {self.schema!r}: no table 'person' that this user may read"
        return self.records(found, place=place)

    def _queries(self, schema: str) -> dict[str, list[Query]]:
        with _answers(self.uri, _COLUMNS, (schema, ",".join(ALL_TABLES))) as reader:
            rows = [tuple(row.values()) for row in reader.read_all().to_pylist()]
        types: dict[tuple[str, str], dict[str, str]] = {}
        for place, table, column, kind in rows:
            types.setdefault((place, table), {})[column] = kind
        found: dict[str, list[Query]] = {name: [] for name in ALL_TABLES}
        for (place, table), columns in types.items():
            name = table.lower()
            if found[name]:
                raise InputError(
                    f"{found[name][0].name} and {place}.{table} are both the table {name}; "
                    "rename one"
                )
            found[name].append(Query(self.uri, place, table, columns))
        return found


@dataclass(frozen=True)
class Query:
    """A `Table` in a database; ``columns``: name -> data type."""

    uri: str
    schema: str
    table: str
    columns: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def stamp(self) -> str:
        """The number of rows, and the last id where there is one."""
        key = next((c for c in self.columns if c.lower() == f"{self.table.lower()}_id"), None)
        last = f", max({_quoted(key)})::text" if key else ""
        with _answers(self.uri, f"SELECT count(*)::text{last} FROM {self._from}") as reader:
            return " ".join(map(str, reader.read_all().to_pylist()[0].values()))

    def names(self) -> list[str]:
        return list(self.columns)

    def blocks(self, picked: Mapping[str, str], findings: Findings) -> Iterator[Block]:
        columns = [
            _quoted(name) + ("" if self.columns[name] in _PLAIN else f"::text AS {_quoted(name)}")
            for name in dict.fromkeys(picked.values())
        ]
        with _answers(self.uri, f"SELECT {', '.join(columns)} FROM {self._from}") as reader:
            for batch in reader:
                found = {ours: batch[theirs] for ours, theirs in picked.items()}
                yield Block(pa.table(found), self.name, None, picked, findings)

    @property
    def _from(self) -> str:
        return f"{_quoted(self.schema)}.{_quoted(self.table)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _answers(
    uri: str, query: str, values: Sequence[Any] | None = None
) -> Iterator[pa.RecordBatchReader]:
    """The answer to a query, as it arrives; what goes wrong is an InputError."""
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise InputError(
            "source=omop_postgres needs a driver that is not installed; install it by "
            "pip install 'medbert[postgres]'"
        ) from None
    try:
        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            options = {"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)}
            cursor.adbc_statement.set_options(**options)
            cursor.execute(query, values)
            yield cursor.fetch_record_batch()
    except (dbapi.Error, pa.ArrowException, OSError) as error:
        said = " ".join(str(error).replace(uri, "source.uri").split())
        raise InputError(
            f"PostgreSQL: {said}; check source.uri and source.schema, and that PGPASSWORD or "
            "~/.pgpass has the password"
        ) from None
