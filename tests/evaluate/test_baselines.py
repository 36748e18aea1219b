"""Baselines find the signal, choose on tuning, and keep the record."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit

from medbert.evaluate.baselines import (
    AgeSexBaseline,
    Features,
    LightGBMBaseline,
    LogisticBaseline,
)
from medbert.evaluate.metrics import auroc
from medbert.schema import InputError

ALL = [
    AgeSexBaseline(),
    LogisticBaseline(penalties=(0.01, 0.1, 1.0)),
    LightGBMBaseline(num_leaves=(4,), min_child_samples=(10,), max_rounds=60, patience=10),
]
NAMES = [baseline.name for baseline in ALL]


def toy(n: int, *, seed: int, ages: bool = True) -> tuple[Features, np.ndarray]:
    """Sparse counts of 60 codes, ten of which raise the risk; age does too."""
    rng = np.random.default_rng(seed)
    counts = sparse.random_array(
        (n, 60),
        density=0.1,
        rng=rng,
        format="csr",
        data_sampler=lambda size: rng.integers(1, 6, size),
    )
    age, sex = rng.normal(60, 12, n), rng.integers(0, 2, n).astype(float)
    logits = (counts > 0)[:, :10].sum(axis=1) * 1.2 + (age - 60) / 12 - 2
    labels = (rng.random(n) < expit(logits)).astype(int)
    age[rng.random(n) < 0.1] = np.nan
    if not ages:
        age[:] = np.nan
    return Features(counts, np.column_stack([age, sex])), labels


def fit(baseline: Any, *, ages: bool = True, seed: int = 0) -> Any:
    train, tuning = toy(1200, seed=1, ages=ages), toy(500, seed=2, ages=ages)
    return baseline.fit(*train, *tuning, seed=seed, threads=1)


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
def test_beats_chance_on_rows_never_seen(baseline: Any) -> None:
    features, labels = toy(1500, seed=3)
    probabilities = fit(baseline).predict_proba(features)
    assert probabilities.shape == (1500,)
    assert auroc(labels, probabilities) > (0.62 if baseline.name == "age + sex" else 0.72)


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
def test_the_search_is_recorded_and_the_best_is_chosen(baseline: Any) -> None:
    fitted = fit(baseline)
    search = json.loads(json.dumps(asdict(fitted.search)))
    assert len(search["trials"]) >= 2
    assert search["auroc"] == max(trial["auroc"] for trial in search["trials"])
    assert {**search["chosen"], "auroc": search["auroc"]} in search["trials"]
    features, labels = toy(500, seed=2)
    assert auroc(labels, fitted.predict_proba(features)) == pytest.approx(search["auroc"])


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
def test_same_seed_same_probabilities(baseline: Any) -> None:
    features, _ = toy(50, seed=3)
    first, second = (fit(baseline, seed=7).predict_proba(features) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
def test_age_may_be_unknown_for_everyone(baseline: Any) -> None:
    features, _ = toy(50, seed=3, ages=False)
    assert np.isfinite(fit(baseline, ages=False).predict_proba(features)).all()


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
@pytest.mark.parametrize("split", ["train", "tuning"])
def test_one_class_is_refused_by_split(baseline: Any, split: str) -> None:
    features, labels = toy(40, seed=1)
    nobody = np.zeros(40)
    pair = {"train": (nobody, labels), "tuning": (labels, nobody)}[split]
    with pytest.raises(InputError, match=f"{split}: 40 rows with 0 positives"):
        baseline.fit(features, pair[0], features, pair[1], seed=0, threads=1)


@pytest.mark.parametrize("baseline", ALL, ids=NAMES)
def test_survives_a_handful_of_rows(baseline: Any) -> None:
    features, _ = toy(6, seed=1)
    labels = np.array([0, 1, 0, 1, 0, 1])
    fitted = baseline.fit(features, labels, features, labels, seed=0, threads=1)
    assert np.isfinite(fitted.predict_proba(features)).all()


@pytest.mark.parametrize("baseline", ALL[1:], ids=NAMES[1:])
def test_counts_alone_will_do(baseline: Any) -> None:
    (features, labels), (tuning, tuning_labels) = toy(300, seed=1), toy(200, seed=2)
    nothing = features.counts, np.empty((300, 0))
    held = Features(tuning.counts, np.empty((200, 0)))
    fitted = baseline.fit(Features(*nothing), labels, held, tuning_labels, seed=0, threads=1)
    assert fitted.search.auroc > 0.6


def test_unknown_values_are_filled_from_train_only() -> None:
    fitted = fit(AgeSexBaseline())
    known = np.array([[70.0, 1.0]])
    unknown = np.array([[np.nan, 1.0]])
    nothing = sparse.csr_matrix((1, 60))
    one, other = (fitted.predict_proba(Features(nothing, row))[0] for row in (known, unknown))
    crowd = Features(sparse.csr_matrix((2, 60)), np.vstack([unknown, [[20.0, 0.0]]]))
    assert one != other
    assert fitted.predict_proba(crowd)[0] == other


def test_a_search_that_ends_at_the_edge_says_so() -> None:
    train, tuning = toy(1200, seed=1), toy(500, seed=2)
    weak = LogisticBaseline(penalties=(1e-6, 1e-5))
    assert weak.fit(*train, *tuning, seed=0, threads=1).search.at_edge == "C"


def test_rows_that_do_not_match_are_refused() -> None:
    features, labels = toy(40, seed=1)
    with pytest.raises(InputError, match="train: rows of counts, dense and labels differ"):
        LogisticBaseline().fit(features, labels[:-1], features, labels, seed=0, threads=1)


def test_missing_lightgbm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(InputError, match="pip install lightgbm"):
        fit(LightGBMBaseline())


def with_noise(features: Features, *, seed: int) -> Features:
    """The same, and 300 columns more that tell nothing, as a larger feature set."""
    noise = sparse.random_array(
        (len(features.dense), 300), density=0.3, rng=np.random.default_rng(seed), format="csr"
    )
    sets = {"codes": features.counts.shape[1], "codes and noise": features.counts.shape[1] + 300}
    return Features(sparse.hstack([features.counts, noise], format="csr"), features.dense, sets)


@pytest.mark.parametrize("baseline", ALL[1:], ids=NAMES[1:])
def test_the_feature_set_is_chosen_on_tuning_and_the_others_change_nothing(baseline: Any) -> None:
    (train, labels), (tuning, tuning_labels), (held, _) = (toy(900, seed=s) for s in (1, 2, 3))
    plain = baseline.fit(train, labels, tuning, tuning_labels, seed=0, threads=1)
    given = with_noise(train, seed=4), labels, with_noise(tuning, seed=5), tuning_labels
    fitted = baseline.fit(*given, seed=0, threads=1)
    assert {trial["features"] for trial in fitted.search.trials} == {"codes", "codes and noise"}
    assert fitted.search.chosen["features"] == "codes"
    assert np.allclose(
        fitted.predict_proba(with_noise(held, seed=6)), plain.predict_proba(held), atol=1e-3
    )


def test_age_and_sex_know_of_no_feature_sets() -> None:
    (train, labels), (tuning, tuning_labels) = toy(300, seed=1), toy(300, seed=2)
    plain = AgeSexBaseline().fit(train, labels, tuning, tuning_labels, seed=0, threads=1)
    given = with_noise(train, seed=4), labels, with_noise(tuning, seed=5), tuning_labels
    assert AgeSexBaseline().fit(*given, seed=0, threads=1).search == plain.search
