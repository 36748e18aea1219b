"""Subjects per CPU-second of ``medbert embed`` and of Hugging Face's BertModel, on one thread.

    python benchmarks/score.py --subjects 4096 --rounds 3

One encoder of the published shape (6 x 192, 82,603 codes; random weights) gives the sum of its
token outputs for invented subjects of lognormal length (median 45, at most 512). The peers are a
BertModel of the same weights (SDPA) with 32 subjects a batch, padded to 512, to the longest of the
batch, and sorted by length first; and sorted with our budget of (padded) tokens a batch. Their
inputs are made before the clock starts. The two slow ones get one subject in eight, evenly over the
lengths. Every run is a fresh process; rounds are interleaved and medians reported. Before anything
is timed, all must give the same vectors to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

CODES, LONGEST, EVERY = 82_599, 512, 8
SHAPE = {"layers": 6, "heads": 6, "hidden": 192, "feed_forward": 64, "positions": 512}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
VERB, OURS = "medbert embed: read, score, write", "medbert: the encoder alone"
PADDED, DYNAMIC = "BertModel: padded to 512", "BertModel: padded to the longest of 32"
SORTED, BUDGET = "BertModel: sorted, 32 a batch", "BertModel: sorted, a token budget"
JOBS = (OURS, VERB, BUDGET, SORTED, DYNAMIC, PADDED)
Inputs = list[tuple[Any, ...]]


def make(folder: Path, subjects: int) -> None:
    """events/, store/ and encoder/: every code at least once, the others by Zipf's law."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    import medbert
    from medbert.model.checkpoint import save_module
    from medbert.model.encoder import BertEncoder

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(45), 0.95, subjects), 1, LONGEST).astype(int)
    if lengths.sum() < CODES:
        sys.exit(f"{subjects} subjects have only {lengths.sum()} codes: give more than 2,000")
    frequent = 1 / np.arange(1, CODES + 1)
    drawn = rng.choice(CODES, lengths.sum() - CODES, p=frequent / frequent.sum())
    code = rng.permutation(np.append(np.arange(CODES), drawn))
    place = np.concatenate([np.arange(length) for length in lengths])
    minute = place // 3 * 40_000 + place % 3  # three codes a visit, each at its own moment
    columns = {
        "subject_id": np.repeat(np.arange(subjects), lengths),
        "time": pa.array(1_000_000_000_000_000 + minute * 60_000_000, pa.timestamp("us")),
        "code": pa.array([f"CODE//{i}" for i in range(CODES)]).take(pa.array(code)),
    }
    (folder / "events" / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "events" / "data" / "0.parquet")
    keep_all = ["fractions=[1,0,0]", "rule.roll_up=false", "rule.min_subjects=1"]
    given = ["source=meds", f"source.path={folder / 'events'}", *keep_all]
    medbert.prepare(*given, out=folder / "store")
    vocabulary = medbert.Store(folder / "store").vocabulary
    torch.manual_seed(0)
    sizes = {"vocabulary_size": len(vocabulary), "visits": 1000, **SHAPE}
    encoder = BertEncoder(**sizes, dropout=0.1, attention_dropout=0.1)
    (folder / "encoder").mkdir()
    extra = {"vocabulary_sha256": vocabulary.sha256}
    save_module(folder / "encoder", modules={"encoder": encoder}, extra=extra)
    spread = f"median {np.median(lengths):.0f}, mean {lengths.mean():.1f}, max {lengths.max()}"
    sys.stdout.write(f"{subjects:,} subjects, lengths: {spread}; vocabulary {len(vocabulary):,}\n")


# --- one run, in a process of its own -----------------------------------------------------------


