"""Open texts beside the invented notes that the shipped detector is trained on (``make detector``).

    python benchmarks/carriers.py OUT.jsonl MTS-Dialog.csv NorMedQA.json norne_nob.conll ...

A CRF that has seen templates alone takes every unknown word with a capital for a name. So it also
reads sections of notes without PHI (MTS-Dialog, CC BY 4.0), exam questions (NorMedQA, CC BY 4.0),
and people and places in running Norwegian text (NorNE, CC0, over the sentences of the Norwegian
Dependency Treebank, CC BY-SA 4.0 as in Universal Dependencies), which become other people and
places first. Dates, ages and numbers are not marked in them, so only names and places can be
learnt. None of these texts is shipped.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from medbert.schema import Span
from medbert.text.notes import Note, write
from medbert.text.synthetic.augment import augmented

_SEED, _MOST, _SENTENCES = 7, 200, 6  # of texts a file; of sentences a text
_LABELS = {"PER": "NAME", "LOC": "LOCATION", "GPE_LOC": "LOCATION", "GPE_ORG": "LOCATION"}


def main() -> None:
    out, *paths = map(Path, sys.argv[1:])
    notes: list[Note] = []
    for path in paths:
        reader = {".csv": _sections, ".json": _questions}.get(path.suffix, _named)
        found = [*reader(path)]
        Random(_SEED).shuffle(found)
        notes += [n._replace(note_id=f"{path.stem}-{i}") for i, n in enumerate(found[:_MOST])]
    write(notes, out, format="jsonl", fields=("note_id", "text", "language"))


def _sections(path: Path) -> Iterator[Note]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Note("", row["section_text"], language="en", spans=())


def _questions(path: Path) -> Iterator[Note]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        yield Note("", row["question_text"], language="nb", spans=())


def _named(path: Path) -> Iterator[Note]:
    """Sentences with names, some of them together, with other names in their place."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    sentences = [s for s in map(_sentence, text.split("\n\n")) if s and s[1]]
    for i in range(0, len(sentences) - _SENTENCES, _SENTENCES):
        whole, spans = "", []
        for sentence, found in sentences[i : i + _SENTENCES]:
            spans += [Span(s.start + len(whole), s.end + len(whole), s.label) for s in found]
            whole += sentence + " "
        note = Note(
            str(i), whole, language="nn" if "nno" in path.name else "nb", spans=tuple(spans)
        )
        yield [*augmented([note], copies=1, variation=0.1, seed=i)][-1]


def _sentence(block: str) -> tuple[str, list[Span]]:
    text, spans = "", []
    for line in block.splitlines():
        columns = line.split("\t")
        if len(columns) < 10:
            continue
        word, (mark, _, kind) = columns[1], columns[-1].partition("name=")[2].partition("-")
        if text and not re.match(r"[.,:;!?)»]", word) and not text.endswith(("(", "«")):
            text += " "
        label = _LABELS.get(kind.partition("|")[0])
        if label and mark == "I" and spans and spans[-1].label == label:
            spans[-1] = spans[-1]._replace(end=len(text) + len(word))
        elif label:
            spans.append(Span(len(text), len(text) + len(word), label))
        text += word
    return text, spans


if __name__ == "__main__":
    main()
