"""Into how many pieces a tokenizer cuts the words of a corpus, and which words it would be worth
knowing whole.

Fertility is pieces a word (Rust et al. 2021). A word is a run of letters and digits, and
stands behind a blank.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medbert.text.corpus.documents import Document

Group = tuple[str, str]  # language and kind

_WORD = re.compile(r"\w+")
_AT_ONCE = 4096  # words tokenised together
_MOST_WORDS = 3_000_000  # different ones; the rarest give way
_PLAIN = re.compile(r"[^\W\d_]{4,}")  # what may become a token: letters alone


class Words:
    """Counts of the words of a corpus, by language and kind, and in how many patients each is."""

    def __init__(self) -> None:
        self.groups: dict[Group, Counter[str]] = defaultdict(Counter)
        self.patients: Counter[str] = Counter()
        self._of_patient: set[str] = set()
        self._patient: str | None = None

    def add(self, document: Document) -> None:
        """Documents of a patient follow each other."""
        said = _WORD.findall(document.text)
        whose = document.patient_id or f"note {document.note_id}"
        if whose != self._patient:
            self.close()
            self._patient = whose
        self.groups[document.language, document.kind].update(said)
        self._of_patient.update(said)

    def close(self) -> None:
        self.patients.update(self._of_patient)
        self._of_patient = set()
        if len(self.patients) > _MOST_WORDS:
            rare = {word for word, n in self.patients.items() if n == 1}
            for counts in (*self.groups.values(), self.patients):
                for word in rare & counts.keys():
                    del counts[word]

    @property
    def total(self) -> Counter[str]:
        return sum(self.groups.values(), Counter())


class Cut(NamedTuple):
    """Of a word: how many pieces, and whether one of them is unknown."""

    pieces: int
    unknown: bool


def cuts(words: Iterable[str], tokenizer: Any) -> dict[str, Cut]:
    """How a Hugging Face tokenizer cuts each word."""
    listed, found = sorted({*words}), {}
    unknown = tokenizer.unk_token_id
    for at in range(0, len(listed), _AT_ONCE):
        some = listed[at : at + _AT_ONCE]
        made = tokenizer([f" {word}" for word in some], add_special_tokens=False)["input_ids"]
        for word, ids in zip(some, made, strict=True):
            found[word] = Cut(len(ids), unknown is not None and unknown in ids)
    return found


def fertility(counts: Mapping[str, int], cut: Mapping[str, Cut]) -> dict[str, Any]:
    """Of all occurrences: pieces a word, the share in one piece, the share with an unknown one."""
    n = sum(counts.values())
    pieces = sum(count * cut[word].pieces for word, count in counts.items())
    whole = sum(count for word, count in counts.items() if cut[word].pieces == 1)
    unknown = sum(count for word, count in counts.items() if cut[word].unknown)
    return {
        "words": n,
        "pieces": pieces,
        "fertility": pieces / n if n else None,
        "in_one_piece": whole / n if n else None,
        "unknown": unknown / n if n else None,
    }


def candidates(
    words: Words, cut: Mapping[str, Cut], *, min_pieces: int, min_patients: int
) -> list[tuple[str, int]]:
    """Words worth a token, and the pieces each would save, the most first.

    Of letters alone, in ``min_patients`` or more patients: a rarer word may be a name, and a
    vocabulary is read by everybody who has the model.
    """
    saved = [
        (word, count * (cut[word].pieces - 1))
        for word, count in words.total.items()
        if cut[word].pieces >= min_pieces
        and words.patients[word] >= min_patients
        and _PLAIN.fullmatch(word)
    ]
    return sorted(saved, key=lambda pair: (-pair[1], pair[0]))


def prices(
    found: Sequence[tuple[str, int]], *, sizes: Sequence[int], pieces: int, parameters: int
) -> list[dict[str, Any]]:
    """What the first so many candidates cost and save. ``pieces``: of the whole corpus;
    ``parameters``: of one token. As steps are made of pieces, the share saved is one of steps."""
    total_N: NDArray[np.int64] = np.cumsum([0, *(n for _, n in found)])
    within = sorted({min(size, len(found)) for size in sizes} - {0})
    return [
        {
            "tokens": size,
            "parameters": size * parameters,
            "pieces_saved": int(total_N[size]),
            "steps_saved": total_N[size] / pieces if pieces else 0.0,
        }
        for size in within
    ]
