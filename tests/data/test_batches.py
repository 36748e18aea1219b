from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import records_of

from medbert.data.batches import Sequences, TokenBudgetSampler, loader
from medbert.schema import BIRTH, DEATH

DAY_US = 86_400_000_000


def lives(n: int) -> list:
    events = []
    for subject in range(1, n + 1):
        events += [(subject, None, "GENDER//F"), (subject, "1980-01-01", BIRTH)]
        events += [(subject, f"2010-01-{d:02d}", f"C{d}") for d in range(1, subject + 1)]
    return events


@pytest.fixture
def store(make_store):
    return make_store(records_of(lives(20)))


def test_a_batch_is_the_subjects_end_to_end(store):
    data = Sequences(store, store.rows_of(np.arange(1, 21)), max_tokens=100)
    batch = data[np.array([4, 0])]
    assert batch.offsets_B1.tolist() == [0, 6, 8] and batch.rows_B.tolist() == [4, 0]
    words = store.vocabulary.decode(batch.tokens_T.tolist())
    assert words == ["GENDER//F", "C1", "C2", "C3", "C4", "C5", "GENDER//F", "C1"]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.visit_T.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert torch.isnan(batch.age_T[0]) and batch.age_T[1] == (2010 - 1980) * 365 + 8
    assert batch.visit_offsets_B1.tolist() == [0, 5, 6] and batch.labels_B is None


def test_the_cut_is_per_row_and_labels_follow(store):
    until = np.array([np.datetime64(f"2010-01-{d:02d}", "us").astype(np.int64) for d in (3, 1)])
    labels = np.array([True, False])
    rows = store.rows_of(np.array([10, 10]))
    data = Sequences(store, rows, until=until, labels=labels, max_tokens=100)
    batch = data[np.array([1, 0])]
    assert batch.lengths_B.tolist() == [2, 4] and batch.labels_B.tolist() == [0.0, 1.0]
    assert data.lengths.tolist() == [4, 2]


def test_long_histories_keep_static_and_latest_codes_and_are_counted(store):
    data = Sequences(store, store.rows_of(np.arange(1, 21)), max_tokens=5)
    assert data.n_shortened == 16 and data.lengths.max() == 5
    words = store.vocabulary.decode(data[np.array([19])].tokens_T.tolist())
    assert words == ["GENDER//F", "C17", "C18", "C19", "C20"]
    assert data[np.arange(20)].lengths_B.tolist() == data.lengths.tolist()


def test_ages_need_dates(make_store):
    store = make_store(records_of(lives(2), time="order"))
    assert torch.isnan(Sequences(store, np.arange(2), max_tokens=9)[np.arange(2)].age_T).all()


def test_observation_ends_at_the_prediction_or_death_or_with_the_data(make_store):
    events = [
        (1, "1980-01-01", BIRTH),
        (1, "2010-01-01", "A"),
        (2, "1990-01-01", BIRTH),
        (2, "2010-01-01", "A"),
        (2, "2011-01-01", DEATH),
        (2, "2011-05-05", "BILL"),
        (3, "2010-01-01", "A"),  # of unknown age: in visits
        (3, "2010-03-01", "A"),
        (4, "2000-01-01", BIRTH),
        (4, "2012-01-01", "A"),
    ]
    store = make_store(records_of(events))
    rows = store.rows_of(np.arange(1, 5))
    whole = Sequences(store, rows, max_tokens=9)[np.arange(4)].end_B
    assert whole.dtype == torch.float32
    assert whole.tolist() == [32 * 365 + 8, 21 * 365 + 5, 2, 12 * 365 + 3]
    until = np.full(4, np.datetime64("2010-02-01", "us").astype(np.int64))
    cut = Sequences(store, rows, until=until, max_tokens=9)[np.array([2, 1])].end_B
    assert cut.tolist() == [1, 20 * 365 + 5 + 31]  # and nothing is known of the death
    order = make_store(records_of(events[6:8] + events[1:2], time="order"), name="order")
    data = Sequences(order, order.rows_of(np.array([3, 1])), max_tokens=9)
    assert data[np.arange(2)].end_B.tolist() == [2, 1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_subject_once_within_the_budget_and_alike_in_length(shuffle):
    lengths = np.random.default_rng(0).lognormal(3.8, 0.9, 3_000).astype(int).clip(0, 512)
    sampler = TokenBudgetSampler(lengths, budget=2048, seed=1, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3_000))
    assert len(batches) == len(sampler)
    assert max(lengths[b].sum() for b in batches) <= 2048
    padding = sum(lengths[b].max() * len(b) for b in batches) / lengths.sum() - 1
    assert padding < 0.15


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = np.arange(1, 200)
    one, same = (TokenBudgetSampler(lengths, budget=500, seed=4, shuffle=True) for _ in range(2))
    first = [b.tolist() for b in one]
    assert first == [b.tolist() for b in same]
    one.set_epoch(1)
    assert first != [b.tolist() for b in one] and len(one) == len(first)


def test_a_subject_longer_than_the_budget_is_a_batch_of_its_own():
    sampler = TokenBudgetSampler(np.array([5, 900, 5]), budget=100, seed=0, shuffle=False)
    assert [b.tolist() for b in sampler] == [[0, 2], [1]]


def test_the_loader_yields_ready_batches(store):
    data = Sequences(store, np.arange(20), max_tokens=100)
    batches = list(loader(data, budget=50))
    assert sum(len(b.rows_B) for b in batches) == 20
