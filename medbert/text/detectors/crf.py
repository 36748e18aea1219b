"""A conditional random field over words: trains in minutes on a CPU, reads thousands a second."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np

from medbert.schema import InputError
from medbert.text.detectors.rules import Rules
from medbert.text.detectors.thresholds import OUTSIDE, Scored, Trained, read_card, tag, tags_of
from medbert.text.lists import months, shipped
from medbert.text.notes import Note
from medbert.text.tokens import Offsets, tokens

log = logging.getLogger(__name__)

_CACHED = 16_384  # distinct words whose features are kept, of 2 kB each
_PIECE = 1_000  # words that are decided together, and then up to the end of the line
_SURE = 0.9995  # of O: what else the word could be is not asked

Lists = Mapping[str, frozenset[str]]


class CRF(Trained):
    """python-crfsuite's CRF over the words of ``tokens``, with IOB2 tags."""

    kind: ClassVar[str] = "crf"
    file: ClassVar[str] = "model.crfsuite"

    def __init__(self, model: bytes, tags: Sequence[str], **operating: Any) -> None:
        super().__init__(tags, **operating)
        self.model = model
        self._tagger = _crfsuite().Tagger()
        self._tagger.open_inmemory(model)
        self._features = Features()

    def __reduce__(self) -> Any:
        """For other processes: what crfsuite holds in memory does not travel."""
        again = partial(type(self), points=self.points, point=self.point)
        return again, (self.model, self.tags)

    @classmethod
    def train(
        cls,
        notes: Iterable[Note],
        *,
        c1: float = 0.05,
        c2: float = 0.01,
        min_count: int = 2,
        max_iterations: int = 100,
    ) -> Self:
        """Fits notes with gold spans; ``c1`` and ``c2`` weigh the L1 and L2 penalties.

        What was seen fewer than ``min_count`` times with a tag is left out: a name seen once says
        nothing of the next one. What stays is in the model as it is written, so the folder of a CRF
        that was trained on real notes holds words of these notes.
        """
        notes = [note for note in notes if note.spans is not None]
        tags = tags_of(span for note in notes for span in note.spans or ())
        if len(tags) == 1:
            raise InputError(
                "notes: none of them has a gold span; nothing can be learnt from these"
            )
        trainer = _crfsuite().Trainer("lbfgs", verbose=False)
        settings = {"c1": c1, "c2": c2, "feature.minfreq": min_count}
        trainer.set_params({**settings, "max_iterations": max_iterations})
        features = Features()
        for note in notes:
            of_text = features.of(note.text)
            names = tag(of_text.words, note.spans or ())
            for first, end in of_text.pieces():
                trainer.append(of_text.rows(first, end), names[first:end])
        log.info("training a CRF on %d notes: %d tags", len(notes), len(tags))
        with TemporaryDirectory() as place:
            path = Path(place) / cls.file
            trainer.train(str(path))
            return cls(path.read_bytes(), tags)

    def score(self, text: str) -> Scored:
        of_text = self._features.of(text)
        probability_WL = np.zeros((len(of_text.words), len(self.tags)))
        known = {*self._tagger.labels()}
        columns = [(i, name) for i, name in enumerate(self.tags) if name in known and i]
        marginal, inside_W = self._tagger.marginal, np.zeros(len(of_text.words), bool)
        for first, end in of_text.pieces():
            best = self._tagger.tag(of_text.rows(first, end))
            inside_W[first:end] = [name != OUTSIDE for name in best]
            for i in range(end - first):
                row_L = probability_WL[first + i]
                row_L[0] = outside = marginal(OUTSIDE, i)
                if outside < _SURE:
                    for k, name in columns:
                        row_L[k] = marginal(name, i)
        return Scored(of_text.words, probability_WL, inside_W)

    def save(self, folder: str | Path) -> None:
        (Path(folder) / self.file).write_bytes(self.model)
        self._write_card(Path(folder), [self.file])

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        card = read_card(folder, cls.kind)
        return cls((Path(folder) / cls.file).read_bytes(), card["tags"], points=card["points"])


def _crfsuite() -> Any:
    try:
        import pycrfsuite
    except ImportError as error:
        raise InputError("a CRF needs python-crfsuite: pip install 'medbert[text]'") from error
    return pycrfsuite


def word_lists() -> Lists:
    """The shipped lists, word by word and in lower case."""
    lists = shipped()
    phrases = {"place": lists.places, "region": lists.regions, "unit": lists.units}
    words = {name: " ".join(of).casefold().split() for name, of in phrases.items()}
    return {
        "given": lists.given,
        "surname": lists.surnames,
        "common": lists.common | lists.function,
        "month": frozenset("|".join(months()).split("|")),
        **{name: frozenset(of) - lists.function for name, of in words.items()},
    }


