"""The small CRF that is shipped (``data/detector``; ``make detector`` trains it again).

It knows people, places and organisations by what stands around them, in English, bokmål and
nynorsk; in a text of another language it would take every noun with a capital for a name, and so
it finds nothing there. What it was trained on is said in ``data/lists.md``.
"""

from __future__ import annotations

import logging
from importlib.resources import as_file, files
from importlib.util import find_spec

from medbert.schema import Span
from medbert.text.detectors.thresholds import load_detector
from medbert.text.language import OTHER, Languages
from medbert.text.lists import eponym, tailed
from medbert.text.spans import Detector, coarse

log = logging.getLogger(__name__)

_READ = 4_000  # characters that tell the language
_LEAST = 30  # words; of fewer it is not asked


class Shipped:
    """The detector by itself; ``point``: recall or f1."""

    def __init__(self, *, point: str) -> None:
        with as_file(files("medbert.text").joinpath("data", "detector")) as folder:
            self.crf = load_detector(folder, point=point)
        self.languages = Languages.shipped()

    def detect(self, text: str) -> list[Span]:
        shares = self.languages.of(text[:_READ], least=_LEAST).shares
        if shares.get(OTHER, 0.0) > 0.5:
            return []
        return [span for span in self.crf.detect(text) if not _of_a_disease(text, span)]


def _of_a_disease(text: str, span: Span) -> bool:
    """Whether a name is that of a disease, a test or a score: "McIsaac score"."""
    word = text[span.start : span.end]
    alone = coarse(span.label) != "ORGANISATION" and word.isalpha()
    return eponym(text, span.start, span.end) or (alone and tailed(text, span.end))


def shipped(*, point: str) -> list[Detector]:
    """The shipped detector, or none where python-crfsuite is not installed."""
    if find_spec("pycrfsuite") is None:
        log.warning(
            "rules and word lists alone; with a trained detector: pip install medbert[text]"
        )
        return []
    return [Shipped(point=point)]
