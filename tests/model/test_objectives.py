"""What is hidden, what is asked, and what is counted in pretraining."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medbert.model.encoder import BertEncoder
from medbert.model.masking import fixed_draws
from medbert.model.objectives import (
    MaskedCode,
    Objective,
    ProlongedStay,
    masked_code,
    masked_code_and_stay,
    prolonged_stay,
)
from medbert.schema import MASK, SPECIAL_TOKENS, UNK, Batch

VOCABULARY, HIDDEN, SPECIALS = 40, 16, len(SPECIAL_TOKENS)
NAN = float("nan")


def encoder() -> BertEncoder:
    torch.manual_seed(0)
    return BertEncoder(
        vocabulary_size=VOCABULARY,
        layers=1,
        heads=2,
        hidden=HIDDEN,
        feed_forward=16,
        dropout=0.0,
        attention_dropout=0.0,
        positions=256,
        visits=4,
    )


def batch(lengths: list[int], *, seed: int = 0, stays: list[list[float]] | None = None) -> Batch:
    torch.manual_seed(seed)
    total = sum(lengths)
    tokens_T = torch.randint(SPECIALS, VOCABULARY, (total,))
    tokens_T[torch.rand(total) < 0.2] = UNK
    made = Batch(
        tokens_T=tokens_T,
        visit_T=torch.ones(total, dtype=torch.int64),
        age_T=torch.full((total,), NAN),
        offsets_B1=torch.tensor([0, *lengths]).cumsum(0),
        rows_B=torch.arange(len(lengths)) + 1000,
    )
    if stays is None:
        return made
    return made._replace(
        stay_V=torch.tensor([stay for subject in stays for stay in subject]),
        visit_offsets_B1=torch.tensor([0, *(len(subject) for subject in stays)]).cumsum(0),
    )


def masked(**changes: Any) -> MaskedCode:
    torch.manual_seed(1)
    given = {"vocabulary_size": VOCABULARY, "hidden": HIDDEN, "counts": torch.ones(VOCABULARY)}
    return MaskedCode(**{**given, "rate": 0.15, "static": False, "seed": 0, **changes})


def hidden_places(term: MaskedCode, given: Batch) -> list[int]:
    return term.corrupt(given)[1].place_M.tolist()


@pytest.mark.parametrize("rate", [None, 0.15, 1.0])
@pytest.mark.parametrize("static", [True, False])
def test_specials_are_neither_hidden_nor_stand_ins(rate: float | None, static: bool) -> None:
    given = batch([50] * 100)
    shown, target = masked(rate=rate, static=static).corrupt(given)
    assert (target.code_M >= SPECIALS).all()
    assert torch.equal(target.code_M, given.tokens_T[target.place_M])
    changed_T = shown.tokens_T != given.tokens_T
    assert not changed_T[given.tokens_T < SPECIALS].any()
    became_T = shown.tokens_T[changed_T]
    assert ((became_T == MASK) | (became_T >= SPECIALS)).all()
    untouched_T = torch.ones_like(changed_T).index_fill(0, target.place_M, False)
    assert not (changed_T & untouched_T).any()


@pytest.mark.parametrize("static", [True, False])
def test_rates_are_right(static: bool) -> None:
    given = batch([200] * 500)
    shown, target = masked(static=static).corrupt(given)
    codes = int((given.tokens_T >= SPECIALS).sum())
    assert len(target.place_M) / codes == pytest.approx(0.15, abs=0.006)
    shown_M = shown.tokens_T[target.place_M]
    is_mask, is_same = shown_M == MASK, shown_M == target.code_M
    kept_by_chance = 0.1 / (VOCABULARY - SPECIALS)
    assert is_mask.float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert is_same.float().mean().item() == pytest.approx(0.1 + kept_by_chance, abs=0.012)
    stand_ins = shown_M[~is_mask & ~is_same].bincount(minlength=VOCABULARY)[SPECIALS:]
    assert stand_ins.min() > 0.4 * stand_ins.float().mean()


@pytest.mark.parametrize("static", [True, False])
def test_exactly_one_code_per_subject_and_all_equally_often(static: bool) -> None:
    given = batch([5, 0, 1, 12] + [5] * 4000)
    given.tokens_T[:6] = 7
    given.tokens_T[18:] = 8
    place_M = masked(rate=None, static=static).corrupt(given)[1].place_M
    per_subject = given.subject_T[place_M].bincount(minlength=4004)
    assert per_subject[[0, 2, 3]].tolist() == [1, 1, 1]
    assert per_subject[1] == 0
    assert (per_subject[4:] == 1).all()
    often = given.position_T[place_M[place_M >= 18]].bincount() / 4000
    assert often.tolist() == pytest.approx([0.2] * 5, abs=0.03)


def test_a_rate_hides_at_least_one_wherever_it_can() -> None:
    given = batch([1, 2, 3, 0, 4])
    given.tokens_T[:] = torch.tensor([5, UNK, 6, UNK, UNK, UNK, 7, 8, 9, 10])
    target = masked(rate=1e-6).corrupt(given)[1]
    assert given.subject_T[target.place_M].tolist() == [0, 1, 4]


def test_a_static_mask_is_static_and_a_dynamic_one_is_not() -> None:
    given = batch([60] * 8)
    still, moving = masked(static=True), masked(static=False)
    assert hidden_places(still, given) == hidden_places(still, given)
    assert hidden_places(moving, given) != hidden_places(moving, given)
    assert hidden_places(masked(static=True, seed=1), given) != hidden_places(still, given)
    shown = [still.corrupt(given)[0].tokens_T for _ in range(2)]
    assert torch.equal(shown[0], shown[1])
    torch.manual_seed(5)
    first = hidden_places(moving, given)
    torch.manual_seed(5)
    assert hidden_places(moving, given) == first


def test_a_static_mask_follows_the_subject_into_any_batch() -> None:
    given, still = batch([9, 7, 30]), masked(static=True, rate=0.3)
    last = Batch(
        given.tokens_T[16:], given.visit_T[16:], given.age_T[16:], torch.tensor([0, 30]),
        given.rows_B[2:],
    )  # fmt: skip
    assert [p - 16 for p in hidden_places(still, given) if p >= 16] == hidden_places(still, last)
    shown = still.corrupt(given)[0].tokens_T[16:]
    assert torch.equal(shown, still.corrupt(last)[0].tokens_T)


def test_eval_mode_is_deterministic() -> None:
    model, given = encoder().eval(), batch([30] * 6)
    objective = Objective({"x": masked(static=False)}, {"x": 1.0}).eval()
    assert torch.equal(objective(model, given).loss, objective(model, given).loss)


def test_fixed_draws_are_the_published_hash() -> None:
    """The finaliser of splitmix64, computed here with Python's integers."""
    word = 2**64

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % word
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % word
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    for row, position, seed, stream in [(0, 0, 0, 0), (71_517, 511, 42, 2), (3, 1, 2**40, 1)]:
        start = mix((row + (4 * seed + stream + 1) * golden) % word)
        expected = mix((start + position * golden) % word) % 2**63
        drawn = fixed_draws(torch.tensor([row]), torch.tensor([position]), seed=seed, stream=stream)
        assert drawn.item() == expected


