"""OMOP folders: codes, times, visits and persons; every form of file; and what is refused."""

import gzip
from datetime import datetime

import pandas as pd
import pytest
from conftest import SHARED
from drained import drain, known, refused, stays

from medbert.data.sources.omop import Omop
from medbert.schema import InputError

real = pytest.mark.skipif(
    not SHARED.exists(), reason="the data for measuring (../shared/data) is not on this machine"
)

PERSON = "person_id,gender_concept_id,year_of_birth"
VISIT = (
    "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,"
    "visit_end_date,visit_end_datetime"
)
CONDITION = (
    "person_id,condition_concept_id,condition_start_date,condition_start_datetime,"
    "visit_occurrence_id,condition_source_value,condition_source_concept_id"
)
CONCEPT = "concept_id,concept_name,vocabulary_id,concept_code"
DAY = "2020-01-05"


def cdm(folder, **tables):
    """Writes tables (a header and rows, as lines) as .csv; person 1 is there unless given."""
    folder.mkdir(exist_ok=True)
    for name, lines in ({"person": (PERSON, "1,8532,1950")} | tables).items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def told(source, start="", **options):
    """What the events of all tables but person say."""
    found = [e for e in drain(source, **options)[0] if not e["code"].startswith(("MEDS_B", "GEN"))]
    return [(str(e["time"]), e["code"]) for e in found if e["code"].startswith(start)]


def conditions(*rows):
    return {"condition_occurrence": (CONDITION, *rows)}


CODED = [  # concept, source value, source concept: preferring the source, and the standard
    ("196523", "78791  ", "44824628", *("OMOP/condition/44824628", "OMOP/condition/196523")),
    ("196523.0", "78791", "0.0", *("OMOP/condition/196523",) * 2),
    ("0", "78791", "44824628", *("OMOP/condition/44824628",) * 2),
    ("0", "  787.91  ", "0", "CONDITION//787.91", "CONDITION//787.91"),
    ("", " 787.91", "", "CONDITION//787.91", "CONDITION//787.91"),
    ("0", "  ", "0", None, None),
    ("", "NULL", "", None, None),
]


@pytest.mark.parametrize("vocabulary", ["source", "standard"])
def test_a_code_is_the_concept_preferred_else_the_other_else_the_source_value(tmp_path, vocabulary):
    rows = [f"1,{std},{DAY},,,{value},{source}" for std, value, source, *_ in CODED]
    source = Omop(cdm(tmp_path, **conditions(*rows)), vocabulary=vocabulary)
    expected = [row[3] if vocabulary == "source" else row[4] for row in CODED]
    assert [code for _, code in told(source)] == [code for code in expected if code]
    where = "condition_occurrence.csv: column 'condition_source_value': row 6, row 7"
    assert drain(source)[3]["no_code"] == {"count": 2, "first": where}
    assert source.read().metadata["vocabulary"] == vocabulary


def test_concepts_are_looked_up_once_for_the_codes_used(tmp_path):
    known = (
        CONCEPT,
        '44824628.0,"Diarrhea, so called",ICD9CM,787.91 ',
        "2000000001,Own syrup , site_drugs ,Syrup ",
        "7,Never used,RxNorm,860975",
        "8,Without a code,RxNorm,",
    )
    codes = ["MEDS_DEATH", "OMOP/44824628", "OMOP/2000000001", "OMOP/8", "OMOP/9", "DRUG//OMOP/7"]
    codes += ["OMOP/condition/44824628", "OMOP/condition/9", "CONDITION//own"]
    found, titles, diagnoses = Omop(cdm(tmp_path, concept=known)).read().resolve(codes)
    assert found == [
        *("MEDS_DEATH", "ICD9CM/787.91", "site_drugs/Syrup", "OMOP/8", "OMOP/9", "DRUG//OMOP/7"),
        *("ICD9CM/787.91", "OMOP/9", "CONDITION//own"),
    ]
    assert diagnoses == {"ICD9CM/787.91", "OMOP/9", "CONDITION//own"}
    assert titles == {"ICD9CM/787.91": "Diarrhea, so called", "site_drugs/Syrup": "Own syrup"}


