"""conf/ is the registry: every file composes, every target exists, every leaf is an argument."""

from __future__ import annotations

import inspect
from keyword import iskeyword
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from medbert.commands import VERBS

CONF = Path(__file__).resolve().parents[1] / "conf"
VERB_OF_GROUP = {
    "source": "prepare",
    "rule": "prepare",
    "executor": "prepare",
    "encoder": "pretrain",
    "objective": "pretrain",
    "optimizer": "pretrain",
    "trainer": "pretrain",
    "privacy": "pretrain",
    "task": "finetune",
    "head": "finetune",
    "baseline": "evaluate",
    "detector": "deidentify",
    "operators": "deidentify",
    "learner": "train_detector",
    "text_objective": "adapt",
    "architecture": "adapt",
    "text_task": "benchmark_text",
}
CHOICES = sorted(
    (f.parent.name, f.stem) for group in VERB_OF_GROUP for f in CONF.glob(f"{group}/*.yaml")
)


def composed(verb: str, *words: str) -> DictConfig:
    needed = ["source=meds"] if verb == "prepare" and not any("source" in w for w in words) else []
    with initialize_config_module(config_module="medbert.conf", version_base="1.3"):
        return compose(verb, overrides=[*needed, *words])


def check_targets(node: Any, at: str = "") -> None:
    """Every ``_target_`` is importable and takes every other key of its node as an argument."""
    if isinstance(node, ListConfig):
        for i, item in enumerate(node):
            check_targets(item, f"{at}[{i}]")
    if not isinstance(node, DictConfig):
        return
    keys = [str(key) for key in node if not OmegaConf.is_missing(node, key)]
    for key in keys:
        check_targets(node._get_node(key), f"{at}.{key}")
    if "_target_" not in node:
        return
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    words = {f"{k}_" if iskeyword(k) else k for k in map(str, node) if not k.startswith("_")}
    unknown = words - set(parameters)
    assert not unknown, f"{at}: {node['_target_']} has no argument {sorted(unknown)}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes(verb):
    check_targets(composed(verb))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_choice_composes_and_its_target_exists(group, choice):
    place = "+text_task@tasks.one" if group == "text_task" else group  # none by default
    check_targets(composed(VERB_OF_GROUP[group], f"{place}={choice}"))


@pytest.mark.parametrize("choice", [name for group, name in CHOICES if group == "objective"])
def test_every_objective_takes_what_its_file_says(choice):
    made = instantiate(composed("pretrain", f"objective={choice}").objective)
    assert made(vocabulary_size=9, hidden=4, counts=[1] * 9).terms


@pytest.mark.parametrize("file", sorted(CONF.glob("experiment/*.yaml")), ids=lambda f: f.stem)
def test_every_experiment_composes(file):
    verb = file.read_text(encoding="utf-8").partition("medbert ")[2].split()[0]
    check_targets(composed(verb, f"experiment={file.stem}"))


@pytest.mark.parametrize(
    "file", sorted(CONF.rglob("*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}"
)
def test_every_file_says_what_it_is_in_its_first_line(file):
    lines = file.read_text(encoding="utf-8").removeprefix("# @package _global_\n")
    first = lines.partition("\n")[0]
    assert first.startswith("# ") and len(first) > 10


def test_every_group_is_tried_here():
    groups = {d.name for d in CONF.iterdir() if d.is_dir() and not d.name.startswith("_")}
    assert groups - {"experiment", "codes"} == set(VERB_OF_GROUP)
