"""Codes of one moment stand in an order that tells nothing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import records_of

from medbert.data.preparing.order import Shuffle


def shuffled(ids: np.ndarray, n_codes: int) -> np.ndarray:
    """The number that each code gets, (subjects, codes)."""
    codes = np.tile(np.arange(n_codes, dtype=np.int32), len(ids))
    events = {"subject": np.repeat(np.arange(len(ids)), n_codes), "code": codes.copy()}
    shuffle = Shuffle(ids, n_codes)
    shuffle.apply(events)
    made = events["code"].copy()
    shuffle.undo(events)
    assert np.array_equal(events["code"], codes)
    return made.reshape(len(ids), n_codes)


@pytest.mark.parametrize("n_codes", [1, 2, 3, 17, 600])
def test_the_shuffle_is_one_to_one_and_can_be_undone(n_codes):
    made = shuffled(np.array([-5, 0, 7, 2**62]), n_codes)
    assert all(len(np.unique(row)) == n_codes for row in made)
    assert made.min() >= 0


def test_it_is_a_property_of_the_subject_not_of_the_company():
    ids = np.array([3, 8, 11])
    assert np.array_equal(shuffled(ids, 50)[1], shuffled(ids[1:], 50)[0])


def test_neighbours_tell_nothing_of_a_code():
    made = shuffled(np.arange(400), 1000)
    order = made.argsort(1)  # the codes of each subject as they would stand
    step = np.diff(order, axis=1)
    assert (step > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(np.corrcoef(order[:, :-1].ravel(), order[:, 1:].ravel())[0, 1]) < 0.05
    assert len({tuple(row) for row in order}) > 300


def test_a_store_keeps_moments_apart_and_ranks_as_they_are(make_store):
    events = [
        (s, f"2010-01-0{d}", f"C{c:02d}") for s in range(60) for d in (1, 2) for c in range(9)
    ]
    store = make_store(records_of(events))
    history = store.history(np.arange(len(store)))
    codes = np.array(store.codes)[history.code_T].reshape(len(store), 2, 9)
    assert (np.sort(codes, axis=2) == codes[0, 0, np.argsort(codes[0, 0])]).all()
    rising = (codes[:, :, 1:] > codes[:, :, :-1]).mean()
    assert 0.35 < rising < 0.65
    assert (np.diff(history.time_T.reshape(len(store), 18)) >= 0).all()
