"""Dropout at a third of the cost on a CPU: four decisions from one 64-bit random number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # decisions are made by 16 bits, so a rate is met to 1 in 65,536


class Dropout(nn.Module):
    """``torch.nn.Dropout`` with another source of randomness on a CPU; the same one on a GPU."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout={rate} must be at least 0 and below 1")
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return hidden
        if hidden.device.type != "cpu":
            return F.dropout(hidden, self.rate)
        return hidden * draw_mask(hidden, self.rate)


def draw_mask(like: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """A tensor like ``like``: 0 with probability ``rate``, else 1 / (1 - rate). On the CPU."""
    count = like.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(
        -(2**63), None, generator=generator
    )
    level = drawn.view(torch.int16)[:count].view(like.shape)
    kept = level >= round(rate * _LEVELS) - _LEVELS // 2
    return kept.to(like.dtype).mul_(1 / (1 - rate))
