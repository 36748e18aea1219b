"""Attention within one group of equally long (or nearly equally long) subjects, on any device.

On a CPU in float32 it is computed here, a few heads at a time so that the scores stay in the cache,
with its own gradient: torch's fused kernel there knows no dropout (without it, dropout of attention
doubles the cost of attention). Elsewhere ``scaled_dot_product_attention`` does it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medbert.model.layers.dropout import draw_mask

_CACHED = 1 << 18  # scores (float32) that are worked on at once
_LONG = 128  # tokens; probabilities of longer subjects are not kept for the way back


def attend(
    projected_GL3Hd: Tensor, mask_GL: Tensor | None, dropout: float, *, causal: bool = False
) -> Tensor:
    """Queries, keys and values of G subjects -> (G * L, H * d); ``mask_GL`` is True at tokens.

    ``causal``: no token sees a later one. Padding stands last, so nothing sees it either.
    """
    mask_GL = None if causal else mask_GL
    group, length, _, heads, _ = projected_GL3Hd.shape
    plain = projected_GL3Hd.dtype == torch.float32 and projected_GL3Hd.device.type == "cpu"
    if plain and (dropout or length <= _LONG) and torch.is_grad_enabled():
        return _Attend.apply(projected_GL3Hd, mask_GL, dropout, causal)  # type: ignore[no-untyped-call]
    query, key, value = projected_GL3Hd.permute(2, 0, 3, 1, 4)  # each (G, H, L, d)
    mask = None if mask_GL is None else mask_GL[:, None, None, :]
    attended_GHLd = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )
    return attended_GHLd.transpose(1, 2).reshape(group * length, -1)


class _Attend(torch.autograd.Function):
    """softmax(q k' / sqrt(d)), dropped out, times v; N = G * H heads, each of L x L scores."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, mask_GL: Tensor | None, dropout: float, causal: bool
    ) -> Tensor:
        group, length, _, heads, width = projected.shape
        qkv = projected.new_empty(3, group, heads, length, width)
        qkv = qkv.copy_(projected.permute(2, 0, 3, 1, 4)).flatten(1, 2)
        query, key, value = qkv
        query *= 1 / math.sqrt(width)
        bias = _later(length) if causal else _bias(mask_GL, heads)
        scores = _Scores(query, key, bias, dropout)
        attended = torch.empty_like(value)
        for part in scores.parts:
            probability, keep = scores.of(part)
            if keep is not None:
                probability = torch.mul(probability, keep, out=scores.room(part))
            torch.bmm(probability, value[part], out=attended[part])
        ctx.save_for_backward(qkv)
        ctx.scores, ctx.shape = scores, projected.shape
        return (
            attended.view(group, heads, length, width).transpose(1, 2).reshape(group * length, -1)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        group, length, _, heads, width = ctx.shape
        (qkv,) = ctx.saved_tensors
        query, key, value = qkv
        scores: _Scores = ctx.scores
        came = grads[0].view(group, length, heads, width).transpose(1, 2).reshape(value.shape)
        grad = torch.empty_like(qkv)
        for part in scores.parts:
            probability, keep = scores.of(part)
            room = scores.room(part)
            dropped = probability if keep is None else torch.mul(probability, keep, out=room)
            torch.bmm(dropped.transpose(1, 2), came[part], out=grad[2, part])
            torch.bmm(came[part], value[part].transpose(1, 2), out=room)
            if keep is not None:
                room *= keep
            room *= probability
            room.addcmul_(probability, room.sum(-1, keepdim=True), value=-1)
            torch.bmm(room, key[part], out=grad[0, part])
            torch.bmm(room.transpose(1, 2), query[part], out=grad[1, part])
        grad[0] *= 1 / math.sqrt(width)
        back = grad.view(3, group, heads, length, width).permute(1, 3, 0, 2, 4)
        return back.contiguous(), None, None, None


class _Scores:
    """The probabilities of N heads and what dropout keeps of them, a part of the heads at a time.

    Those of short subjects are kept after the first look, those of long ones are made again: the
    memory grows with the tokens, not with the square of a length.
    """

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor | None, dropout: float) -> None:
        total, self.length, _ = query.shape
        self.query, self.key, self.bias, self.dropout = query, key, bias, dropout
        self._step = min(total, max(1, _CACHED // self.length**2))
        self.parts = [slice(i, min(i + self._step, total)) for i in range(0, total, self._step)]
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._room: Tensor | None = None
        self._seed = int(torch.randint(2**62, ())) if dropout else 0

    def of(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Probabilities (n, L, L), and the mask with its scale, or None without dropout."""
        if part.start in self._kept:
            return self._kept[part.start]
        key = self.key[part].transpose(1, 2)
        if self.bias is None:
            scores = torch.bmm(self.query[part], key)
        else:
            bias = self.bias if len(self.bias) == 1 else self.bias[part]
            scores = torch.baddbmm(bias, self.query[part], key)
        keep = None
        if self.dropout:
            own = torch.Generator().manual_seed(self._seed + part.start)
            keep = draw_mask(scores, self.dropout, generator=own)
        made = torch.softmax(scores, -1), keep
        if self.length <= _LONG:
            self._kept[part.start] = made
        return made

    def room(self, part: slice) -> Tensor:
        """Space for (n, L, L) numbers; what was in it is lost."""
        if self._room is None:
            self._room = self.query.new_empty(self._step, self.length, self.length)
        return self._room[: part.stop - part.start]


def _bias(mask_GL: Tensor | None, heads: int) -> Tensor | None:
    """(G * H, 1, L): 0 at tokens, minus infinity at padding."""
    if mask_GL is None:
        return None
    bias_GL = torch.zeros(mask_GL.shape).masked_fill_(~mask_GL, -torch.inf)
    return bias_GL.repeat_interleave(heads, dim=0)[:, None, :]


def _later(length: int) -> Tensor:
    """(1, L, L): 0 at a token and those before it, minus infinity at later ones."""
    return torch.full((length, length), -torch.inf).triu_(1)[None]
