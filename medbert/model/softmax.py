"""The output layer over the vocabulary: exact, and with sampled codes.

At masked places only, and never as one (M, C) table of gradients: Med-BERT's 82,603 codes are 92%
of its parameters, and this layer is most of the work of a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.masking import SPECIALS

_ROWS_CPU, _COLUMNS_CPU = 512, 1024  # of the logits that are worked on at once
_ROWS_GPU = 4096


def exact_loss(
    hidden_MD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    code_M: Tensor,
    *,
    divisor: Tensor | float = 1.0,
) -> Tensor:
    """Sum over M of the cross-entropy (nats) of ``hidden @ weight' + bias`` against ``code_M``,
    divided by ``divisor``.

    The same as ``F.cross_entropy(F.linear(...), reduction="sum") / divisor``, gradients included,
    with the logits in pieces that fit the cache; the gradients are made on the way forward (as in
    Liger kernels, Hsu et al. 2024, arXiv 2410.10989).
    """
    if not torch.is_grad_enabled():
        return ranks(hidden_MD, weight_CD, bias_C, code_M)[0].sum() / divisor
    share = torch.as_tensor(1 / divisor, device=hidden_MD.device)
    return _Exact.apply(hidden_MD, weight_CD, bias_C, code_M, share)  # type: ignore[no-untyped-call]


@torch.no_grad()
def ranks(
    hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, code_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of each row over the whole vocabulary, and how many codes stand before
    the right one: 0 for a hit. Of equal logits the right one stands last."""
    losses, before = [torch.zeros(0, device=code_M.device)], [code_M[:0]]
    for hidden, code in zip(hidden_MD.split(_ROWS_CPU), code_M.split(_ROWS_CPU), strict=True):
        logits = F.linear(hidden, weight_CD, bias_C).float()
        own = logits.gather(1, code[:, None])
        losses.append(torch.logsumexp(logits, 1) - own.squeeze(1))
        before.append((logits >= own).sum(1) - 1)
    return torch.cat(losses), torch.cat(before)


def sampled_loss(
    hidden_MD: Tensor, codes: nn.Embedding, bias_C: Tensor, code_M: Tensor, share_C: Tensor
) -> Tensor:
    """``exact_loss`` with the sum over the vocabulary estimated from a sample, one for all rows.

    Each code is in the sample with its probability ``share_C`` and then stands for 1 / share codes,
    so the estimate of the sum has no bias (Horvitz & Thompson 1952; sampled softmax: Jean et al.
    2015, arXiv 1412.2007); codes of share 1 add none of its variance. The right code is always
    counted, once. Gradients touch the sampled and the right codes alone.
    """
    sample_S = (torch.rand_like(share_C) < share_C).nonzero().squeeze(1)
    weight_SD = F.embedding(sample_S, codes.weight, sparse=codes.sparse)
    own_MD = F.embedding(code_M, codes.weight, sparse=codes.sparse)
    logits_MS = F.linear(hidden_MD, weight_SD, bias_C[sample_S] - share_C[sample_S].log()).float()
    logits_MS = logits_MS.masked_fill(sample_S == code_M[:, None], -torch.inf)
    own_M = (hidden_MD * own_MD).sum(1).float() + bias_C[code_M]
    return (torch.logaddexp(logits_MS.logsumexp(1), own_M) - own_M).sum()


