"""Baselines worth beating: age and sex, L2 logistic regression and LightGBM on counts of codes.

Each one fits on train and picks its settings by AUROC on tuning, and keeps the record of that
search. The constructors take plain values only, so that a YAML can name them by ``_target_``.
Suffixes here: N rows, K columns of codes (one block per time window), D dense columns.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import expit

from medbert.evaluate.metrics import Array, auroc
from medbert.schema import InputError

SHAPE = ("num_leaves", "min_child_samples", "feature_fraction", "learning_rate")
DENSE_ONLY = ("linear", "quadratic")  # transforms that pass counts over
QUIET = {"deterministic": True, "force_row_wise": True, "verbosity": -1}


class Features(NamedTuple):
    """What a baseline sees of N rows, all known by the prediction time.

    ``counts`` scipy sparse (N, K), how often each code occurs; ``dense`` (N, D), such as age in
    years and sex as 0 or 1, NaN where unknown. K or D may be 0. ``sets``: feature sets to choose
    from, by the number of their columns of ``counts``, from the first; none: all columns.
    """

    counts: Any
    dense: Array
    sets: Mapping[str, int] = MappingProxyType({})

    def each(self) -> dict[str, Features]:
        """The features of each set by its name; all of them by "" where there are no sets."""
        sets = self.sets or {"": self.counts.shape[1]}
        return {name: Features(self.counts[:, :n], self.dense) for name, n in sets.items()}

    def at(self, rows: NDArray[np.intp]) -> Features:
        """Some of the rows."""
        return Features(self.counts[rows], self.dense[rows], self.sets)


@dataclass(frozen=True)
class Search:
    """Every setting tried, in order, with its AUROC on tuning; and the one that was chosen.

    ``at_edge`` names the setting whose chosen value is the first or last on offer, where a wider
    search might do better; None: well inside.
    """

    trials: tuple[dict[str, Any], ...]
    chosen: dict[str, Any]
    auroc: float
    at_edge: str | None


@dataclass(frozen=True)
class _Dense:
    """Dense columns made ready for a linear model by what train knows of them.

    Unknown values become the median of train, with a column that says so; known ones are
    standardised; ``quadratic`` adds squares and products.
    """

    median: Array
    mean: Array
    scale: Array
    unknown: NDArray[np.bool_]
    quadratic: bool

    @classmethod
    def learn(cls, dense: Array, *, quadratic: bool) -> _Dense:
        unknown_ND = np.isnan(dense)
        known = [column[~np.isnan(column)] for column in dense.T]
        median = np.array([np.median(column) if column.size else 0.0 for column in known])
        filled_ND = np.where(unknown_ND, median, dense)
        spread_D = filled_ND.std(axis=0)
        scale_D = np.where(spread_D > 0, spread_D, 1.0)
        unknown_D = np.logical_or.reduce(unknown_ND)
        return cls(median, filled_ND.mean(axis=0), scale_D, unknown_D, quadratic)

    def __call__(self, dense: Array) -> Array:
        unknown_ND = np.isnan(dense)
        scaled_ND = (np.where(unknown_ND, self.median, dense) - self.mean) / self.scale
        columns = [scaled_ND, unknown_ND[:, self.unknown]]
        if self.quadratic:
            pairs = itertools.combinations_with_replacement(range(dense.shape[1]), 2)
            columns += [scaled_ND[:, [i]] * scaled_ND[:, [j]] for i, j in pairs]
        return np.hstack(columns, dtype=np.float64)


@dataclass(frozen=True)
class _Design:
    """The matrix of a linear model: scaled counts beside dense columns."""

    transform: str
    largest: Array | None
    dense: _Dense

    @classmethod
    def learn(cls, features: Features, *, transform: str) -> _Design:
        dense = _Dense.learn(features.dense, quadratic=transform == "quadratic")
        if transform in DENSE_ONLY:
            return cls(transform, None, dense)
        largest_K = _transformed(features.counts, transform).max(axis=0).toarray().ravel()
        return cls(transform, np.where(largest_K > 0, largest_K, 1.0), dense)

    def __call__(self, features: Features) -> Any:
        dense_ND = self.dense(features.dense)
        if self.largest is None:
            return dense_ND
        counts = _transformed(features.counts[:, : self.largest.size], self.transform)
        return sparse.hstack([counts.multiply(1 / self.largest), dense_ND], format="csr")


@dataclass(frozen=True)
class FittedLinear:
    """A chosen logistic regression."""

    design: _Design
    coefficients: Array
    intercept: float
    search: Search

    def predict_proba(self, features: Features) -> Array:
        """Probability of the outcome, (N,)."""
        return expit(self.design(features) @ self.coefficients + self.intercept)


@dataclass(frozen=True)
class FittedLightGBM:
    """A chosen LightGBM booster, at its best round."""

    booster: Any
    search: Search

    def predict_proba(self, features: Features) -> Array:
        """Probability of the outcome, (N,)."""
        columns = self.booster.num_feature() - features.dense.shape[1]
        used = _stacked(Features(features.counts[:, :columns], features.dense))
        return np.asarray(self.booster.predict(used, num_iteration=self.booster.best_iteration))


@dataclass(frozen=True)
class LogisticBaseline:
    """L2 logistic regression on counts of codes, as presence or log(1 + count), and dense columns.

    Codes are scaled by the largest value in train, dense columns to unit variance; the intercept is
    not penalised. Every combination of feature set, transform and penalty is tried.
    """

    name: str = "L2 logistic regression"
    transforms: Sequence[str] = ("binary", "log1p")
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 10.0)  # C
    max_iter: int = 500

    def fit(
        self,
        features: Features,
        labels: ArrayLike,
        tuning: Features,
        tuning_labels: ArrayLike,
        *,
        seed: int,
        threads: int,
    ) -> FittedLinear:
        """Search; the solver is exact and single-threaded, so seed and threads change nothing."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        train, labels_N = _checked(features, labels, where=f"{self.name}, train")
        held, held_labels_N = _checked(tuning, tuning_labels, where=f"{self.name}, tuning")
        trials: list[dict[str, Any]] = []
        fits: list[tuple[_Design, Array, float]] = []
        for transform, name, used in _offered(train, self.transforms):
            design = _Design.learn(used, transform=transform)
            train_NK, held_NK = design(used), design(held)
            model = LogisticRegression(warm_start=True, max_iter=self.max_iter)
            for penalty in sorted(self.penalties):  # strong to weak: each starts at the last
                # whether it converged is said in the record
                with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                    model.set_params(C=penalty).fit(train_NK, labels_N)
                fits.append((design, model.coef_[0].copy(), float(model.intercept_[0])))
                trials.append({**_said(name), "transform": transform, "C": penalty})
                trials[-1]["converged"] = bool(model.n_iter_[0] < self.max_iter)
                trials[-1]["auroc"] = auroc(held_labels_N, model.predict_proba(held_NK)[:, 1])
        bounds = (min(self.penalties), max(self.penalties))
        best, search = _choose(trials, edge="C", bounds=bounds)
        return FittedLinear(*fits[best], search)


