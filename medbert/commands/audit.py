"""``medbert audit``: may this encoder leave the hospital? Evidence, and a verdict."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medbert.commands.encoders.trained_on import TRAINED_ON, pieces, training_set
from medbert.commands.output.artefacts import artefact, read_json, write_json
from medbert.commands.privacy.attack import FOUND_BITS, FPR, Attack
from medbert.commands.privacy.canaries import real
from medbert.commands.privacy.disclosures import disclosures
from medbert.data.store import Store
from medbert.evaluate.intervals import Interval
from medbert.evaluate.leaks import privacy
from medbert.evaluate.leaks.privacy import FAIL, PASS, Judged
from medbert.model import checkpoint
from medbert.schema import NO_TOKEN, SPECIAL_TOKENS, TRAIN, InputError

log = logging.getLogger(__name__)

AUDIT = "audit.json"
_NOTES = (
    "Members are training subjects, the others held-out ones. Losses are set against what is "
    "expected of records as rare, long and eventful (and against those of a reference).",
    "What these attacks do not find, others may: this is evidence, not proof.",
)
_GIVEN = (
    "The splits are the source's own: where members and others differ in more than membership, "
    "the figures show that, too."
)
Finding = dict[str, Any]


def audit(
    *,
    store: str,
    encoder_dir: str,
    reference: str | None,
    n_subjects: int,
    draws: int,
    alternatives: int,
    max_auc: float,
    max_tpr: float,
    max_exposure: float,
    min_subjects: int,
    resamples: int,
    level: float,
    into_encoder: bool,
    device: str,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out`` (audit.json, audit.md) and returns it; with ``into_encoder``, audit.json also
    goes beside the weights, which it names by their hash.

    The attacker has the records of members and of others, and more than is passed on: the output
    layers of the pretraining. Nothing that is written names a subject.
    """
    records, folder = Store(store), Path(encoder_dir)
    config, told = checkpoint.read_config(folder), training_set(records)
    if config.get(TRAINED_ON, {}).get("sha256") != told["sha256"]:
        raise InputError(f"{store}: not the store that {encoder_dir} was trained on; name that one")
    how: dict[str, Any] = {"seed": seed, "resamples": resamples, "level": level}
    with artefact(out, overwrite=overwrite, settings=settings) as work:
        attack, *other = (
            Attack(Path(where), records, draws=draws, device=device)
            for where in (encoder_dir, reference)
            if where is not None
        )
        found, n = attack.membership(other[0] if other else None, n_subjects, **how)
        findings = [
            *of_membership(found, n, "subjects of a kind", max_auc=max_auc, max_tpr=max_tpr),
            _of_canaries(attack.canaries(alternatives, seed=seed), max_exposure, how),
            _of_rare_codes(records, min_subjects),
            _of_files(folder, records),
        ]
        made = {
            "verdict": privacy.worst([finding["verdict"] for finding in findings]),
            "weights_sha256": config["weights_sha256"],
            "findings": findings,
            "privacy": config.get("privacy"),
            "notes": [*_NOTES, *([] if told["seed"] is not None else [_GIVEN])],
        }
        write_audit(work, made, "Audit of an encoder")
    if into_encoder:
        write_json(folder / AUDIT, made)
    tell(made, out)
    return Path(out)


def of_membership(
    found: dict[str, Interval], n: int, of: str, *, max_auc: float, max_tpr: float
) -> list[Finding]:
    tpr = f"members found at {FPR:.0%} false alarms"
    return [
        judged(Judged("membership: AUC", found["auc"], max_auc, n, of)),
        judged(Judged(f"membership: {tpr}", found["tpr"], max_tpr, n, of)),
    ]


