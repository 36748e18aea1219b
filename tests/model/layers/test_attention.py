"""Every way to attend says the same, and dropout is the dropout of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medbert.model.encoder import BertEncoder
from medbert.model.layers import grouped
from medbert.model.layers.attention import SelfAttention, pack, rotated
from medbert.model.layers.dropout import Dropout, draw_mask
from medbert.model.objectives import masked_code
from medbert.schema import Batch

LENGTHS = [7, 20, 1, 19, 33, 7, 40, 18, 2]


def plainly(
    projected_GL3Hd: Tensor, mask_GL: Tensor | None, keep: Any = None, *, causal: bool = False
) -> Tensor:
    """Attention by its definition, in double precision; ``keep`` (N, L, L) scales probabilities."""
    query, key, value = projected_GL3Hd.double().permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask_GL is not None:
        scores = scores.masked_fill(~mask_GL[:, None, None, :], -torch.inf)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    probability = scores.softmax(-1)
    if keep is not None:
        probability = probability * keep.view(probability.shape)
    return (probability @ value).transpose(1, 2).flatten(0, 1).flatten(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("long", [2, 1000])  # probabilities made again, or kept
def test_our_attention_and_its_gradient_are_those_of_the_definition(
    masked: bool, causal: bool, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped, "_LONG", long)
    monkeypatch.setattr(grouped, "_CACHED", 500)  # three heads at once
    torch.manual_seed(0)
    given = torch.randn(5, 12, 3, 2, 4, requires_grad=True)
    mask_GL = torch.arange(12) < torch.tensor([[12], [11], [12], [11], [10]]) if masked else None
    pull = (
        torch.randn(60, 8) if mask_GL is None else torch.randn(60, 8) * mask_GL.flatten()[:, None]
    )

    torch.manual_seed(3)
    made = grouped._Attend.apply(given, None if causal else mask_GL, 0.0, causal)
    (grad,) = torch.autograd.grad((made * pull).sum(), given)
    wanted = plainly(given, mask_GL, causal=causal)
    (wanted_grad,) = torch.autograd.grad((wanted * pull).sum(), given)
    real = slice(None) if mask_GL is None else mask_GL.flatten()
    torch.testing.assert_close(made.double()[real], wanted[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(grad, wanted_grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("long", [2, 1000])
def test_dropout_of_attention_is_the_same_on_the_way_back(
    causal: bool, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped, "_LONG", long)
    given, pull = torch.randn(3, 9, 3, 2, 4, requires_grad=True), torch.randn(27, 8)
    torch.manual_seed(5)
    made = grouped._Attend.apply(given, None, 0.4, causal)
    (grad,) = torch.autograd.grad((made * pull).sum(), given)
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))  # as the function draws it; one part holds all heads
    keep = draw_mask(torch.empty(6, 9, 9), 0.4, generator=torch.Generator().manual_seed(seed))
    wanted = plainly(given, None, keep, causal=causal)
    (wanted_grad,) = torch.autograd.grad((wanted * pull).sum(), given)
    torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(grad, wanted_grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    ones, layer = torch.ones(300, 1001, requires_grad=True), Dropout(rate)
    dropped = layer(ones)
    assert (dropped == 0).double().mean().item() == pytest.approx(rate, abs=0.003)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    columns = (dropped == 0).double().mean(0)
    assert columns.std() < 1.3 * (rate * (1 - rate) / 300) ** 0.5  # no column is favoured
    (grad,) = torch.autograd.grad(dropped.sum(), ones)
    assert torch.equal(grad, dropped.detach())
    assert layer.eval()(ones) is ones
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="dropout="):
            Dropout(wrong)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["groups", "flex"])
def test_every_packing_attends_as_each_subject_alone(kind: str, causal: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(heads=2, hidden=16, dropout=0.0).eval()
    hidden_TD = torch.randn(sum(LENGTHS), 16)
    turn = torch.randn(sum(LENGTHS), 4)
    packing = pack(offsets(LENGTHS), kind=kind, causal=causal)
    angle = packing.enter(turn)
    with torch.no_grad():
        hidden_PD = packing.enter(hidden_TD)
        plain = packing.leave(attention(hidden_PD, packing))
        turned = packing.leave(attention(hidden_PD, packing, (angle.cos(), angle.sin())))
        for made, angles in ((plain, torch.zeros_like(turn)), (turned, turn)):
            projected = attention.project(hidden_TD)
            projected = rotated(projected, angles.cos(), angles.sin(), heads=2)
            alone = [
                plainly(part.view(1, len(part), 3, 2, 8), None, causal=causal)
                for part in projected.split(LENGTHS)
            ]
            wanted = attention.output(torch.cat(alone).float())
            torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(plain, turned, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention wants a GPU")
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_agrees_with_groups(causal: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(heads=4, hidden=128, dropout=0.0).eval().cuda()
    hidden_TD = torch.randn(sum(LENGTHS), 128, device="cuda")
    made = {}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for kind in ("auto", "varlen", "groups", "flex"):
            packing = pack(offsets(LENGTHS).cuda(), kind=kind, causal=causal)
            made[kind] = packing.leave(attention(packing.enter(hidden_TD), packing)).float()
    for other in ("auto", "varlen", "flex"):
        torch.testing.assert_close(made[other], made["groups"], atol=2e-2, rtol=2e-2)


def test_rotation_depends_on_differences_alone() -> None:
    torch.manual_seed(0)
    projected, angle = torch.randn(6, 3 * 8), torch.randn(6, 2)
    attend = []
    for shift in (0.0, 1.7):
        turn = (angle + shift).cos(), (angle + shift).sin()
        query, key, value = rotated(projected, *turn, heads=2).view(6, 3, 2, 4).unbind(1)
        attend.append(torch.einsum("qhd,khd->hqk", query, key))
        assert torch.equal(value, projected.view(6, 3, 2, 4)[:, 2])
    torch.testing.assert_close(*attend, atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown attention 'fast'"):
        pack(offsets([3]), kind="fast")
    for kind in ("varlen", "flex"):
        with pytest.raises(ValueError, match="has no dropout"):
            pack(offsets([3]), kind=kind, dropout=True)


def test_a_batch_without_subjects_is_empty() -> None:
    assert pack(torch.tensor([0])).n_places == 0


def test_layers_can_be_compiled() -> None:
    torch.manual_seed(0)
    model = _encoder("groups").train()
    batch = _batch(LENGTHS)
    torch.manual_seed(1)
    plain = model(batch)
    for layer in model.layers:
        layer.compile(backend="aot_eager", dynamic=True)
    torch.manual_seed(1)
    torch.testing.assert_close(model(batch), plain)


def _encoder(kind: str) -> BertEncoder:
    return BertEncoder(
        vocabulary_size=50,
        layers=2,
        heads=2,
        hidden=16,
        feed_forward=16,
        dropout=0.0,
        attention_dropout=0.0,
        positions=64,
        visits=8,
        attention=kind,
    )


def _batch(lengths: list[int]) -> Batch:
    torch.manual_seed(4)
    total = sum(lengths)
    return Batch(
        tokens_T=torch.randint(4, 50, (total,)),
        visit_T=torch.ones(total, dtype=torch.int64),
        age_T=torch.full((total,), torch.nan),
        offsets_B1=offsets(lengths),
        rows_B=torch.arange(len(lengths)),
    )


def _alone(batch: Batch, row: int) -> Batch:
    part = slice(int(batch.offsets_B1[row]), int(batch.offsets_B1[row + 1]))
    return Batch(
        batch.tokens_T[part],
        batch.visit_T[part],
        batch.age_T[part],
        torch.tensor([0, part.stop - part.start]),
        batch.rows_B[row : row + 1],
    )


def test_training_goes_the_same_way_with_and_without_packing() -> None:
    batch, losses = _batch(LENGTHS), []
    for packed in (True, False):
        torch.manual_seed(0)
        model = _encoder("groups")
        goal = masked_code(
            vocabulary_size=50, hidden=16, counts=[1] * 50, rate=0.3, static=False, seed=0
        )
        optimizer = torch.optim.AdamW([*model.parameters(), *goal.parameters()], lr=3e-3)
        told = []
        for step in range(25):
            parts = [batch] if packed else [_alone(batch, row) for row in range(len(LENGTHS))]
            total, hidden = torch.zeros(()), 0
            for part in parts:
                torch.manual_seed(step)  # the masks of a subject do not depend on its neighbours
                masked = len(goal.terms["masked_code"].corrupt(part)[1].code_M)
                torch.manual_seed(step)
                total, hidden = total + goal(model, part).loss * masked, hidden + masked
            loss = total / hidden
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            told.append(loss.item())
        losses.append(told)
    assert losses[0][-1] < losses[0][0] - 0.1
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_memory_for_scores_grows_with_tokens_not_with_lengths() -> None:
    kept = []
    for length, subjects in ((64, 32), (512, 4)):
        given = torch.randn(subjects, length, 3, 1, 4, requires_grad=True)
        made = grouped._Attend.apply(given, None, 0.1, False)
        kept.append(sum(part.numel() for part, _ in made.grad_fn.scores._kept.values()))
    assert kept == [32 * 64 * 64, 0]


def test_groups_hold_dropout_in_training_only() -> None:
    attention = SelfAttention(heads=2, hidden=16, dropout=0.5)
    packing, hidden = pack(offsets(LENGTHS)), torch.randn(sum(LENGTHS), 16)
    hidden_PD = packing.enter(hidden)
    assert not torch.equal(attention(hidden_PD, packing), attention(hidden_PD, packing))
    attention.eval()
    torch.testing.assert_close(attention(hidden_PD, packing), attention(hidden_PD, packing))
    assert F.relu(attention(hidden_PD, packing)).isfinite().all()
