"""The benchmark on a small invented cohort: every option, killed and repeated, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

import medbert
from medbert import InputError, Store
from medbert.commands import trials
from medbert.commands.arms import BaselineArm
from medbert.data.cohorts import BeforeVisits, Landmarks
from medbert.data.outcomes import CodeWithin, LongStay
from medbert.data.tasks import Task
from medbert.schema import DAY_US, HELD_OUT

QUICK = {
    "task": "mortality_1y",
    "task.index.every_days": 1500,
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    "max_tokens": 16,
    "n_bootstrap": 20,
}
WORDS = (
    "~head@heads.sum",
    "+baseline.logistic.penalties=[0.1]",
    "+baseline.logistic.transforms=[binary]",
    "+baseline.logistic.max_iter=20",
    "heads.frozen_logistic.pooling=[mean]",
    "+baseline.lightgbm.num_leaves=[4]",
    "+baseline.lightgbm.min_child_samples=[10]",
    "+baseline.lightgbm.feature_fraction=[0.5]",
    "+baseline.lightgbm.max_rounds=10",
)
BASELINES = ["age + sex", "L2 logistic regression", "LightGBM"]
DEATHS = Task(
    title="death",
    index=Landmarks(first="2000-01-01", every_days=1500),
    outcome=CodeWithin(codes=["MEDS_DEATH"], gap_days=0, window_days=365),
    min_age=18,
)


def benchmark(made: Path, out: Path, *, words: tuple[str, ...] = WORDS, **settings: object):
    asked = {"store": made / "store", "encoder_dir": made / "encoder", "label_sizes": []}
    return medbert.benchmark(*words, **QUICK | asked | settings, out=out)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name, n, seed, words in (("", 1500, 3, []), ("2", 700, 4, ["encoder"])):
        medbert.synthesize(n_subjects=n, seed=seed, out=folder / f"events{name}")
        words = [f"vocabulary={folder / word}" for word in words]
        medbert.prepare(
            "source=meds",
            f"source.path={folder}/events{name}",
            *words,
            out=folder / f"store{name}",
        )
        if not words:
            quick = {"max_epochs": 1, "accelerator": "cpu"}
            medbert.pretrain(
                store=folder / "store", encoder="tiny", trainer=quick, out=folder / "encoder"
            )
    return folder


@pytest.fixture(scope="module")
def everything(made):
    asked = {
        "encoders": {"modern": made / "encoder"},
        "label_sizes": [200, 9_999_999],
        "draws": 2,
        "gaps": [0, 60],
        "windows": [400, None],
        "out_of_time": "2014-01-01",
        "external": made / "store2",
        "seeds": 2,
    }
    return benchmark(made, made / "report", **asked), made / "report"


def values(results) -> dict[str, float]:
    return {model.name: model.auroc.value for model in results.models}


def test_every_arm_is_judged_on_the_same_held_out_rows(everything):
    study, out = everything
    assert study.results.reference == "Med-BERT, pretrained"
    names = ["Med-BERT, pretrained", "Med-BERT, untrained", "modern", *BASELINES]
    predictions = pq.read_table(out / "predictions.parquet").to_pandas()
    assert predictions.columns[3:].tolist() == names == list(values(study.results))
    reference = pq.read_table(out / "predictions" / "reference.parquet").to_pandas()
    assert (reference["predicted_boolean_probability"] == predictions[names[0]]).all()
    splits = pq.read_table(out.parent / "store" / "subject_splits.parquet").to_pandas()
    assert set(splits.set_index("subject_id")["split"][predictions["subject_id"]]) == {"held_out"}
    assert {c.minus for c in study.comparisons} == {*names[1:]}
    found = {path.name for path in out.iterdir()}
    assert {"report.html", "report.md", "metrics.json", "lint.json", "cohort.json"} <= found
    assert "trained" not in found and not list(out.parent.glob("report.*"))
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "prediction gap" in text and "external store" in text


def test_the_same_encoder_under_two_names_has_the_same_numbers(everything):
    study, _ = everything
    for results in (study.results, *study.elsewhere.values()):
        assert values(results)["modern"] == values(results)["Med-BERT, pretrained"]
    curves = study.efficiency.curves
    assert curves["modern"].points == curves["Med-BERT, pretrained"].points


def test_settings_that_are_the_tasks_own_give_its_own_numbers(everything):
    """A gap of 0 days and the whole history are the task itself; other settings are not."""
    study, _ = everything
    own = values(study.results)
    for sweep, mine in zip(study.sweeps, (0, None), strict=True):
        points = {point.value: values(point.results) for point in sweep.points}
        assert set(points[mine]) == {*own} - {"modern"}
        assert points[mine] == {name: own[name] for name in points[mine]}
        (other,) = (found for value, found in points.items() if value != mine)
        assert other != points[mine]


def test_curves_end_with_all_labels_and_drop_larger_sizes(everything):
    study, _ = everything
    for name, curve in study.efficiency.curves.items():
        first, last = curve.sizes
        assert first == 200 and 200 < last < 1500
        assert [len(draws) for draws in curve.points] == [2, 1]
        assert curve.points[1][0] == pytest.approx(values(study.results)[name])
    assert {(m.over, m.at) for m in study.multiples} == {
        (name, 200) for name in ["Med-BERT, untrained", *BASELINES]
    }


def test_seeds_move_what_is_random_and_nothing_else(everything):
    spread = everything[0].seeds
    assert spread["Med-BERT, pretrained"].sd == 0  # a frozen encoder and an exact fit
    assert spread["Med-BERT, untrained"].sd > 0
    assert {"reference minus untrained", "reference minus best baseline"} < set(spread)


def test_table_one_tells_no_small_count_and_counts_no_birth_as_history(everything):
    table = everything[0].table_one
    assert [*table][:3] == ["train", "tuning", "held_out"] and len(table) == 5
    with_it, without = [*table.values()][3:]
    assert {k for k, v in with_it.items() if v == "hidden"} == {
        k for k, v in without.items() if v == "hidden"
    }
    for column in table.values():
        for what in ("subjects", "rows", "rows with the outcome"):
            said = column[what]
            assert said == "<10" or int(said.strip("≈ ").replace(",", "")) % 10 == 0
        years = column["years of history, median (quartiles)"]
        assert years == "hidden" or float(years.split()[0]) < 13  # of records, not of life


def test_a_killed_benchmark_goes_on_where_it_stopped(made, tmp_path, monkeypatch):
    asked = {"label_sizes": [200], "draws": 1, "untrained": False}
    unbroken = benchmark(made, tmp_path / "unbroken", **asked)
    trained, train = [], BaselineArm.train

    def counted(arm, trial, folder):
        trained.append((trial.name, arm.name))
        if len(trained) == 5:
            raise KeyboardInterrupt
        return train(arm, trial, folder)

    monkeypatch.setattr(BaselineArm, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(made, tmp_path / "broken", **asked)
    again = benchmark(made, tmp_path / "broken", **asked)
    assert len(trained) == 5 + 2 and trained[4] == trained[5]
    assert values(again.results) == values(unbroken.results)
    assert (
        again.efficiency.curves["LightGBM"].points == unbroken.efficiency.curves["LightGBM"].points
    )


def test_heads_compete_on_tuning_and_the_others_are_listed_by_name(made, tmp_path):
    study = benchmark(
        made,
        tmp_path / "report",
        encoder_dir=None,
        encoder="tiny",
        words=WORDS[1:],
    )
    names = [*values(study.results)]
    assert study.results.reference == names[0] == "Med-BERT, untrained"
    best = study.settings["best head on tuning"][names[0]]
    both = {f"{names[0]} ({head})" for head in ("sum", "frozen logistic")}
    assert best in both and set(names) == {names[0], *BASELINES, *(both - {best})}
    searches = json.loads((tmp_path / "report" / "metrics.json").read_text())["searches"]
    tuned = {
        head: searches[head].get("tuning/auroc", searches[head].get("tuning_auroc"))
        for head in both
    }
    assert tuned[best] == max(tuned.values())


def test_an_error_of_the_linter_stops_it_before_anything_is_trained(made, tmp_path, monkeypatch):
    words = [f"vocabulary={made}/encoder", "seed=9"]
    medbert.prepare("source=meds", f"source.path={made}/events", *words, out=tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(BaselineArm, "train", None)
        with pytest.raises(InputError, match=r"allow=\[held_out_in_pretraining\]"):
            benchmark(made, tmp_path / "report", store=tmp_path / "store")
    allowed = benchmark(
        made,
        tmp_path / "report",
        store=tmp_path / "store",
        allow=["held_out_in_pretraining"],
    )
    assert "held_out_in_pretraining" in {found.name for found in allowed.findings}


# --- what is asked ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(made):
    records = Store(made / "store")
    return trials.whole(records, DEATHS.build(records), [365], seed=0, name="all")


def test_tuning_shrinks_with_train(whole):
    ids = whole.frame.subject_ids

    def n(places):
        return len(np.unique(ids[places]))

    found = trials.curve(whole, [100, 400], draws=2)
    for (size, _), trial in found.items():
        assert n(trial.train) == size and set(trial.train) < set(whole.train)
        assert set(trial.tuning) < set(whole.tuning)
        assert n(trial.tuning) == pytest.approx(size * n(whole.tuning) / n(whole.train), abs=6)
        assert trial.judged == whole.judged
    for draw in range(2):
        for split in ("train", "tuning"):
            small, large = (getattr(found[size, draw], split) for size in (100, 400))
            assert set(small) < set(large)


def test_out_of_time_trains_on_what_was_known_and_judges_what_comes_after(whole):
    (trial,) = trials.later(whole, DEATHS, "2014-01-01").values()
    first = np.datetime64("2014-01-01", "us").astype(np.int64)
    until = whole.frame.rows.until
    for places in (trial.train, trial.tuning):
        assert (until[places] + 365 * DAY_US <= first).all() and len(places)
    assert (until[trial.judged[HELD_OUT][1]] >= first).all()


def test_what_cannot_be_asked_is_refused_with_the_cure(whole, made, tmp_path):
    stay = dataclasses.replace(
        DEATHS, index=BeforeVisits(kinds=["inpatient"]), outcome=LongStay(days=7)
    )
    with pytest.raises(InputError, match=r"no gap_days; say gaps=\[\]"):
        trials.gaps(whole, stay, [30])
    with pytest.raises(InputError, match="gaps: with 9000 days: "):
        trials.gaps(whole, DEATHS, [9000])
    with pytest.raises(InputError, match="not a date"):
        trials.later(whole, DEATHS, "soon")
    with pytest.raises(InputError, match="2090-01-01: held_out has 0 rows"):
        trials.later(whole, DEATHS, "2090-01-01")
    with pytest.raises(InputError, match="known after a number of days"):
        trials.later(whole, SimpleNamespace(outcome=None), "2014-01-01")
    words = ["source=meds", f"source.path={made}/events2"]
    medbert.prepare(*words, out=tmp_path / "other")
    with pytest.raises(InputError, match="another vocabulary than"):
        trials.elsewhere(whole, DEATHS, str(tmp_path / "other"))
