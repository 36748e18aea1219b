"""An encoder as an object: opened from a folder or a hub, asked about cohorts, and shared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pandas as pd
import torch

from medbert.commands.convert import SHA256, VOCABULARY, coarse, vocabulary_of
from medbert.commands.encoders.cohort_rows import CohortRows, Scoring, cohort_rows
from medbert.commands.encoders.questions import answered, ask, foretelling, of_words
from medbert.commands.output.artefacts import artefact, read_json, write_json
from medbert.data.batches import Sequences
from medbert.data.store import Store
from medbert.data.vocabulary import Vocabulary
from medbert.library import model_card
from medbert.library.frames import cohort_frame, in_html, store_rows
from medbert.model import checkpoint
from medbert.model.heads import POOLINGS, pool
from medbert.schema import DECISION, PREDICTION_TIME, PROBABILITY, SUBJECT_ID, InputError
from medbert.train.score import place

SETTINGS, README = "settings.json", "README.md"
SHARED = [checkpoint.CONFIG, checkpoint.WEIGHTS, VOCABULARY, SETTINGS, model_card.FACTS, README]
_SHARED_SETTINGS = ("encoder", "objective", "max_tokens", "batch_tokens", "seed")  # no path in them
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(eq=False, repr=False)
class Encoder:
    """A pretrained encoder: the torch ``module``, its ``vocabulary``, ``config`` (config.json) and
    ``settings`` of its training, and the ``facts`` that its model card states."""

    module: Any
    vocabulary: Vocabulary
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._told_of = _digest(self.module.eval())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Of a folder that `pretrain`, `finetune` or ``save_pretrained`` made, or of a repository
        (``owner/name``) of the Hugging Face Hub. Nothing in it is run.

        Raises InputError, in one line, for a folder that is not whole, or of another kind.
        """
        path = Path(folder)
        if not path.is_dir():
            hub = {"revision": revision, "cache_dir": cache_dir, "token": token}
            path = _downloaded(str(folder), local_files_only=local_files_only, **hub)
        module, config = checkpoint.load_module(path, "encoder"), checkpoint.read_config(path)
        settings = read_json(path / SETTINGS) if (path / SETTINGS).is_file() else {}
        facts = model_card.gather(path, config, settings)
        return cls(module, vocabulary_of(path), config, settings, facts)

    # --- asking ---------------------------------------------------------------------------------

    def embed(
        self,
        cohort: Any = None,
        *,
        store: str | Path | Store,
        pooling: str = "mean",
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
    ) -> pd.DataFrame:
        """A row for each of the cohort (see ``cohort_frame``; None: every subject at its last
        event), float32 columns embedding_0 ...; zeros where no code was known at that time.

        ``max_tokens`` of a subject, its latest; None: as in training. ``batch_tokens`` at once:
        memory grows with it, results do not depend on it.
        """
        if pooling not in POOLINGS:
            raise InputError(f"pooling={pooling}: choose one of {', '.join(POOLINGS)}")
        frame, asked = self._scoring(cohort, store, max_tokens, batch_tokens, device)
        pooled = asked.each(lambda batch: pool(self.module(batch), batch, pooling).float())
        values = pooled(_sequences(asked))
        names = [f"embedding_{i}" for i in range(self.module.hidden)]
        return pd.DataFrame(values, index=frame.index, columns=names)

    def predict(
        self,
        cohort: Any = None,
        *,
        store: str | Path | Store,
        query: str | Sequence[str],
        horizon: str | float,
        gap: str | float = 0,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
    ) -> pd.DataFrame:
        """How likely one of the codes (with all below it) comes for the first time within
        ``horizon`` days after ``gap`` days; of an encoder that foretells codes, without labels.

        Columns subject_id, prediction_time, predicted_boolean_value, predicted_boolean_probability;
        the last two are null for subjects that have had one.
        """
        foretelling(self.module, "query")
        frame, asked = self._scoring(cohort, store, max_tokens, batch_tokens, device)
        question = of_words(query, asked.records, gap=gap, horizon=horizon)
        how: dict[str, Any] = {"batch_tokens": asked.batch_tokens, "device": asked.device}
        log_odds = ask(_sequences(asked), self.module, question, **how)
        had = answered(asked.records, asked.cohort.rows, asked.cohort.until, question)
        risk = pd.Series(torch.from_numpy(log_odds).double().sigmoid().numpy(), frame.index)
        said = frame[[SUBJECT_ID, PREDICTION_TIME]].copy()
        said[DECISION] = (risk >= 0.5).astype("boolean").mask(had)
        said[PROBABILITY] = risk.mask(had)
        return said

    def _scoring(
        self,
        cohort: Any,
        store: str | Path | Store,
        max_tokens: int | None,
        batch_tokens: int,
        device: str,
    ) -> tuple[pd.DataFrame, Scoring]:
        """The cohort as a frame, and what is to be scored."""
        records = store if isinstance(store, Store) else Store(store)
        if records.vocabulary.sha256 != self.vocabulary.sha256:
            raise InputError(
                f"{records.folder}: not prepared with the vocabulary of this encoder; run "
                "`medbert prepare ... vocabulary=FOLDER` with the folder of the encoder"
            )
        longest = self.settings.get("max_tokens", 512) if max_tokens is None else max_tokens
        most = self.module.config.get("positions") or longest
        if not 0 < longest <= most:
            raise InputError(f"max_tokens={longest}: the encoder has {most} positions; say {most}")
        if cohort is None:
            wanted = cohort_rows(records, cohort=None, splits=None)
            ids, times = records.subject_ids[wanted.rows], wanted.until.view("datetime64[us]")
            frame = pd.DataFrame({SUBJECT_ID: ids, PREDICTION_TIME: times})
        else:
            frame = cohort_frame(cohort)
            wanted = CohortRows(*store_rows(records, frame), labels=None)
        there = place(device)
        model = self.module.to(there).eval()
        return frame, Scoring(records, model, wanted, longest, batch_tokens, there)

    # --- sharing --------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        data_statement: str | None = None,
        license: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes what may be passed on, and no more: weights, config.json, the vocabulary with
        counts in tens, the shape and objective of training, and a model card (README.md).

        ``data_statement``: where the records come from and under which terms, in your words.
        Raises InputError if the folder exists.
        """
        settings = {k: self.settings[k] for k in _SHARED_SETTINGS if k in self.settings}
        own = (*checkpoint.OWN_KEYS, "encoder", "head", "model_type")
        extra = {k: v for k, v in self.config.items() if k not in own}
        extra["model_type"] = "medbert"  # see ``hugging_face``
        given = {"statement": data_statement, "license": license}
        facts = self.facts | {name: word for name, word in given.items() if word}
        if _digest(self.module) != self._told_of:
            for name in model_card.OF_THE_WEIGHTS:
                facts.pop(name, None)
                extra.pop(name, None)
        with artefact(folder, overwrite=overwrite, settings=settings) as work:
            (work / "environment.json").unlink()
            extra[SHA256] = self.vocabulary.sha256
            checkpoint.save_module(work, modules={"encoder": self.module}, extra=extra)
            coarse(self.vocabulary).save(work / VOCABULARY)
            if "audit" in facts:
                weights = checkpoint.read_config(work)["weights_sha256"]
                facts["audit"] = {**facts["audit"], "weights_sha256": weights}
            write_json(work / model_card.FACTS, facts)
            page = model_card.text(self.module, self.vocabulary, settings, facts)
            (work / README).write_text(page, encoding="utf-8")
        return Path(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        unaudited: bool = False,
        token: str | bool | None = None,
        commit_message: str = "An encoder of medbert",
        **card: Any,
    ) -> str:
        """Uploads what ``save_pretrained`` writes (``card``: its arguments); returns the address.

        Raises InputError if these weights have not passed `medbert audit`, unless ``unaudited``;
        and if the repository is there and public, unless ``private=False``.
        """
        from huggingface_hub import HfApi

        with TemporaryDirectory() as work:
            folder = self.save_pretrained(Path(work) / "encoder", **card)
            said = model_card.verdict(read_json(folder / model_card.FACTS))
            if said != "pass" and not unaudited:
                raise InputError(
                    f"{repo_id}: nothing was uploaded; the audit of these weights says: {said}. "
                    "Run `medbert audit` first, or take it on yourself: unaudited=True"
                )
            api = HfApi(token=token)
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.repo_info(repo).private:
                raise InputError(f"{repo}: is public; say private=False, or name another")
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=commit_message
            )
        return str(done.commit_url)

    # --- seeing ---------------------------------------------------------------------------------

    def _told(self) -> dict[str, str]:
        return model_card.lines(self.module, self.vocabulary, self.settings, self.facts)

    def __repr__(self) -> str:
        return f"Encoder({self._told()['Shape']})"

    def _repr_html_(self) -> str:
        return in_html(self._told())


def _sequences(asked: Scoring) -> Sequences:
    rows, until, _ = asked.cohort
    return Sequences(asked.records, rows, until=until, max_tokens=asked.max_tokens)


def _digest(module: torch.nn.Module) -> str:
    """Changes when a weight changes."""
    found = hashlib.sha256()
    for weight in module.state_dict().values():
        found.update(weight.detach().cpu().contiguous().numpy())
    return found.hexdigest()


def _downloaded(repo_id: str, **where: Any) -> Path:
    """The files of a repository of the Hub that are an encoder's, and no others."""
    from huggingface_hub import snapshot_download

    if not _HUB_ID.fullmatch(repo_id):
        raise InputError(f"{repo_id}: no such folder; name one that `medbert pretrain` made")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=SHARED, **where))
    except Exception as error:  # of files, of the network, of the Hub
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{repo_id}: no such folder, and not to be had from the Hugging Face Hub ({reason})"
        ) from error
