"""Self-attention over subjects laid end to end: no token sees a token of another subject.

A packing says where each token stands while it attends. It is made once per batch and shared by all
layers: the encoder moves its tokens in (``enter``), works there, and moves them back (``leave``).

- ``LengthGroups``: subjects of nearly equal length form a group, and only inside a group is
  anything padded. The fastest on a CPU; works everywhere.
- ``Varlen``: flash attention over the tokens as they lie (``torch.nn.attention.varlen``). CUDA,
  half precision, no dropout of attention.
- ``BlockMask``: FlexAttention with a mask of blocks. CUDA, no dropout of attention; on a CPU it
  is exact and slow.

Beside the legend of ``schema``:

    P places of the packing (T tokens and a little padding)     G subjects of one group
    d width of one head                                         L tokens of a row of a group
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.layers.grouped import attend
from medbert.schema import Batch

KINDS = ("auto", "groups", "varlen", "flex")
_BLOCK = 128  # FlexAttention works on whole blocks


class Packing(Protocol):
    """``longest`` is the length of the longest subject, ``n_places`` is P."""

    longest: int
    n_places: int

    def enter(self, token_TX: Tensor) -> Tensor: ...  # (T, ...) -> (P, ...)

    def leave(self, place_PX: Tensor) -> Tensor: ...  # (P, ...) -> (T, ...)

    def attend(self, projected_PK: Tensor, *, heads: int, dropout: float) -> Tensor:
        """Queries, keys and values (P, 3 D), each split into heads -> (P, D)."""
        ...


def pack(
    offsets_B1: Tensor, *, kind: str = "auto", dropout: bool = False, causal: bool = False
) -> Packing:
    """The packing of a batch; ``auto`` is the fastest that the device and precision allow.

    ``causal``: no token sees a later one of its subject.

    Raises ValueError for an unknown ``kind``, and where ``dropout`` of attention is wanted of a
    kind that has none.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown attention {kind!r}: choose one of {', '.join(KINDS)}")
    if kind in ("varlen", "flex") and dropout:
        raise ValueError(f"attention={kind} has no dropout: set attention_dropout=0")
    if kind == "auto":
        half = offsets_B1.is_cuda and torch.is_autocast_enabled("cuda")
        kind = "varlen" if half and not dropout else "groups"
    kinds = {"groups": LengthGroups, "varlen": Varlen, "flex": BlockMask}
    return kinds[kind](offsets_B1, causal=causal)


def packed(encoder: Any, batch: Batch, *, training: bool) -> Packing:
    """The packing that an encoder asks for."""
    config: dict[str, Any] = encoder.config
    dropout, causal = training and config["attention_dropout"] > 0, config.get("causal", False)
    return pack(batch.offsets_B1, kind=config["attention"], dropout=dropout, causal=causal)


def places(encoder: Any, batch: Batch) -> int:
    """How many places attention has for a batch in training: its tokens, and what it pads."""
    return packed(encoder, batch, training=True).n_places


class LengthGroups:
    """Subjects whose lengths differ by at most ``slack`` of the longest attend together.

    ``indices`` holds a (G, L) table of tokens per group, row by row in the order of the places; a
    row shorter than L repeats its own last token. ``masks`` holds a (G, L) table per group, True at
    the real tokens, or None where all rows are full. ``token_P`` is all indices in one line;
    ``place_T`` is the way back. Subjects without tokens belong to no group. Lengths are read on the
    CPU, once.
    """

    def __init__(self, offsets_B1: Tensor, *, causal: bool = False, slack: float = 0.1) -> None:
        self.causal = causal
        start_B, end_B = offsets_B1[:-1].cpu(), offsets_B1[1:].cpu()
        length_B, by_length_B = torch.sort(end_B - start_B, descending=True, stable=True)
        lengths = length_B.tolist()
        indices, reals = [], []
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
            reals.append(place_L < length_G1)
            first = last
        self.longest = lengths[0] if lengths else 0
        self._line_up(indices, reals, offsets_B1)

    def _line_up(self, indices: list[Tensor], reals: list[Tensor], offsets_B1: Tensor) -> None:
        """Find the way back, and move everything to the device in a few copies."""
        device = offsets_B1.device
        token_P = torch.cat([torch.zeros(0, dtype=torch.int64), *(i.flatten() for i in indices)])
        real_P = torch.cat([torch.zeros(0, dtype=torch.bool), *(r.flatten() for r in reals)])
        place_T = torch.empty(int(offsets_B1[-1]), dtype=torch.int64)
        place_T[token_P[real_P]] = real_P.nonzero().squeeze(1)
        shapes = [index_GL.shape for index_GL in indices]
        self._sizes = [shape.numel() for shape in shapes]
        self.n_places = len(token_P)
        self.token_P, self.place_T, real_P = (x.to(device) for x in (token_P, place_T, real_P))
        placed, masks = self.token_P.split(self._sizes), real_P.split(self._sizes)
        self.indices = [index.view(shape) for index, shape in zip(placed, shapes, strict=True)]
        self.masks = [
            None if real.all() else mask.view(real.shape)
            for mask, real in zip(masks, reals, strict=True)
        ]

    def enter(self, token_TX: Tensor) -> Tensor:
        return token_TX.index_select(0, self.token_P)

    def leave(self, place_PX: Tensor) -> Tensor:
        return place_PX.index_select(0, self.place_T)

    @torch.compiler.disable  # its shapes differ from batch to batch
    def attend(self, projected_PK: Tensor, *, heads: int, dropout: float) -> Tensor:
        """What stands at padding means nothing."""
        attended = [
            attend(
                projected.view(*index_GL.shape, 3, heads, -1), mask_GL, dropout, causal=self.causal
            )
            for projected, index_GL, mask_GL in zip(
                projected_PK.split(self._sizes), self.indices, self.masks, strict=True
            )
        ]
        return torch.cat(attended)