@dataclass(frozen=True)
class AgeSexBaseline(LogisticBaseline):
    """The same on the dense columns alone, straight or with squares and products."""

    name: str = "age + sex"
    transforms: Sequence[str] = ("linear", "quadratic")
    penalties: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LightGBMBaseline:
    """Gradient-boosted trees on raw counts and dense columns; rounds by early stopping on tuning.

    Feature sets are tried with the first combination of the four settings, and the best of them
    with every other.
    """

    name: str = "LightGBM"
    num_leaves: Sequence[int] = (7, 31)
    min_child_samples: Sequence[int] = (10, 100)
    feature_fraction: Sequence[float] = (0.3, 0.9)
    learning_rate: Sequence[float] = (0.05,)
    max_rounds: int = 2000
    patience: int = 50

    def fit(
        self,
        features: Features,
        labels: ArrayLike,
        tuning: Features,
        tuning_labels: ArrayLike,
        *,
        seed: int,
        threads: int,
    ) -> FittedLightGBM:
        """Search; the same seed gives the same trees, whatever the threads."""
        try:
            import lightgbm
        except ImportError as error:
            raise InputError(f"{self.name} is not installed: pip install lightgbm") from error
        train, labels_N = _checked(features, labels, where=f"{self.name}, train")
        held, held_labels_N = _checked(tuning, tuning_labels, where=f"{self.name}, tuning")
        shared = {"feature_pre_filter": False, "num_threads": threads, "seed": seed, **QUIET}
        held_sets, data = held.each(), {}
        for name, used in train.each().items():
            train_set = lightgbm.Dataset(_stacked(used), labels_N, params=shared)
            held_set = train_set.create_valid(_stacked(held_sets[name]), held_labels_N)
            data[name] = train_set, held_set
        trials: list[dict[str, Any]] = []
        boosters, bounds = [], (0, self.max_rounds)
        for values in itertools.product(*(getattr(self, name) for name in SHAPE)):
            setting = dict(zip(SHAPE, values, strict=True))
            for name, (train_set, held_set) in data.items():
                booster = lightgbm.train(
                    {"objective": "binary", "metric": "auc", "lambda_l2": 1.0, **shared, **setting},
                    train_set,
                    num_boost_round=self.max_rounds,
                    valid_sets=[held_set],
                    callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
                )
                trials.append({**_said(name), **setting, "rounds": booster.best_iteration})
                trials[-1]["auroc"] = booster.best_score["valid_0"]["auc"]
                boosters.append(booster)
            if len(data) > 1:
                name = [*data][_choose(trials, edge="rounds", bounds=bounds)[0]]
                data = {name: data[name]}
        best, search = _choose(trials, edge="rounds", bounds=bounds)
        return FittedLightGBM(boosters[best], search)


