"""What somebody who holds an encoder, and the records of some subjects, can find out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medbert.commands.encoders.building import load_encoder, load_objective, training_sequences
from medbert.commands.output.artefacts import read_json
from medbert.commands.output.progress import follow
from medbert.commands.privacy.canaries import draw, planted, real, tokens_of
from medbert.data.batches import Sequences
from medbert.data.store import Store
from medbert.evaluate.intervals import Interval
from medbert.evaluate.leaks import privacy
from medbert.schema import DAYS_PER_YEAR, HELD_OUT, TRAIN, TUNING, Batch, InputError
from medbert.train.score import on, place

FPR = 0.01  # of others that are taken for members
FOUND_BITS = float(np.log2(100))  # a canary is found where 1 of 100 alternatives is as likely
_COPY_BIT = 40  # of a row number: from here on stands which copy it is


class Attack:
    """The loss of a pretraining, as it ended, on any subject: a mean over ``draws`` of the masks.

    Masks are functions of the seed, the row and the copy, so the same for whatever encoder.
    """

    def __init__(self, folder: Path, records: Store, *, draws: int, device: str) -> None:
        begun = read_json(folder / "settings.json")
        self.folder, self.records, self.device = folder, records, place(device)
        encoder: Any = load_encoder(folder, records).eval()
        objective: Any = load_objective(folder, records, hidden=encoder.hidden).eval()
        self.encoder, self.objective = encoder.to(self.device), objective.to(self.device)
        static = any(getattr(term, "static", False) for term in objective.terms.values())
        self.draws = draws
        self.copies = 1 if static else draws  # the first one is masked as it was in training
        self.store, self.max_tokens = begun["store"], begun["max_tokens"]
        self.data = {
            split: training_sequences(records, split, self.max_tokens, n_subjects=n)
            for split, n in ((TRAIN, begun.get("n_subjects")), (TUNING, None), (HELD_OUT, None))
        }
        self.nats_C = self._nats()

    def membership(
        self, reference: Attack | None, n_subjects: int, *, seed: int, **resampling: Any
    ) -> tuple[dict[str, Interval], int]:
        """``auc`` and ``tpr`` (see ``privacy.membership``), and how many of each kind there were:
        at most ``n_subjects`` that were trained on, and as many held-out ones."""
        random = np.random.default_rng(seed)
        losses, difficulty = [], []
        for data in (self.data[TRAIN], self.data[HELD_OUT]):
            may = (data.lengths > 0) & real(self.records, data.rows)
            if reference is not None:
                may &= ~reference.has_seen(self.records.subject_ids[data.rows])
            chosen = random.permutation(np.flatnonzero(may))[:n_subjects]
            losses.append(self.losses(data, chosen))
            told = [features_of(data[chosen], self.nats_C)]
            if reference is not None:
                told.append(reference.losses(data, chosen)[:, None])
            difficulty.append(np.concatenate(told, axis=1))
        member = np.repeat([True, False], [len(of) for of in losses])
        both = np.concatenate(losses), member, np.concatenate(difficulty)
        scores = privacy.calibrated(*both, seed=seed)
        found = privacy.membership(scores, member, fpr=FPR, seed=seed, **resampling)
        return found, min(map(len, losses))

    def canaries(self, alternatives: int, *, seed: int) -> dict[int, np.ndarray]:
        """Exposure in bits of the planted canaries, by how many subjects have each; empty where
        none were planted."""
        if not (canaries := planted(self.records.folder)):
            return {}
        rows = [self.records.rows_of(np.array(one["subject_ids"])) for one in canaries]
        repeats = np.array([np.isin(own, self.data[TRAIN].rows).sum() for own in rows])
        secrets = np.array([one["tokens"] for one in canaries])
        random, codes = np.random.default_rng([seed, 1]), tokens_of(self.records)
        tokens = np.concatenate([secrets, draw(random, codes, alternatives, secrets.shape[1])])
        form = Sequences(self.records, rows[0][:1], max_tokens=self.max_tokens)
        batch = form[np.zeros(self.draws, np.int64)]  # one for all: they differ in codes alone
        tokens = tokens[:, -int(form.lengths[0]) :].astype(np.int64)
        losses = [
            self._loss(batch._replace(tokens_T=torch.from_numpy(np.tile(own, self.draws))))
            for own in tokens
        ]
        ours = np.arange(len(tokens)) < len(secrets)
        scores = privacy.calibrated(losses, ours, self.nats_C[tokens].mean(1), seed=seed)
        bits = privacy.exposure(scores[ours], scores[~ours])
        return {int(n): bits[repeats == n] for n in np.unique(repeats[repeats > 0])}

    def losses(self, data: Sequences, indices: np.ndarray) -> np.ndarray:
        what, length_N = f"losses of {self.folder.name}", data.lengths
        shown = follow(indices, what, len(indices), size=lambda index: int(length_N[index]))
        return np.array([self._loss(data[np.full(self.copies, index)]) for index in shown])

    def has_seen(self, subject_ids: np.ndarray) -> np.ndarray:
        """Which subjects it was trained or chosen on, in the store that it was trained on."""
        try:
            other = Store(self.store)
        except InputError as error:
            raise InputError(f"reference={self.folder}: whom it has seen, says {error}") from error
        row = other.rows_of(subject_ids)
        return (row >= 0) & np.isin(other.split_of_row[row], (TRAIN, TUNING))

    def _loss(self, batch: Batch) -> float:
        """Of a subject that ``batch`` holds several times, masked differently each time."""
        copy_B = torch.arange(len(batch.rows_B)) << _COPY_BIT
        with torch.inference_mode():
            batch = on(batch._replace(rows_B=batch.rows_B + copy_B), self.device)
            return float(self.objective(self.encoder, batch).loss)

    def _nats(self) -> np.ndarray:
        """What each code costs who knows frequencies alone: those among tuning subjects, for they
        are neither members nor the others."""
        data, counts_C = self.data[TUNING], np.ones(len(self.records.vocabulary))
        for part in np.array_split(np.arange(len(data)), 1 + len(data) // 10_000):
            counts_C += np.bincount(data[part].tokens_T.numpy(), minlength=len(counts_C))
        return np.log(counts_C.sum()) - np.log(counts_C)


def features_of(batch: Batch, nats_C: np.ndarray) -> np.ndarray:
    """What makes a record easy or hard for any model, (B, 6): how rare its codes are, how many
    there are (twice), visits, years observed, the longest stay."""
    length_B, owner_T = batch.lengths_B.numpy(), batch.subject_T.numpy()
    n, end_B, stay_V, visits_B1 = len(length_B), batch.end_B, batch.stay_V, batch.visit_offsets_B1
    nats_B = np.bincount(owner_T, nats_C[batch.tokens_T.numpy()], n) / length_B
    days_B, stay_B = np.zeros((2, n))
    visits_B = np.zeros(n, np.int64)
    if end_B is not None:
        first_B = np.full(n, np.inf)
        np.fmin.at(first_B, owner_T, batch.age_T.numpy())
        days_B = np.where(np.isfinite(first_B), end_B.numpy() - first_B, 0).clip(min=0)
    if stay_V is not None and visits_B1 is not None:
        visits_B = visits_B1.diff().numpy()
        np.fmax.at(stay_B, np.repeat(np.arange(n), visits_B), stay_V.numpy())
    logs = [np.log1p(of) for of in (length_B, visits_B, days_B / DAYS_PER_YEAR, stay_B)]
    return np.column_stack([nats_B, 1 / length_B, *logs])
