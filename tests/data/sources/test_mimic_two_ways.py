"""The 100 patients of the MIMIC-IV demo through OMOP and through MEDS: the same stays and
diagnoses, and a reason for every difference."""

import pandas as pd
import pyarrow as pa
import pytest
from conftest import EVERY_CODE, SETTINGS, SHARED
from drained import known
from drained import stays as stays_of

from medbert.data.preparing.prepare import write_store
from medbert.data.sources.meds import Meds
from medbert.data.sources.omop import Omop
from medbert.data.store import Store
from medbert.schema import Findings

OMOP, MEDS = SHARED / "mimic4_demo_omop", SHARED / "mimic4_demo_meds"
pytestmark = pytest.mark.skipif(
    not SHARED.exists(), reason="the data for measuring (../shared/data) is not on this machine"
)
CLINIC = "38004207"  # the concept of visits that are no hospital stay


@pytest.fixture(scope="module")
def meds():
    return pd.read_parquet(MEDS / "data" / "train" / "0.parquet")


@pytest.fixture(scope="module")
def omop():
    """The source's events and visits, with MIMIC's own numbers for subjects and stays."""
    events, visits = [], []
    for part in Omop(str(OMOP)).read().parts:
        for piece in part.pieces(Findings(max_bad_share=0)):
            if piece.events is not None:
                code = piece.events["code"].cast(pa.string())
                place = piece.events.column_names.index("code")
                events.append(piece.events.set_column(place, "code", code))
            if piece.visits is not None:
                visits.append(piece.visits)
    person = raw("person")
    subject = dict(zip(person.person_id.astype("int64"), person.person_source_value, strict=True))
    visit = raw("visit_occurrence")
    ids = visit.visit_occurrence_id.astype("int64")
    stay = dict(zip(ids, visit.visit_source_value.str.split("|").str[1], strict=True))
    concept = dict(zip(ids, visit.visit_concept_id, strict=True))
    tables = []
    for found in (events, visits):
        frame = pa.concat_tables(found, promote_options="default").to_pandas(
            types_mapper={pa.int64(): pd.Int64Dtype()}.get
        )
        frame["subject"] = frame["subject_id"].map(subject).astype(int)
        frame["stay"], frame["concept"] = frame.visit_id.map(stay), frame.visit_id.map(concept)
        tables.append(frame)
    return tables


def raw(table):
    return pd.read_csv(OMOP / f"{table}.csv", dtype=str)


@pytest.fixture(scope="module")
def stays(omop, meds):
    """Admissions by MEDS' codes beside the OMOP visit of the same number."""
    admitted = meds[meds.code.str.startswith("HOSPITAL_ADMISSION")]
    left = meds[meds.code.str.startswith("HOSPITAL_DISCHARGE")]
    both = admitted[["subject_id", "hadm_id", "time", "code"]].merge(
        left[["hadm_id", "time"]], on="hadm_id", suffixes=("_in", "_out"), validate="1:1"
    )
    both["stay"] = both.hadm_id.astype(int).astype(str)
    named = omop[1][omop[1].stay.str.isdecimal()]
    return both.merge(named, on="stay", how="left", validate="1:1")


def test_the_same_subjects_sexes_and_years_of_birth(omop, meds):
    events = omop[0]
    assert set(events.subject) == set(meds.subject_id) and events.subject.nunique() == 100
    for code in ("GENDER//F", "GENDER//M"):
        assert set(events[events.code == code].subject) == set(meds[meds.code == code].subject_id)
    theirs = meds[meds.code == "MEDS_BIRTH"].set_index("subject_id").time
    ours = events[events.code == "MEDS_BIRTH"].set_index("subject").time
    assert (theirs == ours.reindex(theirs.index)).all()


def test_every_admission_is_a_visit_of_the_same_subject_and_end(stays):
    assert len(stays) == 275
    assert (stays.subject_id_x == stays.subject).all()
    # Five stays for observation after an outpatient procedure are clinic visits in OMOP.
    clinic = stays.concept == CLINIC
    assert clinic.sum() == 5
    ambulatory = stays.code.str.startswith("HOSPITAL_ADMISSION//AMBULATORY OBSERVATION")
    assert (clinic == ambulatory).all()
    assert set(stays[~clinic].kind) == {"inpatient", "emergency", "outpatient"}
    # Three discharges are at midnight: known by their day only, and moved to the end of it.
    midnight = stays.time_out == stays.time_out.dt.normalize()
    assert midnight.sum() == 3
    moved = stays.time_out.where(~midnight, stays.time_out + pd.Timedelta("23:59:59"))
    assert (stays.end == moved).all()


