"""Pretraining objectives: masked code and prolonged stay, and weighted sums of such terms.

A term has two halves. ``corrupt(batch) -> (batch, target)`` hides what is to be found;
``loss(encoder, hidden_TD, batch, target) -> LossOutput`` scores what the encoder made of the
corrupted batch. ``Objective`` lets all terms corrupt in turn and runs the encoder once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.encoder import NORM_EPSILON, initialise
from medbert.model.heads import pool
from medbert.schema import MASK, SPECIAL_TOKENS, Batch, Encoder, LossOutput, owner

SPECIALS = len(SPECIAL_TOKENS)
DRAWS = 2**63  # all draws below are int64 in [0, DRAWS)
Counts = Tensor | np.ndarray | Sequence[int]
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # the rest of the chosen codes stay as they are


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


class MaskedTarget(NamedTuple):
    """Where codes were hidden, and which."""

    place_M: Tensor
    code_M: Tensor


class MaskedCode(nn.Module):
    """BERT's masked language model over codes; the output layer runs at masked places only.

    ``rate=None`` hides exactly one code per subject, as published; a rate hides each code with that
    probability and at least one per subject. Of the hidden codes 80% become MASK, 10% a random
    code, 10% stay. Special tokens are never hidden and never stand in for a code. With
    ``static=True``, and whenever in eval mode, what is hidden is a pure function of ``seed``,
    ``batch.rows_B`` and the position; else it is drawn from torch's global generator.
    ``counts`` (C,) are the training counts of the codes.

    Metrics, over the hidden codes: ``masked_code`` and ``unigram`` (cross-entropy, nats, of the
    model and of the add-one-smoothed training frequencies), ``top1`` and ``top10`` accuracy (a tie
    counts against the model). A batch with nothing to hide has loss 0 and no metrics.
    """

    counts: Tensor

    def __init__(
        self,
        *,
        vocabulary_size: int,
        hidden: int,
        counts: Counts,
        rate: float | None,
        static: bool,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts_C = torch.as_tensor(counts).to(torch.int64, copy=True)
        if counts_C.shape != (vocabulary_size,) or vocabulary_size <= SPECIALS:
            raise ValueError(
                f"counts has shape {tuple(counts_C.shape)}, expected one count for each of the "
                f"{vocabulary_size} entries of the vocabulary ({SPECIALS} special tokens and codes)"
            )
        if rate is not None and not 0 < rate <= 1:
            raise ValueError(
                f"rate={rate} must be above 0 and at most 1, or null for one a subject"
            )
        self.rate, self.static, self.seed = rate, static, seed
        self.register_buffer("counts", counts_C)
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        initialise(self.dense)

    def corrupt(self, batch: Batch) -> tuple[Batch, MaskedTarget]:
        choice_T, action_T, stand_in_T = (self._draw(batch, stream) for stream in range(3))
        place_M = self._choose(batch, choice_T).nonzero().squeeze(1)
        code_M = batch.tokens_T[place_M]
        action_M = action_T[place_M]
        stand_in_M = SPECIALS + stand_in_T[place_M] % (len(self.counts) - SPECIALS)
        shown_M = torch.where(
            action_M < _threshold(MASKED_SHARE + RANDOM_SHARE), stand_in_M, code_M
        )
        shown_M = torch.where(action_M < _threshold(MASKED_SHARE), MASK, shown_M)
        tokens_T = batch.tokens_T.index_copy(0, place_M, shown_M)
        return batch._replace(tokens_T=tokens_T), MaskedTarget(place_M, code_M)

    def loss(
        self, encoder: CodeEncoder, hidden_TD: Tensor, batch: Batch, target: MaskedTarget
    ) -> LossOutput:
        hidden_MD = self.norm(F.gelu(self.dense(hidden_TD.index_select(0, target.place_M))))
        logits_MC = F.linear(hidden_MD, encoder.codes.weight, self.bias)
        masked = len(target.code_M)
        loss = F.cross_entropy(logits_MC, target.code_M, reduction="sum") / max(masked, 1)
        return LossOutput(loss, self._metrics(loss, logits_MC, target.code_M) if masked else {})

    def _draw(self, batch: Batch, stream: int) -> Tensor:
        """One int64 in [0, DRAWS) per token."""
        if self.static or not self.training:
            rows_T = batch.rows_B[batch.subject_T]
            return fixed_draws(rows_T, batch.position_T, seed=self.seed, stream=stream)
        return torch.randint(DRAWS - 1, batch.tokens_T.shape, device=batch.tokens_T.device)

    def _choose(self, batch: Batch, draw_T: Tensor) -> Tensor:
        """Mark the codes to hide: the lowest draw of each subject, and all below the rate."""
        draw_T = torch.where(batch.tokens_T >= SPECIALS, draw_T, DRAWS - 1)
        lowest_B = draw_T.new_full(batch.rows_B.shape, DRAWS - 1)
        lowest_B = lowest_B.scatter_reduce(0, batch.subject_T, draw_T, "amin")
        chosen_T = draw_T == lowest_B[batch.subject_T]
        if self.rate is not None:
            chosen_T = chosen_T | (draw_T < _threshold(self.rate))
        return chosen_T & (batch.tokens_T >= SPECIALS)

    @torch.no_grad()
    def _metrics(self, loss: Tensor, logits_MC: Tensor, code_M: Tensor) -> dict[str, Tensor]:
        weight_C = (self.counts + 1).double()
        unigram = weight_C[SPECIALS:].sum().log() - weight_C[code_M].log().mean()
        highest = logits_MC.topk(min(11, logits_MC.shape[1])).values
        highest = F.pad(highest, (0, 11 - highest.shape[1]), value=-torch.inf)
        own_M = logits_MC.gather(1, code_M[:, None]).squeeze(1)
        return {
            "masked_code": loss.detach(),
            "unigram": unigram.to(loss.dtype),
            "top1": (own_M > highest[:, 1]).to(loss.dtype).mean(),
            "top10": (own_M > highest[:, 10]).to(loss.dtype).mean(),
        }


class ProlongedStay(nn.Module):
    """Did any visit of the subject last longer than ``days``? A linear layer on pooled tokens.

    The published auxiliary task (more than 7 days, sum of token outputs). An unknown stay (NaN) is
    masked: a known long stay is a yes whatever else is unknown, and a subject without any known
    stay is left out; with none left the loss is 0 and there is no metric. Metric:
    ``prolonged_stay``, the binary cross-entropy (nats).
    """

    def __init__(self, *, hidden: int, days: float = 7, pooling: str = "sum") -> None:
        super().__init__()
        self.days, self.pooling = days, pooling
        self.output = nn.Linear(hidden, 1)
        initialise(self.output)

    def corrupt(self, batch: Batch) -> tuple[Batch, None]:
        return batch, None

    def loss(self, encoder: Encoder, hidden_TD: Tensor, batch: Batch, target: None) -> LossOutput:
        known_B, prolonged_B = self.labels(batch)
        logits_B = self.output(pool(hidden_TD, batch, self.pooling)).squeeze(-1)[known_B]
        known = len(logits_B)
        loss = F.binary_cross_entropy_with_logits(
            logits_B, prolonged_B[known_B].to(logits_B.dtype), reduction="sum"
        ) / max(known, 1)
        return LossOutput(loss, {"prolonged_stay": loss.detach()} if known else {})

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two lines of B bools: is any stay known, and is any known stay longer than ``days``."""
        if batch.stay_V is None or batch.visit_offsets_B1 is None:
            raise ValueError(
                "prolonged stay needs lengths of stay, and this batch has none: use a store that "
                "has them, or pretrain with masked codes alone"
            )
        subject_V = owner(batch.visit_offsets_B1, len(batch.stay_V))
        none_B = torch.zeros_like(batch.rows_B)
        known_B = none_B.index_add(0, subject_V, (~batch.stay_V.isnan()).to(none_B.dtype))
        prolonged_B = none_B.index_add(0, subject_V, (batch.stay_V > self.days).to(none_B.dtype))
        return known_B > 0, prolonged_B > 0


