from __future__ import annotations

import inspect
import io
import shutil
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import EVERY_CODE, SETTINGS, records_of
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

import medbert
from medbert.commands import compose
from medbert.data.preparing.prepare import write_store
from medbert.data.store import Store
from medbert.library import estimators
from medbert.library.estimators import MedBertClassifier, MedBertEmbedder
from medbert.library.outcomes import kept_back
from medbert.model.checkpoint import save_module
from medbert.model.encoder import BertEncoder
from medbert.schema import InputError

N = 60
INDEX = pd.Timestamp("2020-07-01")


def lives(until: pd.Timestamp | None = None) -> list[tuple[int, str, str]]:
    """The higher the id, the more A and the fewer B; what is later than ``until`` left out."""
    random = np.random.default_rng(0)
    times = [f"20{18 + n // 6}-{1 + 2 * (n % 6):02d}-01" for n in range(18)]
    rows = [
        (s, t, "A" if random.random() < s / N else "BCD"[s % 3]) for s in range(N) for t in times
    ]
    return [row for row in rows if until is None or pd.Timestamp(row[1]) <= until]


def make_encoder(folder: Path, store: Store, seed: int = 0) -> None:
    torch.manual_seed(seed)
    sizes = {"layers": 1, "heads": 2, "hidden": 8, "feed_forward": 8, "positions": 16, "visits": 20}
    encoder = BertEncoder(
        vocabulary_size=len(store.vocabulary), dropout=0.5, attention_dropout=0.5, **sizes
    )
    torch.nn.init.normal_(encoder.codes.weight)
    folder.mkdir(exist_ok=True)
    save_module(
        folder,
        modules={"encoder": encoder},
        extra={"vocabulary_sha256": store.vocabulary.sha256},
    )
    store.vocabulary.save(folder / "vocabulary.parquet")
    (folder / "settings.json").write_text('{"max_tokens": 12}')