def test_omop_has_no_other_hospital_visits(omop, stays):
    visits = omop[1]
    hospital = visits[visits.concept != CLINIC]
    assert len(hospital) == 270 and set(hospital.stay) < set(stays.stay)
    # The others are days of outpatient care, made of rows that name no stay.
    others = visits[~visits.stay.isin(stays.stay)]
    assert len(others) == 577 and set(others.concept) == {CLINIC}
    assert others.stay.str.fullmatch(r"\d{4}-\d\d-\d\d").all()


def test_a_stay_starts_at_the_admission_or_in_the_emergency_room(stays, meds):
    registered = meds[meds.code == "ED_REGISTRATION"]
    early = stays[stays.start != stays.time_in]
    assert len(early) == 180 and (early.start < early.time_in).all()
    known = set(zip(registered.subject_id, registered.time, strict=True))
    assert set(zip(early.subject, early.start, strict=True)) < known


def test_lengths_of_stay_differ_by_the_emergency_room_and_midnight_only(stays):
    theirs = (stays.time_out - stays.time_in) / pd.Timedelta("1D")
    ours = (stays.end - stays.start) / pd.Timedelta("1D")
    ours = stays.length_of_stay.astype(float).where(stays.length_of_stay.notna(), ours)
    day_only = stays.time_out == stays.time_out.dt.normalize()
    waited = (stays.time_in - stays.start) / pd.Timedelta("1D")
    assert (ours - theirs - waited)[~day_only].abs().max() < 1e-6
    assert (ours - theirs - waited)[day_only].abs().max() < 1


def test_deaths_are_those_in_hospital_at_the_same_time_or_day(omop, meds):
    theirs = meds[meds.code == "MEDS_DEATH"].set_index("subject_id").time
    ours = omop[0][omop[0].code == "MEDS_DEATH"].set_index("subject").time
    assert len(theirs) == 31 and len(ours) == 15
    # After discharge only the day of death is known: MEDS has it, this OMOP table does not.
    absent = theirs[~theirs.index.isin(ours.index)]
    assert (absent == absent.dt.normalize()).all()
    both = theirs[ours.index]
    same = both == ours
    assert (both.dt.normalize() == ours.dt.normalize()).all()
    # Where OMOP took the midnight of the discharge for the death, its day ends after the death.
    moved = ours[~same].dt.strftime("%H:%M:%S").value_counts().to_dict()
    assert same.sum() == 11 and moved == {"23:59:59": 3, "00:01:00": 1}


def test_every_diagnosis_of_omop_is_in_meds_and_only_codes_of_another_domain_are_missing(
    omop, meds
):
    # The demo's concept table has no ICD: its source values say which code a concept is.
    said = raw("condition_occurrence")
    spelled = ("OMOP/condition/" + said.condition_source_concept_id).to_frame("code")
    spelled["icd"] = said.condition_source_value.str.strip()
    spelled = spelled.drop_duplicates()
    assert spelled.code.is_unique

    events = omop[0]
    billed = events[events.code.isin(spelled.code)].merge(spelled, on="code")
    local = billed.code.str.removeprefix("OMOP/condition/").astype("int64") >= 2_000_000_000
    # Heart rhythms charted at the bedside are conditions in OMOP, and no diagnoses.
    assert local.sum() == 12_608 and local[billed.icd == "SR (Sinus Rhythm)"].all()
    billed = billed[~local]
    # A code that maps to several standard concepts has a row for each: repeats, by the source.
    assert len(billed) == 3_833 and billed.duplicated(["stay", "code"]).sum() == 193
    several = said.merge(raw("visit_occurrence")[["visit_occurrence_id", "visit_source_value"]])
    several["code"] = "OMOP/condition/" + several.condition_source_concept_id
    several = several[several.code.isin(billed.code)]
    key = ["visit_source_value", "code"]
    assert not several.duplicated([*key, "condition_concept_id"]).any()

    theirs = meds[meds.code.str.startswith("DIAGNOSIS//")].copy()
    theirs["stay"] = theirs.hadm_id.astype(int).astype(str)
    theirs["icd"] = theirs.code.str.split("//").str[3]
    merged = theirs.merge(
        billed.drop_duplicates(["stay", "code"])[["stay", "icd", "code"]],
        on=["stay", "icd"],
        how="outer",
        suffixes=("", "_omop"),
        indicator=True,
    )
    counts = {"both": 3_640, "left_only": 866, "right_only": 0}
    assert merged._merge.value_counts().to_dict() == counts
    # A code is missing in all stays or in none: those that the vocabularies place outside the
    # Condition domain (history, causes, places, measurements) are in OMOP's observation and
    # measurement tables, which the demo leaves out.
    missing = merged.groupby("code")._merge.agg(lambda m: set(m.astype(str)))
    assert set(map(frozenset, missing)) == {frozenset({"both"}), frozenset({"left_only"})}
    lost = merged[merged._merge == "left_only"].code.str.split("//")
    status = lost.str[3].str.match(r"[VZ]") | (lost.str[2] == "9") & lost.str[3].str.match("E")
    cause = (lost.str[2] == "10") & lost.str[3].str.match("[WXYT]")
    sign = lost.str[3].str.match("7|R")
    assert (status | cause | sign).all()


