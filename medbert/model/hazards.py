"""How soon each code comes for the first time: hazards, learned from all that follows a moment.

From a moment of a record on, the time until a code is first written has a hazard that is constant
within pieces of time; the end of observation is a censoring, not an absence (Friedman 1982, Ann
Stat 10:101; for pretraining, Steinberg et al. 2023, arXiv 2301.03150). One pass then answers for
every code, gap and horizon how likely it is (as McDermott et al. 2026, arXiv 2603.07900, ask it).

Beside the legend of ``schema``: M moments, each the last code of all that a subject has at one
time; P pieces; K codes that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.encoder import NORM_EPSILON, initialise
from medbert.model.masking import DRAWS, SPECIALS, fixed_draws
from medbert.model.softmax import sample_shares
from medbert.model.together import divisor
from medbert.schema import Batch, LossOutput

NEW_CODES_A_DAY = 1 / 60  # of all codes together, before anything is learned
STREAM, LATER = 4, 5  # of the draws; masking takes those below
SILENCES = (0, 7, 30, 90, 180, 365, 730, 1460)  # days; between two of them what they say goes over
LONGEST_SILENCE = 1095  # days after a moment within which it is asked again


Firsts = Sequence[tuple[float, float]]
"""From so many days on, this share of codes is the first of its case."""
ALL_FIRST: Firsts = ((0.0, 1.0),)


class Hazards(nn.Module):
    """The layer of an encoder that answers: hidden vectors to hazards per day, by code and piece.

    ``edges``: where the pieces begin, in days; the first is 0, the last one has no end. Codes are
    told apart by the encoder's own table, ``level_CP`` is what holds without any history.
    ``silence``: pieces begin when it is asked, and how long nothing has come until then is told;
    else they begin with the last moment, as if all that is known of the time since were that the
    codes asked for have not come. ``linear``: behind the hidden values are so many of a regression
    (see ``ModernEncoder``); what they say of a code, by ``linear_CR``, is added.
    """

    edge_P: Tensor

    def __init__(
        self,
        *,
        hidden: int,
        vocabulary_size: int,
        edges: Sequence[float],
        silence: bool = False,
        linear: int = 0,
    ) -> None:
        super().__init__()
        if not edges or edges[0] != 0 or sorted(set(edges)) != list(edges):
            raise ValueError(f"edges={list(edges)}: expected rising days, the first of them 0")
        self.register_buffer("edge_P", torch.tensor(edges, dtype=torch.float32), persistent=False)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.pieces = nn.Linear(hidden, hidden * len(edges))
        self.linear_CR = nn.Parameter(torch.zeros(vocabulary_size, linear)) if linear else None
        level = math.log(NEW_CODES_A_DAY / vocabulary_size)  # all codes equally frequent
        self.level_CP = nn.Parameter(torch.full((vocabulary_size, len(edges)), level))
        initialise(self.pieces)
        knots, width = len(SILENCES) - 1, hidden + linear
        self.silence = nn.Linear(knots, 2 * width, bias=False) if silence else None

    def after(self, hidden_MD: Tensor, since_M: Tensor) -> Tensor:
        """What hidden vectors have become after so many days in which nothing came."""
        if self.silence is None:
            return hidden_MD
        knot = since_M.new_tensor(SILENCES)
        passed_MS = ((since_M[:, None] - knot[:-1]) / knot.diff()).clamp(0, 1)
        times_MD, plus_MD = self.silence(passed_MS).chunk(2, 1)
        return hidden_MD * (1 + times_MD) + plus_MD

    def logs(self, hidden_MD: Tensor, table_KD: Tensor, codes_K: Tensor) -> Tensor:
        """Logarithms of the hazards (M, P, K) of some codes: never above one a day, so that one
        record like no other cannot outweigh all."""
        width = self.norm.normalized_shape[0]
        asked_MD = self.pieces(self.norm(hidden_MD[:, :width]))
        asked_MPD = asked_MD.unflatten(1, (len(self.edge_P), -1))
        log_MPK = asked_MPD @ table_KD.T + self.level_CP[codes_K].T
        if self.linear_CR is not None:
            log_MPK = log_MPK + (hidden_MD[:, width:] @ self.linear_CR[codes_K].T)[:, None]
        return F.logsigmoid(log_MPK)

    def observed(self, future: Future) -> tuple[Tensor, Tensor]:
        """Days (M, K) that each code is waited for, since pieces begin, and whether it came."""
        wait_MK, left_M1 = future.wait_MK, future.left_M[:, None]
        if self.silence is None:  # they begin with the moment
            since_M1 = future.since_M[:, None]
            wait_MK = torch.where(wait_MK > 0, wait_MK + since_M1, wait_MK)
            left_M1 = left_M1 + since_M1
        return torch.minimum(wait_MK, left_M1).clamp(min=0), (wait_MK > 0) & (wait_MK <= left_M1)

    def exposure(self, days_X: Tensor) -> Tensor:
        """Days spent in each piece by the time ``days_X``, (P, ...)."""
        return _spent(days_X, self.edge_P)

    def risk(
        self,
        hidden_BD: Tensor,
        table_KD: Tensor,
        codes_K: Tensor,
        *,
        since_B: Tensor,
        gap: float,
        window: float,
        firsts: Firsts = ALL_FIRST,
    ) -> Tensor:
        """Log-odds (B,) that one of the codes comes for the first time in (gap, gap + window] days.

        ``hidden_BD`` is of the last moment, ``since_B`` days ago; the codes have not come by now.
        Their hazards are added up, and a disease has several of them: of what comes so many days
        from now, ``firsts`` says which share is the first of its case.
        """
        hidden_BD = self.after(hidden_BD, since_B)
        if self.silence is not None:
            since_B = torch.zeros_like(since_B)
        log_BPK = self.logs(hidden_BD, table_KD[codes_K], codes_K)
        hazard_PB = log_BPK.logsumexp(2).exp().T
        knot_S, share_S = hazard_PB.new_tensor(firsts).T
        begin_PB = (self.edge_P[:, None] - since_B).clamp(min=0)
        end_PB = torch.cat([begin_PB[1:], torch.full_like(begin_PB[:1], torch.inf)])

        def cases(days: float) -> Tensor:
            inside_PB = (end_PB.clamp(max=days), begin_PB.clamp(max=days))
            to_PB, from_PB = (torch.tensordot(share_S, _spent(x, knot_S), 1) for x in inside_PB)
            return (hazard_PB * (to_PB - from_PB)).sum(0)

        from_B, to_B = cases(gap), cases(gap + window)
        log_risk_B = torch.log(-torch.expm1(from_B - to_B)) - from_B
        return log_risk_B - torch.log1p(-log_risk_B.exp().clamp(max=1 - 1e-6))


class Future(NamedTuple):
    """What follows each moment: ``place_M`` its token; ``since_M`` days later it is asked, with
    nothing between; ``left_M`` days that are observed from then on; ``wait_MK`` days from then
    until each code first comes, infinite if it does not, and not above 0 if it has been there;
    ``code_K`` the codes asked for, ``share_K`` the chance of each to be asked for."""

    place_M: Tensor
    since_M: Tensor
    left_M: Tensor
    wait_MK: Tensor
    code_K: Tensor
    share_K: Tensor


class TimeToEvent(nn.Module):
    """How soon does each new code come? Asked at every moment, or at this share of ``moments``.

    The encoder has a layer ``hazards``, and looks at nothing that comes later. ``sampled``: about
    so many codes stand for the vocabulary in training; null: all do. ``later``: this share of them
    is asked on a later day, as index dates come between visits, and is left out if a code comes
    before that day (dated subjects, and hazards with ``silence``). Whether and when a moment is
    asked depends on nothing that follows it: else risks would be those of who is asked. A subject
    is observed up to ``Batch.end_B``, or its last code. Metric: ``time_to_event``, the loss, is the
    negative log-likelihood of when all codes came first (nats a moment).
    """

    share_C: Tensor
    frequency_C: Tensor

    def __init__(
        self,
        *,
        vocabulary_size: int,
        hidden: int,
        counts: Tensor | np.ndarray | Sequence[int],
        moments: float | None = None,
        sampled: int | None = None,
        later: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.moments, self.later, self.seed = moments, later, seed
        counts_C = torch.as_tensor(counts).to(torch.float32)
        known_C = torch.arange(vocabulary_size) >= SPECIALS
        frequency_C = (counts_C + 1) / (counts_C[known_C] + 1).sum()
        share_C = known_C.to(torch.float32)
        if sampled is not None and 0 < sampled < vocabulary_size - SPECIALS:
            share_C *= sample_shares(counts_C, sampled)
        self.register_buffer("frequency_C", frequency_C, persistent=False)
        self.register_buffer("share_C", share_C, persistent=False)

    @torch.no_grad()
    def start(self, encoder: Any) -> None:
        """Levels of a new encoder: all codes as frequent as in training, at any time. One that
        knows no silence is asked on no later day."""
        self.later *= encoder.hazards.silence is not None
        levels_C1 = torch.log(self.frequency_C * NEW_CODES_A_DAY)[:, None]
        encoder.hazards.level_CP.copy_(levels_C1.expand_as(encoder.hazards.level_CP))

    def corrupt(self, batch: Batch) -> tuple[Batch, Future]:
        """The batch as it is, and what is to be foretold; terms that hide codes come after."""
        seed = int(torch.randint(DRAWS // 8, ())) if self.training else self.seed
        clock_T, subject_T = clock(batch), batch.subject_T
        code_K, share_K = self._asked(seed)
        column_C = torch.full_like(self.share_C, -1, dtype=torch.int64)
        column_C[code_K] = torch.arange(len(code_K), device=column_C.device)
        column_T = column_C[batch.tokens_T]
        told_T = column_T >= 0
        first_BK = clock_T.new_full((len(batch.rows_B), len(code_K)), torch.inf)
        where_T = (subject_T * len(code_K) + column_T)[told_T]
        known_T = torch.nan_to_num(clock_T, nan=-torch.inf)
        first_BK.view(-1).scatter_reduce_(0, where_T, known_T[told_T], "amin")

        ends_T = torch.ones_like(told_T)
        ends_T[:-1] = (clock_T[1:] != clock_T[:-1]) | (subject_T[1:] != subject_T[:-1])
        place_M = (ends_T & ~clock_T.isnan()).nonzero().squeeze(1)
        end_B = batch.end_B
        if end_B is None:
            end_B = torch.full_like(first_BK[:, 0], -torch.inf)
            end_B = end_B.scatter_reduce(0, subject_T, known_T, "amax")
        subject_M, now_M = subject_T[place_M], clock_T[place_M]
        since_M, kept_M = self._since(batch, place_M, now_M, end_B[subject_M], seed=seed)
        now_M = now_M + since_M
        left_M = end_B[subject_M] - now_M
        kept_M &= left_M > 0
        if self.moments is not None:
            rows_M, position_M = batch.rows_B[subject_M], batch.position_T[place_M]
            draw_M = fixed_draws(rows_M, position_M, seed=seed, stream=STREAM) / DRAWS
            kept_M &= draw_M < self.moments
        place_M, since_M, left_M = place_M[kept_M], since_M[kept_M], left_M[kept_M]
        wait_MK = first_BK[subject_M[kept_M]] - now_M[kept_M, None]
        return batch, Future(place_M, since_M, left_M, wait_MK, code_K, share_K)

    def _since(
        self, batch: Batch, place_M: Tensor, now_M: Tensor, end_M: Tensor, *, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Days after each moment that it is asked, and whether nothing has come by then: (M,) each.
        Days drawn from what lies before the next code would be the more, the sooner that comes."""
        if not self.later:
            return torch.zeros_like(now_M), torch.ones_like(now_M, dtype=torch.bool)
        subject_M = batch.subject_T[place_M]
        next_M = end_M.clone()
        same = subject_M[1:] == subject_M[:-1]
        next_M[:-1][same] = torch.minimum(next_M[:-1], now_M[1:])[same]
        rows_M, position_M = batch.rows_B[subject_M], batch.position_T[place_M]
        draw_M = fixed_draws(rows_M, position_M, seed=seed, stream=LATER) / DRAWS / self.later
        asked_M = (draw_M < 1) & ~batch.age_T[place_M].isnan()
        since_M = LONGEST_SILENCE * draw_M**2  # the longer, the rarer
        since_M = torch.where(asked_M, since_M, 0.0).to(now_M.dtype)
        return since_M, ~asked_M | (since_M < next_M - now_M)

    def _asked(self, seed: int) -> tuple[Tensor, Tensor]:
        """Codes, and the chance of each to be asked for: all of them but in training."""
        if not self.training:
            code_K = self.share_C.nonzero().squeeze(1)
            return code_K, torch.ones_like(self.share_C[code_K])
        code_C = torch.arange(len(self.share_C), device=self.share_C.device)
        nowhere_C = torch.full_like(code_C, -1)  # no position: the draws are no moment's
        draw_C = fixed_draws(code_C, nowhere_C, seed=seed, stream=STREAM) / DRAWS
        code_K = (draw_C < self.share_C).nonzero().squeeze(1)
        return code_K, self.share_C[code_K]

    def loss(self, encoder: Any, hidden_TD: Tensor, batch: Batch, target: Future) -> LossOutput:
        hazards: Hazards = encoder.hazards
        hidden_MD = encoder.with_regression(hidden_TD, batch, target.place_M)
        hidden_MD = hazards.after(hidden_MD, target.since_M)
        log_MPK = hazards.logs(hidden_MD, encoder.codes(target.code_K), target.code_K)
        time_MK, come_MK = hazards.observed(target)
        expected_K = (log_MPK.exp() * hazards.exposure(time_MK).transpose(0, 1)).sum((0, 1))
        m, k = come_MK.nonzero(as_tuple=True)
        piece = torch.bucketize(time_MK[m, k], hazards.edge_P[1:])
        found = log_MPK[m, piece, k] / target.share_K[k]
        moments = divisor(len(hidden_MD), training=self.training, device=hidden_TD.device)
        loss = ((expected_K / target.share_K).sum() - found.sum()) / moments
        return LossOutput(loss, {"time_to_event": loss.detach()} if len(hidden_MD) else {})


