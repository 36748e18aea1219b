"""The references of the masked-code loss: by hand, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import records_of

from medbert.data.batches import Sequences, loader
from medbert.data.entropy import chance, fit_pairs, neighbours
from medbert.model.objectives import MaskedCode, masked_code
from medbert.schema import MASK, SPECIAL_TOKENS, Batch
from medbert.train.learning import hide

SPECIALS = len(SPECIAL_TOKENS)


def batch_of(tokens: list[int], visits: list[int], offsets: list[int]) -> Batch:
    return Batch(
        tokens_T=torch.tensor(tokens),
        visit_T=torch.tensor(visits),
        age_T=torch.zeros(len(tokens)),
        offsets_B1=torch.tensor(offsets),
        rows_B=torch.arange(len(offsets) - 1),
    )


def beside(batch: Batch, place: int) -> tuple[list[int], bool]:
    found = neighbours(batch, np.array([place]), random=np.random.default_rng(0))
    return sorted(found.token_N.tolist()), bool(found.before_M[0])


def test_neighbours_are_of_the_visit_or_of_the_one_before_and_of_nobody_else():
    #             subject 0: visits 0, 1, 1, 2, 3            subject 1: visits 1, 1, 2
    tokens, visits = [10, 11, 12, 13, 14, 20, MASK, 22], [0, 1, 1, 2, 3, 1, 1, 2]
    batch = batch_of(tokens, visits, [0, 5, 8])
    assert beside(batch, 0) == ([], False)
    assert beside(batch, 1) == ([12], False)
    assert beside(batch, 3) == ([11, 12], True)
    assert beside(batch, 4) == ([13], True)
    assert beside(batch, 5) == ([], False)  # the other one is hidden, and subject 0 somebody else
    assert beside(batch, 6) == ([20], False)
    assert beside(batch, 7) == ([20], True)


def test_of_many_neighbours_some_are_taken_and_never_the_code_itself():
    batch = batch_of(list(range(10, 210)), [1] * 200, [0, 200])
    tokens, _ = beside(batch, 50)
    assert len(tokens) == len(set(tokens)) == 32 and 60 not in tokens
    assert max(tokens) > 190 and min(tokens) < 30


def sequences(make_store, events) -> tuple[Sequences, np.ndarray]:
    store = make_store(records_of(events))
    return Sequences(store, np.arange(len(store)), max_tokens=64), store.vocabulary.counts


def scores(data: Sequences, counts: np.ndarray, **settings) -> dict[str, float]:
    goal = masked_code(
        vocabulary_size=len(counts),
        hidden=4,
        counts=torch.tensor(counts),
        rate=0.2,
        static=False,
        seed=0,
    )
    pairs = fit_pairs(data, counts=counts, **settings)
    return chance(pairs, loader(data, budget=500), hide=lambda batch: hide(goal, batch))


def test_pairs_reach_what_pairs_can_reach(make_store):
    # a visit is one of 16 pairs of codes, each a code of its own beside its twin; ln 32 by chance
    random = np.random.default_rng(0)
    events = [
        (s, f"201{year}-01-01", f"{twin}{random_pair:02d}")
        for s in range(300)
        for year in range(4)
        for random_pair in [random.integers(16)]
        for twin in "AB"
    ]
    found = scores(*sequences(make_store, events))
    assert found["unigram"] == pytest.approx(np.log(32), abs=0.03)
    assert found["visit_pairs"] < 0.35 * found["unigram"]


def test_codes_of_independent_visits_are_found_no_better_by_their_pairs(make_store):
    random = np.random.default_rng(1)
    events = [
        (s, f"201{i // 4}-01-0{1 + i % 2}", f"C{random.integers(40)}")
        for s in range(400)
        for i in range(12)
    ]
    found = scores(*sequences(make_store, events))
    assert found["visit_pairs"] == pytest.approx(found["unigram"], abs=0.03)


def test_the_visit_before_tells_of_a_code_that_is_alone(make_store):
    # codes follow one another in a ring, one a visit
    random = np.random.default_rng(2)
    events = [
        (s, f"20{10 + i}-01-01", f"C{(start + i) % 20:02d}")
        for s in range(200)
        for start in [random.integers(20)]
        for i in range(8)
    ]
    found = scores(*sequences(make_store, events))
    assert found["visit_pairs"] < 0.7 * found["unigram"]


def test_the_unigram_is_that_of_the_loss_and_the_seed_decides(make_store):
    random = np.random.default_rng(3)
    events = [
        (s, f"2010-01-{1 + i // 3:02d}", f"C{int(random.exponential(6))}")
        for s in range(150)
        for i in range(random.integers(2, 20))
    ]
    data, counts = sequences(make_store, events)
    found = scores(data, counts, seed=1, n_subjects=60)
    assert found == scores(data, counts, seed=1, n_subjects=60)
    assert found != scores(data, counts, seed=2, n_subjects=60)
    term = MaskedCode(
        vocabulary_size=len(counts),
        hidden=4,
        counts=torch.tensor(counts),
        rate=0.2,
        static=False,
    ).eval()
    codes, subjects = torch.nn.Module(), []
    codes.codes = torch.nn.Embedding(len(counts), 4)
    for batch in loader(data, budget=500):
        shown, target = term.corrupt(batch)
        hidden = torch.zeros(len(batch.tokens_T), 4)
        told = term.loss(codes, hidden, shown, target).metrics["unigram"]
        subjects.append((len(batch.rows_B), float(told)))
    weights, told = zip(*subjects, strict=True)
    assert found["unigram"] == pytest.approx(np.average(told, weights=weights), abs=1e-5)
