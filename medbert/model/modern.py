"""An encoder with what has proved better since BERT; every part of it is one argument.

Layers that normalise before they work and add without biases (Xiong et al. 2020, arXiv 2002.04745),
a gated feed-forward network (Shazeer 2020, arXiv 2002.05202), and rotary position (Su et al. 2021,
arXiv 2104.09864) that turns with time: what one code makes of another depends on the days between
them, however old the subject is. Age and sex may be told beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.encoder import INITIAL_DEVIATION, arguments, check_length
from medbert.model.hazards import Hazards, clock
from medbert.model.layers.attention import Packing, SelfAttention, packed
from medbert.model.layers.dropout import Dropout
from medbert.schema import DAYS_PER_YEAR, MALE, UNKNOWN_SEX, Batch

TIMES = ("age", "order", "both", "none")
# Of the rotations, in days (or codes). The fastest tells days of a week apart, and hours a little;
# the slowest does not come round within a life.
SHORTEST, LONGEST = 7.0, 100 * DAYS_PER_YEAR
LONGEST_AGE, AGE_WAVES = 160.0, 6  # years; each wave is half as long as the one before
APART = 2**20  # days between subjects laid on one time line
MANY = 20  # distinct codes: about from there on sums grow with the root of their number

Sums = Callable[[Tensor], Tensor]
"""Values of tokens (T, X) to their sums over the codes so far, at all tokens or some (M, X)."""


class ModernEncoder(nn.Module):
    """Turns a batch into one hidden vector per token.

    ``time`` is what attention turns by: ``age``, the days between codes (see ``days``); ``order``,
    the codes between them; ``both``, half of each head by either; ``none``. In a store the codes of
    one moment stand in no order, so ``age`` loses nothing but the number of codes between.
    Added to every token are, each by its own switch: ``ages``, a smooth function of the age;
    ``sex``; ``visits`` > 0, an embedding of the visit ordinal (later ones share the last row);
    ``positions``, a learned absolute position, which alone bounds the codes of a subject (null: no
    bound). ``gated``: GELU(gate) * value in place of GELU, each ``feed_forward`` wide. ``dropout``
    acts on the sum of the embeddings and the output of both sublayers. ``causal``: no code sees a
    later one. ``edges``, in days: a layer ``hazards`` that answers when a code comes; null: none.
    ``ever``: every output also holds the sum, by a table of its own, of all codes that the subject
    has had by then, each once: what baselines on counts see, and attention loses in long records.
    ``silence``: the hazards know for how long nothing has come (see ``Hazards``). ``linear``: they
    also know a regression on what is known by then (see ``known``), cut down to so many directions,
    which pretraining starts with (see ``regression``). ``recent``: it also knows the codes of the
    last so many days, for each of several numbers apart; null: not.
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
        time: str = "age",
        ages: bool = True,
        sex: bool = True,
        visits: int = 0,
        positions: int | None = None,
        gated: bool = True,
        attention: str = "auto",
        causal: bool = False,
        edges: Sequence[float] | None = None,
        ever: bool = False,
        silence: bool = False,
        linear: int = 0,
        recent: Sequence[float] | float | None = None,
    ) -> None:
        edges = None if edges is None else list(edges)
        recent = [recent] if isinstance(recent, int | float) else list(recent or [])
        super().__init__()
        self.config = arguments(locals())
        _check_turns(time, heads=heads, hidden=hidden)
        self.hidden, self.time, self.turns = hidden, time, hidden // heads // 2
        self.codes = nn.Embedding(vocabulary_size, hidden)
        self.ages = nn.Linear(2 * AGE_WAVES + 1, hidden, bias=False) if ages else None
        self.sex = nn.Embedding(MALE + 1, hidden) if sex else None
        self.visits = nn.Embedding(visits, hidden) if visits else None
        self.positions = nn.Embedding(positions, hidden) if positions else None
        self.norm = nn.LayerNorm(hidden, bias=False)
        self.dropout = Dropout(dropout)
        of_a_layer = ("heads", "hidden", "feed_forward", "dropout", "attention_dropout", "gated")
        self.layers = nn.ModuleList(
            PreNormLayer(**{name: self.config[name] for name in of_a_layer}) for _ in range(layers)
        )
        self.ever = nn.Embedding(vocabulary_size, hidden) if ever else None
        self.windows = [math.inf, *recent]  # days
        tables = len(self.windows) if linear else 0
        self.linear = nn.ModuleList(nn.Embedding(vocabulary_size, linear) for _ in range(tables))
        beside = tables + (2 * AGE_WAVES + 1 if ages else 0) + (MALE + 1 if sex else 0)
        self.final_norm = nn.LayerNorm(hidden, bias=False)
        self.hazards = None
        if min(recent, default=1) <= 0:
            raise ValueError(f"recent={recent}: expected more than 0 days each")
        if edges is not None and not causal:
            raise ValueError("edges (what comes, and when) need causal=true")
        if edges is not None:
            said = linear + beside if linear else 0
            parts: dict[str, Any] = {"edges": edges, "silence": silence, "linear": said}
            self.hazards = Hazards(hidden=hidden, vocabulary_size=vocabulary_size, **parts)
        self._initialise()

    def _initialise(self) -> None:
        """BERT's start; what is added to the residual stream starts smaller, the more layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.output.weight", "narrow.weight")):
                nn.init.normal_(weight, std=INITIAL_DEVIATION / math.sqrt(2 * len(self.layers)))

    def forward(self, batch: Batch) -> Tensor:
        """(T, D), in the order of the batch. Raises ValueError if ``positions`` are too few."""
        packing = packed(self, batch, training=self.training)
        if self.positions is not None:
            positions, cure = self.positions.num_embeddings, "with encoder.positions=null"
            check_length(packing.longest, positions, cure)
        hidden_TD = self.embed(batch)
        if not packing.n_places:
            return hidden_TD
        turn = None
        if self.time != "none":
            angle_Pe = packing.enter(angles(batch, time=self.time, turns=self.turns))
            turn = angle_Pe.cos(), angle_Pe.sin()
        hidden_PD = packing.enter(hidden_TD)
        for layer in self.layers:
            hidden_PD = layer(hidden_PD, packing, turn)
        so_far = [lately(batch, math.inf)] if self.ever is not None else []
        return self.finish(packing.leave(hidden_PD), batch, so_far)

    def sums(self, batch: Batch, place_M: Tensor) -> list[Sums]:
        """At some tokens, over the codes so far, and over the recent ones of each window."""
        return [lately(batch, days, place_M) for days in self.windows]

    def finish(self, hidden_TD: Tensor, batch: Batch, sums: list[Sums]) -> Tensor:
        """The outputs (T, D), made of what the layers leave and of ``sums`` over codes."""
        if self.ever is not None:
            hidden_TD = hidden_TD + sums[0](self.ever(batch.tokens_T))
        return self.final_norm(hidden_TD)

    def with_regression(
        self, hidden_TD: Tensor, batch: Batch, place_M: Tensor, sums: list[Sums] | None = None
    ) -> Tensor:
        """All that the hazards know at some tokens: the outputs and, where there is one, what the
        regression says of codes (R), and age, sex and the number of codes (M, D + R + X)."""
        hidden_MD = hidden_TD.index_select(0, place_M)
        if not self.linear:
            return hidden_MD
        each = [table(batch.tokens_T) for table in self.linear]
        *sums_MR, beside_MX = self.known(each, batch, place_M, sums)
        parts = hidden_MD, torch.stack(sums_MR).sum(0), beside_MX
        return torch.cat([part.to(hidden_MD.dtype) for part in parts], dim=1)

    def known(
        self, each: list[Tensor], batch: Batch, place_M: Tensor, sums: list[Sums] | None = None
    ) -> tuple[Tensor, ...]:
        """What the regression knows at some tokens: for each of ``sums`` that of values (T, X) of
        its n codes, divided by sqrt(1 + n / MANY), since many codes often say the same; and last
        ln n of each, and age and sex where the encoder is told them."""
        sums, one_T1 = sums or self.sums(batch, place_M), torch.ones_like(each[0][:, :1])
        number = [summed(one_T1).clamp(min=1) for summed in sums]
        beside = [n_M1.log() for n_M1 in number]
        if self.ages is not None:
            beside.append(age_waves(batch.age_T[place_M]))
        if self.sex is not None:
            beside.append(F.one_hot(sexes(batch)[place_M], MALE + 1).to(one_T1.dtype))
        parts = zip(each, sums, number, strict=True)
        scaled = [summed(each_TX) / (1 + n_M1 / MANY).sqrt() for each_TX, summed, n_M1 in parts]
        return *scaled, torch.cat(beside, dim=1)

    def embed(self, batch: Batch) -> Tensor:
        """What each token is, and what is told beside it, before any attention (T, D)."""
        hidden_TD = self.codes(batch.tokens_T)
        if self.ages is not None:
            hidden_TD = hidden_TD + self.ages(age_waves(batch.age_T))
        if self.sex is not None:
            hidden_TD = hidden_TD + self.sex(sexes(batch))
        if self.visits is not None:
            visit_T = batch.visit_T.clamp(max=self.visits.num_embeddings - 1)
            hidden_TD = hidden_TD + self.visits(visit_T)
        if self.positions is not None:
            hidden_TD = hidden_TD + self.positions(batch.position_T)
        return self.dropout(self.norm(hidden_TD))


def lately(batch: Batch, days: float, place_M: Tensor | None = None) -> Sums:
    """How to sum over the distinct codes that a subject has had in the last so many days up to each
    token (None) or some, rising ones; itself included. Codes without a time count as those before
    them."""
    pair_T = (batch.subject_T << 32) + batch.tokens_T
    order_T = torch.argsort(pair_T, stable=True)
    again_S = pair_T[order_T[1:]] == pair_T[order_T[:-1]]
    until_T = batch.offsets_B1[1:][batch.subject_T]  # where each stops to count: the end,
    until_T[order_T[:-1][again_S]] = order_T[1:][again_S]  # the same code, or so many days later
    if math.isfinite(days):
        known_T = torch.nan_to_num(clock(batch).double(), nan=-APART / 4)
        time_T = torch.cummax(batch.subject_T * APART + known_T, dim=0).values
        until_T = torch.minimum(until_T, torch.searchsorted(time_T, time_T + days))
    if place_M is not None:
        begin_T = torch.searchsorted(place_M, torch.arange(len(until_T), device=until_T.device))
        until_T = torch.searchsorted(place_M, until_T)

    def summed(each_TX: Tensor) -> Tensor:
        value_TX = each_TX.double()  # float32 would lose what is small
        change_SX = F.pad(value_TX, (0, 0, 0, 1))
        if place_M is not None:  # where each is first seen, and no more
            change_SX = value_TX.new_zeros(len(place_M) + 1, value_TX.shape[1])
            change_SX.index_add_(0, begin_T, value_TX)
        change_SX.index_add_(0, until_T, value_TX, alpha=-1)
        sum_XS = change_SX.T.contiguous().cumsum(1)  # along rows, which is faster
        return sum_XS.T[:-1].to(each_TX.dtype)

    return summed


def sexes(batch: Batch) -> Tensor:
    """(T,), of the subject of each token."""
    unknown_B = torch.full_like(batch.rows_B, UNKNOWN_SEX)
    return (unknown_B if batch.sex_B is None else batch.sex_B)[batch.subject_T]


class PreNormLayer(nn.Module):
    """Attention, then a feed-forward network, each of normalised input and added to the stream."""

    def __init__(
        self,
        *,
        heads: int,
        hidden: int,
        feed_forward: int,
        dropout: float,
        attention_dropout: float,
        gated: bool,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.attention_norm = nn.LayerNorm(hidden, bias=False)
        self.attention = SelfAttention(
            heads=heads, hidden=hidden, dropout=attention_dropout, bias=False
        )
        self.change_norm = nn.LayerNorm(hidden, bias=False)
        self.widen = nn.Linear(hidden, feed_forward * (2 if gated else 1), bias=False)
        self.narrow = nn.Linear(feed_forward, hidden, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self, hidden_PD: Tensor, packing: Packing, turn: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        attended_PD = self.attention(self.attention_norm(hidden_PD), packing, turn)
        hidden_PD = hidden_PD + self.dropout(attended_PD)
        wide = self.widen(self.change_norm(hidden_PD))
        if self.gated:
            gate, value = wide.chunk(2, dim=1)
            wide = F.gelu(gate) * value
        else:
            wide = F.gelu(wide)
        return hidden_PD + self.dropout(self.narrow(wide))


def days(batch: Batch) -> Tensor:
    """(T,) days since the first known age of the subject.

    A code without an age (a static one) stands at that first age. Where a subject has no known age
    at all, its codes stand a day apart, in their order.
    """
    subject_T, inf = batch.subject_T, float("inf")
    known_T = torch.nan_to_num(batch.age_T, nan=inf)
    first_B = known_T.new_full(batch.rows_B.shape, inf)
    first_T = first_B.scatter_reduce(0, subject_T, known_T, "amin")[subject_T]
    day_T = torch.nan_to_num(batch.age_T - first_T, nan=0.0)
    return torch.where(first_T == inf, batch.position_T.to(day_T.dtype), day_T)


def angles(batch: Batch, *, time: str, turns: int) -> Tensor:
    """(T, e) radians by which each of ``turns`` = e pairs of a head is turned.

    Wavelengths are spaced geometrically from SHORTEST to LONGEST.
    """
    times = [days(batch)] if time in ("age", "both") else []
    if time in ("order", "both"):
        times.append(batch.position_T.to(torch.float32))
    share_e = torch.linspace(0, 1, turns // len(times), device=batch.age_T.device)
    wavelength_e = SHORTEST * (LONGEST / SHORTEST) ** share_e
    return torch.cat([2 * math.pi * time_T[:, None] / wavelength_e for time_T in times], dim=1)


def age_waves(age_T: Tensor) -> Tensor:
    """(T, 2 n + 1): sines and cosines of the age, with periods of 160, 80, ... 5 years. An unknown
    age has zeros there, and a 1 in the last column, which is 0 for all others."""
    year_T1 = age_T[:, None] / DAYS_PER_YEAR
    wave_n = torch.arange(AGE_WAVES, device=age_T.device)
    angle_Tn = 2 * math.pi * year_T1 * (2**wave_n / LONGEST_AGE)
    waves = torch.nan_to_num(torch.cat([angle_Tn.sin(), angle_Tn.cos()], dim=1))
    return torch.cat([waves, year_T1.isnan().to(waves.dtype)], dim=1)


def _check_turns(time: str, *, heads: int, hidden: int) -> None:
    if time not in TIMES:
        raise ValueError(f"unknown time {time!r}: choose one of {', '.join(TIMES)}")
    needed = {"none": 1, "both": 4}.get(time, 2)
    if hidden % heads == 0 and hidden // heads % needed:
        raise ValueError(
            f"time={time} needs heads of a width that {needed} divides: hidden={hidden} with "
            f"heads={heads} makes {hidden // heads}"
        )
