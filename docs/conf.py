"""The documentation: MyST pages, the notebooks as they are stored, and what docstrings say."""

from __future__ import annotations

from typing import Any

from medbert.commands import VERBS
from medbert.commands.main import _verb_help

project = "medbert"
html_title = "medbert"
copyright = "the medbert authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
default_role = "code"
html_show_sphinx = False


def add_commands(app: Any, name: str, source: list[str]) -> None:
    """The page of the commands ends with what each of them says of itself."""
    if name == "reference/commands":
        for verb in VERBS:
            spoken = verb.replace("_", " ")
            source[0] += f"\n## medbert {spoken}\n\n```text\n{_verb_help(verb, [])}```\n"


def setup(app: Any) -> None:
    app.connect("source-read", add_commands)
