"""``medbert audit text``: does an adapted text model give away whose notes it has read?"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from medbert.commands.audit import AUDIT, Finding, judged, of_membership, tell, write_audit
from medbert.commands.benchmark_text import weights_sha256
from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.privacy.attack import FOUND_BITS, FPR
from medbert.commands.privacy.canaries import planted
from medbert.commands.privacy.canaries_text import drawn
from medbert.evaluate.leaks import privacy
from medbert.evaluate.leaks.privacy import CANNOT_TELL, CHANCE_BITS, Judged, mean_of, worst
from medbert.schema import TRAIN, InputError
from medbert.text.bench.masked import NATS, PIECES, MaskedModel
from medbert.text.corpus.documents import Corpus

_NOTES = (
    "Members are patients of the train split, the others those of tuning and held_out: one pool. "
    "Losses are set against those of the model that the adaptation began with.",
    "What these attacks do not find, others may: this is evidence, not proof.",
)
_LATER = (
    "The held-out notes of this corpus are later ones (held_out_from): what differs between years "
    "looks like membership, so the figures are too high; audit on a corpus split by patient alone."
)
_HEAD = "## Privacy audit"


@withheld
def audit_text(
    *,
    corpus: str,
    model: str,
    base: str,
    n_patients: int,
    characters: int,
    alternatives: int,
    max_auc: float,
    max_tpr: float,
    max_exposure: float,
    resamples: int,
    level: float,
    into_model: bool,
    device: str,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out`` (audit.json, audit.md) and returns it; with ``into_model``, audit.json also
    goes beside the weights, and its table into their card. Nothing that is written names a patient.
    """
    notes = Corpus(corpus)
    later = notes.manifest.get("settings", {}).get("held_out_from")
    how: dict[str, Any] = {"seed": seed, "resamples": resamples, "level": level}
    with artefact(out, overwrite=overwrite, settings=settings) as work:
        models = [MaskedModel(folder, device=device) for folder in (model, base)]
        texts, member = _patients(notes, n_patients, characters, seed)
        found = _membership(models, texts, member, how)
        n = int(min(member.sum(), (~member).sum()))
        findings = [
            *of_membership(found, n, "patients of a kind", max_auc=max_auc, max_tpr=max_tpr),
            *_canaries(notes, models, alternatives, max_exposure, how),
        ]
        made = {
            "verdict": worst([finding["verdict"] for finding in findings]),
            "weights_sha256": weights_sha256(Path(model)),
            "findings": findings,
            "privacy": None,
            "notes": [*_NOTES, *([_LATER] if later else [])],
        }
        page = write_audit(work, made, "Audit of a text model")
    if into_model:
        write_json(Path(model) / AUDIT, made)
        _into_card(Path(model) / "README.md", page)
    tell(made, out)
    return Path(out)


def _patients(notes: Corpus, most: int, characters: int, seed: int) -> tuple[list[str], np.ndarray]:
    """A text for each of at most ``most`` patients of a kind, and who of them is a member. Of each
    the first ``characters``; canaries are nobody."""
    secret = {one["text"] for one in planted(notes.folder)}
    of_patient: dict[tuple[str, bool], list[str]] = {}
    for document in notes.documents():
        if document.text not in secret:
            key = document.patient_id or document.note_id, document.split == TRAIN
            of_patient.setdefault(key, []).append(document.text)
    random, chosen = np.random.default_rng(seed), []
    for kind in (True, False):
        keys = sorted(key for key in of_patient if key[1] == kind)
        chosen += [keys[i] for i in sorted(random.permutation(len(keys))[:most])]
    if len({kind for _, kind in chosen}) < 2:
        raise InputError(f"{notes.folder}: patients to train on and others are needed")
    texts = ["\n".join(of_patient[key])[:characters] for key in chosen]
    return texts, np.array([kind for _, kind in chosen])


def _membership(
    models: list[MaskedModel], texts: list[str], member: np.ndarray, how: dict[str, Any]
) -> dict[str, Any]:
    """``models``: the one that is audited, and the one before."""
    counts_NK, before_NK = (model.losses(texts) for model in models)
    used = (counts_NK[:, PIECES] > 0) & (before_NK[:, PIECES] > 0)
    counts_NK, before_NK, member = counts_NK[used], before_NK[used], member[used]
    loss_N, before_N = (c[:, NATS] / c[:, PIECES] for c in (counts_NK, before_NK))
    size_N = np.log(before_NK[:, PIECES])
    expected = np.stack([before_N, size_N], axis=1)
    scores = privacy.calibrated(loss_N, member, expected, seed=how["seed"])
    return privacy.membership(scores, member, fpr=FPR, **how)


def _canaries(
    notes: Corpus,
    models: list[MaskedModel],
    alternatives: int,
    threshold: float,
    how: dict[str, Any],
) -> list[Finding]:
    """One finding for each number of repeats: in notes an identifier stands as often as a patient
    has notes, so that all of them have to pass."""
    name = "canaries: exposure in bits"
    if not (secrets := planted(notes.folder)):
        says = "none were planted; train on a corpus made by medbert corpus plant"
        return [{"check": name, "verdict": CANNOT_TELL, "says": says}]
    others = drawn(alternatives, random=Random(f"{how['seed']} others"))
    texts = [one["text"] for one in secrets] + [one.text for one in others]
    places = [(one["start"], one["end"]) for one in secrets]
    places += [(one.start, one.end) for one in others]
    losses, before = (model.secrets(texts, places) for model in models)
    planted_K = np.arange(len(texts)) < len(secrets)
    scores = privacy.calibrated(losses, planted_K, before, seed=how["seed"])
    bits = privacy.exposure(scores[planted_K], scores[~planted_K])
    repeats, found = np.array([one["repeats"] for one in secrets]), []
    for n in np.unique(repeats):
        of = bits[repeats == n]
        one = Judged(f"{name}, {n} times", mean_of(of, **how), threshold, len(of), "canaries")
        seen = int((of >= FOUND_BITS).sum())
        more = f" ({CHANCE_BITS:.2f} by chance); found: {seen} of {len(of)}"
        found.append({**judged(one, more), "found": seen, "bits": of.round(1).tolist()})
    return found


def _into_card(card: Path, page: str) -> None:
    """As a section of a model card, in place of an older one."""
    if not card.is_file():
        return
    section = _HEAD + "\n\n" + page.partition("\n\n")[2]
    old = card.read_text(encoding="utf-8").rstrip()
    kept = re.sub(rf"\n*{_HEAD}\n.*?(?=\n## |\Z)", "", old, flags=re.DOTALL)
    part = card.with_name(card.name + ".part")
    part.write_text(f"{kept}\n\n{section}", encoding="utf-8")
    part.replace(card)
