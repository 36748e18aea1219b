"""Words and lines of a clinical text, as exact character offsets.

A detector decides word by word, so a word must never be half PHI. What is glued together in notes
(``12.03.2020kl``, ``34år``, ``Dr.Hansen``, ``pasientOla``) is cut wherever letters, digits, scripts
or the case change; the detectors put together again what belongs together.
"""

from __future__ import annotations

import re

Offsets = tuple[int, int]

_BLOCKS = ((0x41, 0x2B0), (0x370, 0x400), (0x400, 0x530), (0x1E00, 0x1F00))
_SCRIPTS = ["".join(filter(str.isalpha, map(chr, range(*block)))) for block in _BLOCKS]
_NO_BLANKS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Han, Hangul: a word each


def _cased(script: str) -> str:
    """Of Latin, Greek or Cyrillic: ``hansen``, ``Hansen`` or ``HANSEN`` (not ``HAnsen``)."""
    upper = "[" + "".join(c for c in script if c.isupper()) + "]"
    lower = "[" + "".join(c for c in script if not c.isupper()) + "\u0300-\u036f]"
    return f"{upper}?{lower}+|{upper}+(?!{lower})"


_OTHER = rf"\d+|[{_NO_BLANKS}]|[^\W\d_{''.join(_SCRIPTS)}{_NO_BLANKS}]+|[^\w\s]|_"
_WORD = re.compile("|".join([*map(_cased, _SCRIPTS), _OTHER]))
_LINE = re.compile(r"[^\n\r]*\S[^\n\r]*")


def tokens(text: str) -> list[Offsets]:
    """Every word, number and punctuation mark in order; only blanks are in none.

    >>> [("Dr.Hansen, 34år, 12.03.2020kl")[i:j] for i, j in tokens("Dr.Hansen, 34år, 12.03.2020kl")]
    ['Dr', '.', 'Hansen', ',', '34', 'år', ',', '12', '.', '03', '.', '2020', 'kl']
    """
    return [found.span() for found in _WORD.finditer(text)]


def lines(text: str) -> list[Offsets]:
    """The lines that are not blank, without their ends."""
    return [found.span() for found in _LINE.finditer(text)]
