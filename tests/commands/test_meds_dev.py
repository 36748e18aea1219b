"""benchmarks/meds_dev: its commands, run as MEDS-DEV's runner runs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_module

import medbert
from medbert import InputError
from medbert.commands import run
from medbert.data import splits
from medbert.schema import BOOLEAN_VALUE, LABELS, PREDICTION_TIME, SPLITS, SUBJECT_ID

ENTRY = Path(__file__).resolve().parents[2] / "benchmarks" / "meds_dev"
MODEL = yaml.safe_load((ENTRY / "model.yaml").read_text(encoding="utf-8"))


def command(kind: str, mode: str, out: Path, **places: Path | str) -> None:
    """As MEDS_DEV.utils.run_in_env: the filled-in command is cmd.sh in ``out``, run by bash."""
    out.mkdir(parents=True)
    text = MODEL["commands"][kind][mode].format(
        output_dir=out, model_dir=ENTRY, demo=True, split="held_out", **places
    )
    (out / "cmd.sh").write_text(f"#!/bin/bash\nset -e\n{text}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", str(out / "cmd.sh")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def write_labels(folder: Path, subjects: dict[str, list[int]]) -> None:
    """labels/SPLIT/0.parquet as ACES writes them: every column, one shard without rows."""
    for split, ids in subjects.items():
        (folder / split).mkdir(parents=True)
        for shard, some in enumerate((ids, [])):
            columns = {
                SUBJECT_ID: pa.array(some, pa.int64()),
                PREDICTION_TIME: pa.array([1_500_000_000_000_000] * len(some), pa.timestamp("us")),
                BOOLEAN_VALUE: pa.array([split == "train" and i % 2 > 0 for i in some], pa.bool_()),
                "integer_value": pa.nulls(len(some), pa.int64()),
                "float_value": pa.nulls(len(some), pa.float32()),
                "categorical_value": pa.nulls(len(some), pa.string()),
            }
            pq.write_table(pa.table(columns), folder / split / f"{shard}.parquet")
    (folder / ".logs").mkdir()
    (folder / ".logs" / "aces.log").touch()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """dataset/ and labels/; unsupervised/, train/, predict/ of the three commands. Paths have a
    blank in them."""
    folder = tmp_path_factory.mktemp("meds dev")
    medbert.synthesize(n_subjects=150, seed=5, out=folder / "dataset")
    ids = pq.read_table(folder / "dataset" / "data", columns=[SUBJECT_ID])[SUBJECT_ID].unique()
    place = splits.places(ids.to_numpy(), fractions=(0.6, 0.2, 0.2), seed=9)
    told = pa.table({SUBJECT_ID: ids, "split": [SPLITS[i] for i in place]})
    pq.write_table(told, folder / "dataset" / "metadata" / "subject_splits.parquet")
    split_of = dict(zip(ids.to_pylist(), place, strict=True))
    subjects = {s: [i for i, p in split_of.items() if SPLITS[p] == s] for s in SPLITS}
    write_labels(folder / "labels", subjects)
    shutil.copytree(folder / "labels", folder / "known")
    shutil.rmtree(folder / "known" / "held_out")  # training may not need it
    data = {"dataset_dir": folder / "dataset"}
    command("unsupervised", "train", folder / "unsupervised", **data)
    data |= {"model_initialization_dir": folder / "unsupervised", "labels_dir": folder / "known"}
    command("supervised", "train", folder / "train", **data)
    data |= {"model_initialization_dir": folder / "train", "labels_dir": folder / "labels"}
    command("supervised", "predict", folder / "predict", **data)
    return folder


def test_predictions_are_the_only_parquet_and_follow_the_labels(made):
    (file,) = (made / "predict").rglob("*.parquet")
    assert file == made / "predict" / "predictions.parquet"
    assert {each.name for each in file.parent.iterdir()} == {"cmd.sh", file.name}
    said = pq.read_table(file)
    labels = pq.read_table(made / "labels" / "held_out" / "0.parquet")
    for name in (SUBJECT_ID, PREDICTION_TIME, BOOLEAN_VALUE):
        assert said[name].to_pylist() == labels[name].to_pylist()
        assert said.schema.field(name).type == LABELS.field(name).type
    assert said.schema.field("predicted_boolean_value").type == pa.bool_()
    assert said.schema.field("predicted_boolean_probability").type == pa.float64()
    assert len(said["predicted_boolean_probability"].unique()) > len(said) / 2


def test_the_splits_are_those_of_the_dataset(made):
    given = medbert.data.splits.read(made / "dataset" / "metadata" / "subject_splits.parquet")
    used = medbert.data.splits.read(made / "unsupervised" / "store" / "subject_splits.parquet")
    assert used.sort_by(SUBJECT_ID).equals(given.sort_by(SUBJECT_ID))


def test_one_class_is_refused_unless_it_is_a_demo(made, tmp_path):
    spec = importlib.util.spec_from_file_location("meds_dev_finetune", ENTRY / "finetune.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = {
        "store": made / "unsupervised" / "store",
        "encoder_dir": made / "unsupervised" / "encoder",
        "task.path": made / "known",
        "out": tmp_path / "run",
    }
    given = [f"{name}='{value}'" for name, value in words.items()]
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        target = f"_target_={spec.name}.train"
        config = compose("finetune", overrides=["task=labels", "+demo=false", target, *given])
    with pytest.raises(InputError, match=r"tuning: \d+ rows, 0 positive"):
        run("finetune", config)
    assert not (tmp_path / "run").exists()


def test_the_entry_is_what_meds_dev_reads():
    about = MODEL["metadata"]
    assert set(about) == {"description", "links", "contacts"} and about["contacts"][0]["name"]
    assert (ENTRY / "requirements.txt").read_text().strip() == f"medbert=={version('medbert')}"
