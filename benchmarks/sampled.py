"""Does sampled softmax learn as well? Its full-softmax tuning loss beside that of exact training.

    python benchmarks/sampled.py --steps 800

Invented subjects of ten interests each, out of 400; an interest is a distribution over its own 500
codes of a vocabulary of 82,603. The encoder is small (2 x 192): the output layer is what is asked
about. Both trainings start alike and see the same batches and masks.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch

from medbert.model.encoder import BertEncoder
from medbert.model.objectives import masked_code
from medbert.schema import Batch
from medbert.train.optimizers import RowAdamW, clip_gradients

VOCABULARY, SPECIALS, INTERESTS, OWN = 82_603, 4, 400, 500
SUBJECTS, LENGTH = 32, 64


def batch_of(seed: int) -> Batch:
    """32 subjects of 64 codes; the codes of an interest follow Zipf's law, interests too."""
    rng = np.random.default_rng(seed)
    shape = (SUBJECTS, LENGTH)
    popular = 1 / np.arange(1, INTERESTS + 1)
    mine = rng.choice(INTERESTS, (SUBJECTS, 10), p=popular / popular.sum())
    interest = mine[np.arange(SUBJECTS)[:, None], rng.integers(0, 10, shape)]
    frequent = 1 / np.arange(1, OWN + 1)
    nth = rng.choice(OWN, shape, p=frequent / frequent.sum())
    code = SPECIALS + (interest * 7919 + nth * 104_729) % (VOCABULARY - SPECIALS)
    place = torch.arange(LENGTH).repeat(SUBJECTS)
    return Batch(
        tokens_T=torch.from_numpy(code.ravel()),
        visit_T=place // 4 + 1,
        age_T=torch.full((SUBJECTS * LENGTH,), torch.nan),
        offsets_B1=torch.arange(SUBJECTS + 1) * LENGTH,
        rows_B=torch.arange(SUBJECTS) + seed * SUBJECTS,
    )


def train(sampled: int | None, counts: torch.Tensor, steps: int, every: int) -> list[float]:
    torch.manual_seed(0)
    encoder: Any = BertEncoder(
        vocabulary_size=VOCABULARY,
        layers=2,
        heads=6,
        hidden=192,
        feed_forward=64,
        dropout=0.0,
        attention_dropout=0.0,
        positions=LENGTH,
        visits=32,
    )
    goal: Any = masked_code(
        vocabulary_size=VOCABULARY,
        hidden=192,
        counts=counts,
        rate=0.15,
        static=False,
        seed=0,
        sampled=sampled,
    )
    encoder.codes.sparse = True
    parameters = [*encoder.parameters(), *goal.parameters()]
    optimizer, told = RowAdamW(parameters, lr=1e-3, fused=True), []
    begun = time.process_time()
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        goal(encoder, batch_of(step)).loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            spent = time.process_time() - begun
            encoder.eval(), goal.eval()
            with torch.no_grad():
                losses = [goal(encoder, batch_of(10**6 + i)).loss.item() for i in range(20)]
            encoder.train(), goal.train()
            told.append(float(np.mean(losses)))
            name = "exact" if sampled is None else f"{sampled:,} sampled"
            text = f"{name}: {step} steps, tuning loss {told[-1]:.3f}, {spent:.0f} CPU-s\n"
            sys.stdout.write(text)
            sys.stdout.flush()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--sampled", type=int, nargs="+", default=[2048, 8192])
    args = parser.parse_args()
    tokens = torch.cat([batch_of(i).tokens_T for i in range(1, min(args.steps, 400) + 1)])
    counts = tokens.bincount(minlength=VOCABULARY)
    exact = train(None, counts, args.steps, args.every)
    for sampled in args.sampled:
        found = train(sampled, counts, args.steps, args.every)
        shares = [f"{100 * (a / b - 1):+.2f}%" for a, b in zip(found, exact, strict=True)]
        sys.stdout.write(f"{sampled:,} sampled against exact: {', '.join(shares)}\n")


if __name__ == "__main__":
    main()
