"""The XML of i2b2 2014 (and of MEDDOCAN): ``<TEXT>`` and ``<TAGS>`` with offsets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from medbert.schema import InputError
from medbert.text.notes import Note, Options, content, files, name, spans_of


def read(path: Path, options: Options) -> Iterator[Note]:
    """The label of a tag is its category and its type: ``NAME:PATIENT``."""
    for file in files(path, "i2b2"):
        try:
            root = ElementTree.fromstring(content(file))
        except ElementTree.ParseError as error:
            line, column = error.position
            raise InputError(
                f"{file}:{line}: no well-formed XML (column {column}); is the file cut off?"
            ) from None
        except (LookupError, ValueError):
            raise InputError(f"{file}: its encoding is not the one its first line names") from None
        body = root.find("TEXT")
        if body is None:
            raise InputError(f"{file}: no <TEXT> in it; is this the XML of i2b2 2014?")
        text = body.text or ""
        given = [
            {**tag.attrib, "label": ":".join(filter(None, (tag.tag, tag.get("TYPE"))))}
            for tag in root.find("TAGS") or ()
        ]
        yield Note(name(file, path), text, spans=spans_of(given, text, where=f"{file}: <TAGS>"))