def test_unigram_metric_is_the_add_one_frequency() -> None:
    counts = torch.arange(VOCABULARY) * 3
    term, model, given = masked(counts=counts, rate=None, static=True), encoder(), batch([4, 6])
    term.eval()
    _, target = term.corrupt(given)
    output = Objective({"x": term}, {"x": 1.0})(model, given)
    total = sum(3 * code + 1 for code in range(SPECIALS, VOCABULARY))
    expected = [-math.log((3 * code + 1) / total) for code in target.code_M.tolist()]
    assert output.metrics["unigram"].item() == pytest.approx(sum(expected) / len(expected))


def test_masked_code_loss_and_accuracy_are_those_of_a_full_output_layer() -> None:
    term, model, given = masked(static=True, rate=0.4), encoder(), batch([20, 30])
    with torch.no_grad():
        term.bias.normal_()
    shown, target = term.corrupt(given)
    hidden_TD = model(shown)
    logits_TC = term.norm(F.gelu(term.dense(hidden_TD))) @ model.codes.weight.T + term.bias
    logits_MC = logits_TC[target.place_M]
    output = term.loss(model, hidden_TD, shown, target)
    judged = term.eval().loss(model, hidden_TD, shown, target)
    for made in (output, judged):
        torch.testing.assert_close(made.loss, F.cross_entropy(logits_MC, target.code_M))
        assert torch.equal(made.metrics["masked_code"], made.loss.detach())
    for k in (1, 10):
        hits_M = (logits_MC.topk(k).indices == target.code_M[:, None]).any(1)
        assert judged.metrics[f"top{k}"].item() == pytest.approx(hits_M.float().mean().item())
    output.loss.backward()
    assert all(weight.grad is not None for weight in [*term.parameters(), model.codes.weight])


def test_a_constant_model_has_no_accuracy() -> None:
    term, model, given = masked(static=True, start_at_unigram=False), encoder(), batch([20, 30])
    torch.nn.init.zeros_(model.codes.weight)
    metrics = Objective({"x": term}, {"x": 1.0}).eval()(model, given).metrics
    assert metrics["top1"] == metrics["top10"] == 0
    assert metrics["masked_code"].item() == pytest.approx(math.log(VOCABULARY), rel=1e-5)