def clock(batch: Batch) -> Tensor:
    """(T,) days since birth; NaN for static codes. Where no age of a subject is known, its visits
    are a day apart, and codes outside them have no time."""
    dated_B = torch.zeros_like(batch.rows_B, dtype=torch.bool)
    dated_B[batch.subject_T[~batch.age_T.isnan()]] = True
    visit_T = batch.visit_T.to(batch.age_T.dtype).masked_fill(batch.visit_T == 0, torch.nan)
    return torch.where(dated_B[batch.subject_T], batch.age_T, visit_T)


def foretell(
    encoder: Any,
    batch: Batch,
    *,
    tokens: Tensor,
    gap: float,
    window: float,
    firsts: Firsts = ALL_FIRST,
    hidden_TD: Tensor | None = None,
    asked: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """``Hazards.risk`` of ``tokens`` for each subject, as of the end of its history, (B,). Where
    ``asked`` has rising places of tokens, and by what clock it is asked there, at those: (N,)."""
    hidden_TD, clock_T = encoder(batch) if hidden_TD is None else hidden_TD, clock(batch)
    if asked is None:
        filled_N = batch.lengths_B > 0
        place_F = batch.offsets_B1[1:][filled_N] - 1
        end_F = clock_T[place_F] if batch.end_B is None else batch.end_B[filled_N]
    else:
        place_F, end_F = asked
        filled_N = torch.ones_like(place_F, dtype=torch.bool)
    known_FD = encoder.with_regression(hidden_TD, batch, place_F)
    hidden_ND = known_FD.new_zeros(len(filled_N), known_FD.shape[1])
    hidden_ND[filled_N] = known_FD
    since_N = torch.zeros_like(hidden_ND[:, 0])
    since_N[filled_N] = torch.nan_to_num(end_F - clock_T[place_F])  # a static code has no time
    times: dict[str, Any] = {"since_B": since_N.clamp(min=0), "gap": gap, "window": window}
    codes_K = tokens.to(hidden_TD.device)
    return encoder.hazards.risk(hidden_ND, encoder.codes.weight, codes_K, **times, firsts=firsts)


def _spent(days_X: Tensor, edge_P: Tensor) -> Tensor:
    """Days (P, ...) of the first ``days_X`` that lie between each edge and the next one."""
    shape = (-1, *[1] * days_X.dim())
    length_P = torch.diff(edge_P, append=edge_P.new_tensor([torch.inf]))
    return torch.minimum((days_X - edge_P.view(shape)).clamp(min=0), length_P.view(shape))
