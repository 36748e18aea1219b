"""Every block of code in docs/: commands compose, scripts parse, Python runs, YAML is used.

A block under ``<!-- run -->`` is run, one under ``<!-- compile: why -->`` is compiled only.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from hydra.utils import get_class, get_object
from omegaconf import OmegaConf
from test_readme import commands_of, compose_command, run_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in ROOT.glob("docs/**/*.md") if "_build" not in p.parts)
BLOCK = re.compile(
    r"(?:<!-- (run|compile)\b.*? -->\n)?```(\{?[\w-]+\}?).*?\n(.*?)^```", re.S | re.M
)
KNOWN = {"bash", "python", "yaml", "{toctree}", "{eval-rst}"}


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The mark (run, compile or nothing) and the text of each block."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert {kind for _, kind, _ in found} <= KNOWN, "a block that no test knows"
    return [(mark, text) for mark, kind, text in found if kind == language]


def targets(node: object) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in targets(item)]
    if not isinstance(node, dict):
        return []
    inside = [name for value in node.values() for name in targets(value)]
    return inside + ([node["_target_"]] if "_target_" in node else [])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_compose_and_scripts_parse(page, tmp_path):
    for _, text in blocks(page, "yaml"):
        told = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        assert all(get_object(name) for name in targets(told))
        if file := re.match(r"# (\S+\.yaml)\n", text):
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(text, encoding="utf-8")
    for mark, text in blocks(page, "bash"):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        plain = text.replace("srun --kill-on-bad-exit=1 ", "").replace("srun ", "")
        for command in commands_of("medbert", plain):
            if mark == "run":
                run_command(command, tmp_path)
            else:
                compose_command(command, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for mark, text in blocks(page, "python"):
        code = compile(text, str(page), "exec")
        if mark != "compile":
            exec(code, names)


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    named = {name for page in PAGES for name in re.findall(r"medbert\[(\w+)\]", page.read_text())}
    assert named and named <= set(extras)


def test_every_page_and_notebook_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or f"\n{name}\n" in contents


def test_references_name_what_exists():
    for page in ROOT.glob("docs/reference/*.md"):
        for name in re.findall(r"auto(?:class|exception):: (\S+)", page.read_text("utf-8")):
            assert get_class(name)
