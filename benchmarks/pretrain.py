"""Real tokens per second of a pretraining step: medbert beside Hugging Face's BertForMaskedLM.

    python benchmarks/pretrain.py                   # vocabularies 82,603 and 5,000; half an hour
    python benchmarks/pretrain.py --vocabulary 5000 --rounds 3 --dropout 0
    python benchmarks/pretrain.py --device cuda --subjects 512 --precision bf16

Published shape (6 x 192, feed-forward 64), batches of 32 subjects of lognormal length (median 45,
at most 512), Zipf codes, 15% of the codes masked, the same masked-code loss, gradients clipped,
fused AdamW, dropout equal on both sides. The peers are BertForMaskedLM (SDPA)

    (a) padded to 512, output layer at every position (8 subjects a batch: more do not fit)
    (b) padded to the longest of 32 subjects in arrival order, output layer at masked places only
    (c) as (b), with subjects of nearly equal length in a batch

Every run is a fresh process that takes two steps before the clock starts; variants take turns,
round by round, and medians are reported. "kept memory" is the allocator setting that medbert's
training makes (see ``train.fit``), given to the peer too. MFU is the share of the machine's
measured matmul peak that the arithmetic of the model (of real tokens only, exact output layer at
masked places) amounts to; sampled softmax has none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SHAPE = {"layers": 6, "heads": 6, "hidden": 192, "feed_forward": 64, "positions": 512}
RATE, LONGEST, SPECIALS, LR = 0.15, 512, 4, 1e-4
JOBS = {
    "a": "(a) BertForMaskedLM, padded to 512, output layer everywhere",
    "b": "(b) BertForMaskedLM, padded to the longest, masked places only",
    "c": "(c) BertForMaskedLM, nearly equal lengths, masked places only",
    "c kept": "(c) with kept memory",
    "exact": "medbert, exact softmax",
    "sampled": "medbert, sampled softmax (2,048 codes)",
    "modern": "medbert, encoder=modern, exact softmax",
}


def people(subjects: int, n_batches: int, *, alike: bool) -> list[np.ndarray]:
    """Lengths of each batch; ``alike``: of neighbours in the sorted line, as in a bucket."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(45), 0.9, subjects * 128).round(), 2, LONGEST)
    order = np.argsort(lengths, kind="stable") if alike else rng.permutation(len(lengths))
    batches = lengths[order].astype(int).reshape(-1, subjects)
    return list(batches[((np.arange(n_batches) + 0.5) * len(batches) / n_batches).astype(int)])


