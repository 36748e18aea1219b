"""Subjects per CPU-second that the simulator writes as Arrow tables, on one thread.

OMP_NUM_THREADS=1 python benchmarks/synthesize.py
"""

from __future__ import annotations

import sys
import time

import pyarrow as pa

from medbert.data import synthetic

N_SUBJECTS, ROUNDS = 20_000, 3


def main() -> None:
    pa.set_cpu_count(1)
    rates = []
    for seed in range(ROUNDS):
        begun = time.process_time()
        events = synthetic.simulate(N_SUBJECTS, seed=seed).events
        rates.append(N_SUBJECTS / (time.process_time() - begun))
    sys.stdout.write(
        f"{sorted(rates)[ROUNDS // 2]:,.0f} subjects per CPU-second (median of {ROUNDS}; "
        f"{len(events) / N_SUBJECTS:.0f} events a subject)\n"
    )


if __name__ == "__main__":
    main()
