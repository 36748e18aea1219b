"""The verbs, and the one way to call them: ``medbert VERB ...`` or ``medbert.VERB(...)``."""

from __future__ import annotations

import re
from typing import Any

VERBS = {
    "synthesize": "invent a cohort with a known truth (MEDS)",
    "prepare": "records to a token store: codes, vocabulary, splits",
    "inspect": "what is in a store, what was wrong with it, what to change: a dataset card",
    "plan": "how long a pretraining would take here, from a few measured steps",
    "pretrain": "train an encoder on a store: masked code and length of stay",
    "embed": "one vector per subject, or per row of a cohort, from an encoder",
    "vocabulary_extend": "give an encoder the codes of another site",
    "lint": "leaks in a task's cohort: codes of the future, copies, an encoder that has seen them",
    "finetune": "train a disease-prediction head on an encoder; predict held-out subjects",
    "predict": "what a run, or an encoder asked for a code, says of any rows",
    "benchmark": "a store and a task to a report: curves, sweeps, other times and places",
    "evaluate": "compare a run with tuned baselines; write the AUC report",
}

_PLAIN = re.compile(r"[\w./+-]*|\[[\w./+,-]*\]")


def call(verb: str, *overrides: str, **settings: Any) -> Any:
    """Runs a verb as the command line does and returns what it made.

    ``overrides`` are command-line words (``"trainer.max_epochs=3"``); ``settings`` are the same by
    name, where a dictionary reaches into a group:

        medbert.pretrain(store="store/", encoder="tiny", trainer={"max_epochs": 3}, out="encoder/")
    """
    from hydra import compose, initialize_config_module

    words = [*overrides, *_words(settings)]
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        return run(verb, compose(verb, overrides=words))


def run(verb: str, config: Any) -> Any:
    """Instantiates a composed configuration and calls the verb: configuration ends here."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from medbert.schema import InputError

    if missing := sorted(OmegaConf.missing_keys(config)):
        words = " ".join(f"{key}=..." for key in missing)
        raise InputError(f"needs {words} (see: medbert {verb.replace('_', ' ')} --help)")
    settings = OmegaConf.to_container(config, resolve=True)
    try:
        call_verb = instantiate(config, _partial_=True, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # its words are the user's, Hydra's are not
            raise error.__cause__ from None
        raise
    return call_verb(settings=settings)


def _words(settings: dict[str, Any], prefix: str = "") -> list[str]:
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words += _words(value, f"{prefix}{name}.")
        else:
            words.append(f"{prefix}{name}={_literal(value)}")
    return words


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(item) for item in value) + "]"
    text = str(value)
    if isinstance(value, int | float) or _PLAIN.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
