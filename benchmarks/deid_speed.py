"""How fast notes are de-identified, and in how much memory.

    python benchmarks/deid_speed.py DETECTOR NOTES.jsonl [--megabytes 4 16]

``DETECTOR``: a folder of ``medbert train detector``. Notes a CPU-second of one thread, on
notes cut to 1,500 characters; one note of 100,000 tokens; and the peak memory of ``medbert
deidentify`` (a process of its own each) on folders of so many megabytes of text. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medbert.text.detectors.rules import Rules
from medbert.text.detectors.thresholds import load_detector
from medbert.text.detectors.words import listed
from medbert.text.spans import Ensemble
from medbert.text.tokens import tokens

CHARACTERS, TOKENS = 1_500, 100_000
_RUN = """
import resource, sys, medbert
medbert.deidentify("in=" + sys.argv[1], *sys.argv[3:], out=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("detector")
    parser.add_argument("notes", type=Path)
    parser.add_argument("--megabytes", nargs="*", type=int, default=[])
    options = parser.parse_args()
    lines = options.notes.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    trained = load_detector(options.detector)
    by_rule = [Rules(), *listed()]
    found = {"rules and lists": Ensemble(by_rule), "with the CRF": Ensemble([*by_rule, trained])}
    whole = "\n\n".join(texts)
    whole = (whole + "\n\n") * (1 + TOKENS // len(tokens(whole)))
    whole = whole[: tokens(whole)[TOKENS - 1][1]]
    parts = [whole[i : i + CHARACTERS] for i in range(0, 300 * CHARACTERS, CHARACTERS)]
    print(
        f"| | notes of {CHARACTERS:,} characters/s | one note of {TOKENS:,} tokens |\n|---|---|---|"
    )
    for name, detector in found.items():
        spent = []
        for some in (parts, [whole]):
            begun = time.process_time()
            for text in some:
                detector.detect(text)
            spent.append(time.process_time() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {name} | {len(parts) / spent[0]:,.0f} | {spent[1]:.1f} s, {peak:,.0f} MB |",
            flush=True,
        )
    for size in options.megabytes:
        with tempfile.TemporaryDirectory() as place:
            folder, written, n = Path(place) / "notes", 0, 0
            folder.mkdir()
            while written < size * 1_000_000:
                text = parts[n % len(parts)]
                written += (folder / f"{n}.txt").write_text(text, encoding="utf-8")
                n += 1
            begun = time.monotonic()
            out = subprocess.run(
                [sys.executable, "-c", _RUN, folder, Path(place) / "clean"],
                check=True,
                capture_output=True,
                text=True,
            )
            print(
                f"\n`medbert deidentify`, rules and lists, {size} MB in {n:,} files: "
                f"{time.monotonic() - begun:.0f} s, peak {float(out.stdout.split()[-1]):,.0f} MB"
            )


if __name__ == "__main__":
    main()
