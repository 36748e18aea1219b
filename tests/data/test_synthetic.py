"""The simulator of lives: what it promises about records, and that its true risk is true."""

import csv
import json
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from sklearn.metrics import roc_auc_score

import medbert
from medbert import Store
from medbert.data import synthetic
from medbert.data.sources.meds import Meds
from medbert.data.synthetic import conditions
from medbert.schema import (
    BIRTH,
    CODES,
    DATES,
    DEATH,
    EVENTS,
    RANK,
    VISITS,
    Findings,
    InputError,
)

CODE_TABLES = SHARED / "code_tables"
OUTCOME_CODES = {
    "heart_failure": r"^ICD9CM/428|^ICD10CM/I50",
    "pancreatic_cancer": r"^ICD9CM/157|^ICD10CM/C25",
}
DIABETES = r"^ICD9CM/250\.\d[02]$|^ICD10CM/E11"
YEAR = pd.Timedelta(days=365.25)


@pytest.fixture(scope="module")
def simulation() -> synthetic.Simulation:
    return synthetic.simulate(20_001, seed=5)  # one subject more than a chunk


@pytest.fixture(scope="module")
def store(simulation, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    synthetic.write(simulation, folder / "events")
    return Store(medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "it"))


@pytest.fixture(scope="module")
def events(simulation) -> pd.DataFrame:
    return simulation.events.drop_columns(["text_value"]).to_pandas()


@pytest.fixture(scope="module")
def truth(simulation) -> pd.DataFrame:
    return simulation.truth.to_pandas().set_index("subject_id")


@pytest.fixture(scope="module")
def small() -> synthetic.Simulation:
    return synthetic.simulate(300, seed=1)


def first_time(simulation: synthetic.Simulation, pattern: str) -> np.ndarray:
    """When each subject's record first shows a code; NaT for never."""
    events = simulation.events
    found = events.filter(pc.match_substring_regex(events["code"], pattern)).to_pandas()
    first = found.groupby("subject_id")["time"].min()
    return first.reindex(range(1, simulation.truth.num_rows + 1)).to_numpy("datetime64[us]")