def test_athena_files_have_tabs_whatever_their_ending_and_quote_nothing(tmp_path):
    athena = tmp_path / "athena"
    athena.mkdir()
    lines = [CONCEPT, '5,"Loose, ICD10CM,A00', '6,a 3" nail,SNOMED,1', "7,x,SNOMED,2"]
    text = "\n".join(line.replace(",", "\t") for line in lines) + "\n"
    (athena / "CONCEPT.csv").write_text(text)
    own = (CONCEPT, "2000000001,Own,site,1")
    source = Omop(cdm(tmp_path / "cdm", concept=own), vocabulary_path=str(athena))
    codes = ["OMOP/5", "OMOP/6", "OMOP/7", "OMOP/2000000001"]
    assert source.read().resolve(codes)[0] == ["ICD10CM/A00", "SNOMED/1", "SNOMED/2", "site/1"]


def test_a_snomed_condition_of_a_stay_is_known_in_the_store_at_its_end(tmp_path, make_store):
    concepts = (CONCEPT, "5,Sepsis,SNOMED,91302008", "6,Pulse,LOINC,8867-4")
    rows = [f"1,5,{DAY},,7,,", f"1,9,{DAY},,7,,", f"1,0,{DAY},,7,own,", f"1,5,{DAY},,,,"]
    pulse = "person_id,measurement_concept_id,measurement_datetime,visit_occurrence_id"
    folder = cdm(
        tmp_path / "cdm",
        **conditions(*rows),
        concept=concepts,
        visit_occurrence=(VISIT, f"7,1,9201,{DAY},{DAY} 10:00:00,2020-01-08,2020-01-08 09:00:00"),
        measurement=(pulse, f"1,6,{DAY} 11:00:00,7"),
    )
    store = make_store(Omop(folder).read())
    outside = (1, "SNOMED/91302008", datetime(2020, 1, 5, 23, 59, 59))
    assert known(store, "2020-01-08T08:59:59")[2:] == [
        (1, "LOINC/8867-4", datetime(2020, 1, 5, 11)),
        outside,
    ]
    left = datetime(2020, 1, 8, 9)
    assert sorted(known(store, "2020-01-08T09:00:00")[4:]) == [
        (1, code, left) for code in ("CONDITION//own", "OMOP/9", "SNOMED/91302008")
    ]
    assert stays(store)[0] == (1, "inpatient", datetime(2020, 1, 5, 10), left, 2.958)


@pytest.mark.parametrize(
    ("date", "moment", "when"),
    [
        (DAY, "2020-01-05 10:30:00", "2020-01-05 10:30:00"),
        (DAY, "", "2020-01-05 23:59:59"),
        (DAY, "2020-01-05 00:00:00", "2020-01-05 23:59:59"),
        ("", "2020-01-05 10:30:00", "2020-01-05 10:30:00"),
        ("1931-02-28", "", "1931-02-28 23:59:59"),
    ],
)
def test_what_is_dated_by_its_day_is_known_at_the_end_of_it(tmp_path, date, moment, when):
    dead = ("person_id,death_date,death_datetime", f"1,{date},{moment}")
    more = ("2,5,2020-02-02,2020-02-02 01:02:03,,,", "1,5,,,,,")  # one has a time, one no date
    rows = conditions(f"1,5,{date},{moment},,,", *more)
    source = Omop(cdm(tmp_path, death=dead, **rows))
    assert told(source)[:2] == [(when, "MEDS_DEATH"), (when, "OMOP/condition/5")]
    assert len(told(source)) == 3
    where = "condition_occurrence.csv: column 'condition_start_date': row 3"
    assert drain(source)[3] == {"no_time": {"count": 1, "first": where}}


