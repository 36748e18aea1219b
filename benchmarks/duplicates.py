"""Near copies planted among texts: how many are found, and how fast, beside datasketch.

    python benchmarks/duplicates.py TEXTS  # one text a line, plain or gzip; pip install datasketch

Of each of 2,000 texts of 100 words or more a copy is made in which single words are others; their
true Jaccard overlap of five-word shingles is counted. Signatures of ours treat digits alike, so
overlaps are counted so too.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
import time
from pathlib import Path

import numpy as np

from medbert.text.corpus.duplicates import SHINGLE, VALUES, Signatures, near_copies, stacked

THRESHOLD, COPIES = 0.8, 2000
EDGES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.sub(r"\d", "0", text.casefold())
    listed = re.findall(r"\w+", words)
    return {tuple(listed[i : i + SHINGLE]) for i in range(len(listed) - SHINGLE + 1)}


def main(path: Path) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        texts = list(dict.fromkeys(line.strip() for line in lines if len(line.split()) >= 100))
    draw = random.Random(0)
    copies = []
    for text in texts[:COPIES]:
        words = text.split()
        for at in draw.sample(range(len(words)), max(1, round(len(words) * draw.random() * 0.12))):
            words[at] = "annet"
        copies.append(" ".join(words))
    pairs = [(shingles(a), shingles(b)) for a, b in zip(texts, copies, strict=False)]
    true = np.array([len(a & b) / len(a | b) for a, b in pairs])
    everything = texts + copies
    n_words = sum(len(text.split()) for text in everything)

    begun, sign = time.process_time(), Signatures()
    made = stacked([sign.of(text) for text in everything])
    signed = time.process_time() - begun
    of = near_copies(made, threshold=THRESHOLD)
    compared = time.process_time() - begun - signed
    found = of[len(texts) :] == np.arange(COPIES)
    sys.stdout.write(
        f"{len(everything):,} texts, {n_words:,} words; {(of[: len(texts)] >= 0).sum()} of the "
        f"{len(texts):,} originals called a copy\n"
        f"medbert ({VALUES} values): {n_words / signed:,.0f} words a CPU second signed, "
        f"{compared:.1f} s to compare all\n"
    )
    rows = [("medbert", found)]
    try:
        from datasketch import MinHash, MinHashLSH

        begun = time.process_time()
        lsh, theirs = MinHashLSH(threshold=THRESHOLD, num_perm=128), []
        for text in everything:
            minhash = MinHash(num_perm=128)
            minhash.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
            theirs.append(minhash)
        spent = time.process_time() - begun
        for i, minhash in enumerate(theirs[: len(texts)]):
            lsh.insert(i, minhash)
        hits = []
        for i in range(COPIES):
            own = theirs[len(texts) + i]
            hits.append(i in lsh.query(own) and own.jaccard(theirs[i]) >= THRESHOLD)
        every = time.process_time() - begun - spent
        sys.stdout.write(
            f"datasketch (128): {n_words / spent:,.0f} words a CPU second signed, {every:.1f} s\n"
        )
        rows.append(("datasketch", np.array(hits)))
    except ImportError:
        pass
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        here = (true >= low) & (true < high + (high == 1.0))
        told = ", ".join(f"{name} {hit[here].mean():.1%}" for name, hit in rows)
        sys.stdout.write(f"true overlap {low} to {high}: {here.sum()} copies; called so: {told}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