def test_omop_dates_diagnoses_within_their_visit(omop):
    # ... at its start, though they are coded after its end: what is known when, the engine says.
    events, visits = omop
    said = raw("condition_occurrence")
    billing = said[said.condition_type_concept_id == "32821"].condition_source_concept_id
    billed = events[events.code.isin("OMOP/condition/" + billing)]
    inside = billed.merge(visits[["visit_id", "start", "end"]], on="visit_id")
    assert len(inside) == 3_833
    assert (inside.time >= inside.start).all() and (inside.time <= inside.end).all()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Events and visits of the two stores, with MIMIC's own numbers for subjects."""
    said = raw("person")
    subject = dict(zip(said.person_id.astype("int64"), said.person_source_value, strict=True))
    found = {}
    for name, source in (("omop", Omop(str(OMOP))), ("meds", Meds(str(MEDS)))):
        folder = tmp_path_factory.mktemp(name)
        settings = SETTINGS(memory_gb=0.1)
        write_store(source.read(), folder, vocabulary=EVERY_CODE, splits=None, settings=settings)
        store = Store(folder)
        events = pd.DataFrame(known(store), columns=["subject", "code", "time"])
        visits = pd.DataFrame(stays_of(store), columns=["subject", "kind", "start", "end", "days"])
        for frame in (events, visits):
            if name == "omop":
                frame["subject"] = frame.subject.map(subject).astype(int)
        found[name] = events, visits
    return found


def ended(times):
    """OMOP knows three discharges by their day only."""
    return times.where(times != times.dt.normalize(), times + pd.Timedelta("23:59:59"))


def test_the_stores_have_the_same_subjects_and_hospital_stays(stores):
    (omop, omop_visits), (meds, meds_visits) = stores["omop"], stores["meds"]
    assert set(omop.subject) == set(meds.subject) and omop.subject.nunique() == 100
    theirs = meds_visits[meds_visits.kind == "inpatient"].assign(end=lambda v: ended(v.end))
    both = theirs.merge(omop_visits, on=["subject", "end"], how="left", suffixes=("", "_omop"))
    both = both.sort_values("start_omop").drop_duplicates(["subject", "start"])
    assert len(both) == len(theirs) == 275
    assert (both.start_omop <= both.start).all()  # in the emergency room
    # The demo's OMOP takes the kind of a stay from how the patient came: emergencies and those
    # under observation are emergencies; 18 operations and 5 observations (above) are outpatient.
    kinds = {"emergency": 201, "inpatient": 51, "outpatient": 23}
    assert both.kind_omop.value_counts().to_dict() == kinds
    hospital = omop_visits[omop_visits.kind != "outpatient"]
    assert len(hospital.merge(theirs, on=["subject", "end"])) == len(hospital)


def test_the_stores_have_the_same_diagnoses_known_at_the_same_time(stores):
    meds = stores["meds"][0]
    theirs = meds[meds.code.str.match("ICD(9|10)CM/")].copy()
    theirs["icd"] = theirs.code.str.split("/").str[1].str.replace(".", "")
    theirs["time"] = ended(theirs.time)
    said = raw("condition_occurrence")
    said = said[said.condition_type_concept_id == "32821"]  # billed, not charted at the bedside
    icd = said.condition_source_value.str.strip()
    spelled = dict(zip("OMOP/" + said.condition_source_concept_id, icd, strict=True))
    ours = stores["omop"][0].assign(icd=lambda events: events.code.map(spelled)).dropna()
    merged = theirs.merge(ours, on=["subject", "time", "icd"], how="outer", indicator=True)
    # those of OMOP's other domains are missing, as above
    counts = {"both": 3_640, "left_only": 866, "right_only": 0}
    assert merged._merge.value_counts().to_dict() == counts
