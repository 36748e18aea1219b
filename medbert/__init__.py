"""medbert: pretrain BERT-style encoders on health records; numbers that can be trusted.

The verbs of the command line are functions here, with the same settings:

    import medbert

    medbert.prepare("source=meds", "source.path=events/", out="store/")
    medbert.pretrain(store="store/", encoder="tiny", out="encoder/")
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import medbert.evaluate
from medbert.commands import VERBS, call

_HOMES = {
    "Encoder": "medbert.library.encoder",
    "Inside": "medbert.library.inside",
    "InputError": "medbert.schema",
    "MedBertClassifier": "medbert.library.estimators",
    "MedBertEmbedder": "medbert.library.estimators",
    "Store": "medbert.data.store",
    "Unfinished": "medbert.schema",
    "compose": "medbert.commands",
    "load_synthetic": "medbert.library.samples",
    "nearest_codes": "medbert.library.code_table",
    "plot_codes": "medbert.library.code_table",
}

__all__ = sorted([*VERBS, *_HOMES])


def __getattr__(name: str) -> Any:
    """Loads on first use: importing medbert costs nothing, importing torch does."""
    if name in VERBS:
        return partial(call, name)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medbert' has no attribute {name!r}")


class _VerbAndRoom(ModuleType):
    """``evaluate`` is a verb and a room: it can be called, and it can be entered."""

    def __call__(self, *overrides: str, **settings: Any) -> Any:
        return call("evaluate", *overrides, **settings)


medbert.evaluate.__class__ = _VerbAndRoom


def __dir__() -> list[str]:
    return [*globals(), *__all__]
