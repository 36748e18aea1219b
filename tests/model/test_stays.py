"""Prolonged stay of each visit: the right tokens, the right labels, and nothing given away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import records_of

from medbert.data.batches import Sequences
from medbert.data.store import Store
from medbert.model.stays import ProlongedStay
from medbert.schema import Batch

HIDDEN, NAN = 8, float("nan")


def batch() -> Batch:
    """Visit 1 of the first subject has no tokens, 2 is long, 3 unknown; the second has no visits
    but tokens outside; the third's first is short, and its second has no tokens either."""
    visits = [[0, 2, 2, 3, 2], [0, 0], [1, 0, 1]]
    return Batch(
        tokens_T=torch.arange(10) + 5,
        visit_T=torch.tensor([ordinal for subject in visits for ordinal in subject]),
        age_T=torch.tensor([NAN, 100, 109.5, 300, 107, 5, 6, NAN, 50, 51.5]),
        offsets_B1=torch.tensor([0, 5, 7, 10]),
        rows_B=torch.arange(3),
        stay_V=torch.tensor([30.0, 9.5, NAN, 1.5, 20.0]),
        visit_offsets_B1=torch.tensor([0, 3, 3, 5]),
    )


def term(*, per_visit: bool) -> ProlongedStay:
    torch.manual_seed(0)
    made = ProlongedStay(hidden=HIDDEN, per_visit=per_visit)
    torch.nn.init.normal_(made.output.weight)
    return made


def test_each_visit_is_judged_by_the_mean_of_its_own_tokens() -> None:
    stay, given = term(per_visit=True), batch()
    hidden_TD = torch.randn(10, HIDDEN, requires_grad=True)
    logits, truth = stay.predictions(lambda _: hidden_TD, hidden_TD, given)
    means = torch.stack([hidden_TD[[1, 2, 4]].mean(0), hidden_TD[[7, 9]].mean(0)])
    torch.testing.assert_close(logits, stay.output(means).squeeze(1))
    assert truth.tolist() == [True, False]
    output = stay.loss(lambda _: hidden_TD, hidden_TD, given, None)
    expected = F.binary_cross_entropy_with_logits(logits, truth.float())
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["prolonged_stay"], expected.detach())
    output.loss.backward()
    assert hidden_TD.grad.abs().sum(1).nonzero().squeeze(1).tolist() == [1, 2, 4, 7, 9]


def test_predictions_of_subjects_are_those_of_the_published_form() -> None:
    stay, given, hidden_TD = term(per_visit=False), batch(), torch.randn(10, HIDDEN)
    logits, truth = stay.predictions(lambda _: hidden_TD, hidden_TD, given)
    sums = torch.stack([hidden_TD[:5].sum(0), hidden_TD[7:].sum(0)])
    torch.testing.assert_close(logits, stay.output(sums).squeeze(1))
    assert truth.tolist() == [True, True]


@pytest.mark.parametrize("per_visit", [True, False])
def test_labels_fit_the_logits_of_the_layer(per_visit: bool) -> None:
    """A hook on the layer and ``labels`` must speak of the same rows."""
    stay, given, heard = term(per_visit=per_visit), batch(), []
    stay.output.register_forward_hook(lambda *said: heard.append(said[2].squeeze(-1)))
    hidden_TD = torch.randn(10, HIDDEN)
    logits, truth = stay.predictions(lambda _: hidden_TD, hidden_TD, given)
    known, prolonged = stay.labels(given)
    assert torch.equal(heard[0][known], logits) and torch.equal(prolonged[known], truth)


def test_the_length_of_a_stay_cannot_be_read_off_the_ages() -> None:
    given = batch()
    shown, target = term(per_visit=True).corrupt(given)
    assert target is None
    expected = torch.tensor([NAN, 100, 100, 300, 100, 5, 6, 51.5, 50, 51.5])
    torch.testing.assert_close(shown.age_T, expected, equal_nan=True)
    assert shown._replace(age_T=given.age_T) == given
    undated = given._replace(age_T=torch.full((10,), NAN))
    assert term(per_visit=False).corrupt(undated)[0].age_T.isnan().all()


@pytest.mark.parametrize("stays", [[NAN] * 5, []])
def test_no_known_stay_is_a_loss_of_zero_with_gradient(stays: list[float]) -> None:
    stay, given = term(per_visit=True), batch()
    given = given._replace(stay_V=torch.tensor(stays))
    if not stays:
        given = given._replace(
            visit_T=torch.zeros_like(given.visit_T), visit_offsets_B1=torch.zeros(4).long()
        )
    output = stay.loss(lambda _: None, torch.randn(10, HIDDEN), stay.corrupt(given)[0], None)
    output.loss.backward()
    assert output.loss == 0 and output.metrics == {}
    assert not stay.output.weight.grad.any()


def test_a_batch_without_stays_is_refused() -> None:
    with pytest.raises(ValueError, match="needs lengths of stay"):
        term(per_visit=True).corrupt(batch()._replace(stay_V=None))


def test_visits_of_a_store_are_those_of_their_tokens(make_store: Callable[..., Store]) -> None:
    """Ordinals count in the store: a history that is cut short keeps those of its last visits."""
    events = [(1, f"2020-0{month}-01", f"CODE//{month}", None, month) for month in (1, 3, 5)]
    visits = [
        (1, month, f"2020-0{month}-01", f"2020-0{month}-{end}", "inpatient", None)
        for month, end in ((1, "03"), (3, "21"), (5, "11"))
    ]
    store: Store = make_store(records_of(events, visits=visits))
    given = Sequences(store, np.array([0]), max_tokens=2)[np.array([0])]
    known_V, prolonged_V = term(per_visit=True).labels(given)
    assert known_V.tolist() == [False, True, True]
    assert prolonged_V.tolist() == [False, True, True]
