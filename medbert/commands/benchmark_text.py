"""``medbert benchmark text``: text models on the same tasks, against one of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, digest_of, write_json
from medbert.commands.output.progress import follow
from medbert.evaluate.reports import page
from medbert.evaluate.reports.contest import Counted, Found, contest, sections, to_dict, words
from medbert.evaluate.reports.markdown import write_markdown
from medbert.schema import InputError
from medbert.text.bench.losses import MaskedLoss
from medbert.text.bench.tasks import Task

log = logging.getLogger(__name__)

HELD_OUT_PATIENTS, GENERAL = "held-out patients", "general text"
_FORMAT = 1  # of what is kept of an answer
_OF_TASKS = ("models", "tasks", "seeds", "pairs", "reference", "corpus", "general")
_FREE = (*_OF_TASKS, "n_bootstrap", "level")


@withheld
def benchmark_text(
    *,
    models: Mapping[str, str | None],
    reference: str,
    tasks: Mapping[str, Task],
    corpus: str | None,
    general: str | None,
    pairs: Sequence[str],
    seeds: int,
    answers: str | None,
    n_bootstrap: int,
    level: float,
    min_clusters: int,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``out`` (report.html, report.md, metrics.json, answers/) and returns the metrics.

    Every answer is kept as soon as it is there, under the hash of the task, its data and the model,
    so that a killed run goes on; ``answers`` names a folder of them for several reports.
    """
    folders = {name: Path(folder) for name, folder in models.items() if folder}
    texts = {HELD_OUT_PATIENTS: corpus, GENERAL: general}
    everything = {**{name: MaskedLoss(path) for name, path in texts.items() if path}, **tasks}
    compared = _pairs(pairs, folders, reference)
    if len(folders) < 2 or not everything:
        raise InputError("give two models or more (models.NAME=folder), and a corpus or a task")
    told = {**settings["tasks"], **texts}
    with artefact(out, overwrite=overwrite, settings=settings, free=_FREE) as work:
        kept = Path(answers) if answers else work / "answers"
        kept.mkdir(parents=True, exist_ok=True)
        runs = _Runs(everything, folders, kept, {n: _digest(told[n]) for n in everything})
        counted = {name: runs.counted(name, seeds, seed) for name in everything}
        found = contest(
            counted,
            reference=reference,
            pairs=compared,
            seed=seed,
            n=n_bootstrap,
            level=level,
            min_clusters=min_clusters,
        )
        metrics = {"reference": reference, "seeds": seeds, "tasks": to_dict(found)}
        write_json(work / "metrics.json", metrics)
        _write(found, work, reference, level)
    for line in words(found):
        log.info(line)
    log.info("made %s; open %s", out, Path(out) / "report.html")
    return metrics


def _pairs(
    pairs: Sequence[str], models: Mapping[str, Path], reference: str
) -> list[tuple[str, str]]:
    found = [tuple(pair.split(":")) for pair in pairs]
    for name in (reference, *(name for pair in found for name in pair)):
        if name not in models:
            raise InputError(f"no model {name!r}: there are {', '.join(models)}")
    if wrong := [pair for pair in found if len(pair) != 2]:
        raise InputError(f"pairs={':'.join(wrong[0])}: two models as in adapted:base")
    return [(pair[0], pair[1]) for pair in found]


class _Runs:
    """Answers, made or taken from where they are kept."""

    def __init__(
        self, tasks: Mapping[str, Task], models: Mapping[str, Path], kept: Path, of: dict[str, str]
    ) -> None:
        self.tasks, self.models, self.kept, self.of_task = tasks, models, kept, of
        self.of_model = {name: weights_sha256(folder) for name, folder in models.items()}

    def counted(self, name: str, seeds: int, seed: int) -> Counted:
        task = self.tasks[name]
        items, every = task.items(), range(seed, seed + (seeds if task.seeded else 1))
        jobs = [(name, model, s) for s in every for model in self.models]
        size = len(items.cluster_N)
        for job in follow(jobs, name, len(jobs), unit="items", size=lambda job: size):
            self._answer(*job)
        counts = {m: np.stack([self._answer(name, m, s) for s in every]) for m in self.models}
        simple = [task.beside(seed=s) for s in every]
        beside = {b: np.stack([one[b] for one in simple]) for b in simple[0]}
        return Counted(
            task.measures, {**counts, **beside}, items.cluster_N, items.groups, tuple(beside)
        )

    def _answer(self, name: str, model: str, seed: int) -> np.ndarray:
        key = _digest([_FORMAT, self.of_task[name], self.of_model[model], seed])
        file = self.kept / f"{key[:24]}.npy"
        if not file.is_file():
            counts = self.tasks[name].run(self.models[model], seed=seed)
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, counts, allow_pickle=False)
            part.replace(file)
        return np.load(file, allow_pickle=False)


def _digest(settings: Any) -> str:
    """Of settings, and of the files that they name."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    values = settings.values() if isinstance(settings, dict) else [settings]
    for path in (Path(value) for value in values if isinstance(value, str) and value):
        if path.is_dir():
            path = path / "manifest.json"
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """Of what a Hugging Face folder says and how: configuration, tokenizer, weights."""
    files = [folder / "config.json", folder / "tokenizer.json", *folder.glob("*.safetensors")]
    if not files[2:]:
        raise InputError(f"{folder}: no model in safetensors; give the folder of one")
    return digest_of(file for file in files if file.is_file())


def _write(found: Sequence[Found], folder: Path, reference: str, level: float) -> None:
    parts, title = sections(found, reference=reference, level=level), "Text models, compared"
    write_markdown(parts, folder / "report.md", title=title)
    links = "".join(f"<li><a href='#{p.anchor}'>{escape(p.title)}</a></li>" for p in parts)
    contents = f"<nav aria-label='Contents'><ul>{links}</ul></nav>"
    body = "\n".join(map(page.section, parts))
    page.write(
        folder / "report.html",
        page.fill("report.html", title=title, contents=contents, sections=body),
    )
