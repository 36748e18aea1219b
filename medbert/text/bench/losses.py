"""Masked loss and bits per character: of held-out patients, of another source, of general text."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from medbert.schema import HELD_OUT
from medbert.text.bench.masked import CHARACTERS, NATS, PIECES, ROUNDS, MaskedModel
from medbert.text.bench.reading import kept, language_of, notes
from medbert.text.bench.tasks import Array, Items, ratio
from medbert.text.corpus.documents import UNKNOWN, Corpus
from medbert.text.notes import Note


@dataclass
class MaskedLoss:
    """``path``: a corpus, of which documents of the split ``split`` are read; notes in any format;
    or a text file with a document a line. At most ``n_texts`` of them, each up to ``characters``.
    """

    measures = (
        ratio("bits per character", NATS, CHARACTERS, higher=False, scale=1 / np.log(2)),
        ratio("masked loss", NATS, PIECES, higher=False),
    )
    seeded = False
    path: str
    _: KW_ONLY
    split: str = HELD_OUT
    n_texts: int = 500
    characters: int = 2000
    rounds: int = ROUNDS
    longest: int | None = None
    device: str = "auto"

    @cached_property
    def _texts(self) -> tuple[list[Note], list[str]]:
        """The texts, and the site of each."""
        if (Path(self.path) / "manifest.json").is_file():
            given = list(Corpus(self.path).documents(split=self.split))
            found = [
                Note(d.note_id, d.text, d.patient_id, d.time, d.kind, d.language) for d in given
            ]
            sites = [d.site for d in given]
        else:
            found = notes(self.path)
            sites = [UNKNOWN] * len(found)
        kept(self.path, found, 2, "texts")
        chosen = np.sort(np.random.default_rng(0).permutation(len(found))[: self.n_texts])
        cut = [found[i]._replace(text=found[i].text[: self.characters]) for i in chosen]
        return cut, [sites[i] for i in chosen]

    def items(self) -> Items:
        found, sites = self._texts
        language = [language_of(note) for note in found]
        kinds = [note.kind or UNKNOWN for note in found]
        groups = {"language": np.array(language)}
        if {*kinds, *sites} != {UNKNOWN}:
            cells = zip(sites, kinds, language, strict=True)
            groups["site, kind, language"] = np.array([", ".join(cell) for cell in cells])
        return Items(np.array([note.patient_id or note.note_id for note in found]), groups)

    def run(self, model: Path, *, seed: int) -> Array:
        ours = MaskedModel(model, longest=self.longest, device=self.device)
        return ours.losses([note.text for note in self._texts[0]], rounds=self.rounds)

    def beside(self, *, seed: int) -> dict[str, Array]:
        return {}
