"""``medbert tokenizer train``: texts to a tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import TRAIN
from medbert.text.corpus.plain import open_corpus
from medbert.text.encoders.vocabulary import learn_pieces

log = logging.getLogger(__name__)


@withheld
def tokenizer_train(
    *,
    corpus: str,
    kind: str,
    size: int,
    lowercase: bool,
    min_count: int,
    length: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes the tokenizer folder ``out``, learned from the train split, and returns it.

    Pieces of texts are in it: of notes, only of those that may be shown.
    """
    texts = open_corpus(corpus)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        pieces = learn_pieces(
            texts.texts(split=TRAIN),
            kind=kind,
            size=size,
            lowercase=lowercase,
            min_count=min_count,
            length=length,
        )
        pieces.save_pretrained(folder)
        write_json(folder / "metrics.json", {"pieces": len(pieces), "corpus_sha256": texts.sha256})
    log.info("%s pieces", f"{len(pieces):,}")
    text = "made %s; next: medbert adapt corpus=%s base=null tokenizer=%s architecture=modernbert"
    log.info(f"{text} out=base/", out, corpus, out)
    return Path(out)
