from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import records_of

from medbert.data.batches import Sequences
from medbert.model.encoder import BertEncoder
from medbert.model.objectives import masked_code_and_stay
from medbert.schema import Batch, InputError
from medbert.train.private import PoissonSampler, Privacy, PrivateSteps, alone

PRIVACY = partial(Privacy, epsilon=8.0, delta=1e-5, max_norm=0.5, batch_subjects=10)


@pytest.fixture
def parts(make_store):
    """Data of 20 subjects, an encoder and an objective without dropout."""
    random = np.random.default_rng(0)
    events = [
        (s, f"20{random.integers(10, 20)}-0{random.integers(1, 9)}-11", f"C{random.integers(9)}")
        for s in range(1, 21)
        for _ in range(random.integers(3, 12))
    ]
    stays = [(s, s, "2021-01-01", "2021-01-12", "inpatient", float(s)) for s in range(1, 21)]
    store = make_store(records_of(events, visits=stays))
    torch.manual_seed(0)
    size = len(store.vocabulary)
    encoder = BertEncoder(
        vocabulary_size=size,
        layers=1,
        heads=2,
        hidden=8,
        feed_forward=8,
        dropout=0.0,
        attention_dropout=0.0,
        positions=16,
        visits=16,
    )
    objective = masked_code_and_stay(
        vocabulary_size=size,
        hidden=8,
        counts=torch.from_numpy(store.vocabulary.counts.copy()),
        rate=0.3,
        static=True,  # so that a loss is a function of the weights
        days=7,
        masked_code_weight=1.0,
        stay_weight=1.0,
        seed=0,
    )
    return Sequences(store, np.arange(20), max_tokens=16), encoder, objective


def gradient(steps: PrivateSteps, encoder, batch: Batch) -> torch.Tensor:
    """Of all weights in one line, as an optimizer would get it."""
    weights = [*encoder.parameters(), *steps.objective.parameters()]
    for weight in weights:
        weight.grad = None
    steps(encoder, batch).loss.backward()
    assert not any(weight.grad.is_sparse for weight in weights)
    return torch.cat([weight.grad.flatten() for weight in weights])


def of_subjects(encoder, objective, data: Sequences) -> list[torch.Tensor]:
    weights = [*encoder.parameters(), *objective.parameters()]
    found = []
    for index in range(len(data)):
        loss = objective(encoder, data[np.array([index])]).loss
        parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return found


def test_a_subject_alone_is_the_batch_of_that_subject(parts):
    data = parts[0]
    batch = data[np.array([4, 0, 17])]
    for place, index in enumerate((4, 0, 17)):
        ours, wanted = alone(batch, place), data[np.array([index])]
        for name, value in wanted._asdict().items():
            found = getattr(ours, name)
            assert (value is None) == (found is None)
            assert value is None or torch.equal(value.nan_to_num(-1), found.nan_to_num(-1)), name


@pytest.mark.parametrize("sparse", [False, True])
def test_each_subject_is_clipped_before_it_is_added(parts, sparse):
    data, encoder, objective = parts
    encoder.codes.sparse = sparse
    steps = PrivateSteps(objective, PRIVACY(), subjects=20, epochs=3, noise=0.0)
    norms = torch.stack([g.norm() for g in of_subjects(encoder, objective, data)])
    assert (norms > 0.5).any()
    clipped = [g * min(1.0, 0.5 / float(g.norm())) for g in of_subjects(encoder, objective, data)]
    found = gradient(steps, encoder, data[np.arange(20)])
    assert torch.allclose(found, torch.stack(clipped).sum(0) / 10, atol=1e-5)


def test_one_subject_more_moves_the_gradient_by_no_more_than_is_said(parts):
    data, encoder, objective = parts
    objective.weights["masked_code"] = 1e4  # whatever the loss
    steps = PrivateSteps(objective, PRIVACY(), subjects=20, epochs=3, noise=0.0)
    everyone = gradient(steps, encoder, data[np.arange(20)])
    without = gradient(steps, encoder, data[np.arange(19)])
    assert 0 < float((everyone - without).norm()) <= 0.5 / 10 * (1 + 1e-5)


def test_the_noise_is_there_when_nobody_is_drawn_and_is_as_large_as_told(parts):
    data, encoder, objective = parts
    steps = PrivateSteps(objective, PRIVACY(), subjects=20, epochs=3, noise=2.0)
    nobody = data[np.array([], np.int64)]
    drawn = torch.stack([gradient(steps, encoder, nobody) for _ in range(20)])
    assert float(drawn.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.05)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.005)


def test_the_noise_does_not_follow_from_the_seed_of_the_training(parts):
    data, encoder, objective = parts
    nobody = data[np.array([], np.int64)]
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        steps = PrivateSteps(objective, PRIVACY(), subjects=20, epochs=3, noise=1.0)
        found.append(gradient(steps, encoder, nobody))
    assert not torch.equal(*found)
    one, two = PoissonSampler(50, steps=5), PoissonSampler(50, steps=5)
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_everybody_is_drawn_with_the_same_chance_whoever_else_is():
    sampler = PoissonSampler(40, steps=4)
    drawn = np.zeros((400 * 4, 40))
    batches = (batch for _ in range(400) for batch in sampler)
    for row, batch in zip(drawn, batches, strict=True):
        row[batch] = 1
    assert drawn.mean() == pytest.approx(0.25, abs=0.01)
    assert drawn.mean(0) == pytest.approx(np.full(40, 0.25), abs=0.06)
    assert drawn.sum(1).std() == pytest.approx(np.sqrt(40 * 0.25 * 0.75), rel=0.1)  # binomial
    sampler.start = 3
    assert len(list(sampler)) == 1 and len(list(sampler)) == 4


def test_the_accountant_keeps_to_the_epsilon_asked(parts):
    pytest.importorskip("opacus")
    asked = PRIVACY(epsilon=3.0, accountant="rdp")
    steps = PrivateSteps(parts[2], asked, subjects=100, epochs=2)
    told = steps.told()
    assert 2.8 < told["epsilon"] <= 3.0 and told["steps"] == 20 and told["sampling_rate"] == 0.1
    assert asked.spent(steps.noise, rate=0.1, steps=40) > 3.0
    assert asked.spent(2 * steps.noise, rate=0.1, steps=20) < 1.5


def test_what_cannot_be_promised_is_refused(parts, monkeypatch):
    with pytest.raises(InputError, match="above 0"):
        PRIVACY(epsilon=0.0)
    with pytest.raises(InputError, match="max_epochs"):
        PrivateSteps(parts[2], PRIVACY(), subjects=20, epochs=-1)
    with pytest.raises(InputError, match="delta"):
        PrivateSteps(parts[2], PRIVACY(delta=0.1), subjects=20, epochs=1)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match=r"pip install 'medbert\[privacy\]'"):
        PrivateSteps(parts[2], PRIVACY(), subjects=20, epochs=1)
