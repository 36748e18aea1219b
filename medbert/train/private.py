"""Differentially private pretraining: nobody's record moves the weights by more than is said.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133) by subject: every step takes each subject with the same
small probability, clips the gradient of each one, adds them up and adds Gaussian noise. What that
amounts to over all steps is counted by Opacus, an optional extra.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Sampler

from medbert.schema import Batch, InputError, LossOutput

NOT_COVERED = (
    "the vocabulary, its counts and the output layer's start at them (those of another data set, "
    "if the store was prepared with its vocabulary)",
    "what was chosen, or measured, on tuning subjects: the epoch, settings, figures of merit",
)


@dataclass(frozen=True)
class Privacy:
    """The promise: adding or removing one subject changes the odds of any set of weights by no more
    than a factor of exp(``epsilon``), but for a chance of ``delta``.

    ``max_norm`` bounds the gradient of a subject, ``batch_subjects`` is how many of them a step
    takes on average, ``accountant`` one of Opacus (prv: tight; rdp: older, looser).
    """

    epsilon: float
    delta: float
    max_norm: float
    batch_subjects: int
    accountant: str = "prv"

    def __post_init__(self) -> None:
        if min(self.epsilon, self.delta, self.max_norm, self.batch_subjects) <= 0:
            raise InputError(f"{self}: every number must be above 0")

    def noise(self, *, rate: float, steps: int) -> float:
        """The least standard deviation, in units of ``max_norm``, that keeps the promise when each
        of ``steps`` takes every subject with probability ``rate``."""
        with warnings.catch_warnings(action="ignore"):
            found = _opacus().utils.get_noise_multiplier(
                target_epsilon=self.epsilon,
                target_delta=self.delta,
                sample_rate=rate,
                steps=steps,
                accountant=self.accountant,
            )
        return float(found)

    def spent(self, noise: float, *, rate: float, steps: int) -> float:
        """Epsilon after so many steps."""
        accountant = _opacus().create_accountant(mechanism=self.accountant)
        accountant.history = [(noise, rate, steps)]
        with warnings.catch_warnings(action="ignore"):
            return float(accountant.get_epsilon(delta=self.delta))


class PrivateSteps:
    """Stands for ``objective`` in training: the gradient of what it returns is private.

    Subjects are taken one by one, for the tokens of all lie end to end: the cost is that of steps
    of one subject. Only the gradient is private: the loss told, a mean over subjects, is for the
    log. ``noise`` is found where it is not given. ``seed`` is for tests: who knows it can take the
    noise away again.
    """

    def __init__(
        self,
        objective: Any,
        privacy: Privacy,
        *,
        subjects: int,
        epochs: int,
        noise: float | None = None,
        seed: int | None = None,
    ) -> None:
        if epochs < 1:
            raise InputError("privacy: the noise depends on the steps; say trainer.max_epochs")
        if privacy.delta * subjects >= 1:
            raise InputError(
                f"privacy.delta={privacy.delta}: must be far below 1 / {subjects:,}, the share "
                "that one subject is"
            )
        self.objective, self.privacy, self.subjects = objective, privacy, subjects
        self.steps_an_epoch = math.ceil(subjects / privacy.batch_subjects)
        self.rate, self.steps = 1 / self.steps_an_epoch, self.steps_an_epoch * epochs
        self.noise = privacy.noise(rate=self.rate, steps=self.steps) if noise is None else noise
        seed = secrets.randbits(63) if seed is None else seed
        self._random = torch.Generator().manual_seed(seed)

    def told(self) -> dict[str, Any]:
        """What is promised after all steps, for a model card; after fewer it is more than that."""
        return {
            **asdict(self.privacy),
            "method": "DP-SGD by subject (added or removed), Poisson sampling, Opacus accountant",
            "epsilon": self.privacy.spent(self.noise, rate=self.rate, steps=self.steps),
            "noise_multiplier": self.noise,
            "sampling_rate": self.rate,
            "steps": self.steps,
            "not_covered": list(NOT_COVERED),
        }

    def __call__(self, encoder: nn.Module, batch: Batch) -> LossOutput:
        if distributed.is_available() and distributed.is_initialized():
            raise InputError("privacy: steps are counted on one device; say trainer.devices=1")
        both = dict.fromkeys([*encoder.parameters(), *self.objective.parameters()])
        weights = [weight for weight in both if weight.requires_grad]
        sums, losses = [torch.zeros_like(weight) for weight in weights], []
        for subject in range(len(batch.rows_B)):
            loss = self.objective(encoder, alone(batch, subject)).loss
            if loss.requires_grad:  # something was asked of this subject
                losses.append(loss.detach())
                self._add(torch.autograd.grad(loss, weights, allow_unused=True), sums)
        surrogate = weights[0].new_zeros(())
        for weight, total in zip(weights, sums, strict=True):
            noise = torch.randn(total.shape, generator=self._random).to(total)
            total.add_(noise, alpha=self.noise * self.privacy.max_norm)
            surrogate = surrogate + (weight * total).sum() / (self.subjects * self.rate)
        mean = torch.stack(losses).mean() if losses else torch.zeros_like(surrogate)
        return LossOutput(surrogate - surrogate.detach() + mean, {})

    def _add(self, gradients: Sequence[Tensor | None], sums: list[Tensor]) -> None:
        """Adds the gradients of a subject, clipped; none at all if they are not finite."""
        there = [(s, g) for s, g in zip(sums, gradients, strict=True) if g is not None]
        dense = [g.to_dense() if g.is_sparse else g for _, g in there]
        norm = torch.nn.utils.get_total_norm(dense)
        if norm.isfinite():
            factor = float((self.privacy.max_norm / (norm + 1e-6)).clamp(max=1))
            torch._foreach_add_([s for s, _ in there], dense, alpha=factor)


class PoissonSampler(Sampler[np.ndarray]):
    """So many batches an epoch; each takes each of ``n`` subjects with the same probability,
    whatever the others take. A resumed run (``start`` batches are done) goes on with others."""

    def __init__(self, n: int, *, steps: int) -> None:
        self.n, self.steps, self.start = n, steps, 0
        self._random = np.random.default_rng()  # its seed is nobody's to know

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[np.ndarray]:
        start, self.start = self.start, 0
        for _ in range(start, self.steps):
            yield np.flatnonzero(self._random.random(self.n) < 1 / self.steps)


def alone(batch: Batch, subject: int) -> Batch:
    """One subject of a batch, as a batch."""
    edges_2 = batch.offsets_B1[subject : subject + 2]
    tokens, one = slice(*edges_2.tolist()), slice(subject, subject + 1)
    parts = dict.fromkeys(("tokens_T", "visit_T", "age_T"), tokens)
    parts |= dict.fromkeys(("rows_B", "labels_B", "sex_B", "end_B"), one)
    offsets = {"offsets_B1": edges_2 - edges_2[0]}
    if batch.visit_offsets_B1 is not None:
        visits_2 = batch.visit_offsets_B1[subject : subject + 2]
        parts["stay_V"] = slice(*visits_2.tolist())
        offsets["visit_offsets_B1"] = visits_2 - visits_2[0]
    there = {name: (getattr(batch, name), part) for name, part in parts.items()}
    cut = {name: value[part] for name, (value, part) in there.items() if value is not None}
    return batch._replace(**cut, **offsets)


def _opacus() -> Any:
    try:
        from opacus import accountants
    except ImportError as error:
        raise InputError("privacy=dp needs Opacus: pip install 'medbert[privacy]'") from error
    return accountants