def test_events_keep_their_visit_and_number(tmp_path):
    rows = (
        "person_id,measurement_concept_id,measurement_date,visit_occurrence_id,value_as_number",
        "1,5,2020-01-05,-5779522865065417426,48.1",
        "1,5,2020-01-05,17479.0,",
        "1,5,2020-01-05,0,x",
        "1,5,2020-01-05,,-2",
    )
    events, _, _, found = drain(Omop(cdm(tmp_path, measurement=rows), tables=["measurement"]))
    assert [e.get("visit_id") for e in events[2:]] == [-5779522865065417426, 17479, None, None]
    assert events[2]["numeric_value"] == pytest.approx(48.1)
    assert [e["numeric_value"] for e in events[3:]] == [None, None, -2.0]
    assert found["not_a_number"]["first"] == "measurement.csv: column 'value_as_number': row 3"


VISITS = [  # concept, start date, start, end date, end: kind, start, end, whole days
    ("9201", DAY, "2020-01-05 10:00:00", "2020-01-08", "2020-01-08 09:00:00")
    + ("inpatient", "05 10:00:00", "08 09:00:00", None),
    ("9201", DAY, "", "2020-01-08", "", "inpatient", "05 00:00:00", "08 23:59:59", 3),
    ("262", DAY, "2020-01-05 00:00:00", "2020-01-08", "2020-01-08 00:00:00")
    + ("inpatient", "05 00:00:00", "08 23:59:59", 3),
    ("8870", DAY, "2020-01-05 10:00:00", "2020-01-05", "")
    + ("emergency", "05 10:00:00", "05 23:59:59", 0),
    ("9201", DAY, "", "", "2020-01-08 09:00:00", "inpatient", "05 00:00:00", "08 09:00:00", None),
    ("9201", DAY, "", "", "", "inpatient", "05 00:00:00", None, None),
    ("9202.0", DAY, "2020-01-05 10:00:00", "", "")
    + ("outpatient", "05 10:00:00", "05 10:00:00", None),
    ("38004207", DAY, "", "", "", "outpatient", "05 00:00:00", "05 23:59:59", 0),
    ("0", DAY, "", DAY, "", "unknown", "05 00:00:00", "05 23:59:59", 0),
    ("2000000123", DAY, "", "2020-01-06", "", "inpatient", "05 00:00:00", "06 23:59:59", 1),
]


def test_visits_say_when_and_of_what_kind_they_are(tmp_path):
    rows = [f"{i + 1},1,{','.join(row[:5])}" for i, row in enumerate(VISITS)]
    rows += [f"0,1,9201,{DAY},,,", f",1,9201,{DAY},,,"]
    source = Omop(cdm(tmp_path, visit_occurrence=(VISIT, *rows)), kinds={2000000123: "inpatient"})
    _, visits, _, found = drain(source)
    assert [v["visit_id"] for v in visits] == list(range(1, len(VISITS) + 1))
    for visit, row in zip(visits, VISITS, strict=True):
        kind, start, end, days = row[5:]
        assert (visit["kind"], str(visit["start"])) == (kind, f"2020-01-{start}")
        assert str(visit["end"]) == (f"2020-01-{end}" if end else "None")
        assert visit["length_of_stay"] == days
    assert found["no_visit_id"]["first"].endswith("column 'visit_occurrence_id': row 11, row 12")
    assert found["visits_of_unknown_kind"]["count"] == 1


def test_a_birth_is_never_later_than_it_was(tmp_path):
    header = "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime"
    rows = ["1,0,1950.0,7.0,31.0,", "2,0,1950,7,,", "3,0,1950,,12,", "4,0,1950,2,30,"]
    rows += ["5,0,1950,13,1,", "6,0,1950,7,1,1950-07-01 04:05:06", "7,8507,,7,1,", "8,0,20-50,,,"]
    events, _, _, found = drain(Omop(cdm(tmp_path, person=(header, *rows))))
    births = {e["subject_id"]: (str(e["time"]), e["row"]) for e in events if "BIRTH" in e["code"]}
    assert births == {
        1: ("1950-07-31 00:00:00", 0),
        2: ("1950-07-01 00:00:00", 1),
        3: ("1950-01-12 00:00:00", 2),
        4: ("1950-02-01 00:00:00", 3),
        5: ("1950-01-01 00:00:00", 4),
        6: ("1950-07-01 04:05:06", 5),
    }
    assert found["no_birth"] == {
        "count": 2,
        "first": "person.csv: column 'year_of_birth': row 7, row 8",
    }
    assert [(e["subject_id"], e["code"]) for e in events if e["time"] is None] == [(7, "GENDER//M")]


