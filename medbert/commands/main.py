"""The console script ``medbert <verb> [overrides]``: quick help, errors in one line.

A verb of two words (``medbert vocabulary extend``) is one with an underscore everywhere else.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import textwrap
from collections.abc import Collection
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from medbert.commands import VERBS, compose, run

_SPINS = "10000"  # of a thread that waits, before it sleeps: else another busy process halts two
_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
_QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")


def main() -> None:
    """Entry point. Exit status 2: something given cannot be used, said in one line; 75: stopped,
    and everything is saved, so that repeating the command goes on."""
    arguments = sys.argv[1:]
    if "_".join(arguments[:2]) in VERBS:
        arguments[:2] = ["_".join(arguments[:2])]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview(VERBS))
    elif arguments[0] == "--version":
        sys.stdout.write(f"medbert {version('medbert')}\n")
    elif arguments[0] not in VERBS:
        family = [verb for verb in VERBS if verb.startswith(f"{arguments[0]}_")]
        if family and arguments[1:] and arguments[1] in ("-h", "--help"):
            sys.stdout.write(_overview(family))
            return
        said = " ".join(arguments[: 2 if family else 1])
        near = difflib.get_close_matches(said, map(_spoken, VERBS), n=1)
        hint = f"did you mean `medbert {near[0]}`?" if near else "see `medbert --help`"
        sys.exit(f"medbert: no verb {said!r}; {hint}")
    elif {"-h", "--help"} & set(arguments[1:]):
        words = [word for word in arguments[1:] if word not in ("-h", "--help")]
        sys.stdout.write(_verb_help(arguments[0], words))
    else:
        _run_with_hydra(arguments[0], arguments[1:])


def _run_with_hydra(verb: str, words: list[str]) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # read when torch is imported
    import hydra

    from medbert.commands.output.artefacts import first_process
    from medbert.schema import InputError, Unfinished

    def task(config: Any) -> Any:
        _log_to_terminal(logging.INFO if first_process() else logging.ERROR)
        _can_be_repeated(verb, words)
        try:
            return _score(verb, run(verb, config))
        except InputError as error:
            sys.stderr.write(f"medbert {_spoken(verb)}: {error}\n")
            sys.exit(2)
        except Unfinished as stop:
            if first_process():  # a launcher would end the first one for the status of another
                sys.stderr.write(f"medbert {_spoken(verb)}: {stop}\n")
                sys.exit(_TRY_AGAIN)
        return None

    with TemporaryDirectory() as place:  # for what Hydra itself writes of several runs
        own = [*_QUIET, "hydra.run.dir=.", f"hydra.sweep.dir={place}", "hydra.sweep.subdir=."]
        given = {word.partition("=")[0] for word in words}
        own = [word for word in own if word.partition("=")[0] not in given]
        flag_first = words[:1] != [] and words[0].startswith("-")  # a flag must not part settings
        sys.argv = [f"medbert {verb}", *(words + own if flag_first else own + words)]
        hydra.main(version_base="1.3", config_path="pkg://medbert.conf", config_name=verb)(task)()


def _score(verb: str, made: Any) -> float | None:
    """What a sweeper of Hydra (Optuna) goes by, of tuning subjects alone: the loss of a pretraining
    (lower is better), the AUROC of a run (higher is)."""
    from medbert.commands.output.artefacts import read_json

    if verb not in ("pretrain", "finetune"):
        return None
    metrics = read_json(made / "metrics.json")
    if verb == "pretrain":
        return metrics["tuning/loss"]
    return metrics["training"].get("tuning/auroc", metrics["training"].get("tuning_auroc"))


def _can_be_repeated(verb: str, words: list[str]) -> None:
    """To start the other processes of a machine, Lightning repeats the module that is ``__main__``
    with ``sys.argv``; a console script is no module, and the argv there now is Hydra's."""
    sys.argv = [sys.argv[0], verb, *words]
    sys.modules["__main__"].__spec__ = find_spec("medbert.commands.main")


def _log_to_terminal(level: int) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(show_path=False, log_time_format="%X")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("medbert")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


def _spoken(verb: str) -> str:
    return verb.replace("_", " ")


def _overview(verbs: Collection[str]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {_spoken(verb):<{width}}  {VERBS[verb]}" for verb in verbs]
    return (
        "medbert: pretrain BERT-style encoders on health records; disease-prediction numbers "
        "that can be trusted\n\nusage: medbert VERB [setting=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`medbert VERB --help` lists a verb's settings and choices. "
        "Settings follow Hydra (-m for several runs).\n"
    )


def _verb_help(verb: str, words: list[str]) -> str:
    """What the verb does, the choices of each of its groups, and its settings.

    With ``words`` (choices, settings), every setting as it would be with them.
    """
    conf = resources.files("medbert.conf")
    text = (conf / f"{verb}.yaml").read_text(encoding="utf-8")
    name = f"medbert {_spoken(verb)}"
    lines = [f"{name}: {VERBS[verb]}", "", f"usage: {name} [setting=value ...]"]
    if words:
        return "\n".join([*lines, "", _composed(verb, words)])
    choices, _, settings = text.partition("\n_target_: ")
    chosen = re.findall(r"^  - (\w+)(?:@\S+)?: *(\S+)", choices, flags=re.MULTILINE)
    for group in dict.fromkeys(name for name, _ in chosen):
        default = ", ".join(choice for name, choice in chosen if name == group)
        lines += ["", f"{group}=  (default: {default})".replace("  (default: ???)", "")]
        files = [f for f in (conf / group).iterdir() if f.name.endswith(".yaml")]
        texts = {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}
        width = max(map(len, texts))
        lines += [f"    {name:<{width}}  {_about(text)}" for name, text in sorted(texts.items())]
    own = re.sub(r"^ *_\w+_: .*\n", "", settings.partition("\n")[2], flags=re.MULTILINE)
    lines += ["", "settings (???: must be given)", textwrap.indent(own.rstrip(), "    "), ""]
    lines.append(f"Name choices before --help to see their settings: {name} ... --help\n")
    return "\n".join(lines)


def _about(text: str) -> str:
    """The first comment of a YAML file that is not for Hydra."""
    return next(line for line in text.splitlines() if not line.startswith("# @")).lstrip("# ")


def _composed(verb: str, words: list[str]) -> str:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_yaml(compose(verb, *words))
    except HydraException as error:
        sys.exit(f"medbert {verb}: {error}")


if __name__ == "__main__":
    main()
