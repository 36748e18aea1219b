"""Pretraining objectives: masked code and prolonged stay, and weighted sums of such terms.

A term has two halves. ``corrupt(batch) -> (batch, target)`` hides what is to be found;
``loss(encoder, hidden_TD, batch, target) -> LossOutput`` scores what the encoder made of the
corrupted batch. ``Objective`` lets all terms corrupt in turn and runs the encoder once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.encoder import NORM_EPSILON, initialise
from medbert.model.masking import SPECIALS, MaskedTarget, Masking
from medbert.model.softmax import exact_loss, ranks, sample_shares, sampled_loss
from medbert.model.stays import ProlongedStay
from medbert.model.together import divisor
from medbert.schema import Batch, Encoder, LossOutput

Counts = Tensor | np.ndarray | Sequence[int]


class CodeEncoder(Encoder, Protocol):
    """An encoder whose code table the masked-code head is tied to."""

    codes: nn.Embedding


class Term(Protocol):
    """One thing to learn; ``loss`` sees the batch as the encoder saw it."""

    def corrupt(self, batch: Batch) -> tuple[Batch, Any]: ...

    def loss(
        self, encoder: Encoder, hidden_TD: Tensor, batch: Batch, target: Any
    ) -> LossOutput: ...


class Objective(nn.Module):
    """The weighted sum of its terms' losses, after one pass of the encoder; metrics are merged."""

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not terms or set(terms) != set(weights):
            raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must match")
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)

    def start(self, encoder: Encoder) -> None:
        """Sets what a new encoder starts with, for the terms that know better than chance."""
        for term in cast("Mapping[str, Any]", self.terms).values():
            if hasattr(term, "start"):
                term.start(encoder)

    def forward(self, encoder: Encoder, batch: Batch) -> LossOutput:
        terms = cast("Mapping[str, Term]", self.terms)
        corrupted = batch
        targets: dict[str, Any] = {}
        for name, term in terms.items():
            corrupted, targets[name] = term.corrupt(corrupted)
        hidden_TD = encoder(corrupted)
        losses = []
        metrics: dict[str, Tensor] = {}
        for name, term in terms.items():
            output = term.loss(encoder, hidden_TD, corrupted, targets[name])
            losses.append(self.weights[name] * output.loss)
            metrics.update(output.metrics)
        return LossOutput(torch.stack(losses).sum(), metrics)