def sample_shares(counts_C: Tensor, size: int, *, power: float = 0.75) -> Tensor:
    """The probability of each code to be in a sample of ``size`` codes on average, by its count to
    the ``power`` (Mikolov et al. 2013, arXiv 1310.4546) and at most 1; special tokens always are.

    >>> sample_shares(torch.tensor([0, 0, 0, 0, 100, 1, 1, 1]), 2)
    tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 0.3333, 0.3333, 0.3333])
    """
    weight_C = counts_C.double().clamp(min=1) ** power
    share_C = torch.ones_like(weight_C)
    free = torch.arange(len(counts_C), device=counts_C.device) >= SPECIALS
    while free.any():  # codes that reach 1 leave what is left to the others
        left = size - (share_C[SPECIALS:][~free[SPECIALS:]]).sum()
        share = left * weight_C / weight_C[free].sum()
        share_C = torch.where(free, share, share_C)
        full = free & (share_C >= 1)
        if not full.any():
            break
        share_C, free = torch.where(full, 1.0, share_C), free & ~full
    return share_C.float()


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor,
        code_M: Tensor,
        share: Tensor,
    ) -> Tensor:
        device = hidden_MD.device.type
        low = hidden_MD.dtype  # of the products; sums are made in float32
        if torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            loss, *grads = _exact(hidden_MD.to(low), weight_CD.to(low), bias_C, code_M, share)
        ctx.grads = grads  # not saved: the last holder of a tensor may add to it in place
        ctx.dtypes = hidden_MD.dtype, weight_CD.dtype, bias_C.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *came: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if came[0].is_cuda or came[0] != 1:
            grads = [grad * came[0] for grad in grads]
        return *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)), None, None


def _exact(
    hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, code_M: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, summed and times ``share``, and its gradients for hidden, weight and bias, in
    float32."""
    on_cpu, codes = hidden_MD.device.type == "cpu", len(weight_CD)
    rows, step = (_ROWS_CPU, _COLUMNS_CPU) if on_cpu else (_ROWS_GPU, codes)
    columns = [slice(i, min(i + step, codes)) for i in range(0, codes, step)]
    loss = torch.zeros((), device=hidden_MD.device)
    grad_hidden_MD = torch.zeros_like(hidden_MD, dtype=torch.float32)
    grad_weight_CD = torch.empty_like(weight_CD, dtype=torch.float32)
    grad_bias_C = torch.zeros(codes, device=hidden_MD.device)
    if not len(code_M):
        grad_weight_CD.zero_()
    for first in range(0, len(code_M), rows):
        here = slice(first, first + rows)
        hidden, code, grad_hidden = hidden_MD[here], code_M[here], grad_hidden_MD[here]
        own_weight = weight_CD[code].float()
        own = (hidden.float() * own_weight).sum(1) + bias_C[code]
        pieces, tops, sums = [], [], []
        for at in columns:  # exp(logits - the highest of the piece)
            piece = torch.addmm(bias_C[at].to(hidden.dtype), hidden, weight_CD[at].T).float()
            tops.append(piece.amax(1))
            sums.append(piece.sub_(tops[-1][:, None]).exp_().sum(1))
            pieces.append(piece)
        top_MK = torch.stack(tops, 1)
        normal = torch.logsumexp(top_MK + torch.stack(sums, 1).log(), 1)
        loss += (normal - own).sum() * share
        scale_MK = (top_MK - normal[:, None]).exp() * share  # from a piece to probabilities
        for at, piece, scale in zip(columns, pieces, scale_MK.unbind(1), strict=True):
            piece = piece.to(hidden.dtype)
            scaled = hidden * scale[:, None].to(hidden.dtype)
            grad_hidden.addcmul_((piece @ weight_CD[at]).float(), scale[:, None])
            if first:
                grad_weight_CD[at] += (piece.T @ scaled).float()
            else:
                _product(piece.T, scaled, out=grad_weight_CD[at])
            grad_bias_C[at] += (piece.T @ scale.to(piece.dtype)).float()
        grad_hidden -= own_weight * share
        grad_weight_CD.index_add_(0, code, hidden.float() * -share)
        grad_bias_C.index_add_(0, code, torch.ones_like(own) * -share)
    return loss, grad_hidden_MD, grad_weight_CD, grad_bias_C


def _product(one: Tensor, two: Tensor, *, out: Tensor) -> None:
    if one.dtype == out.dtype:
        torch.mm(one, two, out=out)
    else:
        out.copy_(one @ two)
