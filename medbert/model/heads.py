"""Fine-tuning heads: from the hidden vectors of a subject to one logit, and its cross-entropy.

Every head follows the seam of the pretraining objectives, ``head(encoder, batch) -> LossOutput``,
and scores with ``head.logits(encoder, batch) -> (B,)``. A subject without tokens has a logit too:
that of an all-zero summary. ``config`` holds the arguments that build the head anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from medbert.model.encoder import initialise
from medbert.model.hazards import ALL_FIRST, Firsts, foretell
from medbert.schema import Batch, Encoder, InputError, LossOutput

POOLINGS = ("sum", "mean", "max", "last")
INVERSE_PENALTIES = tuple(10.0**exponent for exponent in np.arange(-5, 2.5, 0.5))
NO_SPREAD = 1e-6  # relative to the mean; below it a feature is a constant with rounding noise


def pool(hidden_TD: Tensor, batch: Batch, how: str) -> Tensor:
    """One vector per subject, (B, D): the sum, mean or max of its tokens, or that of its last one
    (for an encoder that looks back only); zeros where it has none.

    Raises ValueError if ``how`` is none of the four.
    """
    if how not in POOLINGS:
        raise ValueError(f"unknown pooling {how!r}: choose one of {', '.join(POOLINGS)}")
    subject_T = batch.subject_T
    empty_BD = hidden_TD.new_zeros(batch.rows_B.shape[0], hidden_TD.shape[1])
    if how == "last" and len(hidden_TD):
        last_B = (batch.offsets_B1[1:] - 1).clamp(min=0)
        return torch.where(batch.lengths_B[:, None] > 0, hidden_TD[last_B], empty_BD)
    if how == "max":
        index_TD = subject_T[:, None].expand_as(hidden_TD)
        return empty_BD.scatter_reduce(0, index_TD, hidden_TD, "amax", include_self=False)
    sum_BD = empty_BD.index_add(0, subject_T, hidden_TD)
    return sum_BD / batch.lengths_B.clamp(min=1)[:, None] if how == "mean" else sum_BD


class Head(nn.Module):
    """A binary outcome from ``logits``; the subclasses say how subjects are summarised.

    ``starts``: whether it says something before it is trained, so that this may be what is kept.
    """

    starts = False

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        """(B,) log-odds of the outcome."""
        raise NotImplementedError

    def forward(self, encoder: Encoder, batch: Batch) -> LossOutput:
        """Mean binary cross-entropy (nats) against ``batch.labels_B``."""
        if batch.labels_B is None:
            raise ValueError("a head needs labels, and this batch has none: give the task's labels")
        logits_B = self.logits(encoder, batch)
        loss = F.binary_cross_entropy_with_logits(logits_B, batch.labels_B.to(logits_B.dtype))
        return LossOutput(loss, {})


class Pooled(Head):
    """A linear layer on the pooled tokens; over their sum, it is the published Med-BERT head."""

    def __init__(self, *, hidden: int, pooling: str = "sum") -> None:
        super().__init__(hidden=hidden, pooling=pooling)
        self.pooling = pooling
        self.output = nn.Linear(hidden, 1)
        initialise(self.output)

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        return self.output(pool(encoder(batch), batch, self.pooling)).squeeze(-1)


class Answer(Head):
    """What an encoder foretells, put right by labels: slope * log-odds of the answer + intercept +
    a linear layer on the pooled tokens. It starts as the answer itself: slope 1, all others 0.

    Asked is whether one of ``tokens`` comes for the first time in (gap, gap + window] days; the
    encoder has a layer ``hazards`` (see ``Hazards.risk``, also for ``firsts``).
    """

    starts = True

    def __init__(
        self,
        *,
        hidden: int,
        tokens: Sequence[int],
        gap: float,
        window: float,
        firsts: Firsts = ALL_FIRST,
        pooling: str = "mean",
    ) -> None:
        asked = {"tokens": [*tokens], "gap": gap, "window": window, "firsts": firsts}
        super().__init__(hidden=hidden, **asked, pooling=pooling)
        if not tokens:
            raise ValueError("no tokens to ask for")
        self.pooling = pooling
        self.question: dict[str, Any] = {**asked, "tokens": torch.tensor(asked["tokens"])}
        self.slope = nn.Parameter(torch.ones(()))
        self.output = nn.Linear(hidden, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        hidden_TD = encoder(batch)
        answer_B = foretell(encoder, batch, **self.question, hidden_TD=hidden_TD)
        pooled_BD = pool(hidden_TD, batch, self.pooling)
        return self.slope * answer_B + self.output(pooled_BD).squeeze(-1)


class Recurrent(Head):
    """A GRU over the tokens of a subject; its final states go through a linear layer."""

    def __init__(self, *, hidden: int, width: int, bidirectional: bool = True) -> None:
        super().__init__(hidden=hidden, width=width, bidirectional=bidirectional)
        self.recurrent = nn.GRU(hidden, width, bidirectional=bidirectional)
        self.output = nn.Linear(width * (2 if bidirectional else 1), 1)
        initialise(self.output)

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        hidden_TD = encoder(batch)
        filled_B = batch.lengths_B > 0
        state_BK = hidden_TD.new_zeros(batch.rows_B.shape[0], self.output.in_features)
        if filled_B.any():
            subjects = hidden_TD.split(batch.lengths_B[filled_B].tolist())
            _, final = self.recurrent(pack_sequence(subjects, enforce_sorted=False))
            filled_state = final.transpose(0, 1).flatten(1).to(state_BK.dtype)
            state_BK = state_BK.index_put((filled_B,), filled_state)
        return self.output(state_BK).squeeze(-1)


class Retain(Head):
    """RETAIN (Choi et al. 2016, arXiv 1608.05745) over the visits of a subject.

    A visit is the sum of its tokens' hidden vectors; tokens outside any visit (ordinal 0) make one
    of their own, before the first. Two GRUs read the visits from the last to the first: one gives
    a weight per visit (alpha), the other a gate per visit and dimension (beta).
    """

    def __init__(self, *, hidden: int, width: int) -> None:
        super().__init__(hidden=hidden, width=width)
        self.visit_reader = nn.GRU(hidden, width, batch_first=True)
        self.gate_reader = nn.GRU(hidden, width, batch_first=True)
        self.visit_weight = nn.Linear(width, 1)
        self.gate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, 1)
        for layer in (self.visit_weight, self.gate, self.output):
            initialise(layer)

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        hidden_TD = encoder(batch)
        visits_VD, visits_B = visit_sums(hidden_TD, batch)
        filled_B = visits_B > 0
        context_BD = hidden_TD.new_zeros(batch.rows_B.shape[0], hidden_TD.shape[1])
        if filled_B.any():
            latest_first = [
                visit_VD.flip(0) for visit_VD in visits_VD.split(visits_B[filled_B].tolist())
            ]
            context_BD = context_BD.index_put((filled_B,), self._contexts(latest_first))
        return self.output(context_BD).squeeze(-1)

    def _contexts(self, latest_first: list[Tensor]) -> Tensor:
        """Visits of each subject that has any, latest first -> their weighted, gated sums."""
        packed = pack_sequence(latest_first, enforce_sorted=False)
        visits_BLD = pad_sequence(latest_first, batch_first=True)
        for_weights_BLW, lengths_B = pad_packed_sequence(
            self.visit_reader(packed)[0], batch_first=True
        )
        for_gates_BLW, _ = pad_packed_sequence(self.gate_reader(packed)[0], batch_first=True)
        padding_BL = torch.arange(visits_BLD.shape[1]) >= lengths_B[:, None]
        score_BL = self.visit_weight(for_weights_BLW).squeeze(-1)
        alpha_BL = score_BL.masked_fill(padding_BL.to(score_BL.device), -torch.inf).softmax(1)
        beta_BLD = torch.tanh(self.gate(for_gates_BLW))
        return (alpha_BL[..., None] * beta_BLD * visits_BLD).sum(1).to(visits_BLD.dtype)


def visit_sums(hidden_TD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum the tokens of each visit that has any: (V, D) in order of subject and visit, and (B,)
    how many visits each subject has."""
    stride = batch.visit_T.max() + 1 if batch.visit_T.numel() else 1
    visit_V, owner_T = torch.unique(batch.subject_T * stride + batch.visit_T, return_inverse=True)
    sums_VD = hidden_TD.new_zeros(visit_V.shape[0], hidden_TD.shape[1])
    visits_B = torch.bincount(visit_V // stride, minlength=batch.rows_B.shape[0])
    return sums_VD.index_add(0, owner_T, hidden_TD), visits_B


class FrozenLogistic(Head):
    """L2 logistic regression on pooled features of an encoder that is left as it is.

    ``fit`` replaces gradient training: the standardisation and the coefficients are folded into one
    linear layer, so that the head is saved, loaded and scored like any other. ``pooling`` names the
    summaries to lay side by side (K = their number times D).
    """

    fitted: Tensor

    def __init__(self, *, hidden: int, pooling: Sequence[str] = ("mean", "max")) -> None:
        super().__init__(hidden=hidden, pooling=list(pooling))
        self.pooling = tuple(pooling)
        self.output = nn.Linear(hidden * len(self.pooling), 1).requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def features(self, encoder: Encoder, batch: Batch) -> Tensor:
        """(B, K) pooled features, without dropout whatever the mode the encoder is in."""
        with still(encoder):
            hidden_TD = encoder(batch)
        return torch.cat([pool(hidden_TD, batch, how) for how in self.pooling], dim=1)

    def logits(self, encoder: Encoder, batch: Batch) -> Tensor:
        if not self.fitted:
            raise ValueError("this head has not seen any data: call fit() before scoring")
        return self.output(self.features(encoder, batch)).squeeze(-1)

    @torch.no_grad()
    def fit(
        self,
        train_features: Tensor | np.ndarray,
        train_labels: Tensor | np.ndarray,
        tuning_features: Tensor | np.ndarray,
        tuning_labels: Tensor | np.ndarray,
        *,
        penalties: Sequence[float] = INVERSE_PENALTIES,
    ) -> dict[str, float]:
        """Fit on features (n, K) and labels (n,), all on the CPU.

        Of ``penalties`` (C) the one with the best AUROC on ``tuning`` is kept; of equal ones, the
        strongest. Returns its ``C`` and the ``tuning_auroc``. Raises InputError if a split holds
        one outcome only.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score

        train_y = _both_outcomes(train_labels, "training")
        tuning_y = _both_outcomes(tuning_labels, "tuning")
        train_x = np.asarray(train_features, dtype=np.float64)
        mean, spread = train_x.mean(0), train_x.std(0)
        varies = spread > NO_SPREAD * (1 + np.abs(mean))
        scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
        train_x = (train_x - mean) * scale
        tuning_x = (np.asarray(tuning_features, dtype=np.float64) - mean) * scale

        best = {"C": 0.0, "tuning_auroc": -1.0}
        model = LogisticRegression(max_iter=1000, warm_start=True)
        for inverse_penalty in penalties:
            model.set_params(C=inverse_penalty).fit(train_x, train_y)
            auroc = float(roc_auc_score(tuning_y, model.decision_function(tuning_x)))
            if auroc > best["tuning_auroc"]:
                best = {"C": inverse_penalty, "tuning_auroc": auroc}
                weight, bias = model.coef_[0] * scale, model.intercept_[0]
        self.output.weight.copy_(torch.from_numpy(weight)[None])
        self.output.bias.fill_(float(bias - weight @ mean))
        self.fitted.fill_(True)
        return best


@contextmanager
def still(encoder: Encoder) -> Iterator[None]:
    """Hold an encoder in eval mode, then give each of its parts the mode it had."""
    parts = encoder.modules() if isinstance(encoder, nn.Module) else []
    modes = {part: part.training for part in parts}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _both_outcomes(labels: Tensor | np.ndarray, split: str) -> np.ndarray:
    outcomes = np.asarray(labels).astype(bool)
    if outcomes.all() or not outcomes.any():
        raise InputError(
            f"the {split} labels ({len(outcomes)} subjects) hold one outcome only: "
            "a logistic regression needs subjects with and without the outcome"
        )
    return outcomes