def judged(one: Judged, more: str = "") -> Finding:
    found = asdict(one.value)
    says = "{value:.3g} ({low:.3g} to {high:.3g})".format(**found)
    says += f", has to be below {one.threshold:g}{more}"
    if one.needed is not None:
        says += f"; {one.needed:,} {one.of} would tell, there were {one.n:,}"
    numbers = {name: round(x, 4) if math.isfinite(x) else None for name, x in found.items()}
    numbers |= {"threshold": one.threshold, "n": one.n}
    return {"check": one.name, "verdict": one.verdict, "says": says, **numbers}


def _of_canaries(bits: dict[int, np.ndarray], threshold: float, how: dict[str, Any]) -> Finding:
    """Judged are those that fewest subjects have, as real records are there once."""
    name = "canaries: exposure in bits"
    if not bits:
        says = "none were planted; train on a store made by medbert audit plant"
        return {"check": name, "verdict": privacy.CANNOT_TELL, "says": says}
    told = {
        n: {"found": int((of >= FOUND_BITS).sum()), "bits": of.round(1).tolist()}
        for n, of in bits.items()
    }
    parts = [f"{told[n]['found']} of {len(of)} that {n} had" for n, of in bits.items()]
    least = bits[min(bits)]
    one = Judged(name, privacy.mean_of(least, **how), threshold, len(least), "canaries")
    more = f" ({privacy.CHANCE_BITS:.2f} by chance); found: {', '.join(parts)}"
    return {**judged(one, more), "by_repeats": told}


def _of_rare_codes(records: Store, min_subjects: int) -> Finding:
    """Tokens that some training subjects have, but fewer than ``min_subjects``."""
    size, train = len(records.vocabulary), records.rows(TRAIN)
    subjects = np.zeros(size, np.int64)
    for some in pieces(train[real(records, train)]):
        history = records.history(some)
        row_T = np.repeat(np.arange(len(history.birth_B)), np.diff(history.offsets_B1))
        known = history.token_T != NO_TOKEN
        pairs = np.unique(row_T[known] * size + history.token_T[known])
        subjects += np.bincount(pairs % size, minlength=size)
    rare = int(((subjects > 0) & (subjects < min_subjects))[len(SPECIAL_TOKENS) :].sum())
    says = f"{rare:,} of {size:,} tokens are of fewer than {min_subjects} training subjects"
    own = read_json(records.folder / "settings.json").get("vocabulary") is None
    if rare and not own:
        says += "; they are in the vocabulary for others, whose it is"
    return {"check": "rare codes", "verdict": FAIL if rare and own else PASS, "says": says}


def _of_files(folder: Path, records: Store) -> Finding:
    found, kept_back = disclosures(folder, records)
    says = "; ".join(f"{what} ({n})" for what, n in found.items()) or "nothing found"
    if kept_back:
        says += f"; keep back {', '.join(kept_back)}, as Encoder.save_pretrained does"
    return {"check": "identifiers in files", "verdict": FAIL if found else PASS, "says": says}


def write_audit(work: Path, made: dict[str, Any], title: str) -> str:
    """Writes audit.json and audit.md; returns the latter."""
    rows = [f"| {f['check']} | {f['verdict']} | {f['says']} |" for f in made["findings"]]
    lines = [
        f"# {title}",
        f"**Verdict: {made['verdict']}** (weights {made['weights_sha256'][:12]})",
        "\n".join(["| what | verdict | found |", "|---|---|---|", *rows]),
        *made["notes"],
    ]
    if promise := made["privacy"]:
        told = "Trained with {method}: epsilon {epsilon:.2f} at delta {delta:g}. Not covered: "
        lines.append(told.format(**promise) + "; ".join(promise["not_covered"]) + ".")
    write_json(work / AUDIT, made)
    (work / "audit.md").write_text(page := "\n\n".join(lines) + "\n", encoding="utf-8")
    return page


def tell(made: dict[str, Any], out: str) -> None:
    for finding in made["findings"]:
        log.info("%s: %s; %s", finding["check"], finding["verdict"], finding["says"])
    log.info("verdict: %s; made %s; open %s", made["verdict"], out, Path(out) / "audit.md")
