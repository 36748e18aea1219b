"""What others' tools say of the same records: es-aces of labels, meds-evaluation of predictions,
and the linter of a real store (pip install '.[outside]')."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SHARED
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

import medbert
from medbert import Store
from medbert.data.codes import is_diagnosis
from medbert.data.tasks import ExternalLabels
from medbert.evaluate import metrics
from medbert.schema import BOOLEAN_VALUE, DAY_US, PREDICTION_TIME, PROBABILITY, SUBJECT_ID

MIMIC = SHARED / "mimic4_demo_meds"
ADMISSION, DISCHARGE = "^HOSPITAL_ADMISSION//.*", "^HOSPITAL_DISCHARGE//.*"
DIED = "HOSPITAL_DISCHARGE//DIED"
needs_mimic = pytest.mark.skipif(
    not MIMIC.exists(), reason="the data for measuring (../shared/data) is not on this machine"
)
KEY = [SUBJECT_ID, PREDICTION_TIME]

PREDICATES = {
    "admission": {"code": {"regex": ADMISSION}},
    "discharge": {"code": {"regex": DISCHARGE}},
    "death": {"code": "MEDS_DEATH"},
    "died": {"code": DIED},
    "end_of_life": {"expr": "or(died, death)"},
}
UNTIL = {"start_inclusive": True, "end_inclusive": True, "index_timestamp": "end"}
AFTER = {"start_inclusive": False, "end_inclusive": True}
NONE = "(None, 0)"
ACES = {
    "readmission_30d": {
        "trigger": "discharge",
        "windows": {
            "input": {"start": None, "end": "trigger", **UNTIL, "has": {"end_of_life": NONE}},
            "target": {"start": "input.end", "end": "start + 30d", **AFTER, "label": "admission"},
        },
    },
    "in_hospital_mortality": {
        "trigger": "admission",
        "windows": {
            "input": {"start": None, "end": "trigger + 24h", **UNTIL},
            "first_day": {
                "start": "trigger",
                "end": "start + 24h",
                **AFTER,
                "has": {"discharge": NONE, "end_of_life": NONE},
            },
            "target": {
                "start": "first_day.end",
                "end": "start -> discharge",
                **AFTER,
                "label": "end_of_life",
            },
        },
    },
}


@pytest.fixture(scope="module")
def mimic(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mimic") / "store"
    return medbert.prepare("source=meds", f"source.path={MIMIC}", out=out)


def cohort_of(store: Path, task: str) -> pd.DataFrame:
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        config = compose("finetune", overrides=[f"task={task}"]).task
    return frame_of(Store(store), instantiate(config, _convert_="all"))


def frame_of(records: Store, task) -> pd.DataFrame:
    rows, until, labels, *_ = task.build(records)
    subjects, times = records.subject_ids[rows], until.view("datetime64[us]")
    return pd.DataFrame({SUBJECT_ID: subjects, PREDICTION_TIME: times, "label": labels})


@needs_mimic
@pytest.mark.parametrize("task", ACES)
def test_the_labels_of_aces_are_ours_row_for_row(mimic, tmp_path, task):
    pytest.importorskip("aces", reason="es-aces is not installed (pip install '.[outside]')")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"predicates": PREDICATES, **ACES[task]}))
    (data,) = (MIMIC / "data").glob("**/*.parquet")
    words = {
        "config_path": tmp_path / "task.yaml",
        "cohort_dir": tmp_path,
        "cohort_name": "task",
        "data.standard": "meds",
        "data.path": data,
        "output_filepath": tmp_path / "labels" / "0.parquet",
        "hydra.run.dir": tmp_path / "log",
    }
    command = [Path(sys.executable).with_name("aces-cli"), *(f"{k}={v}" for k, v in words.items())]
    subprocess.run(command, check=True, capture_output=True)
    ours = cohort_of(mimic, task)
    given = ExternalLabels(path=str(tmp_path / "labels"), title="of ACES")
    theirs = frame_of(Store(mimic), given)
    both = ours.merge(theirs, on=KEY, how="outer", suffixes=("", "_theirs"), indicator=True)
    assert (both["_merge"] == "both").all() and len(ours) > 200
    assert (both["label"] == both["label_theirs"]).all() and ours["label"].nunique() == 2


@needs_mimic
def test_nobody_who_was_discharged_dead_is_a_candidate_for_readmission(mimic):
    events = pd.read_parquet(MIMIC / "data", columns=[SUBJECT_ID, "time", "code"])
    discharges = events[events["code"].str.match(DISCHARGE)].drop(columns="code")
    dead = events.loc[events["code"] == DIED].drop(columns="code")
    deaths = events[events["code"] == "MEDS_DEATH"].merge(dead, on=SUBJECT_ID)
    assert (deaths["time_x"] > deaths["time_y"]).any()  # stamped after the discharge, as by day
    left_out = discharges.rename(columns={"time": PREDICTION_TIME}).merge(
        cohort_of(mimic, "readmission_30d"), on=KEY, how="left", indicator=True
    )
    out = left_out.loc[left_out["_merge"] == "left_only", KEY].to_numpy().tolist()
    assert sorted(out) == sorted(dead.to_numpy().tolist())


# --- a task of 24 hours after admission, where diagnoses are stamped at discharge -----------------

AFTER_A_DAY = (
    "task=prolonged_los",
    "task.index._target_=medbert.data.tasks.cohorts.VisitStarts",
    "+task.index.hours_after_start=24",
)


@pytest.fixture(scope="module")
def stamped_early(tmp_path_factory) -> Path:
    """The same store made of events that have the diagnoses of a stay at its admission."""
    folder = tmp_path_factory.mktemp("early")
    (file,) = (MIMIC / "data").glob("**/*.parquet")
    table = pq.read_table(file, columns=[SUBJECT_ID, "time", "code", "numeric_value", "hadm_id"])
    frame = table.to_pandas()
    start = frame[frame["code"].str.match(ADMISSION)].groupby("hadm_id")["time"].min()
    diagnosis = frame["code"].str.startswith("DIAGNOSIS") & frame["hadm_id"].isin(start.index)
    frame.loc[diagnosis, "time"] = frame.loc[diagnosis, "hadm_id"].map(start)
    (folder / "data").mkdir()
    early = pa.Table.from_pandas(frame, table.schema, preserve_index=False)
    pq.write_table(early, folder / "data" / "0.parquet")
    shutil.copytree(MIMIC / "metadata", folder / "metadata")
    store = medbert.prepare("source=meds", f"source.path={folder}", out=folder / "store")
    assert Store(store).info["counts"]["diagnoses_moved_to_discharge"] > 1000
    return store


@needs_mimic
@pytest.mark.parametrize("stamped", ["mimic", "stamped_early"])
def test_a_day_after_admission_no_diagnosis_of_the_stay_is_seen(request, tmp_path, stamped):
    store = request.getfixturevalue(stamped)
    found = medbert.lint(*AFTER_A_DAY, store=store, out=tmp_path / "lint")
    assert not [one for one in found if one.severity == "error"]
    records = Store(store)
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        config = compose("lint", overrides=[*AFTER_A_DAY, "store=x", "out=y"]).task
    rows, until, *_ = instantiate(config, _convert_="all").build(records)
    known = records.history(rows, until=until)
    row_T = np.repeat(np.arange(len(rows)), np.diff(known.offsets_B1))
    diagnosis_T = is_diagnosis(records.codes)[known.code_T]
    assert diagnosis_T.any()  # of earlier stays; one may end at the very minute of an admission
    assert not (diagnosis_T & (known.time_T > until[row_T] - DAY_US)).any()
    ordinal = np.diff(known.visit_offsets_B1)  # the stay is the last visit that has begun
    assert not (diagnosis_T & (known.visit_T == ordinal[row_T])).any()


# --- meds-evaluation ------------------------------------------------------------------------------


def test_meds_evaluation_reads_our_predictions_and_agrees(tmp_path):
    polars = pytest.importorskip("polars", reason="needs pip install '.[outside]'")
    theirs = pytest.importorskip("meds_evaluation.evaluate", reason="pip install '.[outside]'")
    medbert.synthesize(n_subjects=400, seed=3, out=tmp_path / "events")
    path = f"source.path={tmp_path}/events"
    store = medbert.prepare("source=meds", path, out=tmp_path / "store")
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    run = medbert.finetune(
        "task=prolonged_los",
        "head=mean",
        store=store,
        encoder="tiny",
        trainer=trainer,
        out=tmp_path / "run",
    )
    labels = tmp_path / "run" / "labels.parquet"
    said = medbert.predict(run=run, store=store, cohort=labels, device="cpu", out=tmp_path / "said")
    for folder in (run, said):
        file = folder / "predictions.parquet"
        found = theirs.evaluate_binary_classification(polars.read_parquet(file))
        found = found["samples_equally_weighted"]
        ours = pq.read_table(file)
        label, probability = ours[BOOLEAN_VALUE].to_numpy(), ours[PROBABILITY].to_numpy()
        for name, measure in {
            "roc_auc_score": metrics.auroc,
            "average_precision_score": metrics.auprc,
            "brier_score": metrics.brier,
        }.items():  # theirs keeps 32 bits of a probability
            assert found[name] == pytest.approx(measure(label, probability), abs=1e-5), name