def masked_code(
    *,
    vocabulary_size: int,
    hidden: int,
    counts: Counts,
    rate: float | None,
    static: bool,
    seed: int,
) -> Objective:
    """Masked codes alone; see ``MaskedCode``."""
    term = MaskedCode(
        vocabulary_size=vocabulary_size,
        hidden=hidden,
        counts=counts,
        rate=rate,
        static=static,
        seed=seed,
    )
    return Objective({"masked_code": term}, {"masked_code": 1.0})


def prolonged_stay(*, vocabulary_size: int, hidden: int, counts: Counts, days: float) -> Objective:
    """Prolonged stay alone. Vocabulary and counts are given to all objectives, and unused here."""
    return Objective(
        {"prolonged_stay": ProlongedStay(hidden=hidden, days=days)}, {"prolonged_stay": 1.0}
    )


def masked_code_and_stay(
    *,
    vocabulary_size: int,
    hidden: int,
    counts: Counts,
    rate: float | None,
    static: bool,
    days: float,
    masked_code_weight: float,
    stay_weight: float,
    seed: int,
) -> Objective:
    """Both published tasks of Med-BERT, weighted."""
    masked = MaskedCode(
        vocabulary_size=vocabulary_size,
        hidden=hidden,
        counts=counts,
        rate=rate,
        static=static,
        seed=seed,
    )
    return Objective(
        {"masked_code": masked, "prolonged_stay": ProlongedStay(hidden=hidden, days=days)},
        {"masked_code": masked_code_weight, "prolonged_stay": stay_weight},
    )


def fixed_draws(rows_T: Tensor, position_T: Tensor, *, seed: int, stream: int) -> Tensor:
    """An int64 in [0, DRAWS) per token, a function of the arguments alone on any device: the
    finaliser of splitmix64 (Steele, Lea & Flood 2014), over the row, then the position."""
    golden = 0x9E3779B97F4A7C15
    start = _signed((4 * seed + stream + 1) * golden)
    mixed_T = _mix(_mix(rows_T + start) + position_T * _signed(golden))
    return mixed_T & (DRAWS - 1)


def _mix(value_T: Tensor) -> Tensor:
    value_T = (value_T ^ _shift(value_T, 30)) * _signed(0xBF58476D1CE4E5B9)
    value_T = (value_T ^ _shift(value_T, 27)) * _signed(0x94D049BB133111EB)
    return value_T ^ _shift(value_T, 31)


def _shift(value_T: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own repeats the sign."""
    return (value_T >> bits) & (2 ** (64 - bits) - 1)


def _signed(value: int) -> int:
    """The 64 low bits of a number, read as int64."""
    return (value + DRAWS) % (2 * DRAWS) - DRAWS


def _threshold(share: float) -> int:
    """Draws below this number make up ``share`` of all."""
    return min(int(share * DRAWS), DRAWS - 1)
