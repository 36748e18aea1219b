"""Errors to look through, one HTML page; texts are shapes (Xxxxx 00.00) unless asked for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from html import escape

from medbert.text.scoring.measures import MISSED, NO_PHI, OTHER_LABEL, PARTLY, Error, Sides

_AROUND = 40  # characters of context to either side
_MEANING = {
    MISSED: "PHI that nothing covers: it leaks",
    PARTLY: "PHI of which some characters leak",
    OTHER_LABEL: "PHI that is covered under another label: no leak",
    NO_PHI: "found where no PHI is: text lost",
}
_LEAKS = (MISSED, PARTLY)  # shown without a click
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .6rem;
border-bottom:1px solid #ddd;vertical-align:top}td:last-child{font-family:monospace;
white-space:pre-wrap}mark{background:#ffd7d7}.phi{background:#b00020;color:#fff;padding:.6rem 1rem}
summary{cursor:pointer;font-weight:600;margin:.6rem 0}"""


class Browser:
    """Collects at most ``most`` errors of each kind and label, and counts them all.

    Without ``show_text`` it never holds a text: only offsets, labels and shapes.
    """

    def __init__(self, *, show_text: bool = False, most: int = 50) -> None:
        self.show_text, self.most = show_text, most
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rows: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, note_id: str, sides: Sides) -> None:
        for error in sides.errors():
            key = error.kind, error.span.label
            self.counts[key] += 1
            if self.counts[key] <= self.most:
                self._rows[key].append(self._row(note_id, sides.text, error))

    def _row(self, note_id: str, text: str, error: Error) -> str:
        start, end = error.span.start, error.span.end
        parts = text[max(0, start - _AROUND) : start], text[start:end], text[end : end + _AROUND]
        before, inside, after = (escape(t if self.show_text else shape(t)) for t in parts)
        cells = [note_id, f"{start}-{end}", error.found]
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        return f"<tr>{told}<td>{before}<mark>{inside}</mark>{after}</td></tr>"

    def html(self) -> str:
        banner = (
            "<p class='phi'>This page shows protected health information. Keep it where the notes "
            "are kept, and delete it when it has been read.</p>"
            if self.show_text
            else "<p>Letters and digits are shown as shapes; show_text=true shows them.</p>"
        )
        body = [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Errors</title>"
            f"<style>{_STYLE}</style></head><body><h1>Errors</h1>{banner}"
        ]
        for kind, meaning in _MEANING.items():
            total = sum(n for (of, _), n in self.counts.items() if of == kind)
            body.append(f"<h2>{escape(kind)}: {total:,}</h2><p>{escape(meaning)}</p>")
            body += [self._group(*key) for key in sorted(self.counts) if key[0] == kind]
        return "".join([*body, "</body></html>\n"])

    def _group(self, kind: str, label: str) -> str:
        n, rows = self.counts[kind, label], self._rows[kind, label]
        some = f", the first {len(rows)} of them" if n > len(rows) else ""
        head = "<tr><th>note<th>characters<th>found as<th>text</tr>"
        return (
            f"<details{' open' * (kind in _LEAKS)}><summary>{escape(label)}: {n:,}{some}</summary>"
            f"<table>{head}{''.join(rows)}</table></details>"
        )


def shape(text: str) -> str:
    """Letters and digits as shapes; blanks and marks stay.

    >>> shape("Hansen, 12.03.20")
    'Xxxxxx, 00.00.00'
    """
    return re.sub(r"\w", lambda c: _shape(c[0]), text)


def _shape(character: str) -> str:
    return "0" if character.isnumeric() else "X" if character.isupper() else "x"