def test_sex_and_race_have_no_time(tmp_path):
    header = PERSON + ",race_concept_id,race_source_value"
    rows = ("1,8532,1950,8527,white", "2,8507.0,1950,8516,", "3,8551,1950,0,", "4,0,1950,,NA")
    events, *_ = drain(Omop(cdm(tmp_path, person=(header, *rows))))
    static = {(e["subject_id"], e["code"]) for e in events if e["time"] is None}
    assert static == {
        (1, "GENDER//F"),
        (2, "GENDER//M"),
        (1, "RACE//white"),
        (2, "RACE//8516"),
    }


@pytest.mark.parametrize("form", ["upper", "gz", "tsv", "parquet", "shards", "quoted"])
def test_every_form_of_file_gives_the_same(tmp_path, form):
    rows = ["1,5,2020-01-05,,7,A,9", '1,0,2020-01-06,2020-01-06 10:00:00,,"B, c",0']
    plain = cdm(
        tmp_path / "plain", **conditions(*rows), visit_occurrence=(VISIT, f"7,1,9201,{DAY},,,")
    )
    folder = tmp_path / form
    folder.mkdir()
    for file in (tmp_path / "plain").iterdir():
        table, name = pd.read_csv(file, dtype=str), file.stem
        if form == "upper":
            table.rename(columns=str.upper).to_csv(folder / f"{name.upper()}.CSV", index=False)
        elif form == "gz":
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
        elif form == "tsv":
            table.to_csv(folder / f"{name}.tsv", index=False, sep="\t")
        elif form == "quoted":
            table.to_csv(folder / f"{name}.csv", index=False, quoting=1)
        elif form == "parquet":
            for column in table.columns.intersection(["person_id", "condition_concept_id"]):
                table[column] = table[column].astype("int32")
            for column in table.columns[table.columns.str.endswith("_date")]:
                table[column] = pd.to_datetime(table[column]).dt.date
            table.to_parquet(folder / f"{name}.parquet")
        else:
            (folder / name).mkdir()
            for i in range(len(table)):
                shard = folder / name / f"part-{i}.c000.snappy.parquet"
                table.iloc[i : i + 1].to_parquet(shard)
            (folder / name / "_SUCCESS").touch()
    expected, found = drain(Omop(plain)), drain(Omop(str(folder)))
    for row in [*expected[0], *found[0]]:
        row.pop("row", None)
    assert found == expected
    assert len(found[0]) == 4 and len(found[1]) == 1


def test_tables_may_be_absent_or_empty_but_not_person(tmp_path):
    source = Omop(
        cdm(tmp_path / "empty", visit_occurrence=(VISIT,), death=("person_id,death_date",))
    )
    assert len(drain(source)[0]) == 2
    folder = cdm(tmp_path / "headless", visit_occurrence=(VISIT,))
    (tmp_path / "headless" / "person.csv").unlink()
    with pytest.raises(InputError, match="no table 'person' in it"):
        Omop(folder).read()
    with pytest.raises(InputError, match=r"person\.csv: no persons in it"):
        Omop(cdm(tmp_path / "nobody", person=(PERSON,))).read()


def test_what_the_source_says_of_itself(tmp_path):
    about = ("cdm_source_name,cdm_source_abbreviation,cdm_version", "The hospital,,v5.4")
    said = Omop(cdm(tmp_path, cdm_source=about)).read().metadata
    assert said == {
        "name": "The hospital",
        "time": "dates",
        "vocabulary": "source",
        "cdm_version": "v5.4",
    }