def landmarks(
    simulation: synthetic.Simulation, truth: pd.DataFrame, *, outcome: str, days: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows (subject, time) of people above 40 under observation each July, and what they get."""
    first = pd.Series(first_time(simulation, OUTCOME_CODES[outcome]), truth.index)
    rows = []
    for year in range(2009, 2021 - days // 365):
        time = pd.Timestamp(year, 7, 1)
        seen = (truth["entry"] < time) & (truth["exit"] > time) & ~(truth["death"] <= time)
        chosen = seen & ~(first <= time) & (time - truth["birth"] > 40 * YEAR)
        rows.append(pd.DataFrame({"subject_id": truth.index[chosen], "time": time}))
    table = pd.concat(rows, ignore_index=True)
    onset = first.loc[table["subject_id"]].to_numpy()
    opens = (table["time"] + pd.Timedelta(days=30)).to_numpy()
    closes = opens + np.timedelta64(days, "D")
    return table, (onset > opens) & (onset <= closes)


def risk(
    simulation: synthetic.Simulation, rows: pd.DataFrame, *, outcome: str, days: float
) -> np.ndarray:
    return synthetic.true_risk(
        simulation.truth,
        subject_id=rows["subject_id"].to_numpy(),
        prediction_time=rows["time"].to_numpy(),
        outcome=outcome,
        gap_days=30,
        window_days=days,
    )


def test_deterministic_by_seed(small):
    again, other = (synthetic.simulate(300, seed=seed) for seed in (1, 2))
    assert again.truth.equals(small.truth)
    for name in ("events", "visits", "codes"):
        assert getattr(again, name).equals(getattr(small, name))
    assert not other.events.equals(small.events)


@pytest.mark.parametrize("seed", range(4))
def test_one_subject_is_enough(seed):
    alone = synthetic.simulate(1, seed=seed)
    assert alone.events["subject_id"].unique().to_pylist() == [1]
    with pytest.raises(InputError, match="n_subjects"):
        synthetic.simulate(0, seed=seed)


def test_tables_follow_the_contract(simulation):
    truth = simulation.truth
    assert simulation.events.schema == EVENTS.remove(EVENTS.get_field_index(RANK))
    assert simulation.visits.schema == VISITS
    assert simulation.codes.schema == CODES
    assert simulation.metadata["time"] == DATES
    assert simulation.metadata["n_subjects"] == truth.num_rows == 20_001
    described = set(simulation.codes["code"].to_pylist())
    assert set(pc.unique(simulation.events["code"]).to_pylist()) <= described
    assert len(described) == simulation.codes.num_rows
    assert all(simulation.codes["description"].to_pylist())


def test_order_of_events_is_that_of_meds(events):
    subject = events["subject_id"].to_numpy()
    assert (np.diff(subject) >= 0).all()
    assert np.array_equal(np.unique(subject), np.arange(1, 20_002))
    time = events["time"].to_numpy("datetime64[us]")
    static = np.isnat(time)
    assert events["code"][static].str.startswith("GENDER//").all()
    assert static.sum() == 20_001
    new = np.append(True, np.diff(subject) > 0)
    assert static[new].all()
    later = ~new[1:] & ~static[:-1]
    assert (np.diff(time)[later] >= np.timedelta64(0)).all()
    assert (events["code"] == BIRTH).sum() == 20_001


def test_nothing_outside_life_and_observation(events, truth):
    dated = events[events["time"].notna() & (events["code"] != BIRTH)]
    life = truth.loc[dated["subject_id"]]
    time = dated["time"].to_numpy()
    assert (time >= life["entry"].to_numpy()).all()
    assert (time >= life["birth"].to_numpy()).all()
    assert (time <= life["exit"].to_numpy()).all()
    assert not (time > life["death"].to_numpy()).any()
    assert time.min() >= pd.Timestamp(2008, 1, 1)
    assert time.max() < pd.Timestamp(2021, 1, 1)
    deaths = events[events["code"] == DEATH].set_index("subject_id")["time"]
    seen = truth["death"] <= truth["exit"]
    assert (deaths == truth["death"][seen]).all()


def test_visits_agree_with_their_events(simulation, events):
    visits = simulation.visits.to_pandas()
    assert np.array_equal(visits["visit_id"], np.arange(1, len(visits) + 1))
    days = (visits["end"] - visits["start"]) / pd.Timedelta(days=1)
    days = days.mask(visits["kind"] == "emergency")
    np.testing.assert_allclose(visits["length_of_stay"], days, rtol=1e-5)
    inside = events[events["visit_id"].notna()]
    visit = visits.iloc[inside["visit_id"].astype(int) - 1]
    assert (visit["subject_id"].to_numpy() == inside["subject_id"].to_numpy()).all()
    assert (inside["time"].to_numpy() >= visit["start"].to_numpy()).all()
    assert (inside["time"].to_numpy() <= visit["end"].to_numpy()).all()
    diagnosis = inside["code"].str.startswith("ICD").to_numpy()
    assert (inside["time"].to_numpy() == visit["end"].to_numpy())[diagnosis].all()
    stays = set(visits["visit_id"][visits["kind"] == "inpatient"])
    for mark in ("HOSPITAL_ADMISSION//", "HOSPITAL_DISCHARGE//"):
        marked = inside[inside["code"].str.startswith(mark)]
        assert set(marked["visit_id"]) == stays


def test_stays(simulation):
    visits = simulation.visits.to_pandas()
    stays = visits["length_of_stay"][visits["kind"] == "inpatient"]
    assert 0.12 < (stays > 7).mean() < 0.2
    assert 50 < 1000 * len(stays) / 160_000 < 200  # admissions per 1,000 person-years


def test_era_switch(events):
    icd9 = events["code"].str.startswith("ICD9CM/")
    icd10 = events["code"].str.startswith("ICD10CM/")
    switch = pd.Timestamp(2015, 10, 1)
    assert events["time"][icd9].max() < switch <= events["time"][icd10].min()


def test_size_of_records(events):
    per_subject = events.groupby("subject_id").size()
    assert 60 < per_subject.mean() < 100
    assert per_subject.quantile(0.05) < 10
    assert per_subject.quantile(0.95) > 200


def test_real_world_dirt(simulation, events, truth):
    repeated = events[events["visit_id"].notna()].duplicated()
    assert 0.002 < repeated.mean() < 0.01
    coded = events[events["code"].str.startswith("ICD")]["visit_id"].nunique()
    assert 0.02 < 1 - coded / simulation.visits.num_rows < 0.06
    diabetic = (truth["onset_type2_diabetes"] < truth["entry"]) & (
        truth["exit"] - truth["entry"] > 5 * YEAR
    )
    named = pd.Series(first_time(simulation, DIABETES), truth.index).notna()
    assert 0.05 < 1 - named[diabetic].mean() < 0.25  # missed
    assert 0 < named[truth["onset_type2_diabetes"].isna()].mean() < 0.02  # mistaken


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hypertension", 0.25, 0.40),
        ("type2_diabetes", 0.08, 0.14),
        ("tobacco", 0.13, 0.25),
        ("obesity", 0.2, 0.42),
        ("coronary_disease", 0.045, 0.1),
        ("atrial_fibrillation", 0.02, 0.05),
        ("chronic_kidney_disease", 0.04, 0.15),
        ("copd", 0.03, 0.08),
        ("heart_failure", 0.012, 0.035),
    ],
)
def test_prevalence_in_adults(truth, name, low, high):
    day = pd.Timestamp(2014, 7, 1)
    seen = (truth["entry"] < day) & (truth["exit"] > day) & ~(truth["death"] <= day)
    adults = truth[seen & (day - truth["birth"] > 18 * YEAR)]
    assert low < (adults[f"onset_{name}"] <= day).mean() < high


def incidence(truth: pd.DataFrame, *, outcome: str, begins: pd.Series) -> float:
    """Onsets per person-year under observation from ``begins`` on."""
    onset = truth[f"onset_{outcome}"]
    start = pd.concat([truth["entry"], begins], axis=1).max(axis=1).where(begins.notna())
    stop = pd.concat([truth["exit"], truth["death"], onset], axis=1).min(axis=1)
    years = ((stop - start) / YEAR).clip(lower=0)
    return ((onset == stop) & (years > 0)).sum() / years.sum()


def test_incidence_of_outcomes(truth):
    sixty = truth["birth"] + 60 * YEAR
    diabetes = truth["onset_type2_diabetes"]
    both = diabetes.where(diabetes > sixty, sixty).where(diabetes.notna())
    assert 0.015 < incidence(truth, outcome="heart_failure", begins=both) < 0.04
    everyone = incidence(truth, outcome="pancreatic_cancer", begins=truth["birth"])
    assert 5e-5 < everyone < 25e-5


@pytest.mark.parametrize("outcome", conditions.OUTCOMES)
def test_first_record_is_at_the_onset(simulation, truth, outcome):
    onset = truth[f"onset_{outcome}"]
    first = pd.Series(first_time(simulation, OUTCOME_CODES[outcome]), truth.index)
    stop = truth[["exit", "death"]].min(axis=1)
    seen = (onset > truth["entry"]) & (onset < stop)
    assert not (first[seen] > onset[seen]).any()
    assert (first[seen] == onset[seen]).mean() > 0.95
    before = onset <= truth["entry"]
    assert (first[before] - truth["entry"][before] < pd.Timedelta(days=1)).mean() > 0.95
    stage = truth[f"onset_{outcome}_stage"]
    assert ((onset - stage)[onset.notna()] >= 0.999 * YEAR).all()


def test_signs_grow_through_the_hidden_stage(events, truth):
    dyspnea = events[events["code"].isin(["ICD9CM/786.05", "ICD10CM/R06.02"])]
    stage = truth["onset_heart_failure_stage"]
    stop = truth[["onset_heart_failure", "exit", "death"]].min(axis=1)

    def per_year(first: float, last: float) -> float:
        start = np.maximum(stage + first * YEAR, truth["entry"])
        end = np.minimum(stage + last * YEAR, stop)
        years = ((end - start) / YEAR).clip(lower=0).sum()
        time = dyspnea["time"].to_numpy()
        inside = (time > start.loc[dyspnea["subject_id"]]) & (time < end.loc[dyspnea["subject_id"]])
        return inside.sum() / years

    assert 2 * per_year(0, 1) < per_year(2, 5)
    in_stage = dyspnea["time"].to_numpy() > stage.loc[dyspnea["subject_id"]].to_numpy()
    assert in_stage.mean() < 0.6  # other causes give many of them


def test_labs_follow_the_disease(events, truth):
    for lab, name, ratio in (
        ("LOINC/4548-4", "type2_diabetes", 1.2),
        ("LOINC/33762-6", "heart_failure", 3.0),
        ("LOINC/2160-0", "chronic_kidney_disease", 1.3),
    ):
        taken = events[events["code"] == lab]
        onset = truth[f"onset_{name}"].loc[taken["subject_id"]]
        ill = taken["time"].to_numpy() >= onset.to_numpy()
        medians = taken["numeric_value"].groupby(ill).median()
        assert medians[True] > ratio * medians[False]


@pytest.mark.parametrize(("outcome", "days"), [("heart_failure", 365), ("pancreatic_cancer", 1095)])
def test_true_risk_is_calibrated_and_ranks(simulation, truth, outcome, days):
    rows, happened = landmarks(simulation, truth, outcome=outcome, days=days)
    estimate = risk(simulation, rows, outcome=outcome, days=days)
    assert ((estimate >= 0) & (estimate <= 1)).all()
    cut = pd.Series(estimate).rank(method="first")
    groups = pd.qcut(cut, 10, labels=False).to_numpy()
    for group in [groups >= 0, *(groups == decile for decile in range(10))]:
        expected = estimate[group].sum()
        spread = np.sqrt(4 * expected + 4)  # a subject's landmarks repeat one outcome at most
        assert abs(happened[group].sum() - expected) < 3 * spread + 0.05 * expected
    age = (rows["time"].to_numpy() - truth["birth"].loc[rows["subject_id"]].to_numpy()) / YEAR
    assert 1 > roc_auc_score(happened, estimate) > roc_auc_score(happened, age.astype(float)) + 0.05


@pytest.mark.parametrize(("outcome", "days"), [("heart_failure", 365), ("pancreatic_cancer", 1095)])
def test_what_a_record_tells_is_calibrated_and_less(simulation, truth, store, outcome, days):
    rows, happened = landmarks(simulation, truth, outcome=outcome, days=days)
    subject_id, time = rows["subject_id"].to_numpy(), rows["time"].to_numpy("datetime64[us]")
    place = store.rows_of(subject_id)

    def told(until: np.ndarray) -> np.ndarray:
        return synthetic.record_risk(
            simulation.truth,
            subject_id=subject_id,
            prediction_time=time,
            history=store.history(place, until=until.astype(np.int64)),
            codes=store.codes,
            outcome=outcome,
            gap_days=30,
            window_days=days,
        )

    estimate = told(time)
    assert ((estimate >= 0) & (estimate <= 1)).all()
    cut = pd.Series(estimate).rank(method="first")
    groups = pd.qcut(cut, 10, labels=False).to_numpy()
    for group in [groups >= 0, *(groups == decile for decile in range(10))]:
        expected = estimate[group].sum()
        assert abs(happened[group].sum() - expected) < 3 * np.sqrt(4 * expected + 4)
    hidden = risk(simulation, rows, outcome=outcome, days=days)
    nothing = told(np.full_like(time, "1900-01-01"))  # a record without signs
    aurocs = [roc_auc_score(happened, each) for each in (hidden, estimate, nothing)]
    assert aurocs[0] > aurocs[1] + 0.02 and aurocs[1] > aurocs[2] + 0.02


def test_a_record_does_not_tell_a_diabetes_of_cancer_by_its_name(simulation, store):
    names = simulation.truth.column_names
    one, other = (names.index(f"onset_{kind}_diabetes") for kind in ("type2", "cancer"))
    sets_in = simulation.truth.column(other).to_pandas()
    subject_id = simulation.truth["subject_id"].to_numpy()[sets_in.notna()]
    time = sets_in.dropna().to_numpy("datetime64[us]") + np.timedelta64(90, "D")
    history = store.history(store.rows_of(subject_id), until=time.astype(np.int64))

    def told(truth: pa.Table) -> np.ndarray:
        rows = {"subject_id": subject_id, "prediction_time": time, "history": history}
        asked = {"outcome": "pancreatic_cancer", "gap_days": 30, "window_days": 365}
        return synthetic.record_risk(truth, codes=store.codes, **rows, **asked)

    swapped = [*range(len(names))]
    swapped[one], swapped[other] = other, one
    renamed = simulation.truth.select(swapped).rename_columns(names)
    estimate = told(simulation.truth)
    np.testing.assert_allclose(told(renamed), estimate, rtol=0.01)  # type 2 adds a few deaths
    rows = pd.DataFrame({"subject_id": subject_id, "time": time})
    seen = risk(simulation, rows, outcome="pancreatic_cancer", days=365)
    assert 0 < np.median(estimate) < np.median(seen) / 2


@pytest.mark.parametrize("outcome", conditions.OUTCOMES)
def test_true_risk_grows_with_the_window(simulation, truth, outcome):
    rows, _ = landmarks(simulation, truth, outcome=outcome, days=365)
    rows = rows.iloc[::7]
    before = np.zeros(len(rows))
    for days in (1, 30, 180, 365, 400, 800, 2000):
        estimate = risk(simulation, rows, outcome=outcome, days=days)
        assert (estimate >= before).all()
        before = estimate
    assert before.mean() > 0


def test_true_risk_is_zero_once_it_is_over(simulation, truth):
    ill = truth[truth["onset_heart_failure"].notna()]
    dead = truth[truth["death"].notna()]
    for times in (ill["onset_heart_failure"], dead["death"], truth["birth"] - YEAR):
        rows = pd.DataFrame({"subject_id": times.index, "time": times.to_numpy()})
        assert (risk(simulation, rows, outcome="heart_failure", days=365) == 0).all()


def test_true_risk_says_what_is_wrong(small):
    rows = pd.DataFrame({"subject_id": [301], "time": [pd.Timestamp(2012, 1, 1)]})
    with pytest.raises(InputError, match="subject_id"):
        risk(small, rows, outcome="heart_failure", days=365)
    with pytest.raises(InputError, match="heart_failure"):
        risk(small, rows, outcome="gout", days=365)


def test_births_and_window_can_be_chosen():
    old = synthetic.simulate(
        200,
        seed=3,
        start=date(2010, 1, 1),
        end=date(2012, 12, 31),
        born=(date(1930, 1, 1), date(1940, 12, 31)),
    )
    born = old.truth["birth"].to_pandas().dt.year
    assert born.between(1930, 1940).all()
    times = old.visits["start"].to_pandas()
    assert times.dt.year.between(2010, 2012).all()
    with pytest.raises(InputError, match="start"):
        synthetic.simulate(10, seed=1, start=date(2020, 1, 1), end=date(2010, 1, 1))


def test_every_condition_has_a_source_and_codes_of_both_eras():
    for condition in conditions.CONDITIONS.values():
        assert condition.source
        assert bool(condition.icd9) == bool(condition.icd10)


def test_parameters_speak_of_what_is_defined_above_them():
    parameters, everything = conditions.PARAMETERS, set(conditions.NAMES)
    above: set[str] = set()
    for name, each in conditions.CONDITIONS.items():
        causes = {part for effect in each.effects for part in effect.split("+")}
        causes |= {each.needs} - {""} | ({each.follows.stage} if each.follows else set())
        assert causes <= above, name
        assert not each.course or each.course.condition in everything
        assert each.setting.keys() <= {*conditions.KINDS}
        assert each.orders.keys() <= parameters.drugs.keys() | parameters.labs.keys()
        above |= {name} & conditions.LASTING.keys()
    for lab in parameters.labs.values():
        assert lab.shifts.keys() <= everything
    for causes_of in parameters.rule_out.values():
        assert causes_of.keys() <= {conditions.ANYONE, *conditions.LASTING}
    assert parameters.signs.keys() | parameters.rule_out.keys() <= conditions.OUTCOMES.keys()
    assert {name for signs in parameters.signs.values() for name in signs} <= everything
    assert (conditions.RECORD.listed | conditions.RECORD.uncoded).keys() <= {*conditions.KINDS}
    assert {*conditions.RECORD.died_of} <= everything


def test_every_condition_has_one_rate_for_each_age_band():
    for condition in (conditions.LIFE.mortality, *conditions.CONDITIONS.values()):
        assert len(condition.per_1000) == len(conditions.LIFE.age_bands)


def test_every_diagnosis_code_exists(simulation):
    if not CODE_TABLES.is_dir():
        pytest.skip(f"the code tables of CMS are not at {CODE_TABLES}")
    lines = (CODE_TABLES / "CMS32_DESC_LONG_DX.txt").read_text("latin-1").splitlines()
    icd9 = {line.split()[0] for line in lines}
    icd10 = set((CODE_TABLES / "code-list-April-2026.txt").read_text().split())
    with (CODE_TABLES / "icd10cmtoicd9gem.csv").open() as file:
        icd10 |= {row["icd10cm"] for row in csv.DictReader(file)}
    for code in simulation.codes["code"].to_pylist():
        system, _, body = code.partition("/")
        if system in ("ICD9CM", "ICD10CM"):
            assert body.replace(".", "") in {"ICD9CM": icd9, "ICD10CM": icd10}[system], code
            category = 4 if system == "ICD9CM" and body.startswith("E") else 3
            assert body.find(".") in (-1, category), code


def test_meds_folder(small, tmp_path):
    synthetic.write(small, tmp_path)
    table = pq.read_table(tmp_path / "data" / "0.parquet")
    assert table.equals(small.events)
    truth = pq.read_table(tmp_path / "truth" / "truth.parquet")
    assert truth.equals(small.truth)
    (part,) = Meds(str(tmp_path)).read().parts
    (piece,) = part.pieces(Findings())
    stated = piece.visits.to_pandas().groupby("visit_id")[["start", "end", "kind"]].first()
    visits = small.visits.to_pandas().set_index("visit_id")
    visits.loc[visits["kind"] == "emergency", ["start", "end"]] = pd.NaT  # no code states them
    pd.testing.assert_frame_equal(stated, visits[stated.columns])
    rows = pd.DataFrame({"subject_id": range(1, 301), "time": pd.Timestamp(2012, 1, 1)})
    read = small._replace(truth=truth)
    assert np.array_equal(
        risk(read, rows, outcome="heart_failure", days=365),
        risk(small, rows, outcome="heart_failure", days=365),
    )
    meds = pytest.importorskip("meds", reason="the meds package checks the schema")
    meds.DataSchema.validate(table)
    meds.CodeMetadataSchema.validate(pq.read_table(tmp_path / "metadata" / "codes.parquet"))
    dataset = json.loads((tmp_path / "metadata" / "dataset.json").read_text())
    meds.DatasetMetadataSchema.validate(dataset)


def test_shards_hold_whole_subjects(simulation, tmp_path):
    synthetic.write(simulation, tmp_path)
    shards = [pq.read_table(path) for path in sorted((tmp_path / "data").iterdir())]
    assert pa.concat_tables(shards).equals(simulation.events)
    assert len(shards) == 2
    subjects = [set(shard["subject_id"].unique().to_pylist()) for shard in shards]
    assert subjects[0].isdisjoint(subjects[1])


def test_flat_file(small, tmp_path):
    path = tmp_path / "events.csv.gz"
    synthetic.write_flat(small, path)
    assert path.read_bytes()[:8] == b"\x1f\x8b\x08" + bytes(5)  # gzip, and no time in its header
    flat = pa_csv.read_csv(path).to_pandas()
    events = small.events.to_pandas()
    coded = events["visit_id"].notna() & ~events["code"].str.match("VISIT//|HOSPITAL_")
    assert np.array_equal(flat["code"], events["code"][coded])
    assert np.array_equal(flat["encounter"], events["visit_id"][coded])
    assert (flat["admitted"] <= flat["event_time"]).all()
    assert (flat["event_time"] <= flat["discharged"]).all()
    truth = small.truth.to_pandas().set_index("subject_id").loc[flat["patient"]]
    assert (flat["sex"].to_numpy() == truth["sex"].to_numpy()).all()
    assert (flat["birth_date"].to_numpy() == truth["birth"].dt.date.to_numpy()).all()
    died = (truth["death"] <= truth["exit"]).to_numpy()
    assert np.array_equal(flat["death_date"].notna(), died)


def test_a_thousand_subjects_are_small(tmp_path):
    simulation = synthetic.simulate(1000, seed=1)
    synthetic.write(simulation, tmp_path)
    synthetic.write_flat(simulation, tmp_path / "events.csv.gz")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 3e6
