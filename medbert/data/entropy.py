"""What chance would score: code frequencies alone, and pairs of codes alone.

The reference of a masked-code loss. N neighbours of all hidden codes, laid end to end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader

from medbert.data.batches import Sequences
from medbert.schema import SPECIAL_TOKENS, Batch

Read = list[tuple["Neighbours", np.ndarray]]  # of chunks of subjects: neighbours and code_M
Hide = Callable[[Batch], tuple[Batch, Tensor, Tensor]]  # shown batch, place_M, code_M

_SPECIALS = len(SPECIAL_TOKENS)
_CHUNK = 1_000  # subjects read at once
_NEIGHBOURS = 32  # of a code, evenly chosen where its visit has more
_EM_STEPS = 30
_BATCHES = 400  # judged at the most


class Neighbours(NamedTuple):
    """The codes beside each hidden one: ``of_N`` which hidden code, ``token_N`` the neighbour;
    ``before_M``: they are of the visit before."""

    of_N: np.ndarray
    token_N: np.ndarray
    before_M: np.ndarray


class Pairs(NamedTuple):
    """Q(c | c') = (n(c', c) + U(c)) / (n(c') + 1): ``seen`` (C, C) is its first part, a row for
    each c', and ``unseen_C`` the rest's weight."""

    seen: sparse.csr_matrix
    unseen_C: np.ndarray


class VisitPairs(NamedTuple):
    """Predicts a code from the other codes of its visit or, where it is alone, of the visit before.

    P(c) = (1 - w) U(c) + w mean Q(c | c') over the neighbours c' (at most 32), where U is the
    add-one-smoothed frequency in training and n counts pairs so that the neighbours of one code
    count one together. Codes outside any visit count as a visit before the first. Q and w are one
    of each for neighbours of the same visit (first) and of the visit before (second); without
    neighbours P = U.
    """

    unigram_C: np.ndarray
    pairs: tuple[Pairs, Pairs]
    weights: tuple[float, float]

    def likelihoods(self, beside: Neighbours, code_M: np.ndarray) -> np.ndarray:
        """The mean of Q over the neighbours of each code; NaN where it has none."""
        code_N, before_N = code_M[beside.of_N], beside.before_M[beside.of_N]
        q_N = self.unigram_C[code_N]
        for here_N, pairs in zip((~before_N, before_N), self.pairs, strict=True):
            if here_N.any():
                token_H = beside.token_N[here_N]
                q_N[here_N] *= pairs.unseen_C[token_H]
                q_N[here_N] += np.asarray(pairs.seen[token_H, code_N[here_N]]).ravel()
        n_M = np.bincount(beside.of_N, minlength=len(code_M))
        with np.errstate(invalid="ignore"):
            return np.bincount(beside.of_N, q_N, minlength=len(code_M)) / n_M

    def nats(self, shown: Batch, place_M: np.ndarray, code_M: np.ndarray) -> np.ndarray:
        """-log P of each hidden code, given the codes that are shown."""
        beside = neighbours(shown, place_M, random=np.random.default_rng(0))
        q_M, u_M = self.likelihoods(beside, code_M), self.unigram_C[code_M]
        weight_M = np.where(beside.before_M, self.weights[1], self.weights[0])
        return -np.log(np.where(np.isnan(q_M), u_M, (1 - weight_M) * u_M + weight_M * q_M))


def fit_pairs(
    data: Sequences,
    *,
    counts: np.ndarray,
    seed: int = 0,
    n_subjects: int = 20_000,
    n_pairs: int = 4_000_000,
) -> VisitPairs:
    """Fits pairs to a sample of the subjects of ``data``, which must be training subjects.

    ``counts`` (C,) are the training counts of the vocabulary. The weights are those that are most
    likely on one half of the sample by the pairs of the other half; then all pairs are counted.
    """
    random = np.random.default_rng(seed)
    weight_C = np.where(np.arange(len(counts)) < _SPECIALS, 0.0, counts + 1.0)
    rows = random.permutation(len(data))[:n_subjects]
    read: Read = []
    for chunk in np.array_split(rows, max(2, len(rows) // _CHUNK)):
        batch = data[chunk]
        place_M = np.flatnonzero(batch.tokens_T.numpy() >= _SPECIALS)
        beside = neighbours(batch, place_M, random=random)
        read.append((beside, batch.tokens_T.numpy()[place_M]))
        if len(read) > 1 and sum(len(beside.of_N) for beside, _ in read) >= n_pairs:
            break
    half = len(read) // 2
    model = VisitPairs(weight_C / weight_C.sum(), _count(read[:half], len(counts)), (0.5, 0.5))
    weights = _fit_weights(model, read[half:])
    return model._replace(pairs=_count(read, len(counts)), weights=weights)


def chance(pairs: VisitPairs, tuning: DataLoader, *, hide: Hide) -> dict[str, float]:
    """``unigram`` and ``visit_pairs``: the cross-entropy (nats) of what ``hide`` hides.

    Batches are averaged by their subjects, as the tuning loss is, so that the two can be compared.
    Where there are more than 400, evenly spaced ones are judged.
    """
    batches = list(tuning.sampler)
    picked = np.unique(np.linspace(0, len(batches) - 1, min(_BATCHES, len(batches))).astype(int))
    totals, subjects = np.zeros(2), 0
    for number in picked:
        shown, place_M, code_M = hide(tuning.dataset[batches[number]])
        if len(code := code_M.numpy()):
            told = -np.log(pairs.unigram_C[code]), pairs.nats(shown, place_M.numpy(), code)
            totals += len(shown.rows_B) * np.array([nats_M.mean() for nats_M in told])
            subjects += len(shown.rows_B)
    return dict(zip(("unigram", "visit_pairs"), (totals / max(subjects, 1)).tolist(), strict=True))


def neighbours(batch: Batch, place_M: np.ndarray, *, random: np.random.Generator) -> Neighbours:
    """The other shown codes of the visit of each place or, if none, of the visit before."""
    tokens_T, visit_T = batch.tokens_T.numpy(), batch.visit_T.numpy()
    subject_T = batch.subject_T.numpy()
    span = int(visit_T.max(initial=0)) + 1
    key_T = subject_T * span + visit_T
    shown_K = np.flatnonzero(tokens_T >= _SPECIALS)
    shown_K = shown_K[np.argsort(key_T[shown_K], kind="stable")]
    key_K = key_T[shown_K]
    first_M = np.searchsorted(key_K, key_T[place_M])
    itself_T = np.full(len(tokens_T), len(shown_K))
    itself_T[shown_K] = np.arange(len(shown_K))
    itself_M = itself_T[place_M]
    size_M = np.searchsorted(key_K, key_T[place_M], side="right") - first_M
    size_M = size_M - (itself_M < len(shown_K))
    earlier_M = np.append(key_K, -1)[first_M - 1]  # of the visit before; -1: there is none
    before_M = (size_M == 0) & (earlier_M // span == subject_T[place_M])
    start_M = np.where(before_M, np.searchsorted(key_K, earlier_M), first_M)
    size_M = np.where(before_M, first_M - start_M, size_M)

    n_M = np.minimum(size_M, _NEIGHBOURS)
    of_N = np.repeat(np.arange(len(place_M)), n_M)
    nth_N = np.arange(len(of_N)) - np.repeat(np.cumsum(n_M) - n_M, n_M)
    step_N = (nth_N + random.random(len(place_M))[of_N]) * (size_M / np.maximum(n_M, 1))[of_N]
    at_N = start_M[of_N] + step_N.astype(np.int64)
    at_N += ~before_M[of_N] & (at_N >= itself_M[of_N])
    return Neighbours(of_N, tokens_T[shown_K][at_N], before_M)


def _count(read: Read, n_codes: int) -> tuple[Pairs, Pairs]:
    tables = [sparse.csr_matrix((n_codes, n_codes)) for _ in range(2)]
    for beside, code_M in read:
        share_N = 1 / np.bincount(beside.of_N, minlength=len(code_M))[beside.of_N]
        before_N = beside.before_M[beside.of_N]
        for kind, here_N in enumerate((~before_N, before_N)):
            pair = (beside.token_N[here_N], code_M[beside.of_N[here_N]])
            tables[kind] += sparse.coo_matrix((share_N[here_N], pair), tables[kind].shape).tocsr()
    return _conditional(tables[0]), _conditional(tables[1])


def _conditional(count: sparse.csr_matrix) -> Pairs:
    unseen_C = 1 / (1 + np.asarray(count.sum(axis=1)).ravel())
    return Pairs(sparse.csr_matrix(sparse.diags(unseen_C) @ count), unseen_C)


def _fit_weights(model: VisitPairs, read: Read) -> tuple[float, float]:
    """The most likely weights, by expectation and maximisation."""
    told = [(model.likelihoods(*one), model.unigram_C[one[1]], one[0].before_M) for one in read]
    q_M, u_M, before_M = (np.concatenate(column) for column in zip(*told, strict=True))
    weights = []
    for here_M in (~before_M & ~np.isnan(q_M), before_M):
        weight, q, u = 0.5, q_M[here_M], u_M[here_M]
        for _ in range(_EM_STEPS if len(q) else 0):
            weight = float(np.mean(weight * q / (weight * q + (1 - weight) * u)))
        weights.append(weight)
    return weights[0], weights[1]
