"""Every head learns, never sees padding, and has an answer for a subject without codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medbert.model.encoder import BertEncoder
from medbert.model.hazards import foretell
from medbert.model.heads import (
    Answer,
    FrozenLogistic,
    Head,
    Pooled,
    Recurrent,
    Retain,
    pool,
    visit_sums,
)
from medbert.model.modern import ModernEncoder
from medbert.schema import Batch, InputError

VOCABULARY, HIDDEN, SIGN = 30, 16, 5
QUESTION: dict[str, Any] = {"tokens": [9, 11], "gap": 30, "window": 365}
TRAINED: dict[str, Callable[[], Head]] = {
    "sum": lambda: Pooled(hidden=HIDDEN, pooling="sum"),
    "mean": lambda: Pooled(hidden=HIDDEN, pooling="mean"),
    "max": lambda: Pooled(hidden=HIDDEN, pooling="max"),
    "gru": lambda: Recurrent(hidden=HIDDEN, width=8, bidirectional=False),
    "bi_gru": lambda: Recurrent(hidden=HIDDEN, width=8, bidirectional=True),
    "retain": lambda: Retain(hidden=HIDDEN, width=8),
    "answer": lambda: Answer(hidden=HIDDEN, **QUESTION, pooling="max"),
}


def encoder(kind: str = "sum", *, dropout: float = 0.0) -> BertEncoder | ModernEncoder:
    """One that a head of that kind can stand on."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        **{"vocabulary_size": VOCABULARY, "layers": 1, "heads": 2, "hidden": HIDDEN},
        **{"feed_forward": 16, "dropout": dropout, "attention_dropout": dropout},
        "visits": 8,
    }
    if kind == "answer":
        return ModernEncoder(**sizes, causal=True, edges=[0, 90])
    return BertEncoder(**sizes, positions=32)


def head(kind: str) -> Head:
    torch.manual_seed(1)
    return TRAINED[kind]()


def batch(lengths: list[int], *, seed: int = 0) -> Batch:
    """Subjects whose label is whether they have the code SIGN."""
    torch.manual_seed(seed)
    total = sum(lengths)
    made = Batch(
        tokens_T=torch.randint(SIGN + 1, VOCABULARY, (total,)),
        visit_T=torch.cat([torch.randint(0, 6, (n,)).sort().values for n in lengths]),
        age_T=torch.full((total,), float("nan")),
        offsets_B1=torch.tensor([0, *lengths]).cumsum(0),
        rows_B=torch.arange(len(lengths)),
    )
    labels_B = (torch.rand(len(lengths)) < 0.5) & (made.lengths_B > 0)
    first_B = made.offsets_B1[:-1] + (made.lengths_B * torch.rand(len(lengths))).long()
    made.tokens_T[first_B[labels_B]] = SIGN
    return made._replace(labels_B=labels_B.float())


def answer(model: Any, given: Batch) -> torch.Tensor:
    return foretell(model, given, **{**QUESTION, "tokens": torch.tensor(QUESTION["tokens"])})


def alone(given: Batch, subject: int) -> Batch:
    start, end = given.offsets_B1[subject : subject + 2].tolist()
    return given._replace(
        tokens_T=given.tokens_T[start:end],
        visit_T=given.visit_T[start:end],
        age_T=given.age_T[start:end],
        offsets_B1=torch.tensor([0, end - start]),
        rows_B=given.rows_B[subject : subject + 1],
        labels_B=given.labels_B[subject : subject + 1],
    )


RAGGED = [5, 0, 12, 1, 31, 0, 7]


@pytest.mark.parametrize("how", ["sum", "mean", "max", "last"])
def test_pooling_is_by_subject_and_zero_where_there_is_nothing(how: str) -> None:
    given = batch(RAGGED)
    hidden_TD = torch.randn(sum(RAGGED), HIDDEN) - 3
    pooled_BD = pool(hidden_TD, given, how)
    for row_D, part in zip(pooled_BD, hidden_TD.split(RAGGED), strict=True):
        if not len(part):
            assert not row_D.any()
            continue
        expected = {"sum": part.sum(0), "mean": part.mean(0), "max": part.amax(0)}
        expected = {**expected, "last": part[-1]}[how]
        torch.testing.assert_close(row_D, expected)


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown pooling 'median': choose one of sum, mean, max"):
        Pooled(hidden=HIDDEN, pooling="median").logits(encoder(), batch([2]))