class Features:
    """What is known of each word of a text, as strings; what a word itself says is made once.

    The shipped lists and rules are features like others: a model belongs to those it was trained
    with, and has to be trained again to make use of better ones.
    """

    def __init__(self) -> None:
        self.lists, self.rules = word_lists(), Rules()
        self.known = lru_cache(_CACHED)(self._known)

    def of(self, text: str) -> TextFeatures:
        return TextFeatures(text, self)

    def _known(self, form: str) -> tuple[tuple[str, ...], ...]:
        """What a word says of the words 3, 2 and 1 behind it, of itself, of those before it, and
        its shape."""
        low, shape = form.lower(), _shape(form)
        word = f"w={low}" if not form.isdigit() or len(form) < 4 else f"w={'0' * len(form)}"
        near = [word, f"s={shape}", *(f"L={name}" for name, of in self.lists.items() if low in of)]
        own = [*near, f"c={_case(form)}", f"l={min(len(form), 12)}"]
        own += [f"p{n}={low[:n]}" for n in (1, 2, 3, 4) if len(low) > n]
        own += [f"e{n}={low[-n:]}" for n in (1, 2, 3, 4) if len(low) > n]
        beside = [*near, f"e3={low[-3:]}"]
        before = (("-3", near[:1]), ("-2", near), ("-1", beside), ("", own))
        after = (("1", beside), ("2", near), ("3", near[:1]), ("", [shape]))
        return tuple([tuple([at + name for name in of]) for at, of in before + after])


class TextFeatures:
    """The features of the words of one text."""

    def __init__(self, text: str, of: Features) -> None:
        self.words = tokens(text)
        self.forms = [text[start:end] for start, end in self.words]
        self.known = [of.known(form) for form in self.forms]
        self.by_rule = [OUTSIDE, *tag(self.words, of.rules.detect(text)), OUTSIDE]
        self.low = ["<<", "<", *map(str.lower, self.forms), ">", ">>"]  # word i is at i + 2
        self.shape = ["", *(of_word[-1][0] for of_word in self.known), ""]
        self.place = _places(text, self.words, self.low[2:-2])
        self.elsewhere = dict(self._elsewhere())

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Words that are decided together: all of them, where the text is not long."""
        first = 0
        for i in range(1, len(self.words)):
            long = i - first
            if long >= 2 * _PIECE or (long >= _PIECE and self.place[i][2] > 1):
                yield first, i
                first = i
        if self.words:
            yield first, len(self.words)

    def rows(self, first: int, end: int) -> list[list[str]]:
        return [self._row(i) for i in range(first, end)]

    def _row(self, i: int) -> list[str]:
        row = ["bias", *self.known[i][3]]
        for distance in (-3, -2, -1, 1, 2, 3):
            if 0 <= i + distance < len(self.known):
                row += self.known[i + distance][distance + 3]
            else:
                row.append(f"{distance}w=<>")
        a, b, c, d, e = self.low[i : i + 5]
        before, shape, after = self.shape[i : i + 3]
        key, since, gap = self.place[i]
        row += (
            f"-b={b}|{c}",
            f"+b={c}|{d}",
            f"--b={a}|{b}",
            f"++b={d}|{e}",
            f"-bs={b}|{shape}",
            f"+bs={shape}|{d}",
            f"t={before}|{shape}|{after}",
            f"k={key}",
            f"k@={key}|{since}",
            f"ks={key}|{shape}",
            f"g={gap}",
            f"+g={self.place[i + 1][2] if i + 1 < len(self.place) else 3}",
        )
        hints = zip(("-R=", "R=", "+R="), self.by_rule[i : i + 3], strict=True)
        row += [mark + name for mark, name in hints if name != OUTSIDE]
        return row + self.elsewhere.get(i, [])

    def _elsewhere(self) -> Iterator[tuple[int, list[str]]]:
        """What the other places of a capitalised word, or of a number, say of it."""
        places = defaultdict(list)
        for i, form in enumerate(self.forms):
            if len(form) > 2 and form.isalnum():
                places[self.low[i + 2]].append(i)
        for same in places.values():
            if not 1 < len(same) <= 30:
                continue
            capital = [i for i in same if not self.forms[i].islower()]
            always = ["D"] if len(capital) == len(same) else ["D", "D=low"]
            for i in capital:
                others = [j for j in capital if j != i]
                told: set[str] = set()
                for j in others[:2] + others[-2:]:
                    told |= {f"D-={self.low[j + 1]}", f"D+={self.low[j + 3]}"}
                    told.add(f"Dk={self.place[j][0]}")
                yield i, always + sorted(told)


def _places(text: str, words: Sequence[Offsets], low: Sequence[str]) -> list[tuple[str, int, int]]:
    """Of each word: the word before the last colon of its line (or at the end of the line before),
    how many words ago that was, and what parts it from the word before: 0 nothing, 1 a blank, 2 a
    line end, 3 an empty line."""
    made, key, since, end = [], "", 0, 0
    for i, (start, stop) in enumerate(words):
        gap = 2 if i == 0 else 0
        if start > end:
            gap = 1 + min(text.count("\n", end, start), 2)
            if gap > 1 and since:
                key, since = "", 0
        made.append((key, min(since, 6), gap))
        since += 1
        if low[i] == ":" and i and low[i - 1].isalpha():
            key, since = low[i - 1], 0
        end = stop
    return made


def _case(form: str) -> str:
    if form.isupper():
        return "X" if len(form) == 1 else "XX"
    return "Xx" if form[0].isupper() else "x" if form.isalpha() else "0" if form.isdigit() else "."


def _shape(form: str) -> str:
    """Digits by their number, and short ones by what part of a date they could be; case, length."""
    if form.isdecimal():
        n = int(form) if len(form) in (1, 2, 4) else 0
        size = "y" if 1900 <= n < 2100 else "m" if 0 < n <= 12 else "d" if 0 < n <= 31 else ""
        return f"0{min(len(form), 12)}{size}"
    if not form.isalpha():
        return form
    return _case(form) + ("" if len(form) < 3 else "3" if len(form) == 3 else "+")
