"""Optimizers with warm-up and linear decay, as in BERT."""

from __future__ import annotations

from typing import Any

import torch


def adamw(
    module: Any,
    *,
    total_steps: int,
    lr: float,
    weight_decay: float,
    warmup: float,
    encoder_lr_factor: float,
) -> dict[str, Any]:
    """AdamW over ``module.encoder`` and ``module.objective``, warmed up, then decayed to zero.

    ``warmup`` is a share of all steps when below 1, else a number of steps. The encoder learns at
    ``lr * encoder_lr_factor``. Vectors (biases, LayerNorm) are not decayed (Devlin 2019).
    """
    rates = {module.encoder: lr * encoder_lr_factor, module.objective: lr}
    groups, seen = [], set()
    for part, rate in rates.items():
        fresh = [p for p in part.parameters() if p.requires_grad and p not in seen]
        seen.update(fresh)  # a head may share the encoder's code table
        matrices, vectors = [p for p in fresh if p.ndim > 1], [p for p in fresh if p.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], fused=True)
    warm = max(1, round(warmup * total_steps if warmup < 1 else warmup))

    def factor(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (total_steps - step) / max(1, total_steps - warm)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }
