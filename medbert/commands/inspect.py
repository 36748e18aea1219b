"""``medbert inspect``: a store's dataset card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.output.progress import show
from medbert.data.card import describe
from medbert.data.store import Store
from medbert.evaluate.reports.card import Card

log = logging.getLogger(__name__)


def inspect(
    *,
    store: str,
    max_tokens: int,
    min_count: int,
    top: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Card:
    """Writes ``out`` (card.json, card.html), shows the card in the terminal and returns it.

    What is written names no subject and no file of the source; the terminal says where the first
    of each finding is.
    """
    records = Store(store)
    card = Card(describe(records, max_tokens=max_tokens, min_count=min_count, top=top))
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        write_json(folder / "card.json", card.to_dict())
        card.write_html(folder / "card.html")
    found = records.info.get("findings", {})
    show(card.for_terminal(places={why: one["first"] for why, one in found.items()}))
    log.info("made %s; open %s", out, Path(out) / "card.html")
    log.info("next: medbert pretrain store=%s out=encoder/", store)
    return card
