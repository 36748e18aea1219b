"""``medbert tokenizer extend``: a text BERT whose tokenizer knows more words whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import InputError
from medbert.text.encoders.extension import extend

log = logging.getLogger(__name__)


def tokenizer_extend(
    *,
    base: str,
    words: str,
    tokens: int | None,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes the Hugging Face folder ``out`` and returns how many tokens and parameters are new."""
    try:
        lines = Path(words).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"words={words}: no UTF-8 text with a word a line") from None
    wanted = [*dict.fromkeys(word for line in lines if (word := line.strip()))][:tokens]
    if broken := [number for number, word in enumerate(wanted, start=1) if len(word.split()) > 1]:
        raise InputError(f"{words}: word {broken[0]}: more than one word")
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        told = extend(base, folder, wanted)
        write_json(folder / "extension.json", told)
    more = f"{told['tokens']:,} tokens and {told['parameters']:,} parameters more"
    log.info("made %s: %s; next: medbert adapt base=%s corpus=...", out, more, out)
    return told
