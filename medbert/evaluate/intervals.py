"""How sure a number is: bootstrap over subjects, DeLong's test of two AUROCs, and both at work.

A subject with several rows is drawn whole, and every model sees the same draws, so that the
difference of two models is paired. ``summarise`` does this for all models of an evaluation.
Suffixes as in ``metrics``: N rows, R resamples, S subjects; M models, P positives, Q negatives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from medbert.evaluate.fits import sums
from medbert.evaluate.metrics import METRICS, Array, Metric, check
from medbert.schema import InputError

Counts = NDArray[np.uint8]

REFERENCE, UNTRAINED, BASELINE, ORACLE = "reference", "untrained", "baseline", "oracle"
ORACLE_NAME = "oracle (upper bound)"
CHUNK = 8_000_000  # weights held at once, of a byte; some metrics make floats of them


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its interval; all NaN where the metric does not exist."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """A paired difference (first minus second), its interval, and a two-sided p value."""

    p: float = math.nan


@dataclass(frozen=True)
class Bootstrap:
    """Resampled metrics, by (model, metric).

    ``n`` resamples were kept and ``dropped`` had one class only; ``level`` is that of the intervals
    (percentiles). ``samples[model, metric]`` is in the same order for all models.
    """

    values: dict[tuple[str, str], float]
    samples: dict[tuple[str, str], Array] = field(repr=False)
    n: int
    dropped: int
    level: float

    def interval(self, model: str, *, metric: str) -> Interval:
        """The metric of one model. Resamples in which it does not exist are left out."""
        low, high = percentiles(self.samples[model, metric], self.level)
        return Interval(self.values[model, metric], low, high)

    def difference(self, model: str, *, minus: str, metric: str) -> Difference:
        """One model minus another over the same resamples."""
        value = self.values[model, metric] - self.values[minus, metric]
        differences = self.samples[model, metric] - self.samples[minus, metric]
        differences = differences[~np.isnan(differences)]
        low, high = percentiles(differences, self.level)
        fewer = min((differences <= 0).sum(), (differences >= 0).sum())
        p = min(1.0, 2 * (int(fewer) + 1) / (differences.size + 1))
        return Difference(value, low, high, p)


def bootstrap(
    metrics: Mapping[str, Metric],
    labels: ArrayLike,
    probabilities: ArrayLike | Mapping[str, ArrayLike],
    subject_ids: ArrayLike,
    *,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
) -> Bootstrap:
    """Draw subjects with replacement ``n`` times and take every metric of every model.

    ``probabilities`` is (N,) for one model, then named "model", or one array per model name.
    Resamples that hold one class only are dropped and counted. Metrics get their weights as uint8:
    one of your own turns them into floats before it adds them up.
    """
    models = probabilities if isinstance(probabilities, Mapping) else {"model": probabilities}
    arrays = {name: check(labels, values) for name, values in models.items()}
    labels_N = next(iter(arrays.values()))[0]
    subject_N = np.unique(ids_of(subject_ids, labels_N), return_inverse=True)[1]
    chunks: dict[tuple[str, str], list[Array]] = {(m, k): [] for m in models for k in metrics}
    rng, dropped, size = np.random.default_rng(seed), 0, max(1, CHUNK // labels_N.size)
    for start in range(0, n, size):
        weights_NR = _draw(rng, subject_N, resamples=min(size, n - start))
        positive_R, total_R = sums([labels_N, np.ones_like(labels_N)], weights_NR)
        usable_R = (positive_R > 0) & (positive_R < total_R)
        dropped += int((~usable_R).sum())
        if not usable_R.any():
            continue
        weights_NR = weights_NR if usable_R.all() else weights_NR.T[usable_R].T
        for model, metric in chunks:
            values_R = metrics[metric](*arrays[model], weights=weights_NR)
            chunks[model, metric].append(values_R)
    if dropped == n:
        raise InputError(f"none of {n} resamples held both classes: too few subjects to resample")
    values = {(m, k): float(metrics[k](*arrays[m])) for m, k in chunks}
    samples = {key: np.concatenate(parts) for key, parts in chunks.items()}
    return Bootstrap(values, samples, n=n - dropped, dropped=dropped, level=level)


def ids_of(subject_ids: ArrayLike, labels_N: Array) -> NDArray[Any]:
    """As an array; InputError unless there is one for each row."""
    ids_N = np.asarray(subject_ids)
    if ids_N.shape != labels_N.shape:
        raise InputError(f"{ids_N.size} subject ids for {labels_N.size} rows: expected one each")
    return ids_N


def expect(names: Iterable[str], models: Collection[str]) -> None:
    """InputError unless all are names of models."""
    for name in names:
        if name not in models:
            raise InputError(f"model {name!r} is not among {', '.join(map(repr, models))}")


def delong(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, level: float = 0.95
) -> Difference:
    """Paired difference of two AUROCs (first minus second) on independent rows.

    DeLong 1988 by way of mid-ranks (Sun & Xu 2014, IEEE Signal Process Lett 21:1389): the interval
    is normal, and NaN where the rows are too few and too well ranked to have a variance. Only for
    data with one row per subject.
    """
    labels_N, first_N = check(labels, first)
    _, second_N = check(labels, second)
    wins_2P, wins_2Q, areas_2 = _placements(np.stack([first_N, second_N]), labels_N == 1)
    value = float(areas_2[0] - areas_2[1])
    error = _standard_error(wins_2P[0] - wins_2P[1], wins_2Q[0] - wins_2Q[1])
    if error == 0:
        return Difference(0.0, 0.0, 0.0, 1.0) if value == 0 else Difference(value)
    half = float(ndtri((1 + level) / 2) * error)
    p = float(2 * ndtr(-abs(value) / error))
    return Difference(value, value - half, value + half, p)


def delong_auroc(labels: ArrayLike, probabilities: ArrayLike, *, level: float = 0.95) -> Interval:
    """One AUROC with DeLong's interval, as above; cut off at 0 and 1."""
    labels_N, probabilities_N = check(labels, probabilities)
    wins_1P, wins_1Q, areas_1 = _placements(probabilities_N[None], labels_N == 1)
    value, error = float(areas_1[0]), _standard_error(wins_1P[0], wins_1Q[0])
    if error == 0:
        return Interval(value)
    half = float(ndtri((1 + level) / 2) * error)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


