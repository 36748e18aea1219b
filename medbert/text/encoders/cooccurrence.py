"""Vectors of tokens from which tokens stand near them: where an untrained model begins."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from medbert.text.encoders.pieces import Tokens

_NEAR = 4  # tokens to either side; a pair counts for one over its distance
_SMOOTHED = 0.75  # power of the frequency of a neighbour: rare ones would count too much
_MOST = 20_000_000  # tokens that are counted, of documents evenly spread


def vectors(tokens: Tokens, *, n: int, width: int) -> np.ndarray:
    """Of ``n`` tokens, (n, width), float32, of unit variance; zeros for those that have no
    neighbour.

    Positive pointwise mutual information, cut to ``width`` singular vectors, each scaled by the
    root of its value (Levy, Goldberg and Dagan 2015). A masked-language model that starts with them
    need not find out first, from a noisy gradient, which words are alike.
    """
    near = _near(tokens, n).tocoo()
    total_n = np.asarray(near.sum(axis=1)).ravel()
    if not total_n.any():
        return np.zeros((n, width), np.float32)
    expected_n = total_n**_SMOOTHED / (total_n**_SMOOTHED).sum()
    information = np.log(near.data / (total_n[near.row] * expected_n[near.col]))
    above = information > 0
    cells = (near.row[above], near.col[above])
    surprising = sparse.csr_matrix((information[above], cells), shape=(n, n))
    kept = min(width, n - 1)
    left_nk, value_k, _ = randomized_svd(surprising, kept, n_iter=4, random_state=0)
    made = np.zeros((n, width), np.float32)
    made[:, :kept] = left_nk * np.sqrt(value_k)
    made[total_n == 0] = 0  # exactly
    return made / max(float(made.std()), 1e-9)


def _near(tokens: Tokens, n: int) -> sparse.csr_matrix:
    """How often tokens stand near each other in a document, weighted, (n, n)."""
    lengths_N = np.diff(tokens.offsets_N1)
    step = max(1, -(-int(lengths_N.sum()) // _MOST))
    chosen = range(0, len(lengths_N), step)
    parts = [tokens.token_T[tokens.offsets_N1[i] : tokens.offsets_N1[i + 1]] for i in chosen]
    token_T = np.concatenate([*parts, np.zeros(0)]).astype(np.int64)
    text_T = np.repeat(np.arange(len(parts)), lengths_N[::step])
    counts = sparse.csr_matrix((n, n))
    for distance in range(1, _NEAR + 1):
        same = text_T[distance:] == text_T[:-distance]
        pair_Q = (token_T[:-distance] * n + token_T[distance:])[same]
        found_Q, count_Q = np.unique(pair_Q, return_counts=True)
        one_way = sparse.csr_matrix((count_Q / distance, np.divmod(found_Q, n)), shape=(n, n))
        counts = counts + one_way + one_way.T
    return counts
