"""The encoder of Med-BERT: BERT over codes, with the visit as the token type.

Rasmy et al., npj Digit Med 2021;4:86 (doi 10.1038/s41746-021-00455-y): code, position and visit
embeddings, then the post-norm transformer of Devlin et al. (arXiv 1810.04805). No CLS, no SEP, no
pooler. The weights convert to and from a Hugging Face ``BertModel`` (see ``checkpoint``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.layers.attention import Packing, SelfAttention, packed
from medbert.model.layers.dropout import Dropout
from medbert.schema import DAYS_PER_YEAR, Batch

NORM_EPSILON = 1e-12
INITIAL_DEVIATION = 0.02


class BertEncoder(nn.Module):
    """Turns a batch into one hidden vector per token.

    ``positions`` bounds the codes of one subject. ``visits`` bounds the visit ordinals: later
    visits share the last row. ``ages`` > 0 adds an embedding of the age in whole years (the idea of
    BEHRT, Li et al. 2020): that many rows from 0 upwards, and one more where age is unknown.
    ``dropout`` acts on embeddings and the output of both sublayers, ``attention_dropout`` on the
    attention probabilities. ``attention`` chooses how they are computed (see ``attention``).
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        layers: int,
        heads: int,
        hidden: int,
        feed_forward: int,
        dropout: float,
        attention_dropout: float,
        positions: int,
        visits: int,
        ages: int = 0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.hidden = hidden
        self.codes = nn.Embedding(vocabulary_size, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.visits = nn.Embedding(visits, hidden)
        self.ages = nn.Embedding(ages + 1, hidden) if ages else None
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.dropout = Dropout(dropout)
        of_a_layer = ("heads", "hidden", "feed_forward", "dropout", "attention_dropout")
        self.layers = nn.ModuleList(
            Layer(**{name: self.config[name] for name in of_a_layer}) for _ in range(layers)
        )
        self.apply(initialise)

    def forward(self, batch: Batch) -> Tensor:
        """(T, D), in the order of the batch. Raises ValueError if a subject is too long."""
        packing = packed(self, batch, training=self.training)
        check_length(packing.longest, self.positions.num_embeddings, "with more positions")
        hidden_TD = self.embed(batch)
        if not packing.n_places:
            return hidden_TD
        hidden_PD = packing.enter(hidden_TD)
        for layer in self.layers:
            hidden_PD = layer(hidden_PD, packing)
        return packing.leave(hidden_PD)

    def embed(self, batch: Batch) -> Tensor:
        """What each token is, where it stands and in which visit, before any attention (T, D)."""
        visit_T = batch.visit_T.clamp(max=self.visits.num_embeddings - 1)
        hidden_TD = self.codes(batch.tokens_T)
        hidden_TD = hidden_TD + self.positions(batch.position_T) + self.visits(visit_T)
        if self.ages is not None:
            hidden_TD = hidden_TD + self.ages(age_row(batch.age_T, self.ages.num_embeddings))
        return self.dropout(self.norm(hidden_TD))


class Layer(nn.Module):
    """Attention, then a feed-forward network; each is added to its input and then normalised."""

    def __init__(
        self,
        *,
        heads: int,
        hidden: int,
        feed_forward: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(heads=heads, hidden=hidden, dropout=attention_dropout)
        self.attention_norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.widen = nn.Linear(hidden, feed_forward)
        self.narrow = nn.Linear(feed_forward, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.dropout = Dropout(dropout)

    def forward(self, hidden_PD: Tensor, packing: Packing) -> Tensor:
        attended_PD = self.attention(hidden_PD, packing)
        hidden_PD = self.attention_norm(hidden_PD + self.dropout(attended_PD))
        change_PD = self.narrow(F.gelu(self.widen(hidden_PD)))
        return self.output_norm(hidden_PD + self.dropout(change_PD))


def arguments(names: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ``locals()`` of a constructor that has none of its own yet, what it was given."""
    return {name: value for name, value in names.items() if name not in ("self", "__class__")}


def check_length(longest: int, positions: int, cure: str) -> None:
    if longest > positions:
        raise ValueError(
            f"a subject of this batch has {longest} codes, but the encoder has {positions} "
            f"positions: truncate histories when making batches, or pretrain {cure}"
        )


def age_row(age_T: Tensor, rows: int) -> Tensor:
    """The row of the age embedding: whole years, held to the table; its last row where unknown."""
    unknown = rows - 1
    year_T = torch.nan_to_num(age_T / DAYS_PER_YEAR).floor().clamp(0, unknown - 1).long()
    return torch.where(age_T.isnan(), unknown, year_T)


def initialise(module: nn.Module) -> None:
    """BERT's start: weights from N(0, 0.02), biases zero; norms are left at one and zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
