"""The default detector, and its rules and word lists alone, on notes of sources it never saw.

    python benchmarks/foreign.py NOTES.jsonl [NOTES.jsonl ...]

Each line of a file: ``{"text": ..., "spans": [{"start", "end", "coarse"}, ...]}``. Found and gold
are cut alike to the Safe Harbor policy (ages under 90, bare years, states and countries stay), and
any PHI counts whatever its label. Prints Markdown: token recall with its 95% interval (bootstrap
over documents), precision, documents without a leak, documents without PHI that are touched.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from medbert.commands.deidentify import detectors
from medbert.schema import Span
from medbert.text.notes import Note
from medbert.text.scoring.measures import Scores
from medbert.text.scoring.policy import SAFE_HARBOR

HEADS = ("recall", "precision", "leak-free", "PHI-free touched", "notes/s")
OURS = {"ORG": "ORGANISATION"}
NO_PHI = ("TITLE", "NRP")  # labels of others for what is none here


def main() -> None:
    arms = {"rules and lists": None, "default": "shipped"}
    finders = {name: detectors(trained=trained, point="recall") for name, trained in arms.items()}
    print(f"| notes | detector | {' | '.join(HEADS)} |")
    print("|---" * (2 + len(HEADS)) + "|")
    for path in map(Path, sys.argv[1:]):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, finder in finders.items():
            whole, counts, spent = Scores(label=lambda _: "PHI"), [], 0.0
            for n, one in enumerate(lines):
                note = Note(str(n), one["text"])
                gold = SAFE_HARBOR.apply(note.text, _gold(one["spans"]))
                begun = time.process_time()
                found = SAFE_HARBOR.apply(note.text, finder.detect(note.text))
                spent += time.process_time() - begun
                alone = Scores(label=lambda _: "PHI")
                for scores in (alone, whole):
                    scores.add(note, gold, found)
                counts.append(_token(alone))
            cells = _cells(whole, np.array(counts), len(lines) / spent)
            print(f"| {path.parent.name}, {path.stem} | {name} | {' | '.join(cells)} |", flush=True)


def _gold(spans: list[dict[str, object]]) -> list[Span]:
    found = ((s["start"], s["end"], str(s.get("coarse") or s["label"])) for s in spans)
    return [Span(a, b, OURS.get(x, x)) for a, b, x in found if x not in NO_PHI]  # type: ignore


def _token(scores: Scores) -> tuple[int, int]:
    token = scores.to_dict()["all"]["all"]["measures"].get("token", {"gold": 0, "missed": 0})
    return token["gold"] - token["missed"], token["gold"]


def _cells(scores: Scores, counts_N2: np.ndarray, speed: float) -> list[str]:
    told = scores.to_dict()["all"]["all"]
    token, of = told["measures"]["token"], told["documents"]
    rows = np.random.default_rng(0).integers(len(counts_N2), size=(2_000, len(counts_N2)))
    hits, total = counts_N2[rows].sum(1).T
    low, high = np.quantile(hits / total, [0.025, 0.975])
    return [
        f"{token['recall']:.3f} ({low:.3f} to {high:.3f})",
        f"{token['precision']:.3f}",
        f"{of['with_phi'] - of['leaking']}/{of['with_phi']}",
        f"{of['touched_of_these']}/{of['without_phi']}" if of["without_phi"] else "",
        f"{speed:,.0f}",
    ]


if __name__ == "__main__":
    main()
