"""Which codes are hidden from the encoder, and what it is shown instead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medbert.schema import MASK, SPECIAL_TOKENS, Batch

SPECIALS = len(SPECIAL_TOKENS)
DRAWS = 2**63  # all draws below are int64 in [0, DRAWS)
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # the rest of the chosen codes stay as they are


class MaskedTarget(NamedTuple):
    """Where codes were hidden, and which."""

    place_M: Tensor
    code_M: Tensor


class Masking:
    """Chooses codes to hide; of those 80% become MASK, 10% a random code, 10% stay.

    ``rate=None`` hides exactly one code per subject, as published; a rate hides each code with that
    probability and at least one per subject. Beside them, ``visit_rate`` hides all codes of a visit
    with that probability, and all of those become MASK; one visit of each subject (drawn too) is
    spared, so that there is something to tell the others from, and so are codes outside visits.
    Special tokens are never hidden and never stand in. What is hidden is a function of a seed,
    ``batch.rows_B``, the position and the visit ordinal, whatever other subjects are in the batch.
    The seed is ``seed`` where ``fixed``, else drawn from torch's global generator.
    """

    def __init__(
        self, *, vocabulary_size: int, rate: float | None, seed: int, visit_rate: float = 0.0
    ) -> None:
        if rate is not None and not 0 < rate <= 1:
            raise ValueError(
                f"rate={rate} must be above 0 and at most 1, or null for one a subject"
            )
        if not 0 <= visit_rate <= 1:
            raise ValueError(f"visit_rate={visit_rate} must be at least 0 and at most 1")
        self.n_codes, self.rate, self.seed = vocabulary_size - SPECIALS, rate, seed
        self.visit_rate = visit_rate

    def __call__(self, batch: Batch, *, fixed: bool) -> tuple[Batch, MaskedTarget]:
        seed = self.seed if fixed else int(torch.randint(DRAWS // 8, ()))
        rows_T = batch.rows_B[batch.subject_T]
        choice_T, action_T, stand_in_T = (
            fixed_draws(rows_T, batch.position_T, seed=seed, stream=stream) for stream in range(3)
        )
        chosen_T = self._choose(batch, choice_T)
        if self.visit_rate:
            visit_draw_T = fixed_draws(rows_T, batch.visit_T, seed=seed, stream=3)
            whole_T = self._choose_visits(batch, visit_draw_T)
            chosen_T, action_T = chosen_T | whole_T, action_T.masked_fill(whole_T, 0)
        place_M = chosen_T.nonzero().squeeze(1)
        code_M = batch.tokens_T[place_M]
        action_M = action_T[place_M]
        stand_in_M = SPECIALS + stand_in_T[place_M] % self.n_codes
        shown_M = torch.where(
            action_M < _threshold(MASKED_SHARE + RANDOM_SHARE), stand_in_M, code_M
        )
        shown_M = torch.where(action_M < _threshold(MASKED_SHARE), MASK, shown_M)
        tokens_T = batch.tokens_T.index_copy(0, place_M, shown_M)
        return batch._replace(tokens_T=tokens_T), MaskedTarget(place_M, code_M)

    def _choose(self, batch: Batch, draw_T: Tensor) -> Tensor:
        """Mark the codes to hide: the lowest draw of each subject, and all below the rate."""
        draw_T = torch.where(batch.tokens_T >= SPECIALS, draw_T, DRAWS - 1)
        lowest_B = draw_T.new_full(batch.rows_B.shape, DRAWS - 1)
        lowest_B = lowest_B.scatter_reduce(0, batch.subject_T, draw_T, "amin")
        chosen_T = draw_T == lowest_B[batch.subject_T]
        if self.rate is not None:
            chosen_T = chosen_T | (draw_T < _threshold(self.rate))
        return chosen_T & (batch.tokens_T >= SPECIALS)

    def _choose_visits(self, batch: Batch, draw_T: Tensor) -> Tensor:
        """Mark the codes of visits (one draw each) below the rate, but of the highest of each
        subject."""
        inside_T = (batch.visit_T > 0) & (batch.tokens_T >= SPECIALS)
        draw_T = torch.where(inside_T, draw_T, -1)
        highest_B = draw_T.new_full(batch.rows_B.shape, -1)
        highest_B = highest_B.scatter_reduce(0, batch.subject_T, draw_T, "amax")
        below_T = draw_T < _threshold(self.visit_rate)
        return inside_T & below_T & (draw_T < highest_B[batch.subject_T])


def fixed_draws(rows_T: Tensor, position_T: Tensor, *, seed: int, stream: int) -> Tensor:
    """An int64 in [0, DRAWS) per token, a function of the arguments alone on any device: the
    finaliser of splitmix64 (Steele, Lea & Flood 2014), over the row, then the position."""
    golden = 0x9E3779B97F4A7C15
    start = _signed((4 * seed + stream + 1) * golden)
    mixed_T = _mix(_mix(rows_T + start) + position_T * _signed(golden))
    return mixed_T & (DRAWS - 1)


def _mix(value_T: Tensor) -> Tensor:
    value_T = (value_T ^ _shift(value_T, 30)) * _signed(0xBF58476D1CE4E5B9)
    value_T = (value_T ^ _shift(value_T, 27)) * _signed(0x94D049BB133111EB)
    return value_T ^ _shift(value_T, 31)


def _shift(value_T: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own repeats the sign."""
    return (value_T >> bits) & (2 ** (64 - bits) - 1)


def _signed(value: int) -> int:
    """The 64 low bits of a number, read as int64."""
    return (value + DRAWS) % (2 * DRAWS) - DRAWS


def _threshold(share: float) -> int:
    """Draws below this number make up ``share`` of all."""
    return min(int(share * DRAWS), DRAWS - 1)
