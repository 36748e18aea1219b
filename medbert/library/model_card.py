"""What is told of an encoder when it is passed on: facts, gathered once, and a page of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from medbert.commands.convert import MIN_COUNT, SHA256, coarse
from medbert.commands.output.artefacts import read_json
from medbert.data.vocabulary import Vocabulary
from medbert.schema import SPECIAL_TOKENS

FACTS = "card.json"  # of a folder that was passed on: what its maker could see
OF_THE_WEIGHTS = ("metrics", "audit", "privacy")  # true of these weights, and of no others
NO_AUDIT = "none"
_SYSTEMS = 6  # of codes, that are named


def gather(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder of an encoder, and the store it was trained on, say: ``data``, ``metrics``,
    ``privacy``, ``audit``. An audit of other weights is none."""
    found = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    if not found:
        found = {"data": _data(config, settings), "metrics": _metrics(folder)}
    if "privacy" in config:
        found["privacy"] = config["privacy"]
    if (folder / "audit.json").is_file():
        audit = read_json(folder / "audit.json")
        checks = [[f["check"], f["verdict"], f["says"]] for f in audit["findings"]]
        of = {name: audit[name] for name in ("verdict", "weights_sha256")}
        found["audit"] = {**of, "findings": checks}
    if found.get("audit", {}).get("weights_sha256") != config["weights_sha256"]:
        found.pop("audit", None)
    return found


def verdict(facts: Mapping[str, Any]) -> str:
    return facts.get("audit", {}).get("verdict", NO_AUDIT)


def lines(
    module: Any, vocabulary: Vocabulary, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, str]:
    """The encoder in a few lines, by what they are about."""
    shape, data = module.config, facts.get("data", {})
    weights = sum(parameter.numel() for parameter in module.parameters())
    trained = [data.get("name", "records that are not known here")]
    if "subjects" in data:
        trained.append(f"at least {data['subjects']:,} subjects")
    if codes := int(coarse(vocabulary).counts.sum()):
        trained.append(f"at least {codes:,} codes")
    asked = settings.get("objective", {})
    terms = ", ".join(asked.get("terms", [])) or asked.get("_target_", "not known").split(".")[-1]
    systems = Counter(code.partition("/")[0] for code in vocabulary.codes[len(SPECIAL_TOKENS) :])
    named = [f"{n:,} of {system}" for system, n in systems.most_common(_SYSTEMS)]
    promise = {}
    if said := facts.get("privacy"):
        promise["Privacy"] = (
            f"differential (of a {said['unit']}): epsilon {said['epsilon']:.3g}, delta "
            f"{said['delta']:g}; not covered: {'; '.join(said['not_covered'])}"
        )
    return {
        "Shape": f"{type(module).__name__}, {shape['layers']} layers of {shape['heads']} heads, "
        f"hidden {module.hidden}, {weights:,} parameters",
        "Vocabulary": f"{len(vocabulary):,} tokens: {', '.join(named)}"
        + (" and others" if len(systems) > _SYSTEMS else ""),
        "Trained on": "; ".join(trained),
        "Trained to": f"{terms}; up to {settings.get('max_tokens', 512):,} codes of a subject",
        **promise,
        "Audit": verdict(facts),
    }


def text(
    module: Any, vocabulary: Vocabulary, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    """The page (Markdown, with the front matter of the Hugging Face Hub)."""
    told = lines(module, vocabulary, settings, facts)
    metrics = {name: f"{value:.4g}" for name, value in facts.get("metrics", {}).items()}
    named = facts.get("license")
    template = Template((files("medbert.library") / "model_card.md").read_text("utf-8"))
    return template.substitute(
        front=f"license: {named}\n" if named else "",
        audit=_of_audit(facts),
        facts=_table(("The encoder", ""), told.items()),
        metrics=_table(("On the tuning subjects", ""), metrics.items()),
        data=_of_data(facts, vocabulary),
    )


def _data(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the store that the encoder was trained on, if it is still where it was."""
    file = Path(settings.get("store") or "") / "dataset.json"
    info = read_json(file) if file.is_file() else {}
    if info.get(SHA256) != config.get(SHA256):
        return {}
    subjects = settings.get("n_subjects") or info["counts"]["subjects_train"]
    name, time = info["source"].get("name", "unnamed"), info["time"]
    return {"name": name, "time": time, "subjects": subjects // MIN_COUNT * MIN_COUNT}


def _metrics(folder: Path) -> dict[str, float]:
    """Means over the tuning subjects, and what chance would score; nothing of single codes."""
    file = folder / "metrics.json"
    found = read_json(file) if file.is_file() else {}
    chance = {f"by chance: {k}": v for k, v in (found.get("by_chance") or {}).items()}
    own = {k.removeprefix("tuning/"): v for k, v in found.items() if k.startswith("tuning/")}
    return {k: float(v) for k, v in (own | chance).items() if isinstance(v, int | float)}


def _of_audit(facts: Mapping[str, Any]) -> str:
    said, checks = verdict(facts), facts.get("audit", {}).get("findings", [])
    if said == "pass":
        told = "An audit of what these weights give away (`medbert audit`) was passed."
    else:
        what = f"THE AUDIT SAYS: {said}. These weights may give away"
        if said == NO_AUDIT:
            what = "NO AUDIT. Nobody has looked whether these weights give away"
        told = f"> **{what} whose records they read: do not pass them on.**"
    return f"{told}\n\n{_table(('Looked for', 'verdict', 'found'), checks)}"


def _of_data(facts: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    data, least = facts.get("data", {}), vocabulary.rule.min_subjects
    said = [facts.get("statement") or "Where the records come from was not stated."]
    if data:
        meaning = {"dates": "have dates", "order": "have an order but no dates"}[data["time"]]
        said.append(f"They {meaning}; held-out subjects were never read.")
    said.append(f"A code of fewer than {least} training subjects is no token.")
    return " ".join(said)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Empty without rows."""
    body = [[cell.replace("|", "/") for cell in row] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
    return "\n".join(lines) + "\n" if body else ""
