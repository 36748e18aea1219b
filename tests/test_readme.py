"""Every command in the README: those under ``<!-- run -->`` are run, the others are composed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from medbert.commands import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- run -->\n)?```bash\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str, *, to_run: bool | None = None) -> list[str]:
    chosen = [text for mark, text in BLOCKS if to_run is None or bool(mark) == to_run]
    return commands_of(program, "\n".join(chosen))


def commands_of(program: str, text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(program + " ")]


def run_command(command: str, folder: Path) -> None:
    words = shlex.split(command)[1:]
    program = [sys.executable, "-c", "from medbert.commands.main import main; main()", *words]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def compose_command(command: str, folder: Path | None = None) -> None:
    """As the command line would; ``--config-dir`` is in ``folder``, and without what is given to a
    plugin of Hydra that need not be here."""
    words = shlex.split(command)[1:]
    if words[0].startswith("-") or "--help" in words:
        return
    pair = "_".join(words[:2])  # a verb of two words
    verb, words = (pair, words[2:]) if pair in VERBS else (words[0], words[1:])
    assert verb in VERBS
    if "--config-dir" in words:
        at = words.index("--config-dir")
        words[at : at + 2] = [f"hydra.searchpath=[file://{folder / words[at + 1]}]"]
    if "-m" in words:
        words = [word for word in words if word != "-m" and not word.startswith("hydra")]
        words = [first_of(word) for word in words]
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        compose(verb, overrides=words)


def first_of(word: str) -> str:
    """The first of the values that a sweep takes."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    if override.is_interval_sweep():
        return f"{override.key_or_group}={override.value().start}"
    return f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}"


def test_the_commands_marked_so_run_in_order(tmp_path):
    marked = commands("medbert", to_run=True)
    assert len(marked) >= 5
    for command in marked:
        run_command(command, tmp_path)
    report = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "AUROC" in report and "LightGBM" in report


@pytest.mark.parametrize("command", commands("medbert", to_run=False))
def test_the_other_commands_compose(command):
    compose_command(command)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands("make"):
        assert f"\n{command.split()[1]}:" in makefile


def test_the_tree_in_the_readme_is_the_tree():
    for name in re.findall(r"^\s+(\w+/?\.?\w*)\s{2,}", README, flags=re.MULTILINE):
        known = list(ROOT.glob(f"medbert/**/{name.rstrip('/')}")) or (ROOT / name).exists()
        assert known, f"README names {name}, which does not exist"
