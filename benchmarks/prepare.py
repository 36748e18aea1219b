"""Events per CPU-second and peak memory of ``medbert prepare`` and its peers, on one thread.

    python benchmarks/prepare.py 10 50 --folder /data/bench --skip pandas@50

Millions of invented events (MEDS Parquet files; skewed subjects, Zipf codes, 2% exact repeats) go
through the same job: drop repeats, count events and subjects of each code, keep the codes of five
subjects, encode, sort by subject and time, write one ragged row per subject. Every run is a fresh
process, measured whole, imports and all; runs are interleaved, medians reported, and all must give
the same events, vocabulary and (sampled) sequences. medbert also makes visits and splits, orders
the codes of a moment and hashes its files; the peers do the bare job.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import peers
from peers import FIRST_CODE, Made

FILES, PER_SUBJECT, PER_DAY, N_CODES, N_RARE, REPEATS = 16, 15, 3, 5_000, 500, 0.02
FORMS = ("ordered", "shuffled")  # by subject and time, as MEDS asks for; rows of a file at random
WHOLE = 0.43e9  # events: 28 million patients, as Med-BERT had, of 15 codes
ONE_THREAD = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
Run = tuple[str, int, str]  # form, events, job


def generate(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    frequent = 1 / np.arange(1, N_CODES - N_RARE + 1)
    share = np.append(frequent / frequent.sum(), np.full(N_RARE, 4 / rows))
    names = [f"ICD10CM/{chr(65 + i // 1000)}{i // 10 % 100:02}.{i % 10}" for i in range(N_CODES)]
    code_names = pa.array(np.random.default_rng(0).permutation(names))
    for form in FORMS:
        (folder / form / "data").mkdir(parents=True)
    for file in range(FILES):
        rng = np.random.default_rng([rows, file])
        total = rows // FILES
        once = total - int(total * REPEATS)
        weights = rng.lognormal(sigma=1.2, size=total // PER_SUBJECT)
        ids = np.cumsum(rng.integers(1, 200, len(weights))) * FILES + file
        subject = np.repeat(ids, rng.multinomial(once, weights / weights.sum()))
        day = rng.integers(0, 3652, once // PER_DAY + 1)[np.arange(once) // PER_DAY]
        minute = 1440 * day + rng.integers(0, 1440, once)
        time = minute * 60_000_000 + 1_262_304_000_000_000
        code = rng.choice(N_CODES, once, p=share / share.sum())
        chosen = np.append(np.arange(once), rng.integers(0, once, total - once))
        ordered = chosen[np.lexsort((time[chosen], subject[chosen]))]
        for form, row in zip(FORMS, (ordered, rng.permutation(ordered)), strict=True):
            columns = {
                "subject_id": subject[row],
                "time": pa.array(time[row], pa.timestamp("us")),
                "code": code_names.take(pa.array(code[row])),
            }
            path = folder / form / "data" / f"{file}.parquet"
            pq.write_table(pa.table(columns), path, compression="zstd")


def run_medbert(folder: Path, out: Path, *settings: str) -> Made:
    """As a user runs it; all subjects are for training, so that all count for the vocabulary."""
    import medbert

    given = ["source=meds", f"source.path={folder}", "fractions=[1,0,0]", "rule.roll_up=false"]
    medbert.prepare(*given, *settings, out=str(out / "store"))
    return list(medbert.Store(out / "store").vocabulary.codes[FIRST_CODE:]), [out / "store"]


JOBS: dict[str, Callable[..., Made]] = {
    "medbert": run_medbert,
    "pandas": peers.run_pandas,
    "pandas categorical": peers.run_categorical,
    "polars": peers.run_polars,
    "polars by file": partial(peers.run_polars, by_file=True),
    "duckdb": peers.run_duckdb,
}


# --- one run, in a process of its own -----------------------------------------------------------


def run_one(job: str, folder: Path, out: Path, every: int, *settings: str) -> str:
    """What a job took and made, as JSON; sequences of one subject in ``every`` are compared."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    codes, files = JOBS[job](folder, out, *settings)
    used = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    peak = Path("/proc/self/status").read_text("utf-8")  # ru_maxrss would include our parent's
    kilobytes = max(int(peak.split("VmHWM:")[1].split()[0]), used[1].ru_maxrss)
    cpu = sum(process.ru_utime + process.ru_stime for process in used)
    made = _made(files, codes, every)
    return json.dumps({"cpu": cpu, "gb": kilobytes * 1024 / 1e9, "made": made})