class MaskedCode(nn.Module):
    """BERT's masked language model over codes; the output layer runs at masked places only.

    ``rate``, ``visit_rate``: see ``Masking``. With ``static=True``, and whenever in eval mode, a
    subject is masked the same way every time. ``counts`` (C,) are the training counts of the codes.

    ``sampled``: about so many codes stand for the vocabulary in training, for speed (see
    ``sampled_loss``); null, and in eval mode always, means all of them. ``start_at_unigram``: the
    bias of the output layer starts as the log of the training frequencies, not at zero as in BERT.

    Metrics, over the hidden codes: ``masked_code`` (cross-entropy, nats) and, in eval mode,
    ``unigram`` (that of the add-one-smoothed training frequencies), ``top1`` and ``top10`` accuracy
    (a tie counts against the model). A batch with nothing to hide has loss 0 and no metrics.
    """

    counts: Tensor
    share_C: Tensor | None

    def __init__(
        self,
        *,
        vocabulary_size: int,
        hidden: int,
        counts: Counts,
        rate: float | None,
        static: bool,
        seed: int = 0,
        visit_rate: float = 0.0,
        sampled: int | None = None,
        start_at_unigram: bool = True,
    ) -> None:
        super().__init__()
        counts_C = torch.as_tensor(counts).to(torch.int64, copy=True)
        if counts_C.shape != (vocabulary_size,) or vocabulary_size <= SPECIALS:
            raise ValueError(
                f"counts has shape {tuple(counts_C.shape)}, expected one count for each of the "
                f"{vocabulary_size} entries of the vocabulary ({SPECIALS} special tokens and codes)"
            )
        self.masking = Masking(
            vocabulary_size=vocabulary_size, rate=rate, seed=seed, visit_rate=visit_rate
        )
        self.static = static
        self.register_buffer("counts", counts_C)
        share_C = None  # a small vocabulary needs no sample
        if sampled is not None and 0 < sampled < vocabulary_size - SPECIALS:
            share_C = sample_shares(counts_C, sampled)
        self.register_buffer("share_C", share_C, persistent=False)
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        if start_at_unigram:
            weight_C = torch.cat([torch.ones(SPECIALS), counts_C[SPECIALS:] + 1.0])
            self.bias.data.copy_(torch.log(weight_C / weight_C.sum()))
        initialise(self.dense)

    def corrupt(self, batch: Batch) -> tuple[Batch, MaskedTarget]:
        return self.masking(batch, fixed=self.static or not self.training)

    def loss(
        self, encoder: CodeEncoder, hidden_TD: Tensor, batch: Batch, target: MaskedTarget
    ) -> LossOutput:
        hidden_MD = hidden_TD.index_select(0, target.place_M)
        table, code_M = encoder.codes, target.code_M
        masked = divisor(len(code_M), training=self.training, device=hidden_TD.device)
        if torch.is_grad_enabled() and self.training:
            hidden_MD = self._transformed(hidden_MD)
            if self.share_C is None:
                loss = exact_loss(hidden_MD, table.weight, self.bias, code_M, divisor=masked)
            else:
                loss = sampled_loss(hidden_MD, table, self.bias, code_M, self.share_C) / masked
            return LossOutput(loss, {"masked_code": loss.detach()} if len(code_M) else {})
        loss_M, before_M = self.ranks(encoder, hidden_MD, code_M)
        loss = loss_M.sum() / masked
        return LossOutput(loss, self._metrics(loss, before_M, code_M) if len(code_M) else {})

    def ranks(
        self, encoder: CodeEncoder, hidden_MD: Tensor, code_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of each hidden code, and how many codes are thought likelier: see ``softmax``."""
        return ranks(self._transformed(hidden_MD), encoder.codes.weight, self.bias, code_M)

    def _transformed(self, hidden_MD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden_MD)))

    def _metrics(self, loss: Tensor, before_M: Tensor, code_M: Tensor) -> dict[str, Tensor]:
        weight_C = (self.counts + 1).double()
        unigram = weight_C[SPECIALS:].sum().log() - weight_C[code_M].log().mean()
        return {
            "masked_code": loss,
            "unigram": unigram.to(loss.dtype),
            "top1": (before_M < 1).to(loss.dtype).mean(),
            "top10": (before_M < 10).to(loss.dtype).mean(),
        }


def combined(
    *,
    vocabulary_size: int,
    hidden: int,
    counts: Counts,
    terms: Mapping[str, Callable[..., nn.Module]],
    weights: Mapping[str, float],
) -> Objective:
    """Any terms together, each made of the same three facts; one that hides codes comes last."""
    facts = {"vocabulary_size": vocabulary_size, "hidden": hidden, "counts": counts}
    return Objective({name: term(**facts) for name, term in terms.items()}, weights)


def masked_code(**arguments: Any) -> Objective:
    """Masked codes alone; the arguments are those of ``MaskedCode``."""
    return Objective({"masked_code": MaskedCode(**arguments)}, {"masked_code": 1.0})


def prolonged_stay(
    *, vocabulary_size: int, hidden: int, counts: Counts, days: float, per_visit: bool = False
) -> Objective:
    """Prolonged stay alone. Vocabulary and counts are given to all objectives, and unused here."""
    term = ProlongedStay(hidden=hidden, days=days, per_visit=per_visit)
    return Objective({"prolonged_stay": term}, {"prolonged_stay": 1.0})


def masked_code_and_stay(
    *,
    hidden: int,
    days: float,
    masked_code_weight: float,
    stay_weight: float,
    per_visit: bool = False,
    **masked: Any,
) -> Objective:
    """Both published tasks of Med-BERT, weighted: ``ProlongedStay``, and ``MaskedCode`` with all
    other arguments."""
    terms = {
        "masked_code": MaskedCode(hidden=hidden, **masked),
        "prolonged_stay": ProlongedStay(hidden=hidden, days=days, per_visit=per_visit),
    }
    return Objective(terms, {"masked_code": masked_code_weight, "prolonged_stay": stay_weight})
