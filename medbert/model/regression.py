"""Where hazards start: what codes so far, age and sex say of the codes to come, without a descent.

One step of Newton's method from hazards that are the same for everybody (a ridge regression, by
Poisson likelihood), cut down to as few directions as the encoder has sums for (reduced rank:
Izenman 1975, J Multivar Anal 5:248). Training goes on from there; on small records, where a few
hundred steps of descent find little, it is most of what can be known.

Beside the legend of ``hazards``: J inputs (codes, and what is known beside them), R directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.hazards import Future, TimeToEvent
from medbert.model.masking import SPECIALS
from medbert.schema import Batch

MOST = 4096  # inputs, of the most frequent codes: matrices are of this size
# of squared coefficients, which are logarithms of hazard ratios: so much, and more for each event
PENALTY, PENALTY_EACH = 3.0, 0.1
SCALES = (1.0, 0.75, 0.5, 0.25, 0.12, 0.06, 0.0)  # of the coefficients: what the loss likes best
TRIED = 8  # batches to choose by


class _Sums(NamedTuple):
    """Over moments: of codes so far, of pairs of them, and with events and days of the others."""

    n: int
    x_J: Tensor
    xx_JJ: Tensor
    xy_JK: Tensor
    xt_JK: Tensor
    y_K: Tensor
    t_K: Tensor


@torch.no_grad()
def begin(encoder: Any, objective: Any, batches: Iterable[Batch]) -> float | None:
    """Sets ``linear`` of the encoder, and that and the levels of its hazards; returns the scale of
    the coefficients. None, and nothing is done, where there is no such layer or nothing to ask."""
    terms = getattr(objective, "terms", {}).values()
    term = next((one for one in terms if isinstance(one, TimeToEvent)), None)
    if term is None or not getattr(encoder, "linear", None) or encoder.hazards is None:
        return None
    training = encoder.training, term.training
    encoder.eval(), term.eval()
    most = min(MOST // len(encoder.linear), len(term.share_C) - SPECIALS)
    code_J = term.frequency_C[SPECIALS:].topk(most).indices
    code_J += SPECIALS
    sums, some = _summed(encoder, term, batches, code_J)
    scale = None if sums is None else _set(encoder, term, sums, some, code_J)
    encoder.train(training[0]), term.train(training[1])
    return scale


def _summed(
    encoder: Any, term: TimeToEvent, batches: Iterable[Batch], code_J: Tensor
) -> tuple[_Sums | None, list[tuple[Batch, Future]]]:
    ones = nn.Embedding.from_pretrained(torch.eye(len(term.share_C))[:, code_J])
    total: list[Any] = []
    some: list[tuple[Batch, Future]] = []
    for batch in batches:
        _, future = term.corrupt(batch)
        if not len(future.place_M):
            continue
        if len(some) < TRIED:
            some.append((batch, future))
        time_MK, come_MK = encoder.hazards.observed(future)
        column_J = torch.searchsorted(future.code_K, code_J)
        time_MK, come_MK = time_MK[:, column_J], come_MK[:, column_J].float()
        each = [ones(batch.tokens_T)] * len(encoder.linear)
        x_MJ = torch.cat(encoder.known(each, batch, future.place_M), 1)
        both = x_MJ.T @ x_MJ, x_MJ.T @ come_MK, x_MJ.T @ time_MK
        new = [len(x_MJ), x_MJ.sum(0), *both, come_MK.sum(0), time_MK.sum(0)]
        total = [a + b for a, b in zip(total, new, strict=True)] if total else new
    return (_Sums(*total) if total else None), some


def _set(
    encoder: Any, term: TimeToEvent, sums: _Sums, some: list[tuple[Batch, Future]], code_J: Tensor
) -> float:
    hazards, tables = encoder.hazards, encoder.linear
    rank = tables[0].embedding_dim
    base_K = (sums.y_K + 0.5) / (sums.t_K + 1)
    inputs_JR, outputs_KR = _directions(sums, base_K, rank, len(tables) * len(code_J))
    begin = 0
    for table in tables:
        table.weight.zero_()
        table.weight[code_J] = inputs_JR[begin : begin + len(code_J)]
        begin += len(code_J)
    mean_J = sums.x_J / sums.n
    middle_K = outputs_KR @ torch.cat([inputs_JR.T @ mean_J[:begin], mean_J[begin:]])
    hidden = [(batch, future, encoder(batch)) for batch, future in some]
    hazards.linear_CR.zero_()

    def use(scale: float) -> None:
        hazards.linear_CR[code_J] = scale * outputs_KR
        hazards.level_CP[code_J] = (base_K.log() - scale * middle_K)[:, None]

    losses = {}
    for scale in SCALES:
        use(scale)
        told = [term.loss(encoder, hidden_TD, b, f).loss for b, f, hidden_TD in hidden]
        losses[scale] = float(torch.stack(told).mean())
    best = min(losses, key=lambda scale: losses[scale])
    use(best)
    return best


def _directions(sums: _Sums, base_K: Tensor, rank: int, n_codes: int) -> tuple[Tensor, Tensor]:
    """Coefficients (J, K): those of the first ``n_codes`` inputs cut down to R directions, as the
    product of two factors; those of all others whole, behind the second factor."""
    mean_J = (sums.x_J / sums.n).double()
    spread_JJ = sums.xx_JJ.double() / sums.n - mean_J[:, None] * mean_J
    score_JK = sums.xy_JK.double() - sums.xt_JK.double() * base_K
    score_JK -= mean_J[:, None] * (sums.y_K - base_K * sums.t_K)
    value_J, vector_JJ = torch.linalg.eigh(spread_JJ)
    events_K = sums.y_K.double()
    # all in the directions in which the codes so far do not correlate
    known_JK = (value_J.clamp(min=0)[:, None] + PENALTY_EACH) * events_K + PENALTY
    change_JK = vector_JJ @ ((vector_JJ.T @ score_JK) / known_JK)
    spread_JJ, weight_K = spread_JJ[:n_codes, :n_codes], (events_K + 1).sqrt()
    value_J, vector_JJ = torch.linalg.eigh(spread_JJ)
    root_JJ = value_J.clamp(min=0).sqrt()[:, None] * vector_JJ.T
    whole_JK = change_JK[:n_codes] * weight_K
    _, _, right_RK = torch.linalg.svd(root_JJ @ whole_JK, full_matrices=False)
    right_RK = F.pad(right_RK[:rank], (0, 0, 0, max(0, rank - len(right_RK))))
    inputs_JR = whole_JK @ right_RK.T
    size_R = (inputs_JR.T @ spread_JJ * inputs_JR.T).sum(1).sqrt().clamp(min=1e-9)
    outputs_KR = (right_RK / weight_K).T * size_R  # inputs of unit spread
    outputs_KX = torch.cat([outputs_KR, change_JK[n_codes:].T], dim=1)
    return (inputs_JR / size_R).float(), outputs_KX.float()