def make_store(folder: Path, events: list, vocabulary) -> Store:
    folder.mkdir()
    settings = SETTINGS(memory_gb=1.0, fractions=(0.6, 0.2, 0.2))
    write_store(
        records_of(events),
        folder,
        vocabulary=vocabulary,
        splits=None,
        executor=None,
        settings=settings,
    )
    return Store(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """store/ and encoder/, of random weights."""
    folder = tmp_path_factory.mktemp("library")
    make_encoder(folder / "encoder", make_store(folder / "store", lives(), EVERY_CODE))
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture
def X() -> pd.DataFrame:
    """Two rows a subject, in no order, with an index of their own."""
    times = np.repeat([INDEX, INDEX + pd.Timedelta(days=200)], N)
    frame = pd.DataFrame({"subject_id": np.tile(np.arange(N), 2), "prediction_time": times})
    return frame.sample(frac=1, random_state=1).assign(age=np.arange(2 * N) % 7)


@pytest.fixture
def y(X) -> pd.Series:
    return X["subject_id"] + 10 * np.sin(X["subject_id"]) > N / 2


def embedder(**settings) -> MedBertEmbedder:
    return MedBertEmbedder("encoder", "store", **settings)


def classifier(**settings) -> MedBertClassifier:
    return MedBertClassifier("encoder", "store", **settings)


# --- scikit-learn's own checks ------------------------------------------------------------------


class OnFloats:
    """The checks give matrices of floats: each row stands for a subject, by its last one.

    Nothing else differs from the estimators themselves, and no check is expected to fail.
    """

    def _cohort(self, X, *, fitting):
        X = validate_data(self, X, reset=fitting)
        place = np.round(N / 2 + X[:, -1] * N / 4) % N
        return pd.DataFrame({"subject_id": place.astype(int), "prediction_time": INDEX})


class EmbedderOnFloats(OnFloats, MedBertEmbedder):
    pass


class ClassifierOnFloats(OnFloats, MedBertClassifier):
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # of penalties that are equally good (on blobs, all are) the strongest is taken
        tags.classifier_tags.poor_score = True
        return tags


@parametrize_with_checks(
    [EmbedderOnFloats("encoder", "store"), ClassifierOnFloats("encoder", "store")]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


# --- the same numbers everywhere ----------------------------------------------------------------


def to_file(X: pd.DataFrame, path: Path, **columns) -> str:
    pq.write_table(pa.Table.from_pandas(X.assign(**columns), preserve_index=False), path)
    return str(path)


def test_embeddings_are_those_of_the_command_line_and_of_an_encoder(X, tmp_path):
    out = medbert.embed(
        store="store",
        encoder_dir="encoder",
        cohort=to_file(X, tmp_path / "cohort.parquet"),
        pooling="max",
        out=str(tmp_path / "out"),
    )
    theirs = np.stack(pq.read_table(out / "embeddings.parquet")["embedding"].to_numpy())
    ours = embedder(pooling="max", batch_tokens=50).fit(X).transform(X)
    assert ours.dtype == np.float32 and np.ptp(ours, axis=0).min() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    direct = medbert.Encoder.from_pretrained("encoder").embed(X, store="store", pooling="max")
    np.testing.assert_allclose(ours, direct, atol=1e-5)


def test_pandas_polars_and_pyarrow_give_the_same(X):
    whole = embedder().fit_transform(X)
    for other in (pl.from_pandas(X), pa.Table.from_pandas(X), X.to_records(index=False)):
        np.testing.assert_array_equal(embedder().fit_transform(other), whole)


@pytest.mark.parametrize(("head", "freeze"), [("frozen_logistic", 0), ("sum", 0), ("mean", 1)])
def test_the_classifier_is_what_finetune_trains(head, freeze, X, y, tmp_path):
    """With the tuning subjects of the store, to choose on, and the same settings."""
    run = medbert.finetune(
        "task=labels",
        store="store",
        encoder_dir="encoder",
        task={"path": to_file(X, tmp_path / "labels.parquet", boolean_value=y)},
        head=head,
        freeze=bool(freeze),
        max_tokens=12,
        trainer={"max_epochs": 2},
        out=str(tmp_path / "run"),
    )
    theirs = pd.read_parquet(run / "predictions.parquet")
    store = Store("store")
    split = store.split_of_row[store.rows_of(X["subject_id"].to_numpy())]
    ours = classifier(head=head, freeze=bool(freeze), max_epochs=2, validation_fraction=None)
    ours.fit(X[split != "held_out"], y[split != "held_out"])
    assert (ours.network_ is None) == (head != "sum")
    loaded = MedBertClassifier.load(run, store="store")
    keys = ["subject_id", "prediction_time"]
    for model in (ours, loaded):
        found = X[split == "held_out"][keys].assign(
            ours=model.predict_proba(X[split == "held_out"])[:, 1]
        )
        both = theirs.merge(found, on=keys)
        assert len(both) == len(theirs) and both["ours"].std() > 1e-4
        np.testing.assert_allclose(both["ours"], both["predicted_boolean_probability"], atol=1e-5)


def test_what_is_saved_predicts_as_before_and_on_the_command_line(X, y, tmp_path):
    model = classifier(head="sum", max_epochs=1).fit(X, np.where(y, "yes", "no"))
    run = model.save(tmp_path / "run")
    again = MedBertClassifier.load(run, store="store")
    assert set(again.predict(X)) <= {"yes", "no"} and again.head == "sum"
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    with pytest.raises(InputError, match="overwrite"):
        model.save(run)
    cohort = to_file(X, tmp_path / "cohort.parquet")
    out = medbert.predict(run=str(run), store="store", cohort=cohort, out=str(tmp_path / "out"))
    told = pd.read_parquet(out / "predictions.parquet")["predicted_boolean_probability"]
    np.testing.assert_allclose(told, model.predict_proba(X)[:, 1], atol=1e-5)


def test_settings_are_those_of_the_command_line():
    told = compose("finetune", "store=a", "out=b", head="frozen_logistic")
    ours = {n: p.default for n, p in inspect.signature(MedBertClassifier).parameters.items()}
    for name in ("freeze", "batch_tokens", "patience"):
        assert ours[name] == told[name]
    assert (ours["max_epochs"], ours["lr"]) == (told.trainer.max_epochs, told.optimizer.lr)
    assert ours["random_state"] == told.seed
    told = compose("embed", "store=a", "encoder_dir=b", "out=c")
    ours = {n: p.default for n, p in inspect.signature(MedBertEmbedder).parameters.items()}
    for name in ("pooling", "max_tokens", "batch_tokens", "device"):
        assert ours[name] == told[name]


# --- honest -------------------------------------------------------------------------------------


def test_what_follows_the_prediction_time_does_not_exist(X, y, place):
    store = Store("store")
    if not Path("until").exists():
        make_store(place / "until", lives(INDEX), store.vocabulary)
    at_index = X[X["prediction_time"] == INDEX]
    cut = MedBertEmbedder("encoder", "until").fit_transform(at_index)
    np.testing.assert_allclose(embedder().fit_transform(at_index), cut, atol=1e-5)
    later = at_index.assign(prediction_time=INDEX + pd.Timedelta(days=400))
    assert not np.allclose(embedder().fit_transform(later), cut, atol=1e-2)  # it can be seen


@pytest.mark.parametrize("share", [0.1, 0.34, 0.5])
def test_whole_subjects_are_kept_back_with_and_without_the_outcome(share):
    random = np.random.default_rng(0)
    rows = np.repeat(random.permutation(40), random.integers(1, 5, 40))
    outcome = (rows < 12) & (random.random(len(rows)) < 0.8)
    mask = kept_back(Store("store"), rows, outcome, share, seed=3)
    assert not set(rows[mask]) & set(rows[~mask])
    ever = set(rows[outcome])
    for some in (ever, set(rows) - ever):
        assert abs(len(some & set(rows[mask])) - share * len(some)) <= 0.5
    other = kept_back(Store("store"), rows, outcome, share, seed=4)
    assert (mask != other).any()


def test_what_cannot_be_used_is_said_in_one_line(X, y):
    unknown = X.assign(subject_id=X["subject_id"].replace(7, 90_001))
    for act, words in [
        (lambda: embedder().fit(unknown), "2 of 120 rows are of subjects that .*store lacks"),
        (lambda: embedder().fit(X).transform(unknown), "subjects that .*store lacks"),
        (lambda: classifier().fit(X, y).predict(unknown), "subjects that .*store lacks"),
        (lambda: classifier(head="su").fit(X, y), "head=su: choose one of .*frozen_logistic"),
        (lambda: classifier(head="sum", pooling="max").fit(X, y), "head=sum takes none"),
        (lambda: embedder(pooling="median").fit(X), "pooling=median: choose one of sum"),
        (lambda: embedder(max_tokens=17).fit(X), "max_tokens=17: give 1 to 16"),
        (lambda: classifier(device="cuda:99").fit(X, y), "device=cuda:99"),
        (lambda: classifier().fit(X, y | True), "one class only"),
        (lambda: classifier().fit(X, y & (X["subject_id"] == 50)), "kept back .*one class only"),
        (lambda: MedBertEmbedder("encoder", "encoder").fit(X), "dataset.json"),
        (lambda: MedBertEmbedder("store", "store").fit(X), "config.json"),
        (lambda: MedBertClassifier.load("encoder", store="store"), "no module 'head'"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value) and "90001" not in str(caught.value)


def test_another_encoder_than_the_one_it_was_fitted_with_is_refused(X, tmp_path):
    shutil.copytree("encoder", tmp_path / "encoder")
    fitted = MedBertEmbedder(tmp_path / "encoder", "store").fit(X)
    make_encoder(tmp_path / "encoder", Store("store"), seed=1)
    with pytest.raises(InputError, match="fit anew"):
        fitted.transform(X)
    fitted.fit(X).transform(X)


# --- among other estimators ---------------------------------------------------------------------


def test_frames_come_out_with_the_index_of_the_cohort(X):
    out = embedder().set_output(transform="pandas").fit_transform(X)
    assert list(out.columns) == [f"embedding_{i}" for i in range(8)] and out.index.equals(X.index)
    out = embedder().set_output(transform="polars").fit_transform(pl.from_pandas(X))
    assert isinstance(out, pl.DataFrame) and out.shape == (len(X), 8)


def test_embeddings_go_beside_other_columns_into_any_model(X, y):
    beside = ColumnTransformer(
        [("record", embedder(), ["subject_id", "prediction_time"]), ("age", "passthrough", ["age"])]
    ).set_output(transform="pandas")
    assert list(beside.fit_transform(X).columns[-2:]) == ["record__embedding_7", "age__age"]
    two = make_union(embedder(pooling="mean"), embedder(pooling="max"))
    for features in (beside, two):
        model = make_pipeline(features, LogisticRegression()).fit(X, y)
        assert model.score(X, y) > 0.8


def test_a_search_over_heads_loads_the_encoder_once(X, y):
    estimators._opened.cache_clear()
    search = GridSearchCV(
        classifier(max_epochs=1),
        {"head": ["frozen_logistic", "mean"]},
        cv=StratifiedGroupKFold(2),
        scoring="roc_auc",
        error_score="raise",
    ).fit(X, y, groups=X["subject_id"])
    assert search.cv_results_["mean_test_score"][0] > 0.8
    assert estimators._opened.cache_info().misses == 1


def test_folds_in_threads_are_those_one_after_the_other(X, y):
    def scores(**where) -> np.ndarray:
        folds = StratifiedGroupKFold(3)
        return cross_val_score(classifier(), X, y, groups=X["subject_id"], cv=folds, **where)

    with joblib.parallel_config(backend="threading"):
        np.testing.assert_array_equal(scores(n_jobs=2), scores())


def test_what_travels_to_other_processes_has_no_network_that_a_folder_has(X, y):
    def sent(fitted) -> tuple[int, MedBertClassifier]:
        file = io.BytesIO()
        joblib.dump(fitted, file)
        size = file.tell()
        file.seek(0)
        return size, joblib.load(file)

    frozen, tuned = classifier().fit(X, y), classifier(head="sum", max_epochs=1).fit(X, y)
    weights = Path("encoder/model.safetensors").stat().st_size
    sizes = []
    for fitted in (frozen, tuned):
        size, arrived = sent(fitted)
        sizes.append(size)
        np.testing.assert_array_equal(arrived.predict_proba(X), fitted.predict_proba(X))
    assert sizes[0] < weights < sizes[1]
    assert not vars(clone(tuned)).keys() & {"network_", "head_"}


def test_a_fitted_classifier_can_be_calibrated_on_others(X, y):
    train = X["subject_id"] % 2 == 0
    frozen = FrozenEstimator(classifier().fit(X[train], y[train]))
    calibrated = CalibratedClassifierCV(frozen).fit(X[~train], y[~train])
    assert calibrated.score(X, y) > 0.8