def _checked(features: Features, labels: ArrayLike, *, where: str) -> tuple[Features, Array]:
    """Ready to fit; InputError where rows do not match, or nothing or one class is there."""
    counts, dense = features.counts, np.asarray(features.dense, dtype=np.float64)
    labels_N = np.asarray(labels, dtype=np.float64)
    rows, positives = (counts.shape[0], dense.shape[0], labels_N.size), int(labels_N.sum())
    if len(set(rows)) > 1:
        raise InputError(f"{where}: rows of counts, dense and labels differ: {rows}")
    if not counts.shape[1] + dense.shape[1]:
        raise InputError(f"{where}: no columns to learn from")
    if positives in (0, labels_N.size):
        raise InputError(
            f"{where}: {labels_N.size} rows with {positives} positives; a baseline needs both "
            "classes there: use more subjects or another split seed"
        )
    return Features(sparse.csr_matrix(counts, dtype=np.float64), dense, features.sets), labels_N


def _offered(features: Features, transforms: Sequence[str]) -> Iterator[tuple[str, str, Features]]:
    """Transform, name of the feature set, and its features."""
    for transform in transforms:
        sets = {"": features} if transform in DENSE_ONLY else features.each()
        yield from ((transform, *each) for each in sets.items())


def _said(features: str) -> dict[str, str]:
    return {"features": features} if features else {}


def _choose(
    trials: list[dict[str, Any]], *, edge: str, bounds: tuple[float, float]
) -> tuple[int, Search]:
    """The place of the best trial, and the record of all of them."""
    best = max(range(len(trials)), key=lambda trial: trials[trial]["auroc"])
    chosen = {key: value for key, value in trials[best].items() if key != "auroc"}
    at_edge = edge if chosen[edge] in bounds else None
    return best, Search(tuple(trials), chosen, trials[best]["auroc"], at_edge)


def _transformed(counts: Any, transform: str) -> Any:
    if transform == "binary":
        return (counts > 0).astype(np.float64)
    if transform == "log1p":
        return sparse.csr_matrix(counts, dtype=np.float64).log1p()
    raise InputError(f"transform {transform!r} is unknown: use binary or log1p")


def _stacked(features: Features) -> Any:
    """Counts beside dense columns, unknown values as NaN (LightGBM sends them either way)."""
    return sparse.csr_matrix(sparse.hstack([features.counts, features.dense]), dtype=np.float64)
