"""Is it learning? What an encoder knows of rare and common codes, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from medbert.schema import SPECIAL_TOKENS, Batch
from medbert.train.score import on

GROUPS = 10
_SPECIALS = len(SPECIAL_TOKENS)


class StayScores:
    """Hears what a prolonged-stay term says of each batch, without a second pass.

    Such a term of an objective has ``output``, a layer called once a batch, and ``labels(batch)``,
    which of its rows are known and which are true. With no such term there is nothing to hear.
    """

    def __init__(self, objective: nn.Module) -> None:
        terms = _terms(objective).values()
        self.term = next((t for t in terms if hasattr(t, "output") and hasattr(t, "labels")), None)
        self._said: Tensor | None = None
        self._logits: list[Tensor] = []
        self._truth: list[Tensor] = []
        if self.term is not None:
            self._handle = self.term.output.register_forward_hook(self._hear)

    def _hear(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._said = output.detach().float().reshape(-1)

    def add(self, batch: Batch) -> None:
        """Keeps what was said of ``batch``, which was the last one."""
        if self.term is None or self._said is None:
            return
        known_B, truth_B = self.term.labels(batch)
        self._logits.append(self._said[known_B])
        self._truth.append(truth_B[known_B])

    def auroc(self) -> float:
        """Of all that was kept, which is then forgotten; NaN where one class is missing."""
        if not self._logits:
            return float("nan")
        logits, truth = torch.cat(self._logits), torch.cat(self._truth).int()
        self._logits, self._truth = [], []
        if not 0 < int(truth.sum()) < len(truth):
            return float("nan")
        return float(binary_auroc(logits.sigmoid(), truth))

    def close(self) -> None:
        if self.term is not None:
            self._handle.remove()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; each part is then put back as it was."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def masked_term(objective: nn.Module) -> str | None:
    """The name of the masked-code term; None where the objective hides no codes."""
    return next((n for n, term in _terms(objective).items() if hasattr(term, "ranks")), None)


def hide(objective: nn.Module, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """The batch as the encoder is shown it when tuning, and which codes are hidden where
    (place_M, code_M); of an objective with a masked-code term."""
    targets = {}
    with evaluating(objective):
        for name, term in _terms(objective).items():
            batch, targets[name] = term.corrupt(batch)
    target = targets[str(masked_term(objective))]
    return batch, target.place_M, target.code_M


def by_frequency(
    encoder: nn.Module, objective: nn.Module, tuning: DataLoader, *, counts: Tensor
) -> list[dict[str, float]]:
    """How well hidden codes are found, from the commonest codes to the rarest.

    The codes, sorted by their training ``counts`` (C,), are cut into ten groups of equal shares of
    all events; a group may be empty where one code is more than a tenth. One pass over ``tuning``.
    Each entry: ``codes`` and ``hidden`` (numbers), ``masked_code`` and ``unigram`` (nats), ``top1``
    and ``top10`` (shares; a tie counts against the model). Empty without a masked-code term.
    """
    name = masked_term(objective)
    if name is None:
        return []
    term, device = _terms(objective)[name], next(encoder.parameters()).device
    counts = torch.cat([torch.zeros(_SPECIALS), counts[_SPECIALS:]]).to(device, torch.float64)
    group_C, weight_C = frequency_groups(counts), counts + 1
    unigram_C = -torch.log(weight_C / weight_C[_SPECIALS:].sum())
    sums = counts.new_zeros(5, GROUPS)
    with evaluating(encoder, objective):
        for batch in tuning:
            shown, place_M, code_M = hide(objective, on(batch, device))
            hidden_MD = encoder(shown)[place_M]
            nats_M, rank_M = term.ranks(encoder, hidden_MD, code_M)
            found = (nats_M, unigram_C[code_M], rank_M < 1, rank_M < 10, rank_M >= 0)
            sums.index_add_(1, group_C[code_M], torch.stack([f.double() for f in found]))
    codes = torch.bincount(group_C[_SPECIALS:], minlength=GROUPS).tolist()
    names = ("masked_code", "unigram", "top1", "top10")
    return [
        {"codes": n, "hidden": int(hidden)}
        | {name: total / hidden for name, total in zip(names, totals, strict=True)}
        for n, (*totals, hidden) in zip(codes, sums.T.tolist(), strict=True)
        if hidden
    ]


def frequency_groups(counts: Tensor) -> Tensor:
    """The group (0: commonest) of each code, by where the middle of its events falls."""
    sorted_C, by_count_C = counts.double().sort(descending=True, stable=True)
    middle_C = (sorted_C.cumsum(0) - sorted_C / 2) / sorted_C.sum().clamp(min=1)
    group_C = torch.empty_like(by_count_C)
    group_C[by_count_C] = (middle_C * GROUPS).long().clamp(max=GROUPS - 1)
    return group_C


def _terms(objective: nn.Module) -> dict[str, Any]:
    return dict(getattr(objective, "terms", {}))


# --- advice -------------------------------------------------------------------------------------

_AT_CHANCE = 0.1  # share of the way from code frequencies to pairs of codes; less is no learning
_NEAR = 0.02  # nats: less than this between the two, and pairs of codes tell nothing
_ABOVE = 0.1  # nats: more than this above code frequencies, and not even those are learned
_FEW_STEPS, _SLOW, _LONG = 2_000, 3e-4, 50_000  # steps; a learning rate, and steps it needs
_FEW_SUBJECTS, _FEW_SEEN = 5_000, 100  # subjects; times a code was seen on average


def advice(
    *,
    steps: int,
    warmup: float,
    lr: float,
    subjects: int,
    codes: int,
    vocabulary_size: int,
    rate: float | None,
    loss: float | None = None,
    unigram: float | None = None,
    visit_pairs: float | None = None,
) -> list[str]:
    """What stands in the way of learning, in plain words; nothing where all is well.

    ``steps`` made (or planned, with ``loss`` None), ``warmup`` in steps, ``lr`` the highest
    learning rate, ``codes`` all training events, ``rate`` the share of codes hidden (None: one a
    subject); ``loss``, ``unigram`` and ``visit_pairs`` in nats, on tuning subjects.
    """
    said = []
    if loss is not None and unigram is not None:
        pairs = unigram if visit_pairs is None else visit_pairs
        if loss < unigram - max(_NEAR, _AT_CHANCE * (unigram - pairs)):
            if loss <= pairs:
                return []
            text = "the masked-code loss ({:.2f}) is below that of code frequencies alone ({:.2f}) "
            text += "but not of pairs of codes ({:.2f}): longer training may still pay"
            return [text.format(loss, unigram, pairs)]
        level, learned = "that", "learned which codes are common, and no more"
        if loss > unigram + _ABOVE:
            level, learned = "above that", "not even learned which codes are common"
        said.append(
            f"the masked-code loss ({loss:.2f}) is {level} of code frequencies alone "
            f"({unigram:.2f}): the encoder has {learned}"
        )
        if visit_pairs is not None and unigram - visit_pairs < _NEAR:
            said.append(
                f"pairs of codes of a visit tell no more ({visit_pairs:.2f}): codes of these "
                "records may hardly depend on each other; look at them with medbert inspect"
            )
        elif visit_pairs is not None:
            said.append(
                f"pairs of codes of a visit alone reach {visit_pairs:.2f}, so there is more"
            )
    return said + _causes(steps, warmup, lr, subjects, codes / max(vocabulary_size, 1), rate)


def _causes(
    steps: int, warmup: float, lr: float, subjects: int, seen: float, rate: float | None
) -> list[str]:
    """The likeliest first."""
    cold = steps < 2 * warmup
    reached = lr * min(1, steps / max(warmup, 1))
    told = (
        (
            cold,
            f"{steps:,} steps with {warmup:,.0f} of warm-up: the learning rate reaches "
            f"{reached:.2g} of {lr:.2g}; set optimizer.warmup=0.1 and a higher optimizer.lr "
            "(optimizer=adamw has both)",
        ),
        (
            lr < _SLOW and steps < _LONG and not cold,
            f"a learning rate of {lr:.1g} is for far more than {steps:,} steps: optimizer.lr=2e-3",
        ),
        (
            steps < _FEW_STEPS,
            f"{steps:,} steps are few: raise trainer.max_epochs or lower batch_tokens",
        ),
        (
            rate is None and steps < _LONG,
            "one hidden code a subject is a slow teacher: objective=medbert hides 15% of the "
            "codes, others each time",
        ),
        (
            seen < _FEW_SEEN,
            f"a code was seen {seen:,.0f} times on average: raise rule.min_subjects or set "
            "rule.roll_up=true when preparing",
        ),
        (
            subjects < _FEW_SUBJECTS,
            f"{subjects:,} subjects are few: encoder=tiny may do as well, or take the encoder of a "
            "larger cohort (medbert vocabulary extend)",
        ),
    )
    return [text for holds, text in told if holds]