def test_training_can_start_at_the_code_frequencies() -> None:
    term, model, given = masked(counts=torch.arange(VOCABULARY) * 50), encoder(), batch([200, 250])
    torch.nn.init.zeros_(model.codes.weight)
    metrics = Objective({"x": term}, {"x": 1.0}).eval()(model, given).metrics
    assert metrics["masked_code"].item() == pytest.approx(metrics["unigram"].item(), rel=1e-3)


@pytest.mark.parametrize("lengths", [[3, 2], [0, 0]])
def test_nothing_to_hide_is_a_loss_of_zero_with_gradient(lengths: list[int]) -> None:
    term, model, given = masked(), encoder(), batch(lengths)
    given.tokens_T.fill_(UNK)
    output = Objective({"x": term}, {"x": 1.0})(model, given)
    output.loss.backward()
    assert output.loss == 0
    assert output.metrics == {}
    assert all(not weight.grad.any() for weight in term.parameters())


def test_masked_code_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="counts has shape"):
        masked(counts=torch.ones(VOCABULARY + 1))
    for rate in (0.0, 1.5, -1):
        with pytest.raises(ValueError, match="rate="):
            masked(rate=rate)


STAYS = [[1.0, 8.0], [7.0], [NAN, 30.0], [NAN], [], [2.0, NAN]]


def test_unknown_stays_are_masked_never_guessed() -> None:
    term, given = ProlongedStay(hidden=HIDDEN), batch([3] * 6, stays=STAYS)
    known_B, prolonged_B = term.labels(given)
    assert known_B.tolist() == [True, True, True, False, False, True]
    assert prolonged_B[known_B].tolist() == [True, False, True, False]
    assert ProlongedStay(hidden=HIDDEN, days=31).labels(given)[1].sum() == 0


def test_prolonged_stay_is_the_cross_entropy_of_those_known() -> None:
    term, model, given = ProlongedStay(hidden=HIDDEN), encoder(), batch([3] * 6, stays=STAYS)
    hidden_TD = model(given)
    summed_BD = torch.stack([part.sum(0) for part in hidden_TD.split(3)])
    logits_B = (summed_BD @ term.output.weight.T + term.output.bias).squeeze(1)
    expected = F.binary_cross_entropy_with_logits(
        logits_B[[0, 1, 2, 5]], torch.tensor([1.0, 0.0, 1.0, 0.0])
    )
    output = term.loss(model, hidden_TD, given, None)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["prolonged_stay"], expected.detach())


def test_no_known_stay_is_a_loss_of_zero_with_gradient() -> None:
    objective = Objective({"stay": ProlongedStay(hidden=HIDDEN)}, {"stay": 1.0})
    output = objective(encoder(), batch([3, 3], stays=[[NAN], []]))
    output.loss.backward()
    assert output.loss == 0
    assert output.metrics == {}


def test_a_batch_without_stays_is_refused() -> None:
    objective = prolonged_stay(vocabulary_size=VOCABULARY, hidden=HIDDEN, counts=[], days=7)
    with pytest.raises(ValueError, match="needs lengths of stay"):
        objective(encoder(), batch([3]))


def test_a_sum_weighs_its_terms_and_runs_the_encoder_once() -> None:
    given, model, passes = batch([9] * 6, stays=STAYS), encoder(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    arguments = {"rate": 0.3, "static": True, "days": 7, "seed": 2}
    shared = {"vocabulary_size": VOCABULARY, "hidden": HIDDEN, "counts": [1] * VOCABULARY}
    both = masked_code_and_stay(masked_code_weight=2.0, stay_weight=0.5, **arguments, **shared)
    output = both.eval()(model, given)
    assert len(passes) == 1
    assert output.metrics.keys() == {"masked_code", "unigram", "top1", "top10", "prolonged_stay"}
    parts = 2 * output.metrics["masked_code"] + 0.5 * output.metrics["prolonged_stay"]
    torch.testing.assert_close(output.loss.detach(), parts)


def test_terms_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="must match"):
        Objective({"x": masked()}, {"y": 1.0})


def test_a_tiny_encoder_learns_what_frequencies_cannot_say() -> None:
    """Each subject repeats one code, so the hidden one can be read off the others."""
    torch.manual_seed(0)
    given = batch([6] * 64)
    given = given._replace(tokens_T=torch.randint(SPECIALS, 12, (64,)).repeat_interleave(6))
    model = encoder()
    counts = given.tokens_T.bincount(minlength=VOCABULARY).numpy()
    objective = masked_code(
        vocabulary_size=VOCABULARY, hidden=HIDDEN, counts=counts, rate=None, static=False, seed=0
    )
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        objective(model, given).loss.backward()
        optimizer.step()
    metrics = objective.eval()(model.eval(), given).metrics
    assert metrics["masked_code"] < 0.5 * metrics["unigram"]
    assert metrics["top1"] > 0.8
