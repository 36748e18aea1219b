"""What rules and word lists find by themselves, on annotated notes that they were never trained on.

    python benchmarks/deidentify.py NOTES.jsonl [NOTES.jsonl ...]

Each line of a file: ``{"text": ..., "spans": [{"start": ..., "end": ..., "coarse": ...}]}``. What
is found is cut to the Safe Harbor policy (ages under 90, bare years, states and countries stay);
gold is as annotated, or cut alike. Binary: any PHI counts, whatever its label. Prints Markdown.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from medbert.schema import Span
from medbert.text.notes import Note
from medbert.text.policy import SAFE_HARBOR
from medbert.text.rules import Rules
from medbert.text.scoring import Scores
from medbert.text.spans import Ensemble
from medbert.text.words import listed


def main() -> None:
    detector = Ensemble([Rules(), *listed()])
    heads = ("token recall", "token precision", "leak-free", "PHI-free touched", "notes/s")
    print(f"| notes | gold | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for path in map(Path, sys.argv[1:]):
        sides = {name: Scores(label=lambda _: "PHI") for name in ("as annotated", "cut alike")}
        lines, spent = path.read_text(encoding="utf-8").splitlines(), 0.0
        for n, line in enumerate(lines, start=1):
            one = json.loads(line)
            note = Note(str(n), one["text"])
            gold = [Span(s["start"], s["end"], s.get("coarse", "ID")) for s in one["spans"]]
            begun = time.process_time()
            found = SAFE_HARBOR.apply(note.text, detector.detect(note.text))
            spent += time.process_time() - begun
            sides["as annotated"].add(note, gold, found)
            sides["cut alike"].add(note, SAFE_HARBOR.apply(note.text, gold), found)
        for name, scores in sides.items():
            told = scores.to_dict()["all"]["all"]
            token, of = told["measures"]["token"], told["documents"]
            cells = [f"{token['recall']:.3f}", f"{token['precision']:.3f}"]
            cells += [f"{of['with_phi'] - of['leaking']}/{of['with_phi']}"]
            cells += [f"{of['touched_of_these']}/{of['without_phi']}"]
            print(
                f"| {path.parent.name} | {name} | {' | '.join(cells)} | {len(lines) / spent:,.0f} |"
            )


if __name__ == "__main__":
    main()
