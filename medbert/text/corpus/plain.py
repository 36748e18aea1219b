"""Plain text as a corpus: one document a line of a ``.txt`` or ``.txt.gz`` file."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medbert.schema import HELD_OUT, TRAIN, TUNING, InputError
from medbert.text.corpus.documents import UNKNOWN, Corpus, Document
from medbert.text.notes import content

_TUNING, _HELD_OUT = 2, 4  # of a hundred documents: the first two, the next two


class PlainText:
    """A text file, read as `Corpus` reads a folder: no patients, sites or languages, and the split
    of a document is by a hash of its text. General text, and what a base is made of."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        self.sha256 = hashlib.sha256(content(self.path)).hexdigest()
        self.manifest: dict[str, Any] = {}

    def documents(self, *, split: str | None = None) -> Iterator[Document]:
        opened: Any = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opened(self.path, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    text = line.strip()
                    if not text:
                        continue
                    sha256 = hashlib.sha256(text.encode()).hexdigest()
                    place = int(sha256[:8], 16) % 100
                    own = TUNING if place < _TUNING else HELD_OUT if place < _HELD_OUT else TRAIN
                    if split in (None, own):
                        unknown = UNKNOWN, UNKNOWN, UNKNOWN, None, None
                        yield Document(f"{number}", None, *unknown, own, 1, text, sha256)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise InputError(f"{self.path}: not a text file in UTF-8, plain or gzip") from error

    def texts(self, *, split: str | None = None) -> Iterator[str]:
        return (document.text for document in self.documents(split=split))


def open_corpus(path: str | Path) -> Corpus | PlainText:
    """A folder that ``medbert corpus`` made, or a text file."""
    return Corpus(path) if Path(path).is_dir() else PlainText(path)
