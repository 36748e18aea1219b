"""OMOP from a live PostgreSQL: the same as from files, streamed, and secrets stay secret."""

import json
import pickle
import sys

import pyarrow as pa
import pytest
from conftest import EVERY_CODE, SETTINGS, SHARED

from medbert.data.preparing.prepare import write_store
from medbert.data.sources.omop import Omop
from medbert.data.sources.postgres import OmopPostgres, Query
from medbert.schema import Findings, InputError

pytest_plugins = ["postgres_server"]  # the fixture `postgres`

real = pytest.mark.skipif(
    not SHARED.exists(), reason="the data for measuring (../shared/data) is not on this machine"
)


@pytest.fixture(scope="module")
def loaded(postgres):
    """The server, with each of the three real data sets in a schema of its own."""
    for name in ("gibleed_omop", "synthea27nj_omop", "mimic4_demo_omop"):
        postgres.load(SHARED / name, name)
    return postgres


def multiset(records):
    """All events and all stated visits, sorted, without the rows of files; and the findings."""
    findings, tables = Findings(), ([], [])
    for part in records.parts:
        for piece in part.pieces(findings):
            for found, table in zip(tables, piece, strict=False):
                if table is not None:
                    found.append(table.cast(pa.schema([_plain(field) for field in table.schema])))
    return [_sorted(found) for found in tables], findings.counts


def _plain(field):
    coded = pa.types.is_dictionary(field.type)
    return pa.field(field.name, field.type.value_type if coded else field.type)


def _sorted(tables):
    table = pa.concat_tables(tables, promote_options="default")
    names = sorted(set(table.column_names) - {"row"})
    return table.select(names).sort_by([(name, "ascending") for name in names]).combine_chunks()


@real
@pytest.mark.parametrize("name", ["gibleed_omop", "synthea27nj_omop", "mimic4_demo_omop"])
def test_a_database_gives_what_the_files_give(loaded, name):
    files = Omop(str(SHARED / name), vocabulary="standard").read()
    base = OmopPostgres(loaded.uri, name, vocabulary="standard").read()
    assert base.metadata == files.metadata
    (events, visits), found = multiset(base)
    (file_events, file_visits), file_found = multiset(files)
    assert events.equals(file_events) and visits.equals(file_visits)
    assert found == file_found and len(events) > 20_000
    codes = sorted(events["code"].unique().to_pylist())
    assert base.resolve(codes) == files.resolve(codes)


@real
@pytest.mark.parametrize("name", ["gibleed_omop", "synthea27nj_omop", "mimic4_demo_omop"])
def test_a_database_gives_the_store_that_the_files_give(loaded, tmp_path, name):
    stores = []
    for source in (Omop(str(SHARED / name)), OmopPostgres(loaded.uri, name)):
        store = tmp_path / type(source).__name__
        store.mkdir()
        settings = SETTINGS(memory_gb=0.001)
        write_store(source.read(), store, vocabulary=EVERY_CODE, splits=None, settings=settings)
        contents = {
            str(file.relative_to(store)): file.read_bytes()
            for file in store.rglob("*")
            if file.is_file()
        }
        told = json.loads(contents.pop("dataset.json"))
        for found in told["findings"].values():
            found.pop("first")  # a file and its rows, or a table and its column
        stores.append((contents, told))
    assert len(stores[0][0]) >= 4
    assert stores[0] == stores[1]


@real
def test_a_part_can_be_sent_elsewhere_and_its_stamp_follows_the_rows(loaded):
    loaded.run("CREATE TABLE synthea27nj_omop.copied AS SELECT * FROM synthea27nj_omop.person")
    query = Query(loaded.uri, "synthea27nj_omop", "copied", {"person_id": "bigint"})
    before = pickle.loads(pickle.dumps(query)).stamp
    assert before == query.stamp
    loaded.run("DELETE FROM synthea27nj_omop.copied WHERE person_id = 1")
    assert query.stamp != before


