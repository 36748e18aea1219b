"""Runs a model over a loader, without gradients: what scoring, embedding and predicting share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from medbert.schema import Batch, InputError


def scored(
    function: Callable[[Batch], Tensor],
    data: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each batch, which rows of the dataset it has (on the CPU), and ``function`` of it.

    Values stay on ``device``, so that a GPU need not be waited for before the next batch is read.
    """
    for batch in data:
        with torch.inference_mode():  # around the call alone: a generator would leak it
            values = function(on(batch, device))
        yield batch.rows_B, values


def score(
    function: Callable[[Batch], Tensor],
    data: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``function`` of every batch, one value (or row of values) per row of the loader's dataset.

    The result is in the order of the dataset, whatever the order of the batches; on the CPU.
    """
    found = list(scored(function, data, device=device))
    if not found:
        return torch.zeros(0)
    rows, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values.cpu()[torch.argsort(rows)]


def place(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the GPU, where there is one.

    Raises InputError if it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device={name}: cannot be used ({reason}); say device=auto") from error


def on(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with all of its tensors on ``device``."""
    there = {name: part.to(device) for name, part in batch._asdict().items() if part is not None}
    return batch._replace(**there)
