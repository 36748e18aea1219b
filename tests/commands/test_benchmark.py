"""The benchmark on a small invented cohort: every option, killed and repeated, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

import medbert
from medbert import InputError, Store
from medbert.commands.encoders.classifier import Recipe
from medbert.commands.encoders.questions import of_outcome
from medbert.commands.study import trials
from medbert.commands.study.arms import BaselineArm, EncoderArm
from medbert.commands.study.beside import QueryArm
from medbert.commands.study.trainings import Answer, best_of_families, standard_error
from medbert.data.tasks import Task
from medbert.data.tasks.cohorts import BeforeVisits, Landmarks
from medbert.data.tasks.outcomes import CodeAtNextVisit, CodeWithin, LongStay
from medbert.evaluate.metrics import auroc
from medbert.model.checkpoint import load_module
from medbert.model.heads import FrozenLogistic
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
    families = ["Med-BERT, pretrained", "Med-BERT, untrained", "modern"]
    predictions = pq.read_table(out / "predictions.parquet").to_pandas()
    names = predictions.columns[3:].tolist()
    assert names == list(values(study.results)) and names[:6] == [*families, *BASELINES]
    best, kinds = study.settings["best head on tuning"], ("frozen beside counts", "frozen logistic")
    arms = {f"{family} ({kind})" for family in families for kind in kinds}
    assert [*best] == families and {*names[6:]} == arms - {*best.values()}
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
        assert [*points[mine]] == ["Med-BERT, pretrained", "Med-BERT, untrained", *BASELINES]
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
    kinds = ("frozen beside counts", "sum", "frozen logistic")  # in this order
    arms = [f"{names[0]} ({kind})" for kind in kinds]
    assert best in arms and set(names) == {names[0], *BASELINES, *arms} - {best}
    assert {*json.loads((tmp_path / "report" / "metrics.json").read_text())["searches"]} >= {*arms}


def test_the_first_arm_is_taken_unless_another_is_better_beyond_chance():
    arms = [SimpleNamespace(family=name[0], name=name) for name in ("a1", "a2", "a3", "b1", "c1")]

    def best(**auroc: tuple[float, float]) -> dict[str, str]:
        answers = {name: Answer(*said, {}, {}, 0.0) for name, said in auroc.items()}
        return {family: arm.name for family, arm in best_of_families(arms, answers).items()}

    rest, near = {"b1": (0.5, 0.0)}, {"a3": (0.80, 0.03)}
    assert best(a1=(0.73, 0.03), a2=(0.79, 0.01), **near, **rest) == {"a": "a1", "b": "b1"}
    assert best(a1=(0.70, 0.03), a2=(0.75, 0.01), **near, **rest) == {"a": "a2", "b": "b1"}
    assert best(a1=(0.70, 0.03), a2=(0.71, 0.03), **near) == {"a": "a3"}
    assert best(a1=(0.82, 0.1), a2=(1.0, 0.0)) == {"a": "a1"}, "1.0 on a few has no error, it says"
    assert best(a2=(0.7, 0.0), a3=(0.7, 0.0)) == {"a": "a2"}


def test_the_standard_error_is_that_of_simulated_aurocs():
    random, labels = np.random.default_rng(0), np.arange(300) < 60
    drawn = [auroc(labels, expit(random.normal(size=300) + labels)) for _ in range(300)]
    assert standard_error(np.mean(drawn), labels) == pytest.approx(np.std(drawn), rel=0.15)


# --- an encoder that foretells ------------------------------------------------------------------


@pytest.fixture(scope="module")
def foretelling(made) -> Path:
    return medbert.pretrain(
        *("encoder.layers=1", "encoder.hidden=16", "encoder.feed_forward=16"),
        store=made / "store",
        encoder="causal",
        objective="time_to_event",
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=made / "foretelling",
    )


def test_what_an_encoder_foretells_is_an_arm_alone_and_beside_counts(made, foretelling, tmp_path):
    landmarks = {"task.population": [], "task.seen_within_days": None, "gaps": [0]}
    few = {"encoder_dir": foretelling, "label_sizes": [300], "draws": 1}
    study = benchmark(made, tmp_path / "report", task="dhf", **landmarks, **few)
    listed = {*values(study.results), *study.settings["best head on tuning"].values()}
    asked = ("query, no labels", "query beside counts", "frozen logistic")
    assert {f"Med-BERT, pretrained ({kind})" for kind in asked} <= listed
    assert "Med-BERT, pretrained (frozen beside counts)" not in listed
    silent = ("frozen beside counts", "frozen logistic")  # untrained, it has no answer
    assert {f"Med-BERT, untrained ({kind})" for kind in silent} <= listed
    assert not any("untrained (query" in name for name in listed)


HEART_FAILURE = CodeWithin(codes=["ICD10CM/I50", "ICD9CM/428"], gap_days=30, window_days=365)


def test_the_answer_to_the_question_needs_no_labels(whole, foretelling, tmp_path):
    trial, model = whole, load_module(foretelling, "encoder")
    arm = QueryArm("m", lambda seed: model, "weights", max_tokens=64, batch_tokens=4096)
    frame = dataclasses.replace(trial.frame, outcome=HEART_FAILURE)

    def answer(*, train: np.ndarray, seed: int, **changes) -> tuple[float, np.ndarray]:
        other = dataclasses.replace(frame, _kept={}, **changes)
        judged = {HELD_OUT: (other, trial.judged[HELD_OUT][1])}
        given = trial._replace(frame=other, train=train, seed=seed, judged=judged)
        tuned, found, _ = arm.train(given, tmp_path)
        return tuned, found[HELD_OUT]

    tuned, said = answer(train=trial.train, seed=0)
    turned = frame.rows._replace(labels=~frame.rows.labels)
    other, again = answer(train=trial.train[:9], seed=5, rows=turned)
    assert (again == said).all() and tuned == pytest.approx(1 - other)
    assert ((said > 0) & (said < 1)).all() and len(np.unique(said)) > 50
    longer = dataclasses.replace(HEART_FAILURE, window_days=900)
    assert (answer(train=trial.train, seed=0, outcome=longer)[1] > said).all()


def test_a_task_is_a_question_only_where_it_asks_for_codes(whole):
    asked = of_outcome(HEART_FAILURE, whole.frame.records)
    codes = np.array(whole.frame.records.vocabulary.codes)[asked.tokens]
    assert len(codes) and all(code.startswith(("ICD10CM/I50", "ICD9CM/428")) for code in codes)
    assert (asked.gap, asked.window) == (30, 365)
    laboratory, next_visit = {"min_value": 3.0}, CodeAtNextVisit(codes=["ICD10CM/I50"])
    others = [DEATHS.outcome, dataclasses.replace(HEART_FAILURE, **laboratory), next_visit]
    for other in (None, LongStay(days=7), *others):  # a death is no token
        assert of_outcome(other, whole.frame.records) is None


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
    cohort = DEATHS.build(records)
    return trials.whole(records, cohort, [365], outcome=DEATHS.outcome, seed=0, name="all")


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


def test_answers_of_training_rows_come_from_folds_that_have_not_seen_them(made):
    records = Store(made / "store")
    cohort = DEATHS.build(records)
    chance = np.random.default_rng(0).random(len(cohort.rows)) < 0.3
    trial = trials.whole(
        records, cohort._replace(labels=chance), [], outcome=DEATHS.outcome, seed=0
    )
    encoder = load_module(made / "encoder", "encoder")
    recipe = Recipe(FrozenLogistic, None, None, True, 64, 4096, 1, 0)  # type: ignore[arg-type]
    arm = EncoderArm("any", "frozen", lambda seed: encoder, "weights", recipe, None)
    at = trial.frame, trial.train[:400]
    trial = trial._replace(train=at[1])
    answers = arm.answers(trial, {"train": at, "same rows, not as train": at})
    labels = trial.frame.rows.labels[trial.train]
    told = {name: auroc(labels, expit(value)) for name, value in answers.items()}
    assert told["train"] < 0.6 < told["same rows, not as train"]
