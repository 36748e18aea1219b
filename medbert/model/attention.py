"""Self-attention over subjects laid end to end.

Subjects of nearly equal length form a group, and only inside a group is anything padded. The
grouping is found once per batch and is shared by all layers: the encoder moves its tokens into the
grouped order once, works there, and moves them back once. Beside the legend of ``schema``:

    P places of the grouped order (T tokens and a little padding)     G subjects of one group
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Groups(NamedTuple):
    """Where each token of a batch stands while it attends.

    ``indices`` holds a (G, L) table of tokens per group, row by row in the grouped order; a row
    shorter than L repeats its own last token. ``masks`` holds a (G, L) table per group, True at
    the real tokens, or None where all rows are full. ``token_P`` is all indices in one line;
    ``place_T`` is the way back.
    """

    indices: list[Tensor]
    masks: list[Tensor | None]
    token_P: Tensor
    place_T: Tensor

    @property
    def longest(self) -> int:
        """The length of the longest subject; 0 in a batch without tokens."""
        return max((index_GL.shape[1] for index_GL in self.indices), default=0)


def length_groups(offsets_B1: Tensor, *, slack: float = 0.1) -> Groups:
    """Group subjects whose lengths differ by at most ``slack`` of the longest in their group.

    Subjects without tokens belong to no group. The lengths are read on the CPU, once.
    """
    start_B, end_B = offsets_B1[:-1].cpu(), offsets_B1[1:].cpu()
    length_B, by_length_B = torch.sort(end_B - start_B, descending=True, stable=True)
    lengths = length_B.tolist()
    indices, masks = [], []
    first = 0
    while first < len(lengths) and lengths[first] > 0:
        shortest = max(1, math.ceil(lengths[first] * (1 - slack)))
        last = first
        while last < len(lengths) and lengths[last] >= shortest:
            last += 1
        place_L = torch.arange(lengths[first])
        length_G1 = length_B[first:last, None]
        start_G1 = start_B[by_length_B[first:last], None]
        indices.append(start_G1 + torch.minimum(place_L, length_G1 - 1))
        equal = lengths[last - 1] == lengths[first]
        masks.append(None if equal else place_L < length_G1)
        first = last
    return _groups(indices, masks, tokens=int(end_B[-1]), device=offsets_B1.device)


def _groups(
    indices: list[Tensor], masks: list[Tensor | None], *, tokens: int, device: torch.device
) -> Groups:
    """Line the groups up, find the way back, and move everything to the device in two copies."""
    none = torch.zeros(0, dtype=torch.int64)
    token_P = torch.cat([none, *(index_GL.flatten() for index_GL in indices)])
    real_P = torch.cat(
        [none.bool()]
        + [
            torch.ones(index_GL.numel(), dtype=torch.bool) if mask_GL is None else mask_GL.flatten()
            for index_GL, mask_GL in zip(indices, masks, strict=True)
        ]
    )
    place_T = torch.empty(tokens, dtype=torch.int64)
    place_T[token_P[real_P]] = real_P.nonzero().squeeze(1)
    shapes = [index_GL.shape for index_GL in indices]
    sizes = [shape.numel() for shape in shapes]
    token_P, place_T, real_P = token_P.to(device), place_T.to(device), real_P.to(device)
    return Groups(
        [index.view(shape) for index, shape in zip(token_P.split(sizes), shapes, strict=True)],
        [
            None if mask is None else real.view(shape)
            for mask, real, shape in zip(masks, real_P.split(sizes), shapes, strict=True)
        ],
        token_P,
        place_T,
    )


class SelfAttention(nn.Module):
    """Multi-head attention of each token to the tokens of its own subject, and of no other."""

    def __init__(self, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden={hidden} must be a multiple of heads={heads}")
        self.heads = heads
        self.dropout = dropout
        self.project = nn.Linear(hidden, 3 * hidden)  # query, key and value, in this order
        self.output = nn.Linear(hidden, hidden)

    def forward(self, hidden_PD: Tensor, groups: Groups) -> Tensor:
        """(P, D) in the grouped order -> (P, D); what stands at padding means nothing."""
        sizes = [index_GL.numel() for index_GL in groups.indices]
        attended = [
            self._attend(projected, index_GL, mask_GL)
            for projected, index_GL, mask_GL in zip(
                self.project(hidden_PD).split(sizes), groups.indices, groups.masks, strict=True
            )
        ]
        return self.output(torch.cat(attended))

    def _attend(self, projected: Tensor, index_GL: Tensor, mask_GL: Tensor | None) -> Tensor:
        """One group: (G * L, 3 D) -> (G * L, D)."""
        subjects, length = index_GL.shape
        query, key, value = projected.view(subjects, length, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )  # each (G, H, L, D / H)
        attended_GHLd = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask_GL is None else mask_GL[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended_GHLd.transpose(1, 2).reshape(subjects * length, -1)