def _made(files: list[Path], codes: list[str], every: int) -> list[Any]:
    """Codes, events, sampled subjects, and a digest of their sequences, in order.

    Events of a moment have no order in most tools, so they are put in the order of their codes.
    """
    import numpy as np

    lists = [table for file in files for table in _lists(file)]
    n_events = sum(len(tokens.values) for _, _, tokens in lists)
    columns = []
    for subjects, times, tokens in lists:
        row = np.flatnonzero(subjects.to_numpy() % every == 0)
        lengths = tokens.value_lengths().to_numpy()[row]
        moment = times.take(row).flatten().cast("timestamp[us]").to_numpy().view(np.int64)
        token = tokens.take(row).flatten().to_numpy()
        columns.append((np.repeat(subjects.to_numpy()[row], lengths), moment, token))
    subject, time, token = (np.concatenate(column) for column in zip(*columns, strict=True))
    code = np.array([""] * FIRST_CODE + codes)[token]
    moment = np.cumsum((np.diff(subject, prepend=-1) != 0) | (np.diff(time, prepend=-1) != 0))
    order = np.lexsort((code, moment, subject))  # tools may write the subjects in any order
    digest = hashlib.sha256()
    for column in (subject, time, code):
        digest.update(column[order].tobytes())
    return [len(codes), n_events, len(np.unique(subject)), digest.hexdigest()[:16]]


def _lists(file: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Subjects, and lists of times and tokens, by record batch of a store or a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        for batch in pq.ParquetFile(file).iter_batches():
            yield batch["subject_id"], batch["time"], batch["token"]
        return
    if file.is_dir():
        token_of_code = pq.read_table(file / "codes.parquet")["token"].combine_chunks()
    for path in file.glob("data/*.arrow") if file.is_dir() else [file]:
        for batch in pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_batches():
            tokens = batch["code" if file.is_dir() else "token"]
            if file.is_dir():
                tokens = pa.ListArray.from_arrays(tokens.offsets, token_of_code.take(tokens.values))
            yield batch["subject_id"], batch["time"], tokens


# --- all runs -----------------------------------------------------------------------------------


def measure(job: str, folder: Path, every: int, settings: Sequence[str]) -> dict[str, Any] | None:
    """One run; None where it fails (killed for memory, say)."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        given = [job, str(folder), out, str(every), *(settings if job == "medbert" else [])]
        command = [sys.executable, __file__, "--one", *given]
        done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def report(taken: dict[Run, dict[str, float]]) -> Iterator[str]:
    """Markdown; growth is (ratio of costs) / (ratio of sizes) from the job's smallest size."""
    head = ("events", "form", "job", "M events/CPU-s", "CPU-s", "x medbert's", "peak GB", "growth")
    yield "| " + " | ".join([*head, "0.43 B"]) + " |"
    yield "|---" * 9 + "|"
    for (form, rows, job), took in taken.items():
        ours = taken.get((form, rows, "medbert"), {"cpu": float("nan")})
        first = next(n for f, n, j in taken if (f, j) == (form, job))
        growth = took["cpu"] / rows / (taken[form, first, job]["cpu"] / first)
        yield (
            f"| {rows / 1e6:g} M | {form} | {job} | {rows / took['cpu'] / 1e6:.2f} "
            f"| {took['cpu']:.1f} | {took['cpu'] / ours['cpu']:.1f} | {took['gb']:.2f} "
            f"| {growth:.2f} | {took['cpu'] / rows * WHOLE / 3600:.2f} CPU-h |"
        )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        job, folder, out, every, *settings = sys.argv[2:]
        sys.stdout.write(run_one(job, Path(folder), Path(out), int(every), *settings))
        return
    args = _arguments()
    args.skip += [job for job in JOBS if not importlib.util.find_spec(job.split()[0])]
    taken: dict[Run, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for millions in args.millions:
            taken |= compare(millions, Path(args.folder or temporary), args)
    sys.stdout.write("\n".join(report(taken)) + "\n")


def compare(millions: float, parent: Path, args: argparse.Namespace) -> dict[Run, dict[str, float]]:
    """All jobs on one size, interleaved: medians. Exits where two made different things."""
    rows, folder = int(millions * 1e6), parent / f"{millions:g}M"
    if not folder.exists():
        generate(parent / "unfinished", rows)
        (parent / "unfinished").rename(folder)
    jobs = [job for job in JOBS if not {job, f"{job}@{millions:g}"} & set(args.skip)]
    runs: dict[Run, list[dict[str, Any]]] = {}
    for _ in range(args.rounds or (3 if millions <= 10 else 1)):
        for form, job in itertools.product(args.forms, jobs):
            if found := measure(job, folder / form, rows // PER_SUBJECT // 300 | 1, args.medbert):
                runs.setdefault((form, rows, job), []).append(found)
    made = {str(found["made"]): run for run, of in runs.items() for found in of}
    if len(made) > 1:
        sys.exit(f"results differ: {made}")
    absent = ", ".join(set(JOBS) - {job for _, _, job in runs}) or "none"
    sys.stdout.write(
        f"{millions:g} M: all made {next(iter(made), '')}; skipped or failed: {absent}\n"
    )
    return {run: {k: median(f[k] for f in of) for k in ("cpu", "gb")} for run, of in runs.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("millions", nargs="*", type=float, default=[10], help="of events")
    parser.add_argument("--folder", help="for the data, kept and used again (default: temporary)")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--skip", nargs="*", default=[], help="jobs: pandas, or pandas@50")
    parser.add_argument("--rounds", type=int, help="default: 3, and 1 above 10 M events")
    parser.add_argument("--medbert", nargs="*", default=["executor=serial"], help="its settings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
