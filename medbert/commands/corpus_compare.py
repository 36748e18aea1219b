"""``medbert corpus compare``: what several sites' corpora hold together, without their text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

from pyarrow import parquet

from medbert.commands.output.artefacts import artefact, write_json
from medbert.schema import InputError
from medbert.text.corpus.exchange import Site, overlaps

log = logging.getLogger(__name__)


def corpus_compare(
    *, in_: Sequence[str], near: float, out: str, overwrite: bool, settings: dict[str, Any]
) -> dict[str, Any]:
    """Writes ``out`` (overlap.json, leaving.parquet) and returns what is in overlap.json: each
    site's counts, their sums, and how many documents are near copies of another site's.

    The site that is named first keeps such a document; ``medbert corpus without=OUT`` leaves it out
    at the other.
    """
    if len(in_) < 2:
        raise InputError("in: at least two folders: in=[a/exchange,b/exchange]")
    sites = [Site.read(folder) for folder in in_]
    pairs, leaving = overlaps(sites, threshold=near)
    told = {
        "sites": [
            {"in": str(path), **site.manifest} for path, site in zip(in_, sites, strict=True)
        ],
        "documents": sum(site.manifest["documents"] or 0 for site in sites),
        "words": sum(site.manifest["words"] or 0 for site in sites),
        "languages": _by(sites, "language"),
        "kinds": _by(sites, "kind"),
        "near_copies": pairs,
    }
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        write_json(folder / "overlap.json", told)
        parquet.write_table(leaving, folder / "leaving.parquet")
    found = f"{len(leaving):,} documents are near copies of another site's"
    log.info("made %s: %s; next, at each site: medbert corpus ... without=%s", out, found, out)
    return told


def _by(sites: Sequence[Site], field: str) -> dict[str, int]:
    """Documents; counts that a site withheld are not in it."""
    total: dict[str, int] = {}
    for row in chain.from_iterable(site.manifest["groups"] for site in sites):
        total[row[field]] = total.get(row[field], 0) + (row["documents"] or 0)
    return dict(sorted(total.items()))
