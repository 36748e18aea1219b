"""Vectors of tokens from which tokens stand near them."""

from __future__ import annotations

import numpy as np

from medbert.text.encoders.cooccurrence import vectors
from medbert.text.encoders.pieces import Tokens

DOGS, CATS = (2, 3), (4, 5)  # stand in for each other: before 6 7 and before 8 9


def laid(texts: list[list[int]]) -> Tokens:
    offsets = np.cumsum([0, *map(len, texts)])
    return Tokens(np.array(sum(texts, []), np.int32), np.zeros(offsets[-1], np.uint8), offsets)


def texts(n: int = 200) -> list[list[int]]:
    random = np.random.default_rng(0)
    said = []
    for _ in range(n):
        if random.random() < 0.5:
            said.append([int(random.choice(DOGS)), 6, 7])
        else:
            said.append([int(random.choice(CATS)), 8, 9])
    return said


def alike(made: np.ndarray, one: int, other: int) -> float:
    a, b = made[one], made[other]
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_tokens_that_stand_in_for_each_other_are_alike() -> None:
    made = vectors(laid(texts()), n=12, width=4)
    assert made.shape == (12, 4) and made.dtype == np.float32
    assert np.isclose(made.std(), 1, atol=1e-5)
    assert alike(made, *DOGS) > 0.9 and alike(made, *CATS) > 0.9
    assert abs(alike(made, DOGS[0], CATS[0])) < 0.1


def test_what_never_stands_near_anything_has_zeros() -> None:
    made = vectors(laid(texts()), n=12, width=4)
    assert not made[[0, 1, 10, 11]].any() and made[2:10].any(axis=1).all()


def test_documents_are_no_neighbours() -> None:
    alone = vectors(laid([[3], [4], [5]] * 30), n=8, width=3)
    assert not alone.any()
    order = texts()
    once = vectors(laid(order), n=12, width=4)
    assert np.allclose(once, vectors(laid(order[::-1]), n=12, width=4), atol=1e-5)


def test_fewer_tokens_than_columns_and_nothing_at_all() -> None:
    made = vectors(laid(texts()), n=10, width=32)
    assert made.shape == (10, 32) and not made[:, 9:].any()
    assert vectors(laid([[]]), n=4, width=3).shape == (4, 3)
