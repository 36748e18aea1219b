"""A PostgreSQL server of the tests' own, thrown away after them."""

import io
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from medbert.data.sources.omop import ALL_TABLES
from medbert.data.sources.reading import open_file, whole
from medbert.schema import Findings

_TEXTS = ("vocabulary_id", "domain_id", "concept_class_id", "unique_device_id", "measurement_time")
_WHOLE = ("year_of_birth", "month_of_birth", "day_of_birth", "refills", "days_supply")


def sql_type(column: str) -> str:
    """The type that the CDM's own DDL gives a column of this name (ids are wider here)."""
    name = column.lower()
    if name in _TEXTS:
        return "varchar(255)"
    if name in _WHOLE:
        return "integer"
    for ending, kind in (("_datetime", "timestamp"), ("_date", "date"), ("_id", "bigint")):
        if name.endswith(ending):
            return kind
    return "numeric" if name in ("value_as_number", "quantity") else "varchar(2000)"


class Server(NamedTuple):
    """``uri`` opens the database; ``psql`` is a command that runs SQL in it."""

    uri: str
    psql: list[str]

    def run(self, sql: str, data: str = "") -> None:
        told = subprocess.run(
            [*self.psql, "-c", sql], input=data, text=True, capture_output=True, check=False
        )
        assert told.returncode == 0, told.stderr

    def load(self, folder: Path, schema: str) -> None:
        """Copies the .csv files of an OMOP folder that are read into tables of a new schema."""
        self.run(f"CREATE SCHEMA {schema}")
        files = [file for file in folder.glob("*.csv") if file.stem.lower() in ALL_TABLES]
        for file in sorted(files):
            source = open_file(file, missing=("",))
            found = source.names()
            rows = whole(source, {name.lower(): name for name in found}, Findings()).table
            types = {name: sql_type(name) for name in rows.column_names}
            for i, (name, kind) in enumerate(types.items()):
                if kind in ("bigint", "integer"):  # some exports write 7 as 7.0
                    numbers = pc.replace_substring_regex(rows[name].cast("string"), r"\.0$", "")
                    rows = rows.set_column(i, name, numbers)
            table = f'{schema}."{file.stem.lower()}"'
            self.run(f"CREATE TABLE {table} ({', '.join(f'{n} {t}' for n, t in types.items())})")
            copied = f"COPY {table} FROM STDIN WITH (FORMAT csv, HEADER true)"
            written = io.BytesIO()
            pa.csv.write_csv(rows, written, pa.csv.WriteOptions(quoting_style="needed"))
            self.run(copied, written.getvalue().decode())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    programs = _programs()
    as_owner = []
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}"]
        as_owner.append("--clear-groups")
    folder = Path(tempfile.mkdtemp(prefix="medbert-pg-"))
    if as_owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data, log = str(folder / "data"), str(folder / "log")
    control = [*as_owner, str(programs / "pg_ctl"), "-D", data]
    options = f"-c listen_addresses= -c fsync=off -k {folder}"
    make = [*as_owner, str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
    make += ["-E", "UTF8", "--locale=C", "--no-sync"]
    try:
        for command in (make, [*control, "-w", "-l", log, "-o", options, "start"]):
            with open(folder / "told", "w") as told:  # the server keeps a pipe open for ever
                done = subprocess.run(command, stdout=told, stderr=told, cwd=folder, check=False)
            assert done.returncode == 0, (folder / "told").read_text()
        psql = [str(programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-h", str(folder)]
        yield Server(
            f"postgresql://postgres@/postgres?host={folder}", [*psql, "-U", "postgres", "postgres"]
        )
    finally:
        with suppress(OSError):
            subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """The folder of initdb, pg_ctl and psql."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if all((place / name).exists() for name in ("initdb", "pg_ctl", "psql")):
            return place
    pytest.skip("no PostgreSQL server here (Debian's package postgresql)")