@pytest.mark.parametrize("kind", TRAINED)
def test_a_head_learns_a_separable_toy(kind: str) -> None:
    model, classifier = encoder(kind), head(kind)
    given, fresh = (
        batch([4 + i % 5 for i in range(96)]),
        batch([4 + i % 5 for i in range(96)], seed=9),
    )
    optimizer = torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        output = classifier(model, given)
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.1
    right_B = (classifier.eval().logits(model.eval(), fresh) > 0) == fresh.labels_B.bool()
    assert right_B.float().mean() > 0.9


@pytest.mark.parametrize("kind", TRAINED)
def test_neighbours_do_not_change_a_logit(kind: str) -> None:
    model, classifier, given = encoder(kind).eval(), head(kind).eval(), batch(RAGGED)
    together = classifier.logits(model, given)
    for subject in range(len(RAGGED)):
        by_itself = classifier.logits(model, alone(given, subject))
        torch.testing.assert_close(together[[subject]], by_itself, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", TRAINED)
def test_subjects_without_codes_have_a_logit_and_a_gradient(kind: str) -> None:
    model, classifier, given = encoder(kind), head(kind), batch([0, 0])
    untaught = answer(model, given) if kind == "answer" else torch.zeros(2)
    torch.testing.assert_close(classifier.logits(model, given), untaught)
    classifier(model, given).loss.backward()
    assert classifier.output.bias.grad is not None
    classifier.zero_grad()
    classifier(model, batch([0, 3, 0])).loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in classifier.parameters())


@pytest.mark.parametrize("kind", TRAINED)
def test_loss_is_the_cross_entropy_of_the_logits(kind: str) -> None:
    model, classifier, given = encoder(kind), head(kind), batch(RAGGED)
    output = classifier(model, given)
    expected = F.binary_cross_entropy_with_logits(classifier.logits(model, given), given.labels_B)
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="needs labels"):
        classifier(model, given._replace(labels_B=None))


@pytest.mark.parametrize("kind", TRAINED)
def test_config_builds_the_same_head(kind: str) -> None:
    model, classifier, given = encoder(kind), head(kind), batch(RAGGED)
    again = type(classifier)(**classifier.config)
    again.load_state_dict(classifier.state_dict())
    assert torch.equal(again.logits(model, given), classifier.logits(model, given))


def test_a_recurrent_head_equals_a_gru_over_each_subject() -> None:
    model, classifier, given = encoder(), head("bi_gru"), batch(RAGGED)
    logits_B = classifier.logits(model, given)
    for subject, part in enumerate(model(given).split(RAGGED)):
        if len(part):
            _, final = classifier.recurrent(part)
            expected = classifier.output(final.flatten()[None]).squeeze()
            torch.testing.assert_close(logits_B[subject], expected, atol=1e-5, rtol=1e-5)


def test_visits_are_summed_in_order_within_their_subject() -> None:
    given = batch([3, 0, 2, 1])
    given = given._replace(visit_T=torch.tensor([1, 1, 4, 0, 4, 1]))
    hidden_TD = torch.arange(6.0)[:, None] + 1
    sums_VD, visits_B = visit_sums(hidden_TD, given)
    assert sums_VD.squeeze(1).tolist() == [3, 3, 4, 5, 6]
    assert visits_B.tolist() == [2, 0, 2, 1]


def test_retain_is_the_published_formula() -> None:
    """Choi 2016, equations 1 to 5, written out visit by visit for one subject."""
    model, classifier, given = encoder(), head("retain"), batch([12, 4])
    visits_VD, visits_B = visit_sums(model(given), given)
    for subject, own in enumerate(visits_VD.split(visits_B.tolist())):
        states = classifier.visit_reader(own.flip(0)[None])[0][0].flip(0)
        gates = torch.tanh(classifier.gate(classifier.gate_reader(own.flip(0)[None])[0][0].flip(0)))
        alpha = classifier.visit_weight(states).squeeze(1).softmax(0)
        context = sum(alpha[i] * gates[i] * own[i] for i in range(len(own)))
        expected = classifier.output(context)
        torch.testing.assert_close(
            classifier.logits(model, given)[[subject]], expected, atol=1e-5, rtol=1e-5
        )