class _AsTheyLie:
    """Every token is its own place."""

    def __init__(self, offsets_B1: Tensor, *, causal: bool = False) -> None:
        lengths_B = offsets_B1.diff()
        self.causal = causal
        self.offsets_B1 = offsets_B1
        self.longest = int(lengths_B.max()) if len(lengths_B) else 0
        self.n_places = int(offsets_B1[-1])

    def enter(self, token_TX: Tensor) -> Tensor:
        return token_TX

    def leave(self, place_PX: Tensor) -> Tensor:
        return place_PX


class Varlen(_AsTheyLie):
    def attend(self, projected_PK: Tensor, *, heads: int, dropout: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = projected_PK.view(self.n_places, 3, heads, -1).unbind(1)
        starts = self.offsets_B1.to(torch.int32)
        seen = (-1, 0 if self.causal else -1)  # tokens before and after; -1: all
        lengths = starts, starts, self.longest, self.longest
        attended = varlen_attn(query, key, value, *lengths, window_size=seen)
        return attended.flatten(1)  # type: ignore[union-attr]


class BlockMask(_AsTheyLie):
    def __init__(self, offsets_B1: Tensor, *, causal: bool = False) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        super().__init__(offsets_B1, causal=causal)
        self._padded = max(_BLOCK, math.ceil(self.n_places / _BLOCK) * _BLOCK)
        place = torch.arange(self._padded, device=offsets_B1.device)
        # places behind the last token belong to a subject of their own
        subject = torch.searchsorted(offsets_B1, place, right=True)

        def own(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = subject[query] == subject[key]
            return same & (query >= key) if causal else same

        self._mask = create_block_mask(
            own, None, None, self._padded, self._padded, device=offsets_B1.device
        )

    def attend(self, projected_PK: Tensor, *, heads: int, dropout: float) -> Tensor:
        filled = F.pad(projected_PK, (0, 0, 0, self._padded - self.n_places))
        query, key, value = filled.view(1, self._padded, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = _flex(projected_PK.is_cuda)(query, key, value, block_mask=self._mask)
        return attended[0].transpose(0, 1).flatten(1)[: self.n_places]


@functools.cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention  # type: ignore[return-value]


class SelfAttention(nn.Module):
    """Multi-head attention of each token to the tokens of its own subject, and of no other."""

    def __init__(self, *, heads: int, hidden: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden={hidden} must be a multiple of heads={heads}")
        self.heads = heads
        self.dropout = dropout
        self.project = nn.Linear(hidden, 3 * hidden, bias=bias)  # query, key, value: in this order
        self.output = nn.Linear(hidden, hidden, bias=bias)

    def forward(
        self, hidden_PD: Tensor, packing: Packing, turn: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(P, D) -> (P, D). ``turn``: cosine and sine, each (P, d / 2), by which queries and keys
        are rotated (Su et al. 2021, arXiv 2104.09864)."""
        projected_PK = self.project(hidden_PD)
        if turn is not None:
            projected_PK = rotated(projected_PK, *turn, heads=self.heads)
        dropout = self.dropout if self.training else 0.0
        return self.output(packing.attend(projected_PK, heads=self.heads, dropout=dropout))


def rotated(projected_PK: Tensor, cos_Pe: Tensor, sin_Pe: Tensor, *, heads: int) -> Tensor:
    """Queries and keys of (P, 3 D) turned by the angle of their place; values as they are.

    Of each head, entry i of the first half and entry i of the second are turned together.
    """
    places, width = projected_PK.shape
    turning, values = projected_PK.split([2 * width // 3, width // 3], dim=1)
    first, second = turning.view(places, 2 * heads, 2, -1).unbind(2)
    cos, sin = (x[:, None].to(projected_PK.dtype) for x in (cos_Pe, sin_Pe))
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=2)
    return torch.cat([turned.view(places, -1), values], dim=1)
