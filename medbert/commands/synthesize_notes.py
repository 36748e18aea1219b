"""``medbert synthesize notes``: invented notes of invented patients, with gold spans."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from medbert.commands.artefacts import artefact
from medbert.text import synthetic

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
    invented = synthetic.invent(n_patients, seed=seed, wide=wide, noise=noise)
    lines = []
    for note, site in invented:
        row = {**note._asdict(), "site": site}
        row["spans"] = [span._asdict() for span in note.spans or ()]
        lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        (folder / "notes.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    log.info("made %s; next: medbert deidentify in=%s out=clean/", out, out)
    return Path(out)
