"""Whole visits are hidden at their rate, and never all that is known of a subject."""

from __future__ import annotations

import pytest
import torch

from medbert.model.masking import Masking
from medbert.schema import MASK, SPECIAL_TOKENS, UNK, Batch

VOCABULARY, SPECIALS = 40, len(SPECIAL_TOKENS)
RARE = 1e-9  # one code a subject, in effect


def batch(visits: list[list[int]], *, seed: int = 0) -> Batch:
    """The visit ordinal of each code of each subject."""
    torch.manual_seed(seed)
    visit_T = torch.tensor([ordinal for subject in visits for ordinal in subject])
    return Batch(
        tokens_T=torch.randint(SPECIALS, VOCABULARY, visit_T.shape),
        visit_T=visit_T,
        age_T=torch.full(visit_T.shape, float("nan")),
        offsets_B1=torch.tensor([0, *map(len, visits)]).cumsum(0),
        rows_B=torch.arange(len(visits)) + 70,
    )


def masking(*, visit_rate: float, rate: float | None = RARE, seed: int = 0) -> Masking:
    return Masking(vocabulary_size=VOCABULARY, rate=rate, seed=seed, visit_rate=visit_rate)


def whole_visits(given: Batch, shown: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Subject and ordinal of visits whose codes are all MASK."""
    key_T = given.subject_T * 1000 + given.visit_T
    keys, place_T = key_T.unique(return_inverse=True)
    codes = torch.zeros(len(keys), dtype=torch.int64).index_add(0, place_T, torch.ones_like(key_T))
    masked = torch.zeros_like(codes).index_add(0, place_T, (shown.tokens_T == MASK).long())
    hidden = keys[masked == codes]
    return hidden // 1000, hidden % 1000


FIVE_OF_FOUR = [[1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4]


@pytest.mark.parametrize("fixed", [True, False])
def test_visits_are_hidden_whole_and_at_their_rate(fixed: bool) -> None:
    given = batch(FIVE_OF_FOUR * 2000)
    shown, target = masking(visit_rate=0.3)(given, fixed=fixed)
    subject, _ = whole_visits(given, shown)
    # below the rate, and not the highest draw of five
    assert len(subject) / 10_000 == pytest.approx(0.3 - 0.3**5 / 5, abs=0.015)
    chosen_T = torch.zeros_like(given.tokens_T).index_fill(0, target.place_M, 1)
    per_visit = chosen_T.view(-1, 4).sum(1)
    # at most the one code of the subject that the rate hides is hidden by itself
    assert ((per_visit == 0) | (per_visit == 1) | (per_visit == 4)).all()
    assert torch.equal(target.code_M, given.tokens_T[target.place_M])
    assert torch.equal(shown.tokens_T[chosen_T == 0], given.tokens_T[chosen_T == 0])


def test_one_visit_of_each_subject_is_spared() -> None:
    given = batch([[1, 1, 1], [0, 2, 2], [1, 1, 2, 2, 3, 3], [0, 0, 0]] * 300)
    shown, _ = masking(visit_rate=1.0)(given, fixed=False)
    subject, ordinal = whole_visits(given, shown)
    hidden = torch.zeros(1200).index_add(0, subject, (ordinal > 0).float()).view(300, 4)
    assert not hidden[:, [0, 1, 3]].any()
    assert (hidden[:, 2] == 2).all()
    spared = torch.ones(1200, 4, dtype=torch.bool).index_put_(
        (subject, ordinal), torch.tensor(False)
    )
    often = spared.view(300, 4, 4)[:, 2, 1:].float().mean(0)
    assert often.tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_codes_outside_visits_are_left_to_the_rate() -> None:
    given = batch([[0] * 6 + [1, 1, 2, 2]] * 500)
    target = masking(visit_rate=1.0)(given, fixed=False)[1]
    outside = given.visit_T[target.place_M] == 0
    assert 0 < int(outside.sum()) <= 500  # of the one code a subject


def test_specials_are_never_hidden_and_spare_no_visit() -> None:
    given = batch([[1, 1, 2, 2]] * 200)
    given.tokens_T[given.visit_T == 2] = UNK
    shown, target = masking(visit_rate=1.0)(given, fixed=False)
    assert (target.code_M >= SPECIALS).all()
    assert (shown.tokens_T[given.visit_T == 2] == UNK).all()
    assert len(target.place_M) == 200  # one code each, for the visit of codes is the only one


def test_what_is_hidden_follows_the_subject_and_the_seed() -> None:
    given = batch(FIVE_OF_FOUR * 50)
    one = masking(visit_rate=0.4)(given, fixed=True)[1].place_M
    assert torch.equal(one, masking(visit_rate=0.4)(given, fixed=True)[1].place_M)
    other = masking(visit_rate=0.4, seed=1)(given, fixed=True)[1].place_M
    assert not torch.equal(one, other)
    last = Batch(
        given.tokens_T[-20:], given.visit_T[-20:], given.age_T[-20:], torch.tensor([0, 20]),
        given.rows_B[-1:],
    )  # fmt: skip
    alone = masking(visit_rate=0.4)(last, fixed=True)[1].place_M
    assert torch.equal(one[one >= 980] - 980, alone)


def test_without_a_visit_rate_nothing_changes_and_wrong_ones_are_refused() -> None:
    given = batch(FIVE_OF_FOUR * 50)
    plain = Masking(vocabulary_size=VOCABULARY, rate=0.2, seed=0)(given, fixed=True)
    none = masking(visit_rate=0.0, rate=0.2)(given, fixed=True)
    some = masking(visit_rate=0.3, rate=0.2)(given, fixed=True)
    assert torch.equal(plain[0].tokens_T, none[0].tokens_T)
    assert set(plain[1].place_M.tolist()) < set(some[1].place_M.tolist())
    for visit_rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match="visit_rate="):
            masking(visit_rate=visit_rate)
