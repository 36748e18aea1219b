"""From the probability of every word's tags to spans, and how sure a detector has to be.

A trained detector says of every word how likely each IOB2 tag is, and whether it takes it for PHI.
A word counts as PHI where that is so or ``1 - P(O)`` passes a threshold; what the PHI words beside
each other are is then the likeliest legal path. Two sets of thresholds come from notes that were
not trained on: ``f1`` (the best strict F1) and ``recall`` (a stated share of the PHI words is
found: of all of them, or of those of every label).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medbert.schema import InputError, Span
from medbert.text.notes import Note
from medbert.text.scoring.measures import Scores
from medbert.text.tokens import Offsets

OUTSIDE = "O"
ANY = "*"  # the label of a threshold for all labels that have none of their own
F1, RECALL = "f1", "recall"
CARD, METRICS = "detector.json", "metrics.json"

_FORMAT = 1
_FEW = 50  # words of a label: fewer, and the threshold of all labels holds for it
_LEAST = 1e-3  # no threshold is lower: nearly every word would pass it
_I_FOR_B, _TINY = 0.01, 1e-9
_F1_GRID = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1)  # 1: none passes but what is taken for PHI anyhow

_MAKE = "copy the folder again, or train the detector anew"

Thresholds = Mapping[str, float]


class Scored(NamedTuple):
    """The words of one text, the probability of each of L tags of each of them, and what is taken
    for PHI: what is no O on the best path."""

    words: Sequence[Offsets]
    probability_WL: np.ndarray
    inside_W: np.ndarray


def tags_of(spans: Iterable[Span]) -> list[str]:
    """O, then B and I of every label there is."""
    labels = sorted({span.label for span in spans})
    return [OUTSIDE, *(f"{mark}-{label}" for label in labels for mark in "BI")]


def tag(words: Sequence[Offsets], spans: Iterable[Span]) -> list[str]:
    """The IOB2 tag of every word; a word of which a span has a character is the span's."""
    tags, i = [OUTSIDE] * len(words), 0
    for start, end, label, *_ in sorted(spans):
        while i < len(words) and words[i][1] <= start:
            i += 1
        mark = "B"
        while i < len(words) and words[i][0] < end:
            tags[i], mark, i = f"{mark}-{label}", "I", i + 1
    return tags


def decode(scored: Scored, tags: Sequence[str], thresholds: Thresholds) -> list[Span]:
    """The spans of a text; the score of a span is the mean of ``1 - P(O)`` of its words."""
    words, p_WL, found_W = scored
    labels = [name[2:] for name in tags[1::2]]
    begin_WK, inside_WK = p_WL[:, 1::2], p_WL[:, 2::2]
    limit_K = np.array([thresholds.get(label, thresholds[ANY]) for label in labels])
    phi_W = 1 - p_WL[:, 0]
    found_W = found_W | (phi_W > limit_K[(begin_WK + inside_WK).argmax(1)])
    edges = np.flatnonzero(np.diff(np.r_[False, found_W, False]))
    spans = []
    for first, end in edges.reshape(-1, 2):
        path = _best_path(begin_WK[first:end], inside_WK[first:end])
        starts = [i for i, (_, begins) in enumerate(path) if begins]
        for i, j in zip(starts, [*starts[1:], len(path)], strict=True):
            score = float(np.clip(phi_W[first + i : first + j].mean(), 1e-6, 1.0))
            where = words[first + i][0], words[first + j - 1][1]
            spans.append(Span(*where, labels[path[i][0]], score))
    return spans


def _best_path(begin_WK: np.ndarray, inside_WK: np.ndarray) -> list[tuple[int, bool]]:
    """The label of each of a run of PHI words, and whether a span begins there: the likeliest.

    After another label (and at first) a span begins: I of a label stands there for B, though far
    less likely, so that no path is illegal, also not that of a model of IOB1 or plain labels.
    """
    start_WK = np.log(begin_WK + _I_FOR_B * inside_WK + _TINY)
    begin_WK, inside_WK = np.log(begin_WK + _TINY), np.log(inside_WK + _TINY)
    same_WK = np.maximum(begin_WK, inside_WK)
    best_K, back = start_WK[0], []
    own = np.arange(len(best_K))
    for start_K, same_K in zip(start_WK[1:], same_WK[1:], strict=True):
        score_KK = best_K[:, None] + start_K[None, :]
        score_KK[own, own] = best_K + same_K
        back.append(score_KK.argmax(0))
        best_K = score_KK.max(0)
    labels = [int(best_K.argmax())]
    for came_from in reversed(back):
        labels.append(int(came_from[labels[-1]]))
    labels.reverse()
    again_WK = begin_WK > inside_WK
    return [(k, i == 0 or k != labels[i - 1] or bool(again_WK[i, k])) for i, k in enumerate(labels)]