def batch_of(lengths: np.ndarray, vocabulary: int, seed: int) -> Any:
    import torch

    from medbert.schema import Batch

    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, vocabulary - SPECIALS + 1)
    total = int(lengths.sum())
    place = np.concatenate([np.arange(length) for length in lengths])
    visits = (lengths + 2) // 3
    return Batch(
        tokens_T=torch.from_numpy(
            SPECIALS + rng.choice(len(frequency), total, p=frequency / frequency.sum())
        ),
        visit_T=torch.from_numpy(place // 3 + 1),
        age_T=torch.from_numpy((20_000 + 40.0 * (place // 3)).astype(np.float32)),
        offsets_B1=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        rows_B=torch.arange(len(lengths)),
        stay_V=torch.from_numpy(rng.exponential(4, visits.sum()).astype(np.float32)),
        visit_offsets_B1=torch.from_numpy(np.concatenate([[0], visits.cumsum()])),
    )


# --- one variant, in a process of its own -------------------------------------------------------


class Ours:
    def __init__(self, job: str, args: argparse.Namespace) -> None:
        import torch

        from medbert.model.encoder import BertEncoder
        from medbert.model.modern import ModernEncoder
        from medbert.model.objectives import masked_code
        from medbert.train.fit import _keep_memory
        from medbert.train.optimizers import RowAdamW

        if args.device == "cpu":
            _keep_memory()
        shared = {"vocabulary_size": args.vocabulary, "dropout": args.dropout}
        shared["attention_dropout"] = args.dropout
        if job == "modern":
            size = {k: SHAPE[k] for k in ("layers", "heads", "hidden")}
            self.encoder: Any = ModernEncoder(**size, feed_forward=512, **shared)
        else:
            self.encoder = BertEncoder(**SHAPE, visits=1000, **shared)
        counts = 1e7 / np.arange(1 - SPECIALS, args.vocabulary - SPECIALS + 1).clip(1)
        self.objective: Any = masked_code(
            vocabulary_size=args.vocabulary,
            hidden=self.encoder.hidden,
            counts=torch.from_numpy(counts.astype(np.int64)[: args.vocabulary]),
            rate=RATE,
            static=False,
            seed=0,
            sampled=2048 if job == "sampled" else None,
        )
        self.encoder.to(args.device).codes.sparse = True
        self.objective.to(args.device)
        self.parameters = [*self.encoder.parameters(), *self.objective.parameters()]
        self.optimizer = RowAdamW(self.parameters, lr=LR, fused=True)

    def step(self, batch: Any) -> None:
        from medbert.train.optimizers import clip_gradients

        self.objective(self.encoder, batch).loss.backward()
        clip_gradients(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def ready(self, batch: Any) -> Any:
        return batch


class Peer:
    def __init__(self, job: str, args: argparse.Namespace) -> None:
        import torch
        from transformers import BertConfig, BertForMaskedLM

        from medbert.train.fit import _keep_memory

        if job == "c kept":
            _keep_memory()
        config = BertConfig(
            vocab_size=args.vocabulary,
            hidden_size=SHAPE["hidden"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            intermediate_size=SHAPE["feed_forward"],
            max_position_embeddings=SHAPE["positions"],
            type_vocab_size=1000,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
            attn_implementation="sdpa",
        )
        self.model = BertForMaskedLM(config).to(args.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)
        self.everywhere, self.width = job == "a", LONGEST if job == "a" else 0

    def ready(self, batch: Any) -> Any:
        """Padded input ids, visits, mask and labels (-100 where nothing is asked)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        lengths = batch.lengths_B.tolist()
        ids, visits, mask = (
            pad_sequence(line.split(lengths), batch_first=True)
            for line in (batch.tokens_T, batch.visit_T, torch.ones_like(batch.tokens_T))
        )
        more = (0, max(0, self.width - ids.shape[1]))
        ids, visits, mask = (torch.nn.functional.pad(table, more) for table in (ids, visits, mask))
        chosen = (torch.rand(ids.shape, device=ids.device) < RATE) & mask.bool()
        labels = ids.masked_fill(~chosen, -100)
        return ids.masked_fill(chosen, 2), visits, mask, labels

    def step(self, inputs: Any) -> None:
        import torch
        import torch.nn.functional as F

        ids, visits, mask, labels = inputs
        given = {"input_ids": ids, "token_type_ids": visits, "attention_mask": mask}
        if self.everywhere:
            loss = self.model(**given, labels=labels).loss
        else:
            asked = labels >= 0
            hidden = self.model.bert(**given).last_hidden_state[asked]
            loss = F.cross_entropy(self.model.cls(hidden), labels[asked])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def work(job: str, args: argparse.Namespace) -> None:
    """Tells the seconds that some steps took, and their tokens."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    variant: Any = (Peer if job[0] in "abc" else Ours)(job, args)
    lengths = people(args.subjects, args.batches, alike=job not in ("a", "b"))
    if job == "a":  # a quarter of the subjects: its logits do not fit the memory otherwise
        lengths = [line[::4] for line in lengths[::2]]
    batches = []
    for seed, line in enumerate(lengths):
        batch = batch_of(line, args.vocabulary, seed)
        there = {k: v.to(args.device) for k, v in batch._asdict().items() if v is not None}
        batches.append((variant.ready(batch._replace(**there)), int(line.sum())))

    def run(chosen: list[Any]) -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for inputs, _ in chosen:
            half = args.precision == "bf16"
            with torch.autocast(args.device, torch.bfloat16, enabled=half):
                variant.step(inputs)
        if args.device != "cpu":
            torch.cuda.synchronize()
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return taken | {"tokens": sum(tokens for _, tokens in chosen)}

    run(batches[-2:])
    sys.stdout.write(json.dumps(run(batches) | {"gb": _peak_gb(args.device)}) + "\n")


def _peak_gb(device: str) -> float:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    peak = Path("/proc/self/status").read_text("utf-8").split("VmHWM:")[1].split()[0]
    return int(peak) * 1024 / 1e9


# --- all variants, in turn ----------------------------------------------------------------------


def matmul_peak(args: argparse.Namespace) -> float:
    """Floating-point operations a second of a large product, on the threads or the GPU given."""
    import torch

    torch.set_num_threads(args.threads)
    size = 2048 if args.device == "cpu" else 8192
    half = args.precision == "bf16"
    one = torch.randn(size, size, device=args.device, dtype=torch.bfloat16 if half else None)
    best = 0.0
    for _ in range(6):
        begun = time.perf_counter()
        one @ one
        if args.device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def flops_per_token(job: str, args: argparse.Namespace) -> float:
    """Forward and backward; attention at the mean length that a token sees."""
    lengths = np.concatenate(people(args.subjects, args.batches, alike=job not in ("a", "b")))
    hidden, wide = SHAPE["hidden"], 3 * 512 if job == "modern" else 2 * SHAPE["feed_forward"]
    layer = 4 * hidden**2 + wide * hidden + 2 * hidden * (lengths**2).sum() / lengths.sum()
    return 6 * (SHAPE["layers"] * layer + RATE * (hidden * args.vocabulary + hidden**2))


def compare(args: argparse.Namespace, words: list[str]) -> None:
    jobs = args.jobs or list(JOBS)
    taken: dict[str, list[dict[str, float]]] = {job: [] for job in jobs}
    for _, job in itertools.product(range(args.rounds), jobs):
        command = [sys.executable, __file__, *words, "--work", job]
        command += ["--vocabulary", str(args.vocabulary)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        taken[job].append(json.loads(done.stdout.splitlines()[-1]))
    report(args, taken)


def report(args: argparse.Namespace, taken: dict[str, list[dict[str, float]]]) -> None:
    rates = {j: median(t["tokens"] / t["wall"] for t in ts) for j, ts in taken.items()}
    by_cpu = {j: median(t["tokens"] / t["cpu"] for t in ts) for j, ts in taken.items()}
    peak, mine = matmul_peak(args), [j for j in taken if j[0] not in "abc"]
    names = " | ".join(f"{job} is" for job in mine)
    sys.stdout.write(
        f"\nvocabulary {args.vocabulary:,}, {args.subjects} subjects a batch, dropout "
        f"{args.dropout}, {args.device}, {args.threads} threads, {args.rounds} rounds of "
        f"{args.batches} steps; matmul peak {peak / 1e9:,.0f} GFLOP/s\n\n"
        f"| | tokens a second | a CPU-second | {names} | peak GB | MFU |\n"
        f"|---|---|---|{'---|' * len(mine)}---|---|\n"
    )
    for job, rate in rates.items():
        times = " | ".join(f"{rates[j] / rate:.2f}x" for j in mine)
        mfu = "" if job == "sampled" else f"{rate * flops_per_token(job, args) / peak:.0%}"
        gb = max(t["gb"] for t in taken[job])
        sys.stdout.write(
            f"| {JOBS[job]} | {rate:,.0f} | {by_cpu[job]:,.0f} | {times} | {gb:.2f} | {mfu} |\n"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocabulary", type=int, help="default: 82603, then 5000")
    parser.add_argument("--subjects", type=int, default=32, help="of a batch")
    parser.add_argument("--batches", type=int, default=16, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args)
        return
    words = sys.argv[1:]
    for vocabulary in [args.vocabulary] if args.vocabulary else [82_603, 5_000]:
        args.vocabulary = vocabulary
        compare(args, words)


if __name__ == "__main__":
    main()