def test_an_answer_starts_as_what_the_encoder_foretells_and_can_be_put_right() -> None:
    model, classifier, given = encoder("answer"), head("answer"), batch(RAGGED)
    said = answer(model, given)
    assert len(said.unique()) == len(RAGGED) - 1  # two have no codes
    torch.testing.assert_close(classifier.logits(model, given), said, rtol=0, atol=0)
    with torch.no_grad():
        classifier.slope.fill_(0.5)
        classifier.output.bias.fill_(2)
        classifier.output.weight[0, 3] = 1
    expected = said / 2 + 2 + pool(model(given), given, "max")[:, 3]
    torch.testing.assert_close(classifier.logits(model, given), expected)
    with pytest.raises(ValueError, match="no tokens"):
        Answer(hidden=HIDDEN, tokens=[], gap=0, window=365)


def frozen(pooling: tuple[str, ...] = ("mean", "max")) -> tuple[FrozenLogistic, BertEncoder]:
    """A fitted head on an encoder whose code table tells codes well apart."""
    classifier, model = FrozenLogistic(hidden=HIDDEN, pooling=pooling), encoder(dropout=0.1)
    torch.nn.init.normal_(model.codes.weight)
    train, tuning = batch([6] * 300, seed=2), batch([6] * 100, seed=3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    chosen = classifier.fit(
        classifier.features(model, train),
        train.labels_B,
        classifier.features(model, tuning).numpy(),
        tuning.labels_B.numpy().astype(bool),
    )
    assert chosen["tuning_auroc"] > 0.9
    assert chosen["C"] > 0
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    assert all(weight.requires_grad for weight in model.parameters())
    return classifier, model


def test_a_frozen_head_learns_without_touching_the_encoder() -> None:
    classifier, model = frozen()
    fresh = batch([6] * 200, seed=4)
    right_B = (classifier.logits(model, fresh) > 0) == fresh.labels_B.bool()
    assert right_B.float().mean() > 0.85
    assert not any(weight.requires_grad for weight in classifier.parameters())


def test_frozen_features_know_no_dropout_and_leave_the_modes_alone() -> None:
    classifier, model = frozen()
    given = batch(RAGGED)
    model.train()
    model.layers[0].eval()
    modes = [part.training for part in model.modules()]
    first, second = classifier.features(model, given), classifier.features(model, given)
    assert first.shape == (len(RAGGED), 2 * HIDDEN)
    assert torch.equal(first, second)
    assert [part.training for part in model.modules()] == modes
    assert torch.isfinite(classifier.logits(model, given)).all()
    assert classifier(model, given).loss.isfinite()


def test_the_folded_layer_equals_standardised_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    train_x = np.hstack([rng.normal(50, 20, (200, HIDDEN - 1)), np.full((200, 1), 3.0)])
    train_y = train_x[:, 0] + rng.normal(0, 10, 200) > 50
    classifier = FrozenLogistic(hidden=HIDDEN, pooling=["sum"])
    chosen = classifier.fit(train_x, train_y, train_x, train_y)
    scaled = (train_x[:, :-1] - train_x[:, :-1].mean(0)) / train_x[:, :-1].std(0)
    model = LogisticRegression(C=chosen["C"], max_iter=1000).fit(scaled, train_y)
    logits = classifier.output(torch.from_numpy(train_x).float()).squeeze(1).numpy()
    np.testing.assert_allclose(logits, model.decision_function(scaled), atol=0.02)
    assert classifier.output.weight[0, -1] == 0


def test_a_frozen_head_refuses_to_guess() -> None:
    classifier, x = FrozenLogistic(hidden=HIDDEN), np.zeros((4, 2 * HIDDEN))
    with pytest.raises(ValueError, match=r"call fit\(\) before scoring"):
        classifier.logits(encoder(), batch([2]))
    mixed, same = np.array([0, 1, 0, 1]), np.ones(4)
    with pytest.raises(InputError, match="training labels .4 subjects. hold one outcome only"):
        classifier.fit(x, same, x, mixed)
    with pytest.raises(InputError, match="tuning labels"):
        classifier.fit(x, mixed, x, same)
