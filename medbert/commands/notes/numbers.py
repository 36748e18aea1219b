"""The documents of a corpus as numbers, in the folder of a run that is under way."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medbert.commands.output.artefacts import read_json, write_json
from medbert.text.corpus.documents import Corpus
from medbert.text.corpus.plain import PlainText
from medbert.text.encoders.pieces import Tokens, open_tokens, write_tokens

log = logging.getLogger(__name__)

_WHO = "who.json"


class Numbers(NamedTuple):
    """Tokens of N documents; of each its site, its language and a number of its patient."""

    tokens: Tokens
    who_N: list[tuple[str, str, int]]


def numbers(
    corpus: Corpus | PlainText,
    folder: Path,
    *,
    split: str,
    tokenizer: Any,
    sentences: bool,
    most: int | None,
    writes: bool,
) -> Numbers:
    """Those of a split, or ``most`` of them (the lowest hashes). Made once: a run that is taken up,
    and the other processes of one that is shared, find them in ``folder``."""
    while not writes and not (folder / _WHO).is_file():
        time.sleep(0.5)
    if not (folder / _WHO).is_file():
        wanted = None
        if most is not None:
            hashes = (document.sha256 for document in corpus.documents(split=split))
            wanted = set(heapq.nsmallest(most, hashes))
        who_N: list[tuple[str, str, int]] = []
        patients: dict[str, int] = {}

        def texts() -> Iterator[str]:
            for document in corpus.documents(split=split):
                if wanted is None or document.sha256 in wanted:
                    patient = document.patient_id or f"\0{document.note_id}"
                    number = patients.setdefault(patient, len(patients))
                    who_N.append((document.site, document.language, number))
                    yield document.text

        write_tokens(texts(), folder, tokenizer=tokenizer, sentences=sentences)
        write_json(folder / _WHO, who_N)
    found = Numbers(open_tokens(folder), [(s, n, p) for s, n, p in read_json(folder / _WHO)])
    documents, tokens = len(found.who_N), int(found.tokens.offsets_N1[-1])
    log.info("%s: %s documents, %s tokens", folder.name, f"{documents:,}", f"{tokens:,}")
    return found