class Trained:
    """What trained detectors share. ``tags``: O, then B and I of each label in turn."""

    kind: ClassVar[str]

    def __init__(
        self,
        tags: Sequence[str],
        *,
        points: Mapping[str, Thresholds] | None = None,
        point: str = RECALL,
    ) -> None:
        self.tags, self.point = list(tags), point
        self.points = {RECALL: {ANY: 0.5}, F1: {ANY: 1.0}, **(points or {})}

    def score(self, text: str) -> Scored:
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Writes into an existing folder; not atomic: the caller moves it when all is done."""
        raise NotImplementedError

    def _write_card(self, folder: Path, files: Iterable[str], **more: Any) -> None:
        card = {
            "format": _FORMAT,
            "kind": self.kind,
            "tags": self.tags,
            "points": self.points,
            **more,
            "files": {name: _hash((folder / name).read_bytes()) for name in files},
        }
        card["card_sha256"] = _hash_of(card)
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def detect(self, text: str) -> list[Span]:
        """The spans at the operating point ``point``, sorted."""
        return decode(self.score(text), self.tags, self.points[self.point])

    def tune(
        self, notes: Iterable[Note], *, recall: float, per_label: bool = False
    ) -> dict[str, Any]:
        """Sets both operating points from notes with gold spans that were not trained on.

        Returns for each its ``thresholds`` and what they give on these very notes. ``recall``: the
        share of the words of gold PHI that shall be found. One threshold for all labels finds that
        share with the fewest false alarms; ``per_label`` gives every label its own, so that a rare
        and difficult one is found as often as the others, at their price.
        """
        if not 0 < recall < 1:
            raise InputError(f"recall={recall}: a share between 0 and 1, as in 0.99")
        notes = [note for note in notes if note.spans is not None]
        scored = [self.score(note.text) for note in notes]
        if not any(note.spans for note in notes):
            raise InputError("tuning: no note has gold spans; thresholds cannot be set from these")
        labels = [name[2:] for name in self.tags[1::2]] if per_label else []
        self.points[RECALL] = _for_recall(notes, scored, labels=labels, recall=recall)
        self.points[F1] = max(
            ({ANY: t} for t in _F1_GRID), key=lambda point: self._counts(notes, scored, point)
        )
        told = {}
        for name, point in self.points.items():
            scores = Scores(label=str)
            for note, one in zip(notes, scored, strict=True):
                scores.add(note, note.spans or (), decode(one, self.tags, point))
            told[name] = {"thresholds": dict(point), **scores.to_dict()["all"]["all"]}
        return told

    def _counts(self, notes: Sequence[Note], scored: Sequence[Scored], point: Thresholds) -> float:
        """Strict typed F1."""
        hits = total = 0
        for note, one in zip(notes, scored, strict=True):
            gold = {span[:3] for span in note.spans or ()}
            found = {span[:3] for span in decode(one, self.tags, point)}
            hits, total = hits + len(gold & found), total + len(gold) + len(found)
        return 2 * hits / max(total, 1)


def read_card(folder: str | Path, kind: str) -> dict[str, Any]:
    """The detector.json of a folder, once it and every file it names are as they were written."""
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["format"], card["kind"], card.pop("card_sha256")
        whole = found[2] == _hash_of(card) and all(
            _hash((path.parent / name).read_bytes()) == expected
            for name, expected in card["files"].items()
        )
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); {_MAKE}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no description of a detector; {_MAKE}") from error
    if found[0] != _FORMAT or found[1] != kind:
        raise InputError(
            f"{path}: format {found[0]!r} of a {found[1]}, but this reads format {_FORMAT} of a "
            f"{kind}; install the version of medbert that wrote it"
        )
    if not whole:
        raise InputError(f"{folder}: changed since it was written; {_MAKE}")
    return card


def load_detector(folder: str | Path, *, point: str = RECALL) -> Trained:
    """A detector that `medbert train_detector` made, or a Hugging Face token classifier."""
    from medbert.text.detectors.crf import CRF

    detector: Trained
    if (Path(folder) / CRF.file).is_file():
        detector = CRF.load(folder)
    else:
        from medbert.text.detectors.tagger import Tagger  # and torch, which takes 200 MB

        detector = Tagger.load(folder)
    if point not in detector.points:
        raise InputError(f"point={point}: choose one of {', '.join(detector.points)}")
    detector.point = point
    return detector


def _hash_of(card: Mapping[str, Any]) -> str:
    return _hash(json.dumps(card, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _for_recall(
    notes: Sequence[Note], scored: Sequence[Scored], *, labels: Sequence[str], recall: float
) -> dict[str, float]:
    """The threshold that this share of the gold PHI words passes, and for each of ``labels`` that
    has enough of them that of the words taken for it."""
    phi, label = [], []
    for note, (words, p_WL, _) in zip(notes, scored, strict=True):
        is_phi = np.array([name != OUTSIDE for name in tag(words, note.spans or ())], bool)
        phi.append(1 - p_WL[is_phi, 0])
        label.append((p_WL[is_phi, 1::2] + p_WL[is_phi, 2::2]).argmax(1))
    phi_W, label_W = np.concatenate(phi), np.concatenate(label)

    def passed(values: np.ndarray) -> float:
        lowest = np.sort(values)[int((1 - recall) * len(values))]
        return float(np.clip(np.nextafter(lowest, 0), _LEAST, 0.5))

    point = {ANY: passed(phi_W)}
    for k, name in enumerate(labels):
        if (label_W == k).sum() >= _FEW:
            point[name] = passed(phi_W[label_W == k])
    return point
