"""What a continued pretraining did, in numbers, sentences and a model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medbert.commands.output.artefacts import digest_of, write_json
from medbert.evaluate.figures.learning import draw
from medbert.evaluate.intervals import percentiles
from medbert.schema import HELD_OUT
from medbert.text.encoders.masked_lm import Losses

_RESAMPLES, _LEVEL = 2000, 0.95
_FEWEST = 10  # documents of a group that is shown by itself


class Judgement(NamedTuple):
    """Masked losses (nats a hidden token) before and after, on the same hidden tokens; ``change``
    is after minus before, ``low`` to ``high`` its 95% interval over patients."""

    documents: int
    hidden: int
    before: float
    after: float
    change: float
    low: float
    high: float
    groups: dict[str, dict[str, float]]


def judgement(
    before: Losses, after: Losses, who_N: Sequence[tuple[str, str, int]], *, seed: int
) -> Judgement:
    """``who_N``: site, language and patient of each document."""
    patient_N = np.array([patient for _, _, patient in who_N])
    low, high = _interval(before, after, patient_N, seed)
    groups: dict[str, dict[str, float]] = {}
    labels_N = np.array([f"{site}, {language}" for site, language, _ in who_N])
    for label in np.unique(labels_N):
        here_N = labels_N == label
        if here_N.sum() >= _FEWEST:
            parts = (Losses(of.nats_N[here_N], of.count_N[here_N]) for of in (before, after))
            first, last = (part.mean for part in parts)
            groups[str(label)] = {"documents": int(here_N.sum()), "before": first, "after": last}
    return Judgement(
        documents=len(who_N),
        hidden=int(before.count_N.sum()),
        before=before.mean,
        after=after.mean,
        change=after.mean - before.mean,
        low=low,
        high=high,
        groups=groups,
    )


def _interval(
    before: Losses, after: Losses, patient_N: np.ndarray, seed: int
) -> tuple[float, float]:
    """Percentiles over resampled patients."""
    _, patient_N = np.unique(patient_N, return_inverse=True)
    change_P = np.bincount(patient_N, after.nats_N - before.nats_N)
    count_P = np.bincount(patient_N, before.count_N)
    random, n = np.random.default_rng(seed), len(count_P)
    changes = []
    for _ in range(_RESAMPLES):
        drawn = random.integers(n, size=n)
        changes.append(change_P[drawn].sum() / max(count_P[drawn].sum(), 1))
    return percentiles(np.array(changes), _LEVEL)


def told(judgements: Mapping[str, Judgement], *, fresh: bool) -> Iterator[str]:
    """The verdict, in sentences."""
    for name, found in judgements.items():
        where = name.replace("_", "-")
        span = f"{found.change:+.3f} (95% {found.low:+.3f} to {found.high:+.3f})"
        if found.documents < _FEWEST:
            word = "too few documents to tell"
        elif name == "general text":
            word = "forgotten" if found.low > 0 else "not forgotten"
        else:
            word = "gain" if found.high < 0 else "loss" if found.low > 0 else "no gain"
        yield (
            f"{where}: {word}: masked loss {found.before:.3f} before, {found.after:.3f} after, "
            f"{span} nats on {found.documents:,} documents"
        )
    if not fresh:
        yield (
            "whether that is the text of the domain, or more training alone, a control tells: the "
            "same command with general text as corpus="
        )


def sha256_of(folder: str | Path) -> str:
    """Of the weights in a folder of Hugging Face."""
    return digest_of(Path(folder).glob("*.safetensors"))


def write_report(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    metrics: Mapping[str, float],
    of: Mapping[str, Any],
    judgements: Mapping[str, Judgement],
) -> list[str]:
    """metrics.json, README.md (the model card) and losses.png, of the model in ``folder``; returns
    the verdict."""
    verdict = list(told(judgements, fresh=settings["base"] is None))
    made = {**metrics, "weights_sha256": sha256_of(folder), **of, "verdict": verdict}
    losses = {name: found._asdict() for name, found in judgements.items()}
    write_json(folder / "metrics.json", {**made, "masked_loss": losses})
    _card(folder, settings, made, judgements)
    steps, seen = _seen(folder / "logs")
    if len(steps):
        draw(folder / "losses.png", losses=seen, at=steps, references={}, by_frequency=[])
    return verdict


def _seen(logs: Path) -> tuple[list[int], list[float]]:
    """The tuning loss at each look, by step; a run that was taken up has logs of each part."""
    at: dict[int, float] = {}
    for file in sorted(logs.glob("version_*/metrics.csv"), key=lambda f: f.stat().st_mtime):
        part = pd.read_csv(file)
        if "tuning/loss" in part:
            part = part.dropna(subset=["tuning/loss"])
            at.update(zip(part["step"].astype(int) + 1, part["tuning/loss"], strict=True))
    return sorted(at), [at[step] for step in sorted(at)]


def _card(
    folder: Path,
    settings: Mapping[str, Any],
    made: Mapping[str, Any],
    judgements: Mapping[str, Judgement],
) -> None:
    rows = [
        f"| {name.replace('_', '-')} | {label} | {group['documents']:,} | {group['before']:.3f} | "
        f"{group['after']:.3f} |"
        for name, found in judgements.items()
        for label, group in found.groups.items()
    ]
    gate = made["gate"]
    said = f'{gate["state"]} ("{gate["reason"]}")' if gate["reason"] else gate["state"]
    asked = settings["objective"]
    name = str(asked["_target_"]).rpartition(".")[2].lower()
    chosen = ", ".join(f"{k} {v}" for k, v in asked.items() if not k.startswith("_"))
    optimizer = {k: v for k, v in settings["optimizer"].items() if not k.startswith("_")}
    text = Template((files(__package__) / "adapted.md").read_text(encoding="utf-8"))
    filled = text.substitute(
        verdict="\n".join(f"- {line}" for line in made["verdict"]),
        base=made["base_sha256"] or "none: trained from scratch",
        corpus=made["corpus_sha256"],
        general=made.get("general_sha256") or "none",
        gate=said,
        gate_sha256=gate["sha256"] or "none",
        weights=made["weights_sha256"],
        objective=f"{name} ({chosen})",
        replay=settings["replay"],
        steps=f"{int(made['steps']):,}",
        rows=settings["batch_rows"] * (settings["trainer"].get("accumulate_grad_batches") or 1),
        length=settings["length"],
        optimizer=", ".join(f"{k} {v}" for k, v in optimizer.items()),
        seed=settings["seed"],
        fewest=_FEWEST,
        table="\n".join(rows) or "| | | | | |",
        held_out=HELD_OUT.replace("_", "-"),
    )
    (folder / "README.md").write_text(filled, encoding="utf-8")
