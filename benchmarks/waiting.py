"""What does a third busy process cost two threads that wait for each other? Steps a second of a
small encoder layer, by how long a waiting thread spins before it sleeps (GOMP_SPINCOUNT).

    python benchmarks/waiting.py

Prints Markdown: medians of three rounds on quiet cores, and beside one busy process a core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

COUNTS = ("", "1000", "3000", "10000", "30000", "100000")  # "": the default of the library
SECONDS, ROUNDS = 4.0, 3


def steps_a_second() -> float:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    optimizer, x = torch.optim.AdamW(layer.parameters()), torch.randn(64, 64, 64)
    for n in range(1_000_000):
        if n == 5:  # warm
            begun = time.monotonic()
        optimizer.zero_grad()
        layer(x).pow(2).mean().backward()
        optimizer.step()
        if n > 5 and time.monotonic() - begun > SECONDS:
            break
    return (n - 5) / (time.monotonic() - begun)


def measured(count: str) -> float:
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    own |= {"GOMP_SPINCOUNT": count} if count else {}
    command = [sys.executable, __file__, "child"]
    return float(subprocess.run(command, env=own, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    if sys.argv[1:] == ["child"]:
        sys.stdout.write(str(steps_a_second()))
        return
    told = {}
    for busy in (False, True):
        loop = [sys.executable, "-c", "while True: pass"]
        others = [subprocess.Popen(loop) for _ in range(os.cpu_count() or 1)] if busy else []
        try:
            rounds = [[measured(count) for count in COUNTS] for _ in range(ROUNDS)]
        finally:
            for other in others:
                other.kill()
        told[busy] = [statistics.median(column) for column in zip(*rounds, strict=True)]
    sys.stdout.write("| spins | quiet | beside busy processes |\n|---|---|---|\n")
    for count, quiet, busy in zip(COUNTS, told[False], told[True], strict=True):
        sys.stdout.write(f"| {count or 'default'} | {quiet:.1f} | {busy:.1f} |\n")


if __name__ == "__main__":
    main()
