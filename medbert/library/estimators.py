"""Encoders in scikit-learn: X is a cohort (who, and as of when), the records stay in a store.

What a subject's record says after ``prediction_time`` does not exist for either estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.classifier import Recipe, Rows, train_classifier
from medbert.commands.encoders.questions import told
from medbert.commands.output.artefacts import artefact, read_json
from medbert.data.batches import Sequences, loader
from medbert.data.store import Store
from medbert.library.frames import KEYS, cohort_frame, store_rows
from medbert.library.outcomes import kept_back, two_classes
from medbert.model import checkpoint
from medbert.model.heads import POOLINGS, FrozenLogistic, pool
from medbert.schema import TRAIN, TUNING, Batch, InputError
from medbert.train.score import place, score


class _Opened(NamedTuple):
    """An encoder in its place, with a store that speaks its vocabulary."""

    records: Store
    model: Any
    max_tokens: int  # it was trained with
    weights: str  # hash


@lru_cache(maxsize=4)
def _opened(encoder: Path, store: Path, device: torch.device, stamps: tuple[int, ...]) -> _Opened:
    records, settings = Store(store), encoder / "settings.json"
    model: Any = load_encoder(encoder, records).to(device).eval()
    longest = (read_json(settings) if settings.is_file() else {}).get("max_tokens", 512)
    weights = checkpoint.read_config(encoder)["weights_sha256"]
    return _Opened(records, model, longest, weights)


class _OnRecords(BaseEstimator):
    """What the two share: they are pickled and cloned by the names of folders, which are opened
    once in a process, and anew when they were made anew."""

    encoder: str | Path
    store: str | Path
    max_tokens: int | None
    batch_tokens: int
    device: str

    def _open(self) -> _Opened:
        """Raises InputError for folders that cannot be used, or another encoder than in ``fit``."""
        encoder, store = Path(self.encoder).absolute(), Path(self.store).absolute()
        files = encoder / checkpoint.CONFIG, store / "dataset.json"
        stamps = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
        found = _opened(encoder, store, place(self.device), stamps)
        if getattr(self, "weights_sha256_", found.weights) != found.weights:
            raise InputError(f"{self.encoder}: not the encoder that this was fitted with; fit anew")
        most = found.model.config.get("positions") or self._longest(found)
        if not 0 < self._longest(found) <= most:
            raise InputError(f"max_tokens={self._longest(found)}: give 1 to {most}, or None")
        return found

    def _longest(self, opened: _Opened) -> int:
        return opened.max_tokens if self.max_tokens is None else self.max_tokens

    def _begin(self) -> _Opened:
        """The folders as they are now, whatever this was fitted with before."""
        self.__dict__.pop("weights_sha256_", None)
        opened = self._open()
        self.weights_sha256_ = opened.weights
        self.feature_names_in_, self.n_features_in_ = np.array(KEYS, dtype=object), len(KEYS)
        return opened

    def _cohort(self, X: Any, *, fitting: bool) -> pd.DataFrame:
        return cohort_frame(X)

    def _scored(self, X: Any, function: Callable[[Any, Batch], Tensor]) -> np.ndarray:
        """``function`` of the encoder and each batch: a row for each row of X."""
        check_is_fitted(self)
        opened, cohort = self._open(), self._cohort(X, fitting=False)
        rows, until = store_rows(opened.records, cohort)
        data = Sequences(opened.records, rows, until=until, max_tokens=self._longest(opened))
        there = place(self.device)
        model = (getattr(self, "network_", None) or opened.model).to(there).eval()
        batches = loader(data, budget=self.batch_tokens)
        return score(partial(function, model), batches, device=there).numpy()


class MedBertEmbedder(TransformerMixin, _OnRecords):
    """A vector for each row of a cohort, as ``medbert embed`` makes it.

    Args:
        encoder: folder of `medbert pretrain` (or of a run: its fine-tuned encoder).
        store: folder of `medbert prepare`, with the vocabulary of the encoder.
        pooling: of the codes of a subject: mean, sum, max, or last (for one that looks back only).
        max_tokens: of a subject, its latest; None: as in training.
        batch_tokens: at once: memory grows with it, results do not depend on it.
        device: auto (a GPU, if there is one), cpu, cuda:1.

    ``fit`` learns nothing; ``transform`` gives float32 (n, D).
    """

    def __init__(
        self,
        encoder: str | Path,
        store: str | Path,
        *,
        pooling: str = "mean",
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
    ) -> None:
        self.encoder, self.store, self.pooling = encoder, store, pooling
        self.max_tokens, self.batch_tokens, self.device = max_tokens, batch_tokens, device

    def fit(self, X: Any, y: Any = None) -> Self:
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling={self.pooling}: choose one of {', '.join(POOLINGS)}")
        opened = self._begin()
        store_rows(opened.records, self._cohort(X, fitting=True))
        self.n_features_out_ = opened.model.hidden
        return self

    def transform(self, X: Any) -> np.ndarray:
        how = self.pooling
        return self._scored(X, lambda model, batch: pool(model(batch), batch, how).float())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        check_is_fitted(self)
        return np.array([f"embedding_{i}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


class MedBertClassifier(ClassifierMixin, _OnRecords):
    """A yes-or-no outcome from an encoder and labels: the head of ``medbert finetune``.

    An encoder has seen the records (never the labels) of the subjects it was pretrained on: judge
    on others, as those that are ``held_out`` in the store.

    Args:
        encoder, store, max_tokens, batch_tokens, device: see `MedBertEmbedder`.
        head: one of conf/head: frozen_logistic (the encoder stays as it is), sum, gru, ...
        pooling: for frozen_logistic, the summaries laid side by side; None: mean and max.
        freeze: trains the head alone; frozen_logistic always does.
        max_epochs, lr, patience: of the training; no matter to frozen_logistic.
        validation_fraction: of the subjects of X, with and without the outcome alike, is kept back
            to choose penalty or epoch on; None: those that are ``tuning`` in the store.
        random_state: a number gives the same result again.

    After ``fit``: ``classes_``, ``head_``, ``metrics_`` (on the subjects kept back), and
    ``network_``: the fine-tuned encoder, None where it is that of the folder.
    """

    def __init__(
        self,
        encoder: str | Path,
        store: str | Path,
        *,
        head: str = "frozen_logistic",
        pooling: str | Sequence[str] | None = None,
        freeze: bool = False,
        max_epochs: int = 10,
        lr: float = 1e-3,
        patience: int = 3,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        validation_fraction: float | None = 0.2,
        random_state: Any = 0,
        device: str = "auto",
    ) -> None:
        self.encoder, self.store, self.head, self.pooling = encoder, store, head, pooling
        self.freeze, self.max_epochs, self.lr, self.patience = freeze, max_epochs, lr, patience
        self.max_tokens, self.batch_tokens, self.device = max_tokens, batch_tokens, device
        self.validation_fraction, self.random_state = validation_fraction, random_state

    def fit(self, X: Any, y: Any) -> Self:
        opened, cohort = self._begin(), self._cohort(X, fitting=True)
        self.classes_, outcome = two_classes(y, cohort)
        rows, until = store_rows(opened.records, cohort)
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        kept = kept_back(opened.records, rows, outcome, self.validation_fraction, seed=seed)
        parts = {TRAIN: ~kept, TUNING: kept}
        splits = {name: Rows(rows[p], until[p], outcome[p]) for name, p in parts.items()}
        recipe, frozen = self._recipe(opened, seed)
        model = opened.model if frozen else deepcopy(opened.model).train()
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            head, self.metrics_ = train_classifier(
                opened.records, splits, model, recipe, folder=Path(folder)
            )
        self.head_ = head.cpu().eval()
        self.network_ = None if frozen or self.freeze else model.cpu().eval()
        return self

    def _recipe(self, opened: _Opened, seed: int) -> tuple[Recipe, bool]:
        """How `finetune` would train it, and whether the encoder stays as it is."""
        there = place(self.device)
        kind = {"cuda": "gpu"}.get(there.type, there.type)
        devices = 1 if there.index is None else [there.index]
        lightning = {"accelerator": kind, "devices": devices, "max_epochs": self.max_epochs}
        head = _chosen("head", self.head)
        frozen = head.func is FrozenLogistic
        if self.pooling is not None:
            if not frozen:
                raise InputError(f"pooling={self.pooling}: head={self.head} takes none; say None")
            names = [self.pooling] if isinstance(self.pooling, str) else list(self.pooling)
            head = partial(head, pooling=names)
        recipe = Recipe(
            head=partial(head, **told(head, opened.model, None)),
            optimizer=_chosen("optimizer", "finetune", lr=self.lr),
            trainer=lambda **own: _chosen("trainer", "default", **lightning)(**own),
            freeze=self.freeze,
            max_tokens=self._longest(opened),
            batch_tokens=self.batch_tokens,
            patience=self.patience,
            seed=seed,
            device=self.device,
        )
        return recipe, frozen

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds of ``classes_[1]``."""
        check_is_fitted(self)
        head = self.head_.to(place(self.device))
        return self._scored(X, head.logits).astype(np.float64)

    def predict_proba(self, X: Any) -> np.ndarray:
        probability = torch.from_numpy(self.decision_function(X)).sigmoid().numpy()
        return np.stack([1 - probability, probability], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        second = self.decision_function(X) >= 0
        return self.classes_[second.astype(int)]

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Makes a run folder, which `medbert predict run=...` takes too."""
        check_is_fitted(self)
        opened, settings = self._open(), self.get_params()
        settings["encoder_dir"] = settings.pop("encoder")
        settings |= {"classes": self.classes_.tolist(), "max_tokens": self._longest(opened)}
        vocabulary = opened.records.vocabulary
        with artefact(out, overwrite=overwrite, settings=settings) as folder:
            modules = {"encoder": self.network_ or opened.model, "head": self.head_}
            known = {"vocabulary_sha256": vocabulary.sha256}
            checkpoint.save_module(folder, modules=modules, extra=known)
            vocabulary.save(folder / "vocabulary.parquet")
        return Path(out)

    @classmethod
    def load(cls, folder: str | Path, *, store: str | Path) -> Self:
        """What ``save``, or `medbert finetune`, made, ready to predict in a ``store``."""
        head = checkpoint.load_module(folder, "head").eval()
        settings = read_json(Path(folder) / "settings.json")
        own = set(cls._get_param_names()) - {"encoder", "store"}
        names = own if "classes" in settings else {"max_tokens"}
        found = cls(folder, store, **{name: settings[name] for name in names & settings.keys()})
        found.head_, found.network_ = head, None
        found.classes_ = np.array(settings.get("classes", [False, True]))
        found._begin()
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def _chosen(group: str, name: str, **settings: Any) -> Any:
    """What a file of conf/ makes, with these settings."""
    folder = resources.files("medbert.conf") / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        there = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())
        raise InputError(f"{group}={name}: choose one of {', '.join(there)}")
    return instantiate(OmegaConf.create(file.read_text("utf-8")), _convert_="all", **settings)
