"""``medbert tokenizer report``: how a tokenizer cuts a corpus, and whether it should know more."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import TRAIN
from medbert.text.corpus.plain import open_corpus
from medbert.text.encoders.extension import parameters_of_a_token
from medbert.text.encoders.fertility import Words, candidates, cuts, fertility, prices
from medbert.text.encoders.folders import tokenizer_of

log = logging.getLogger(__name__)

_MUCH_WORSE = 1.5  # times the fertility of general text
_WORTH = 0.05  # of all steps


@withheld
def tokenizer_report(
    *,
    tokenizer: str,
    corpus: str,
    general: str | None,
    documents: int | None,
    min_pieces: int,
    min_patients: int,
    sizes: Sequence[int],
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``out`` (report.json; words.txt, the proposed tokens, the most useful first) and
    returns the report. The words are of the train split, in ``min_patients`` or more patients."""
    pieces = tokenizer_of(tokenizer)
    words = _words(corpus, documents)
    total = words.total
    cut = cuts(total, pieces)
    groups = [
        {"language": language, "kind": kind, **fertility(counts, cut)}
        for (language, kind), counts in sorted(words.groups.items())
    ]
    languages: dict[str, list[Counter[str]]] = defaultdict(list)
    for (language, _), counts in words.groups.items():
        languages[language].append(counts)
    whole = fertility(total, cut)
    found = candidates(words, cut, min_pieces=min_pieces, min_patients=min_patients)
    each = parameters_of_a_token(tokenizer)
    report: dict[str, Any] = {
        "tokenizer": {"pieces": len(pieces), "parameters_a_token": each},
        "all": whole,
        "languages": [
            {"language": name, **fertility(sum(some, Counter()), cut)}
            for name, some in sorted(languages.items())
        ],
        "groups": groups,
        "general": None,
        "candidates": len(found),
        "prices": prices(found, sizes=sizes, pieces=whole["pieces"], parameters=each or 0),
    }
    if general:
        other = _words(general, documents).total
        report["general"] = fertility(other, cuts(other, pieces))
    report["advice"] = _advice(report)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        write_json(folder / "report.json", report)
        listed = "".join(f"{word}\n" for word, _ in found[: max(sizes, default=0)])
        (folder / "words.txt").write_text(listed, encoding="utf-8")
    _show(report)
    log.info("%s", report["advice"])
    words_in = Path(out) / "words.txt"
    log.info("made %s; next: medbert tokenizer extend base=%s words=%s", out, tokenizer, words_in)
    return report


def _words(corpus: str, documents: int | None) -> Words:
    words = Words()
    for document in islice(open_corpus(corpus).documents(split=TRAIN), documents):
        words.add(document)
    words.close()
    return words


def _advice(report: dict[str, Any]) -> str:
    best = report["prices"][-1] if report["prices"] else None
    if best is None:
        return "no word is cut into so many pieces in so many patients: nothing to add"
    saved = f"{best['tokens']:,} tokens would save {best['steps_saved']:.1%} of all steps"
    times = 0.0
    if (general := report["general"]) and general["fertility"]:
        times = report["all"]["fertility"] / general["fertility"]
        saved = f"{times:.2f} times the pieces a word of general text; {saved}"
    worth = best["steps_saved"] >= _WORTH or times >= _MUCH_WORSE
    return f"{saved}: {'extend it' if worth else 'an extension is hardly worth it'}"


def _show(report: dict[str, Any]) -> None:
    rates = ("words", "fertility", "in_one_piece", "unknown")
    table = Table("language", "kind", *(rate.replace("_", " ") for rate in rates))
    rows = [*report["groups"], *({"kind": "all", **row} for row in report["languages"])]
    rows.append({"language": "all", "kind": "all", **report["all"]})
    if report["general"]:
        rows.append({"language": "general", "kind": "", **report["general"]})
    for row in rows:
        values = [f"{row['words']:,}", f"{row['fertility'] or 0:.3f}"]
        values += [f"{row[rate] or 0:.1%}" for rate in rates[2:]]
        table.add_row(row["language"], row["kind"], *values)
    Console().print(table)