def chosen(lengths: Any, job: str) -> Any:
    """The subjects of a job: all, or one in EVERY of each length, in an order without meaning."""
    import numpy as np

    rows = np.argsort(lengths, kind="stable")
    if job in (PADDED, DYNAMIC):
        rows = rows[EVERY // 2 :: EVERY]
    return np.random.default_rng(1).permutation(rows)


def run_one(job: str, folder: Path, out: Path, budget: int) -> dict[str, Any]:
    """CPU-seconds and peak memory; the vectors go to ``out``, in the order of the store."""
    import numpy as np
    import torch

    from medbert.data.batches import Sequences
    from medbert.data.store import Store

    torch.set_num_threads(1)
    if job == VERB:
        return _verb(folder, out, budget)
    store = Store(folder / "store")
    rows = np.arange(len(store))
    rows = chosen(Sequences(store, rows, max_tokens=LONGEST).lengths, job)
    data = Sequences(store, rows, max_tokens=LONGEST)
    run = _ours(folder, data, budget) if job == OURS else _bert(folder, data, job, budget)
    begun = time.process_time()
    vectors = run()
    cpu = time.process_time() - begun
    order = np.argsort(rows)
    np.savez(out, rows=rows[order], vectors=vectors[order])
    return _used(cpu, len(rows))


def _used(cpu: float, subjects: int) -> dict[str, Any]:
    peak = Path("/proc/self/status").read_text("utf-8").split("VmHWM:")[1].split()[0]
    return {"rate": subjects / cpu, "gb": int(peak) * 1024 / 1e9, "cpu": cpu}


def _verb(folder: Path, out: Path, budget: int) -> dict[str, Any]:
    """The whole verb, but for the start of Python and the imports (said under the table)."""
    import numpy as np
    import pyarrow.parquet as pq

    import medbert
    import medbert.commands.embed

    given = {"store": folder / "store", "encoder_dir": folder / "encoder", "pooling": "sum"}
    begun = time.process_time()
    made = medbert.embed(
        **given, batch_tokens=budget, device="cpu", out=out.with_suffix(""), overwrite=True
    )
    used = _used(time.process_time() - begun, len(medbert.Store(folder / "store")))
    vectors = np.stack(pq.read_table(made / "embeddings.parquet")["embedding"].to_numpy())
    np.savez(out, rows=np.arange(len(vectors)), vectors=vectors)
    return used | {"start": begun}


def _ours(folder: Path, data: Any, budget: int) -> Callable[[], Any]:
    from medbert.data.batches import loader
    from medbert.model.checkpoint import load_module
    from medbert.model.heads import pool
    from medbert.train.score import score

    encoder: Any = load_module(folder / "encoder", "encoder").eval()
    batches = list(loader(data, budget=budget))
    score(encoder, batches[:1])
    return lambda: score(lambda batch: pool(encoder(batch), batch, "sum"), batches).numpy()


def _bert(folder: Path, data: Any, job: str, budget: int) -> Callable[[], Any]:
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel

    from medbert.model.checkpoint import load_module
    from medbert.model.formats.hugging_face import to_hugging_face

    encoder: Any = load_module(folder / "encoder", "encoder")
    config = BertConfig(
        vocab_size=len(encoder.codes.weight),
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        intermediate_size=SHAPE["feed_forward"],
        max_position_embeddings=SHAPE["positions"],
        type_vocab_size=len(encoder.visits.weight),
        attn_implementation="sdpa",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(to_hugging_face(encoder))
    del encoder
    groups = list(_groups(data.lengths, job, budget))
    inputs = [_padded(data[group], LONGEST if job == PADDED else 0) for group in groups]

    @torch.inference_mode()
    def run(inputs: Inputs = inputs) -> Any:
        sums = []
        for ids, visits, mask in inputs:
            hidden = model(ids, attention_mask=mask, token_type_ids=visits).last_hidden_state
            sums.append((hidden * mask[..., None]).sum(1))
        return torch.cat(sums).numpy()[np.argsort(np.concatenate(groups)[: sum(map(len, sums))])]

    run(inputs[:1])
    return run


def _groups(lengths: Any, job: str, budget: int) -> Iterator[Any]:
    """Which subjects share a batch."""
    import numpy as np

    order = np.arange(len(lengths))
    if job in (SORTED, BUDGET):
        order = np.argsort(-lengths, kind="stable")
    last = 0
    while last < len(order):
        size = max(1, budget // lengths[order[last]]) if job == BUDGET else 32
        first, last = last, last + size
        yield order[first:last]


def _padded(batch: Any, to: int) -> tuple[Any, Any, Any]:
    """Ids, visits and mask (B, L), of the longest subject or of ``to`` places."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    lengths = batch.lengths_B.tolist()
    ids, visits, mask = (
        pad_sequence(line.split(lengths), batch_first=True)
        for line in (batch.tokens_T, batch.visit_T, torch.ones_like(batch.tokens_T))
    )
    more = (0, max(0, to - ids.shape[1]))
    return tuple(torch.nn.functional.pad(table, more) for table in (ids, visits, mask))


# --- all runs -----------------------------------------------------------------------------------


def measure(job: str, folder: Path, budget: int) -> dict[str, Any]:
    given = [sys.executable, __file__, "--one", job, str(folder), str(budget)]
    done = subprocess.run(given, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> float:
    """The largest difference from our vectors, relative to 1 + their size; exits above 1e-4."""
    import numpy as np

    worst, (ours, *others) = 0.0, [np.load(folder / f"{JOBS.index(job)}.npz") for job in JOBS]
    for job, other in zip(JOBS[1:], others, strict=True):
        wanted = ours["vectors"][other["rows"]]
        worst = max(worst, float((np.abs(other["vectors"] - wanted) / (1 + np.abs(wanted))).max()))
        if not worst < 1e-4:
            sys.exit(f"{job} and medbert differ by {worst:.1e}")
    return worst


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        job, folder, budget = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
        out = folder / f"{JOBS.index(job)}.npz"
        sys.stdout.write(json.dumps(run_one(job, folder, out, budget)) + "\n")
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subjects", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a batch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, args.subjects)
        for job in JOBS:
            measure(job, folder, args.budget)
        sys.stdout.write(f"vectors agree to {compare(folder):.1e}\n\n")
        runs = [{j: measure(j, folder, args.budget) for j in JOBS} for _ in range(args.rounds)]
    taken = {j: {k: median(run[j][k] for run in runs) for k in runs[0][j]} for j in JOBS}
    sys.stdout.write(
        "| | subjects per CPU-second | medbert is faster by | peak GB |\n|---|---|---|---|\n"
    )
    for job, took in taken.items():
        ratio = f"{taken[OURS]['rate'] / took['rate']:.2f}"
        sys.stdout.write(f"| {job} | {took['rate']:.1f} | {ratio} | {took['gb']:.2f} |\n")
    sys.stdout.write(
        f"\nBefore it begins, the verb takes {taken[VERB]['start']:.1f} CPU-s to import.\n"
    )


if __name__ == "__main__":
    main()
