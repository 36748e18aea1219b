"""Every command in the README: those under ``<!-- run -->`` are run, the others are composed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from medbert.commands import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- run -->\n)?```bash\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str, *, to_run: bool | None = None) -> list[str]:
    chosen = [text for mark, text in BLOCKS if to_run is None or bool(mark) == to_run]
    lines = "\n".join(chosen).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(program + " ")]


def test_the_commands_marked_so_run_in_order(tmp_path):
    marked = commands("medbert", to_run=True)
    assert len(marked) >= 5
    for command in marked:
        words = shlex.split(command)[1:]
        program = [sys.executable, "-c", "from medbert.commands.main import main; main()", *words]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    report = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "AUROC" in report and "LightGBM" in report


@pytest.mark.parametrize("command", commands("medbert", to_run=False))
def test_the_other_commands_compose(command):
    words = shlex.split(command)[1:]
    if words[0].startswith("-") or "--help" in words:
        return
    pair = "_".join(words[:2])  # a verb of two words
    verb, words = (pair, words[2:]) if pair in VERBS else (words[0], words[1:])
    assert verb in VERBS
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        compose(verb, overrides=words)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands("make"):
        assert f"\n{command.split()[1]}:" in makefile


def test_the_tree_in_the_readme_is_the_tree():
    for name in re.findall(r"^\s+(\w+/?\.?\w*)\s{2,}", README, flags=re.MULTILINE):
        known = list(ROOT.glob(f"medbert/**/{name.rstrip('/')}")) or (ROOT / name).exists()
        assert known, f"README names {name}, which does not exist"
