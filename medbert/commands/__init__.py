"""The verbs, and the one way to call them: ``medbert VERB ...`` or ``medbert.VERB(...)``."""

from __future__ import annotations

import re
from keyword import iskeyword
from threading import Lock
from typing import Any

VERBS = {
    "synthesize": "invent a cohort with a known truth (MEDS)",
    "synthesize_notes": "invented notes in three languages, with the PHI in them marked",
    "prepare": "records to a token store: codes, vocabulary, splits",
    "inspect": "what is in a store, what was wrong with it, what to change: a dataset card",
    "plan": "how long a pretraining would take here, from a few measured steps",
    "pretrain": "train an encoder on a store: masked code and length of stay",
    "embed": "one vector per subject, or per row of a cohort, from an encoder",
    "vocabulary_extend": "give an encoder the codes of another site",
    "lint": "leaks in a task's cohort: codes of the future, copies, an encoder that has seen them",
    "convert": "an encoder to Hugging Face or ONNX; a BertModel or Med-BERT's own to an encoder",
    "finetune": "train a disease-prediction head on an encoder; predict held-out subjects",
    "predict": "what a run, or an encoder asked for a code, says of any rows",
    "benchmark": "a store and a task to a report: curves, sweeps, other times and places",
    "audit_plant": "a copy of a store with made-up subjects in it: does an encoder memorise them?",
    "audit": "may an encoder leave the hospital? membership, canaries, identifiers; a verdict",
    "deidentify": "notes without the PHI that rules, word lists and detectors find in them",
    "train_detector": "a detector of PHI from annotated notes, with a recall that is asked for",
    "score_deid": "what was found in notes beside their gold: leaks, recall, what was lost",
    "corpus": "notes to a corpus: copies gone, languages told apart, sampled, split, counted",
    "corpus_gate": "may a corpus be trained on? recall of its de-identification, PHI still seen",
    "corpus_plant": "a corpus with made-up people in it: does a text model memorise them?",
    "corpus_compare": "what several sites' corpora hold together, from signatures without text",
    "tokenizer_train": "learn a vocabulary of word pieces from text",
    "tokenizer_report": "into how many pieces a tokenizer cuts a corpus; what more would save",
    "tokenizer_extend": "give a text BERT whole words as tokens",
    "adapt": "continue the pretraining of a text BERT on a corpus of notes",
    "benchmark_text": "text models on the same tasks: base, control, adapted; gain or no gain",
    "audit_text": "does an adapted text model give away whose notes it read? a verdict",
    "embed_notes": "one vector per note from a text encoder; codes of them for the other model",
    "evaluate": "compare a run with tuned baselines; write the AUC report",
}

_ONE = Lock()  # Hydra's state is the whole process's
_PLAIN = re.compile(r"[\w./+-]*|\[[\w./+,-]*\]")


def call(verb: str, *overrides: Any, **settings: Any) -> Any:
    """Runs a verb as the command line does and returns what it made.

    ``overrides`` are command-line words (``"trainer.max_epochs=3"``); ``settings`` are the same by
    name, where a dictionary reaches into a group:

        medbert.pretrain(store="store/", encoder="tiny", trainer={"max_epochs": 3}, out="encoder/")

    Or it is given a recipe, which ``compose`` made, and nothing else.
    """
    if len(overrides) == 1 and not isinstance(overrides[0], str) and not settings:
        return run(verb, overrides[0])
    return run(verb, compose(verb, *overrides, **settings))


def compose(verb: str, *overrides: str, **settings: Any) -> Any:
    """The recipe (a DictConfig) that ``call`` would run the verb with, to be read, changed and run:

        recipe = medbert.compose("pretrain", store="store/", encoder="tiny", out="encoder/")
        recipe.encoder.layers = 1
        medbert.pretrain(recipe)

    Hydra's own state is left as it was, and threads take turns.
    """
    import hydra

    words = [*overrides, *_words(settings)]
    with _ONE, hydra.initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        return hydra.compose(verb, overrides=words)


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
        if isinstance(error.__cause__, ModuleNotFoundError):  # such as of another's logger
            raise InputError(f"{error.__cause__}".strip()) from None
        raise
    # A setting that is a word of Python (in) is an argument with a line after it (in_).
    arguments = {f"{k}_" if iskeyword(k) else k: v for k, v in call_verb.keywords.items()}
    return call_verb.func(**arguments, settings=settings)


def _words(settings: dict[str, Any], prefix: str = "") -> list[str]:
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words += _words(value, f"{prefix}{name}.")
        else:
            words.append(f"{prefix}{name.removesuffix('_')}={_literal(value)}")
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
