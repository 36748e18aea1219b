"""What a sum over this process's part of a batch is divided by."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def divisor(count: int, *, training: bool, device: torch.device) -> Tensor | int:
    """``count``, at least 1. While several processes train, its mean over them: the mean of their
    losses, which is what they take of gradients, is then that of the whole batch."""
    if not (training and distributed.is_available() and distributed.is_initialized()):
        return max(count, 1)
    sum_1 = torch.tensor(float(count), device=device)
    distributed.all_reduce(sum_1)
    return sum_1.clamp(min=1) / distributed.get_world_size()
