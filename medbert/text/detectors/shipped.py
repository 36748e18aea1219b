"""The small CRF that is shipped (``data/detector``; ``make detector`` trains it again).

It knows people, places and organisations by what stands around them, in English, bokmål and
nynorsk; in a text of another language it would take every noun with a capital for a name, and so
it finds nothing there. What it was trained on is said in ``data/lists.md``.
"""

from __future__ import annotations

import logging
import re
from importlib.resources import as_file, files
from importlib.util import find_spec

from medbert.schema import Span
from medbert.text.detectors.thresholds import load_detector
from medbert.text.language import OTHER, Languages
from medbert.text.lists import WORD, common, eponym, opens, tailed
from medbert.text.lists import shipped as shipped_lists
from medbert.text.spans import Detector, coarse

log = logging.getLogger(__name__)

_READ = 4_000  # characters that tell the language
_SPELLED = re.compile(r"(?<![^\W_])[A-Z](?: [A-Z]){2,}(?![^\W_])\.?")
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
        found = self.crf.detect(text)
        return [s for s in found if not _of_a_disease(text, s) and not _ordinary(text, s)]


def _ordinary(text: str, span: Span) -> bool:
    """Whether it is of ordinary words, and no capital inside a sentence says that it is a name; or
    of letters told one by one ("M R I"), or who speaks ("Guest_family:")."""
    start, end, *_ = span
    spelled = _SPELLED.finditer(text, max(0, start - 20), end + 20)
    if text[end : end + 1] == "_" or any(m.start() <= start < m.end() for m in spelled):
        return True
    words = WORD.findall(text[start:end])
    if len(words) == 1 and words[0].casefold() in shipped_lists().things:
        return True
    inside = words[opens(text, start) :]  # the words whose capital says something
    return bool(words) and all(map(common, words)) and not any(word[0].isupper() for word in inside)


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
