"""``medbert synthesize``: an invented cohort in MEDS form, with its known truth."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from medbert.commands.output.artefacts import artefact
from medbert.data import synthetic

log = logging.getLogger(__name__)


def synthesize(
    *, n_subjects: int, seed: int, out: str, overwrite: bool, settings: dict[str, Any]
) -> Path:
    """Writes a MEDS folder of ``n_subjects`` invented lives and returns its path."""
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        synthetic.write(synthetic.simulate(n_subjects, seed=seed), folder)
    log.info("made %s; next: medbert prepare source=meds source.path=%s out=store/", out, out)
    return Path(out)
