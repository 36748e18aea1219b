"""Updating only the rows that a step reaches: where it is the dense update, and where it is not."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medbert.schema import InputError
from medbert.train.optimizers import RowAdamW, adamw, clip_gradients

CODES, WIDTH = 30, 4
SETTINGS = {"lr": 0.05, "weight_decay": 0.1}


def trained(rows: list[list[int]], *, sparse: bool, cls: type = RowAdamW) -> torch.Tensor:
    torch.manual_seed(0)
    table, layer = nn.Embedding(CODES, WIDTH, sparse=sparse), nn.Linear(WIDTH, 1)
    optimizer = cls([*table.parameters(), *layer.parameters()], **SETTINGS)
    for step, row in enumerate(rows):
        torch.manual_seed(step)
        loss = (layer(table(torch.tensor(row))) * torch.randn(len(row), 1)).sum()
        loss.backward()
        assert table.weight.grad.is_sparse == sparse
        optimizer.step()
        optimizer.zero_grad()
    return table.weight.detach()


ALL = list(range(CODES))


def test_where_every_step_reaches_every_row_it_is_adamw() -> None:
    rows = [ALL + [3, 3, 7]] * 12
    dense = trained(rows, sparse=False, cls=torch.optim.AdamW)
    torch.testing.assert_close(trained(rows, sparse=True), dense)
    torch.testing.assert_close(trained(rows, sparse=False), dense)


def test_rows_that_no_step_reaches_stay_as_they_were() -> None:
    torch.manual_seed(0)
    start = nn.Embedding(CODES, WIDTH).weight.detach()
    lazy = trained([[1, 2], [2, 5], [2]], sparse=True)
    moved = (lazy != start).any(1).nonzero().flatten().tolist()
    assert moved == [1, 2, 5]
    dense = trained([[1, 2], [2, 5], [2]], sparse=False)
    assert not torch.equal(dense[1], lazy[1])  # moments go on moving it there
    torch.testing.assert_close(dense[2], lazy[2])  # every step reached it


def test_the_state_can_be_saved_and_taken_up() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(CODES, WIDTH, sparse=True)
    optimizer = RowAdamW(table.parameters(), **SETTINGS)

    def step(optimizer: RowAdamW, table: nn.Embedding) -> None:
        table(torch.tensor([1, 4])).pow(2).sum().backward()
        optimizer.step(lambda: None)
        optimizer.zero_grad()

    step(optimizer, table)
    again = nn.Embedding(CODES, WIDTH, sparse=True, _weight=table.weight.detach().clone())
    resumed = RowAdamW(again.parameters(), **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, table)
    step(resumed, again)
    assert torch.equal(table.weight, again.weight)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_sparse_gradients_are_clipped_as_dense_ones(limit: float) -> None:
    norms, grads = [], []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, layer = nn.Embedding(CODES, WIDTH, sparse=sparse), nn.Linear(WIDTH, 1)
        parameters = [*table.parameters(), *layer.parameters()]
        layer(table(torch.tensor([1, 1, 1, 9]))).sum().backward()
        if not sparse:
            own = [p.grad.clone() for p in parameters]
            wanted = nn.utils.clip_grad_norm_(parameters, limit)
            wanted_grads = [p.grad for p in parameters]
            for parameter, grad in zip(parameters, own, strict=True):
                parameter.grad = grad
        norms.append(clip_gradients(parameters, limit))
        grads.append([p.grad.to_dense() for p in parameters])
    for norm, made in zip(norms, grads, strict=True):
        torch.testing.assert_close(norm, wanted)
        for one, two in zip(made, wanted_grads, strict=True):
            torch.testing.assert_close(one, two)


def rates(shape: str) -> list[float]:
    """Of 100 steps, 10 of them warm-up, down to a tenth."""
    module = SimpleNamespace(encoder=nn.Linear(2, 2), objective=nn.Module(), trainer=None)
    made = adamw(
        module,
        total_steps=100,
        lr=1.0,
        weight_decay=0.0,
        warmup=0.1,
        encoder_lr_factor=1.0,
        lazy_rows=False,
        shape=shape,
        floor=0.1,
    )
    scheduler, seen = made["lr_scheduler"]["scheduler"], []
    for _ in range(101):
        seen.append(scheduler.get_last_lr()[0])
        made["optimizer"].step()
        scheduler.step()
    return seen


def test_the_rate_warms_up_and_falls_to_its_floor_along_a_line_or_a_cosine() -> None:
    linear, cosine = rates("linear"), rates("cosine")
    for seen in (linear, cosine):
        assert seen[0] == pytest.approx(0.1) and max(seen) == pytest.approx(1.0)
        assert seen[100] == pytest.approx(0.1) and sorted(seen[10:], reverse=True) == seen[10:]
    assert [linear[55], cosine[55]] == pytest.approx([0.55, 0.55]) and cosine[30] > linear[30]
    with pytest.raises(InputError, match="shape"):
        rates("step")