def test_names_of_any_case_and_types_of_any_kind(postgres, tmp_path):
    postgres.run(
        """
        CREATE SCHEMA "Odd CDM";
        CREATE TABLE "Odd CDM"."PERSON" ("Person_ID" numeric, GENDER_CONCEPT_ID smallint,
          year_of_birth integer, birth_datetime timestamptz, race_source_value char(9));
        INSERT INTO "Odd CDM"."PERSON" VALUES (7, 8532, 1950, NULL, 'white'), (8, 0, 1951,
          '1951-06-01 02:00+02', NULL);
        CREATE TABLE "Odd CDM".Condition_Occurrence (person_id bigint, "condition_concept_id" int,
          condition_start_date date, condition_source_value text, secret text);
        INSERT INTO "Odd CDM".Condition_Occurrence VALUES (7, 0, '2001-02-03', ' 78791  ', 'x'),
          (7, 5, '2001-02-03', NULL, 'x'), (8, 0, '2001-02-03', 'NULL', 'x'),
          (8, 5, NULL, NULL, 'x'), (NULL, 5, '2001-02-03', NULL, 'x');
        """
    )
    records = OmopPostgres(postgres.uri, "odd cdm").read()
    findings, rows = Findings(max_bad_share=0.5), []
    for part in records.parts:
        for piece in part.pieces(findings):
            rows += piece.events.to_pylist()
    told = {(row["subject_id"], str(row["time"]), row["code"]) for row in rows}
    assert told == {
        (7, "1950-01-01 00:00:00", "MEDS_BIRTH"),
        (8, "1951-06-01 00:00:00", "MEDS_BIRTH"),
        (7, "None", "GENDER//F"),
        (7, "None", "RACE//white"),
        (7, "2001-02-03 23:59:59", "CONDITION//78791"),
        (7, "2001-02-03 23:59:59", "OMOP/condition/5"),
    }
    table = "Odd CDM.condition_occurrence"
    assert findings.to_dict() == {
        "no_code": {"count": 1, "first": f"{table}: column 'condition_source_value'"},
        "no_subject": {"count": 1, "first": f"{table}: column 'person_id'"},
        "no_time": {"count": 1, "first": f"{table}: column 'condition_start_date'"},
        "times_with_a_zone_read_as_utc": {
            "count": 1,
            "first": "Odd CDM.PERSON: column 'birth_datetime'",
        },
    }
    with pytest.raises(InputError) as error:
        for part in records.parts:
            list(part.pieces(Findings(max_bad_share=0)))
    assert f"{table}: column 'person_id'" in str(error.value) and "row 5" not in str(error.value)


def test_a_large_table_comes_in_blocks(postgres):
    postgres.run(
        """
        CREATE SCHEMA large;
        CREATE TABLE large.person AS SELECT 1 AS person_id, 8507 AS gender_concept_id,
          1950 AS year_of_birth;
        CREATE TABLE large.measurement AS SELECT 1 AS person_id, 5 AS measurement_concept_id,
          date '2001-01-01' AS measurement_date, repeat('x', 500) AS measurement_source_value,
          n::numeric / 2 AS value_as_number FROM generate_series(1, 200000) n
        """
    )
    _, part = OmopPostgres(postgres.uri, "large").read().parts
    sizes, total = [], 0.0
    for piece in part.pieces(Findings()):
        sizes.append(len(piece.events))
        total += piece.events["numeric_value"].to_numpy().astype(float).sum()
    assert sum(sizes) == 200_000 and total == 200_000 * 200_001 / 4
    assert max(sizes) < 150_000  # of 100 MB, no more than a block at once


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hush@host/base",
        "postgresql://me@host/base?password=hush",
        "postgresql://me@host/base?sslmode=require&PASSWORD=hush",
        "host=here user=me password = hush",
        "postgres//me:hush@host/base",
        "postgresql://me%3Ahush@host/base",
    ],
)
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="PGPASSWORD") as error:
        OmopPostgres(uri, "cdm")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("uri", ["postgresql://me@[::1]:5432/base", "host=here port=5432 user=me"])
def test_a_uri_without_a_password_is_taken(uri):
    assert OmopPostgres(uri, "cdm").uri == uri


def test_what_cannot_be_opened_is_said_in_the_users_words(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "hush")
    nowhere = postgres.uri.replace("/postgres?", "/nowhere?")
    for uri, word in ((nowhere, "nowhere"), ("postgresql://me@localhost:1/base", "refused")):
        with pytest.raises(InputError, match=word) as error:
            OmopPostgres(uri, "cdm").read()
        assert "source.uri" in str(error.value) and "hush" not in str(error.value)
    with pytest.raises(InputError, match="schema 'cdm': no table 'person'"):
        OmopPostgres(postgres.uri, "cdm").read()
    postgres.run("CREATE SCHEMA twice; CREATE TABLE twice.person (a int)")
    postgres.run('CREATE TABLE twice."PERSON" (a int)')
    with pytest.raises(InputError, match=r"twice\.PERSON and twice\.person are both"):
        OmopPostgres(postgres.uri, "twice").read()
    with pytest.raises(InputError, match="no table 'concept'"):
        OmopPostgres(postgres.uri, "large", vocabulary_schema="nothing").read()


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    with pytest.raises(InputError, match=r"medbert\[postgres\]"):
        OmopPostgres("postgresql://me@host/base", "cdm").read()