def test_what_cannot_be_used_is_refused_with_file_row_and_column(tmp_path):
    folder = cdm(tmp_path, **conditions(f"1,5,{DAY},,,,", f",5,{DAY},,,,"))
    column = "condition_occurrence.csv: column"
    refused(Omop(folder), f"{column} 'person_id': row 2", "no subject")
    cdm(tmp_path, **conditions(f"1,5,{DAY},,,,", "1,5,05.01.2020,,,,"))
    refused(Omop(folder), f"{column} 'condition_start_date': row 2", "not a date")
    cdm(tmp_path, condition_occurrence=("person_id,condition_start_date", f"1,{DAY}"))
    refused(Omop(folder), "condition_occurrence.csv: no column 'condition_concept_id'")
    cdm(tmp_path, condition_occurrence=("person_id,condition_concept_id", "1,5"))
    refused(Omop(folder), "condition_occurrence.csv: no column 'condition_start_date'")
    refused(Omop(folder, tables=["condition"]), "source.tables", "'condition'", "drug_exposure")
    refused(Omop(folder, vocabulary="icd"), "source.vocabulary", "'icd'")
    refused(Omop(folder, kinds={5: "ward"}), "source.kinds", "'ward'", "inpatient")
    refused(Omop(f"{folder}/person.csv"), "is a file", "source.path")
    refused(Omop(folder, vocabulary_path=folder), "no table 'concept'", "source.vocabulary_path")
    (tmp_path / "person.csv").write_bytes((PERSON + "\n1,0,1950\n").encode() + b"\xe6,0,1950\n")
    refused(Omop(folder), "person.csv: line 3", "source.encoding")
    (tmp_path / "PERSON.tsv").touch()
    refused(Omop(folder), "PERSON.tsv and person.csv are both the table person")


KINDS = {  # visits by kind
    "gibleed_omop": {"inpatient": 1037},
    "synthea27nj_omop": {"outpatient": 1722, "emergency": 56, "inpatient": 13},
    "mimic4_demo_omop": {"outpatient": 600, "emergency": 201, "inpatient": 51},
}
EVENTS = {"gibleed_omop": 224_060, "synthea27nj_omop": 21_228, "mimic4_demo_omop": 57_282}


@real
@pytest.mark.parametrize("name", KINDS)
def test_real_data_is_read_to_the_last_row(name):
    events, visits, _, found = drain(Omop(str(SHARED / name)), max_bad_share=0.0)
    assert pd.Series([visit["kind"] for visit in visits]).value_counts().to_dict() == KINDS[name]
    assert len(events) == EVENTS[name] and found == {}


@real
def test_synthea_concepts_resolve():
    records = Omop(str(SHARED / "synthea27nj_omop")).read()
    events, *_ = drain(Omop(str(SHARED / "synthea27nj_omop")))
    spoken = sorted({event["code"] for event in events})
    codes, titles, diagnoses = records.resolve(spoken)
    assert not [code for code in codes if code.startswith("OMOP/")]
    assert titles["SNOMED/65363002"] == "Otitis media" and "SNOMED/65363002" in diagnoses


STORES = {  # subjects, visits of each kind, and (subjects, events) of some codes
    "gibleed_omop": (
        2694,
        # nearly all visits are named by events only
        {"inpatient": 1037, "unknown": 111_147, "day": 572},
        {"GENDER//F": (1373, 1373), "ICD10CM/K92.2": (479, 479)},
    ),
    "synthea27nj_omop": (
        28,
        {"outpatient": 1722, "emergency": 56, "inpatient": 13, "day": 2},
        {"GENDER//F": (13, 13), "SNOMED/65363002": (9, 13)},
    ),
}


@real
@pytest.mark.parametrize("name", STORES)
def test_real_data_as_a_store(make_store, name):
    store = make_store(Omop(str(SHARED / name)).read(), memory_gb=1.0)
    n_subjects, kinds, codes = STORES[name]
    assert len(store) == n_subjects
    assert pd.Series([kind for _, kind, *_ in stays(store)]).value_counts().to_dict() == kinds
    told = pd.DataFrame(known(store), columns=["subject", "code", "time"]).groupby("code")
    assert {c: (told.subject.nunique()[c], told.size()[c]) for c in codes} == codes
