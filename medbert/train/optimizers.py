"""Optimizers with warm-up and linear decay, as in BERT."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from medbert.schema import InputError

_SHAPES = ("linear", "cosine")


def adamw(
    module: Any,
    *,
    total_steps: int,
    lr: float,
    weight_decay: float,
    warmup: float,
    encoder_lr_factor: float,
    lazy_rows: bool,
    shape: str = "linear",
    floor: float = 0.0,
    betas: Sequence[float] = (0.9, 0.999),
) -> dict[str, Any]:
    """AdamW over ``module.encoder`` and ``module.objective``, warmed up, then decayed to ``floor``
    (a share of ``lr``) along a line or, by ``shape``, a cosine.

    ``warmup`` is a share of all steps when below 1, else a number of steps. The encoder learns at
    ``lr * encoder_lr_factor``. Vectors (biases, LayerNorm) are not decayed (Devlin 2019).
    ``lazy_rows``: where a step's gradient reaches some codes only (no output layer over all of
    them), only their vectors are updated, see ``RowAdamW``; on one device. With a full output layer
    it changes nothing but the speed.
    """
    if lazy_rows and getattr(module.trainer, "world_size", 1) == 1:
        module.encoder.codes.sparse = True
    rates = {module.encoder: lr * encoder_lr_factor, module.objective: lr}
    groups, seen = [], set()
    for part, rate in rates.items():
        fresh = [p for p in part.parameters() if p.requires_grad and p not in seen]
        seen.update(fresh)  # a head may share the encoder's code table
        matrices, vectors = [p for p in fresh if p.ndim > 1], [p for p in fresh if p.ndim <= 1]
        for params, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": rate, "weight_decay": decay})
    if shape not in _SHAPES:
        raise InputError(f"shape={shape}: choose one of {', '.join(_SHAPES)}")
    optimizer = RowAdamW(groups, betas=(betas[0], betas[1]), fused=True)
    warm = max(1, round(warmup * total_steps if warmup < 1 else warmup))

    def factor(step: int) -> float:
        left = min(1.0, max(0.0, (total_steps - step) / max(1, total_steps - warm)))
        left = left if shape == "linear" else (1 - math.cos(math.pi * left)) / 2
        return min((step + 1) / warm, floor + (1 - floor) * left)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


class RowAdamW(torch.optim.AdamW):
    """AdamW that updates only the rows which a sparse gradient names (lazy Adam).

    Rows that every step names end as with dense AdamW. Others differ from it: while a row is not
    named its moments do not fade, it is not moved by them, and it is not decayed. Steps for the
    bias correction are counted for the table, not for the row, as in ``torch.optim.SparseAdam``.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lazy = [
            (p, p.grad, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.is_sparse
        ]
        for parameter, _, _ in lazy:
            parameter.grad = None
        super().step()
        for parameter, grad, group in lazy:
            parameter.grad = grad
            self._step_rows(parameter, grad.coalesce(), group)
        return loss

    @torch.no_grad()
    def _step_rows(self, table: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        step, (beta1, beta2), lr = float(state["step"]), group["betas"], group["lr"]
        rows, value = grad.indices()[0], grad.values()
        mean = state["exp_avg"][rows].lerp_(value, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(value, value, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        spread = square.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        moved = table[rows].mul_(1 - lr * group["weight_decay"])
        table.index_copy_(0, rows, moved.addcdiv_(mean, spread, value=-lr / (1 - beta1**step)))


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients so that their norm is at most ``max_norm``; returns the norm before.

    As ``torch.nn.utils.clip_grad_norm_``, for sparse gradients too.
    """
    grads = []
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            if grad.is_sparse:
                parameter.grad = grad.coalesce()
                grad = parameter.grad.values()
            grads.append(grad)
    norm = torch.nn.utils.get_total_norm(grads)
    factor = max_norm / (norm + 1e-6)
    if norm.is_cuda or factor < 1:
        torch._foreach_mul_(grads, factor.clamp(max=1))
    return norm
