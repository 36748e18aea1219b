"""Where each head of an encoder looks: the weights of one history, and a page to see them on."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medbert.model.layers.attention import SelfAttention, rotated
from medbert.schema import CODE, TIME, Batch

_STEPS = 65_535  # weights travel as whole numbers of 16 bits


@dataclass(frozen=True)
class Attention:
    """Who looks at whom in one history: patient data, which must not leave.

    ``weights`` (layers, heads, L, L): how much event i (row) looks at event j; a row sums to 1.
    ``events``: time, code and title of each of the L. In a notebook it shows itself.
    """

    weights: np.ndarray
    events: pd.DataFrame

    def html(self, *, latest: int = 128) -> str:
        """A page of one file, which loads nothing: the ``latest`` events, and what they look at
        among those before, added up."""
        hidden = max(0, len(self.events) - latest)
        seen, events = self.weights[:, :, hidden:], self.events[hidden:]
        before = seen[..., :hidden].sum(3, keepdims=True)
        shown = np.concatenate([before, seen[..., hidden:]], axis=3)
        told = {
            "shape": shown.shape,
            "before": hidden,
            "events": [*zip(events[TIME].map(when), events["title"], events[CODE], strict=True)],
            "weights": base64.b64encode(np.rint(shown * _STEPS).astype("<u2")).decode(),
        }
        page = Template((files("medbert.library") / "attention.html").read_text("utf-8"))
        return page.substitute(told=json.dumps(told).replace("<", "\\u003c"))

    def save(self, path: str | Path, *, latest: int = 128) -> Path:
        """Writes the page of ``html``: patient data, which must not leave."""
        Path(path).write_text(self.html(latest=latest), encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        frame = 'sandbox="allow-scripts" style="width: 100%; height: 640px; border: 0"'
        return f'<iframe {frame} srcdoc="{escape(self.html())}"></iframe>'


def attended(model: Any, batch: Batch) -> np.ndarray:
    """``Attention.weights`` of a batch of one subject."""
    causal, found = model.config.get("causal", False), []

    def look(module: SelfAttention, given: tuple[Any, ...], _: Tensor) -> None:
        hidden_LD, _packing, *turn = given  # the places of a single subject are its tokens
        found.append(plain_attention(module, hidden_LD, *turn, causal=causal)[0])

    hooks = [layer.attention.register_forward_hook(look) for layer in model.layers]
    try:
        with torch.inference_mode():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).float().cpu().numpy()


def plain_attention(
    module: SelfAttention, hidden_LD: Tensor, *turn: tuple[Tensor, Tensor] | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """Weights (H, L, L) of one subject, which the fast kernels never write down, and the values
    (H, L, d): ``module.output`` of their product, heads side by side, is that of the module."""
    projected_LK = module.project(hidden_LD)
    if turn and turn[0] is not None:
        projected_LK = rotated(projected_LK, *turn[0], heads=module.heads)
    split_LHd = projected_LK.view(len(hidden_LD), 3, module.heads, -1)
    query, key, value = split_LHd.permute(1, 2, 0, 3)
    score_HLL = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])
    if causal:
        later_LL = torch.ones_like(score_HLL[0], dtype=torch.bool).triu(1)
        score_HLL = score_HLL.masked_fill(later_LL, -torch.inf)
    return score_HLL.softmax(2), value


def when(time: Any) -> str:
    """The time of an event, as it is shown."""
    if isinstance(time, int | np.integer):
        return f"visit {time}"
    return "" if pd.isna(time) else f"{time:%Y-%m-%d}"
