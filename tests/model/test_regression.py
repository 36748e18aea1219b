"""What hazards start with: a regression in closed form, and nothing where it cannot help."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from medbert.model.hazards import SPECIALS, TimeToEvent
from medbert.model.modern import ModernEncoder
from medbert.model.objectives import combined, masked_code
from medbert.model.regression import begin
from medbert.schema import Batch

VOCABULARY, SIGN, DISEASE = 12, 6, 9
FACTS = {"vocabulary_size": VOCABULARY, "hidden": 8}
SIZES = {"layers": 1, "heads": 2, "feed_forward": 8, "dropout": 0.0, "attention_dropout": 0.0}
LEFT = 300.0


def lives(n: int, *, seed: int) -> Batch:
    """Two codes at once, a sign among them or not; the disease comes soon after the sign alone."""
    torch.manual_seed(seed)
    has = torch.rand(n) < 0.4
    day = torch.empty(n).exponential_(1.0) / torch.where(has, 0.01, 0.0005)
    ill = day < LEFT
    other = torch.randint(SPECIALS, SIGN, (n,))
    first = torch.where(has, SIGN, SIGN + 1)
    tokens = torch.stack([other, first, torch.full((n,), DISEASE)], 1)
    ages = torch.stack([torch.zeros(n), torch.zeros(n), day], 1)
    there = torch.stack([ill | True, ill | True, ill], 1)
    return Batch(
        tokens_T=tokens[there],
        visit_T=torch.where(ages[there] == 0, 1, 2),
        age_T=ages[there],
        offsets_B1=torch.tensor([0, *there.sum(1)]).cumsum(0),
        rows_B=torch.arange(n),
        end_B=torch.full((n,), LEFT),
    )


def made(*, objective: Any = None, **changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = ModernEncoder(**FACTS, **SIZES, **{"causal": True, "edges": [0], "linear": 2} | changes)
    if objective is None:
        terms = {"time_to_event": TimeToEvent}
        objective = partial(combined, terms=terms, weights={"time_to_event": 1.0})
    return model, objective(**FACTS, counts=torch.arange(VOCABULARY))


def test_it_finds_what_foretells_a_code_without_a_step() -> None:
    model, objective = made()
    batches = [lives(800, seed=seed) for seed in range(4)]
    before = objective.eval()(model.eval(), batches[0]).loss
    model.train(), objective.train()
    assert begin(model, objective, batches) > 0
    assert model.training and objective.terms["time_to_event"].training
    fresh = lives(800, seed=9)
    after = objective.eval()(model.eval(), fresh).loss
    assert after < before
    with torch.no_grad():
        place_M = objective.terms["time_to_event"].corrupt(fresh)[1].place_M
        first_M = place_M[fresh.age_T[place_M] == 0]
        log_M = model.hazards.logs(
            model.with_regression(model(fresh), fresh, first_M),
            model.codes.weight[[DISEASE]],
            torch.tensor([DISEASE]),
        )[:, 0, 0]
    has_M = torch.zeros(len(first_M), dtype=torch.bool)
    for subject, place in enumerate(first_M.tolist()):
        begun = fresh.offsets_B1[subject]
        has_M[subject] = bool((fresh.tokens_T[begun : place + 1] == SIGN).any())
    assert log_M[has_M].min() > log_M[~has_M].max() + 0.5  # each with a sign above all without


def test_age_foretells_without_a_step() -> None:
    old = 70 * 365.25
    batches = []
    for seed in range(4):  # those with a sign are old, and no code says so
        batch = lives(800, seed=seed)
        has_B = torch.zeros(800).index_add(0, batch.subject_T, (batch.tokens_T == SIGN).float()) > 0
        tokens_T = batch.tokens_T.where(batch.tokens_T != SIGN, SIGN + 1)
        begun_B = old * has_B
        aged = {"age_T": batch.age_T + begun_B[batch.subject_T], "end_B": batch.end_B + begun_B}
        batches.append(batch._replace(tokens_T=tokens_T, **aged))
    asked, disease = batches[0], torch.tensor([DISEASE])
    first_B = asked.offsets_B1[:-1] + 1
    for ages in (True, False):
        model, objective = made(ages=ages)
        begin(model, objective, batches)
        with torch.no_grad():
            hidden_BD = model.with_regression(model.eval()(asked), asked, first_B)
            log_B = model.hazards.logs(hidden_BD, model.codes.weight[disease], disease)[:, 0, 0]
        young_B = asked.age_T[first_B] < old
        assert (log_B[~young_B].min() > log_B[young_B].max() + 0.5) == ages


def test_it_leaves_alone_what_has_no_use_for_it() -> None:
    batches = [lives(50, seed=0)]
    hiding = partial(masked_code, rate=0.3, static=False, seed=0)
    none = lives(50, seed=0)._replace(end_B=torch.zeros(50))
    for model, objective, given in (
        (*made(linear=0), batches),
        (*made(objective=hiding), batches),
        (*made(), [none]),
    ):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        assert begin(model, objective, given) is None
        assert all(torch.equal(weights[k], value) for k, value in model.state_dict().items())
