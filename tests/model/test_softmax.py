"""The fast output layers say what the plain one says, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model import softmax
from medbert.model.softmax import exact_loss, ranks, sample_shares, sampled_loss

CODES, WIDTH = 61, 8


def layer(rows: int, *, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Hidden, weight and bias that want gradients, and the right codes; some codes come twice."""
    torch.manual_seed(seed)
    shapes = ((rows, WIDTH), (CODES, WIDTH), (CODES,))
    return [torch.randn(*s).requires_grad_() for s in shapes], torch.randint(4, 20, (rows,))


def plain(given: list[Tensor], code_M: Tensor) -> Tensor:
    hidden, weight, bias = given
    return F.cross_entropy(F.linear(hidden, weight, bias), code_M, reduction="sum")


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_the_exact_loss_is_the_cross_entropy_whatever_the_pieces(
    rows: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_ROWS_CPU", 7)  # neither divides what it cuts
    monkeypatch.setattr(softmax, "_COLUMNS_CPU", 16)
    given, code_M = layer(rows)
    wanted = torch.autograd.grad(scale * plain(given, code_M), given)
    loss = exact_loss(*given, code_M)
    torch.testing.assert_close(loss, plain(given, code_M))
    for made, grad in zip(torch.autograd.grad(scale * loss, given), wanted, strict=True):
        torch.testing.assert_close(made, grad, atol=1e-5, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    given, code_M = layer(5)
    with torch.no_grad():
        given[0].mul_(500)
    loss = exact_loss(*given, code_M)
    assert loss > 1000
    torch.testing.assert_close(loss, plain(given, code_M))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, given))


def test_without_gradients_the_loss_is_the_same() -> None:
    given, code_M = layer(12)
    with torch.no_grad():
        torch.testing.assert_close(exact_loss(*given, code_M), plain(given, code_M))


def test_half_precision_is_close() -> None:
    given, code_M = layer(40)
    wanted = torch.autograd.grad(plain(given, code_M), given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = exact_loss(*given, code_M)
    assert loss.item() == pytest.approx(plain(given, code_M).item(), rel=0.02)
    for made, grad in zip(torch.autograd.grad(loss, given), wanted, strict=True):
        assert made.dtype == grad.dtype
        assert (made - grad).abs().max() < 0.03 * grad.abs().max()


def test_ranks_are_losses_and_places_and_ties_count_against() -> None:
    (hidden, weight, bias), code_M = layer(30)
    loss_M, before_M = ranks(hidden, weight, bias, code_M)
    logits = F.linear(hidden, weight, bias)
    torch.testing.assert_close(loss_M, F.cross_entropy(logits, code_M, reduction="none"))
    order = logits.argsort(1, descending=True)
    assert torch.equal((order == code_M[:, None]).nonzero()[:, 1], before_M)
    _, tied = ranks(hidden, torch.zeros_like(weight), torch.zeros_like(bias), code_M)
    assert (tied == CODES - 1).all()


def table(weight: Tensor) -> nn.Embedding:
    return nn.Embedding(CODES, WIDTH, _weight=weight.detach().clone())


def test_a_sample_of_all_codes_is_the_exact_loss() -> None:
    (hidden, weight, bias), code_M = layer(20)
    codes = table(weight)
    loss = sampled_loss(hidden, codes, bias, code_M, torch.ones(CODES))
    torch.testing.assert_close(loss, plain([hidden, weight, bias], code_M))
    grads = torch.autograd.grad(loss, [hidden, codes.weight, bias])
    wanted = torch.autograd.grad(plain([hidden, weight, bias], code_M), [hidden, weight, bias])
    for made, grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(made, grad, atol=1e-5, rtol=1e-5)


def test_the_estimate_of_the_sum_has_no_bias() -> None:
    (hidden, weight, bias), code_M = layer(1)
    share_C = sample_shares(torch.arange(CODES), 15)
    codes = table(weight)
    own = F.linear(hidden, weight, bias)[0, code_M]
    torch.manual_seed(1)
    with torch.no_grad():
        losses = [sampled_loss(hidden, codes, bias, code_M, share_C) for _ in range(4000)]
    sums = (torch.stack(losses) + own).exp()  # the loss is the log of the sum less the logit
    exact = F.linear(hidden, weight, bias).exp().sum()
    assert abs(sums.mean() - exact) < 4 * sums.std() / 4000**0.5
    assert sums.std() > 0


def test_only_sampled_and_right_codes_get_a_gradient() -> None:
    (hidden, weight, bias), code_M = layer(6)
    codes, share_C = table(weight), torch.full((CODES,), 0.2)
    codes.sparse = True
    torch.manual_seed(2)
    sample = set((torch.rand(CODES) < share_C).nonzero().flatten().tolist())
    torch.manual_seed(2)
    sampled_loss(hidden, codes, bias, code_M, share_C).backward()
    assert codes.weight.grad.is_sparse
    touched = set(codes.weight.grad.coalesce().indices()[0].tolist())
    assert touched == sample | set(code_M.tolist()) and len(touched) < CODES


@pytest.mark.parametrize("size", [1, 20, 50, 56])
def test_shares_add_up_and_follow_the_counts(size: int) -> None:
    counts = torch.cat([torch.zeros(4), torch.logspace(0, 5, CODES - 4)]).long()
    share_C = sample_shares(counts, size)
    assert (share_C[:4] == 1).all() and share_C.min() > 0 and share_C.max() <= 1
    assert share_C[4:].sum().item() == pytest.approx(size, rel=1e-4)
    assert (share_C[4:].diff() >= 0).all()
