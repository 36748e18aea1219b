"""``medbert synthesize notes``: invented notes of invented patients, with gold spans."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from medbert.commands.output.artefacts import artefact
from medbert.text.notes import COLUMNS, write
from medbert.text.synthetic.writing import invent

log = logging.getLogger(__name__)


def synthesize_notes(
    *,
    n_patients: int,
    wide: bool,
    noise: float,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out``/notes.jsonl (note_id, patient_id, site, kind, language, time, text, spans)."""
    invented = invent(n_patients, seed=seed, wide=wide, noise=noise)
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        write(invented, folder / "notes.jsonl", format="jsonl", fields=COLUMNS)
    log.info("made %s; next: medbert deidentify in=%s out=clean/", out, out)
    return Path(out)