@dataclass(frozen=True)
class ModelResult:
    """One model. ``gain``: AUROC of the reference minus AUROC of this one, on the same rows.

    ``share_of_oracle``: how much of the way from 0.5 to the oracle's AUROC it goes.
    """

    name: str
    role: str
    auroc: Interval
    auprc: Interval
    brier: Interval
    calibration_slope: Interval
    calibration_intercept: Interval
    ici: Interval
    observed_expected: Interval
    gain: Difference | None
    share_of_oracle: float | None


@dataclass(frozen=True)
class Results:
    """All models on the same rows, in the order given, the oracle last.

    ``method`` says where intervals of gains come from; ``dropped`` counts resamples of one class.
    ``labels`` and ``probabilities`` are there for the pictures only.
    """

    rows: int
    subjects: int
    positives: int
    reference: str
    level: float
    method: str
    resamples: int
    dropped: int
    models: tuple[ModelResult, ...]
    labels: np.ndarray = field(repr=False, compare=False)
    probabilities: dict[str, np.ndarray] = field(repr=False, compare=False)

    @property
    def prevalence(self) -> float:
        return self.positives / self.rows

    def table(self) -> pd.DataFrame:
        """One line per model; each metric with its ``_low`` and ``_high``. Counts are exact."""
        counts = {"rows": self.rows, "subjects": self.subjects, "positives": self.positives}
        lines = []
        for model in self.models:
            line = {"model": model.name, "role": model.role, **counts}
            for name in (*METRICS, "gain"):
                for part, number in asdict(getattr(model, name) or Difference()).items():
                    line[name if part == "value" else f"{name}_{part}"] = number
            lines.append({**line, "share_of_oracle": model.share_of_oracle})
        return pd.DataFrame(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows themselves, for ``metrics.json``; NaN becomes None."""
        hidden = ("labels", "probabilities", "models")
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden}
        record["prevalence"] = self.prevalence
        record["models"] = [asdict(model) for model in self.models]
        return json.loads(json.dumps(record), parse_constant=lambda _: None)


def summarise(
    labels: ArrayLike,
    models: Mapping[str, ArrayLike],
    subject_ids: ArrayLike,
    *,
    reference: str,
    seed: int,
    untrained: str | None = None,
    oracle: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    level: float = 0.95,
) -> Results:
    """Every metric of every model with its interval, and the gain of ``reference`` over each.

    ``models`` maps display names to probabilities on the same rows; ``reference`` and ``untrained``
    are two of those names. ``oracle``: the true risk, where the data come from a simulator. Gains
    are by DeLong where each subject has one row, otherwise by paired bootstrap over subjects.
    """
    expect([reference, *([untrained] if untrained else [])], models)
    if ORACLE_NAME in models:
        raise InputError(f"pass the oracle as oracle=, not as a model named {ORACLE_NAME!r}")
    everyone = {**models, **({} if oracle is None else {ORACLE_NAME: oracle})}
    boot = bootstrap(METRICS, labels, everyone, subject_ids, n=n_bootstrap, seed=seed, level=level)
    arrays = {name: check(labels, values)[1] for name, values in everyone.items()}
    labels_N, first_N = check(labels, models[reference])
    subjects, positives = len(np.unique(np.asarray(subject_ids))), int(labels_N.sum())
    single = subjects == labels_N.size and 2 <= positives <= labels_N.size - 2
    ceiling = boot.values.get((ORACLE_NAME, "auroc"), math.nan) - 0.5
    roles = {reference: REFERENCE, untrained: UNTRAINED, ORACLE_NAME: ORACLE}
    results = []
    for name, probabilities_N in arrays.items():
        known: dict[str, Any] = {key: boot.interval(name, metric=key) for key in METRICS}
        gain = boot.difference(reference, minus=name, metric="auroc")
        if single:
            gain = delong(labels_N, first_N, probabilities_N, level=level)
        known["gain"] = None if name == reference else gain
        share = (boot.values[name, "auroc"] - 0.5) / ceiling if ceiling > 0 else None
        role = roles.get(name, BASELINE)
        results.append(ModelResult(name, role, **known, share_of_oracle=share))
    return Results(
        rows=labels_N.size,
        subjects=subjects,
        positives=positives,
        reference=reference,
        level=level,
        method="DeLong" if single else "paired bootstrap over subjects",
        resamples=boot.n,
        dropped=boot.dropped,
        models=tuple(results),
        labels=labels_N,
        probabilities=arrays,
    )


def _placements(scores_MN: Array, positive_N: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Share of the other class that each positive beats and that each negative loses to; AUROCs."""
    ranks_MN = rankdata(scores_MN, axis=1)
    positives_MP, negatives_MQ = scores_MN[:, positive_N], scores_MN[:, ~positive_N]
    n_positive, n_negative = positives_MP.shape[1], negatives_MQ.shape[1]
    beats_MP = (ranks_MN[:, positive_N] - rankdata(positives_MP, axis=1)) / n_negative
    loses_MQ = 1 - (ranks_MN[:, ~positive_N] - rankdata(negatives_MQ, axis=1)) / n_positive
    return beats_MP, loses_MQ, beats_MP.mean(axis=1)


def _standard_error(wins_P: Array, wins_Q: Array) -> float:
    if min(wins_P.size, wins_Q.size) < 2:
        raise InputError("DeLong's test needs at least two positives and two negatives")
    variance = wins_P.var(ddof=1) / wins_P.size + wins_Q.var(ddof=1) / wins_Q.size
    return float(np.sqrt(variance))


def _draw(rng: np.random.Generator, subject_N: NDArray[np.intp], *, resamples: int) -> Counts:
    """How often each row is in each resample, (N, R), a resample in one piece of memory.

    In one byte: nobody is drawn 256 times from so many.
    """
    n_subjects = int(subject_N.max()) + 1
    weights_RN = np.empty((resamples, subject_N.size), dtype=np.uint8)
    single = np.array_equal(subject_N, np.arange(n_subjects))
    for row_N in weights_RN:
        drawn = rng.integers(0, n_subjects, n_subjects)
        counts_S = np.bincount(drawn, minlength=n_subjects)
        row_N[:] = counts_S if single else counts_S[subject_N]
    return weights_RN.T


def percentiles(samples: Array, level: float) -> tuple[float, float]:
    """Bounds that leave out the same share at both ends; NaN samples are not counted."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
