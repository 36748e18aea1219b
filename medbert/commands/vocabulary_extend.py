"""``medbert vocabulary extend``: an encoder that also knows the codes of another site."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from medbert.commands.output.artefacts import artefact, write_json
from medbert.data.codes import ancestors, parents_of
from medbert.data.vocabulary import Vocabulary
from medbert.model import checkpoint
from medbert.schema import CODE, NO_TOKEN, PARENTS, SPECIAL_TOKENS, UNK, InputError

log = logging.getLogger(__name__)

_SHA256 = "vocabulary_sha256"
_COUNTS = ("codes_added", "events_from_unknown", "events_from_roll_up")


def vocabulary_extend(
    *,
    encoder_dir: str,
    store: str,
    min_subjects: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes the encoder folder ``out`` with the new codes and returns it.

    New are the codes that the encoder's rule admits, that are no token by themselves, and that
    ``min_subjects`` or more training subjects of the store have. Old tokens keep their places and
    vectors. A new code starts as the nearest code above it (see ``starts_of``); its values, if the
    encoder has bins, are not told apart.
    """
    vocabulary, config = Vocabulary.load(encoder_dir), checkpoint.read_config(encoder_dir)
    if not config.get(_SHA256) == vocabulary.sha256 == Vocabulary.load(store).sha256:
        raise InputError(
            f"{store}: not prepared with the vocabulary of {encoder_dir}; prepare the records of "
            f"the new site with `medbert prepare ... vocabulary={encoder_dir}`"
        )
    table = _codes(Path(store))
    parents = parents_of(table) if PARENTS in table.column_names else {}
    token, count = table["token"].to_numpy(), table["train_count"].to_numpy()
    n_subjects = table["train_subjects"].to_numpy()
    strange = (token != NO_TOKEN) & ~vocabulary.knows(table[CODE].to_pylist())
    chosen = np.flatnonzero(strange & (n_subjects >= min_subjects))
    chosen = chosen[np.argsort(-count[chosen], kind="stable")]
    if not len(chosen):
        raise InputError(
            f"{store}: {int(strange.sum())} codes are new to {encoder_dir}, but none of them is "
            f"in {min_subjects} or more training subjects; use the encoder as it is"
        )
    new = table.take(chosen)
    starts = starts_of(new[CODE].to_pylist(), vocabulary.codes, parents)
    names = [k for k, entry in config.items() if isinstance(entry, dict) and "class" in entry]
    modules = {name: _extended(checkpoint.load_module(encoder_dir, name), starts) for name in names}
    extended = vocabulary.extended(
        new[CODE].to_pylist(),
        counts=count[chosen],
        n_subjects=n_subjects[chosen],
        titles=new["title"].to_pylist(),
    )
    told = _report(token, count, strange, chosen, starts)
    extra = {k: v for k, v in config.items() if k not in (*modules, *checkpoint.OWN_KEYS)}
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        checkpoint.save_module(folder, modules=modules, extra=extra | {_SHA256: extended.sha256})
        extended.save(folder / "vocabulary.parquet")
        write_json(folder / "vocabulary_report.json", told)
    log.info(
        "%s codes added: %s training events are no longer unknown and %s no longer rolled up; "
        "unknown are %.2f%% of them, before %.2f%%",
        *(f"{told[name]:,}" for name in _COUNTS),
        *(100 * told[f"unknown_share_{when}"] for when in ("after", "before")),
    )
    log.info("made %s; next: medbert prepare ... vocabulary=%s, then finetune on it", out, out)
    return Path(out)


def starts_of(
    codes: Sequence[str], known: Sequence[str], parents: Mapping[str, Sequence[str]]
) -> list[list[int]]:
    """For each new code the tokens (of ``known``) whose mean vector it starts with: the nearest
    code above it; if none above is a token, what is known below the code itself or else below the
    nearest one above; if nothing is, UNK.

    >>> known = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "ICD10CM/I50", "ATC/A10BA", "ATC/A10BD"]
    >>> starts_of(["ICD10CM/I50.9", "ATC/A10BX", "LAB//1"], known, {})
    [[4], [5, 6], [1]]
    """
    token = {code: i for i, code in enumerate(known)}
    below = defaultdict(list)
    for code in known[len(SPECIAL_TOKENS) :]:
        for above in ancestors(code, parents):
            below[above].append(token[code])

    def start(code: str) -> list[int]:
        line = ancestors(code, parents)
        nearest = [[token[above]] for above in line if above in token]
        return next(iter([*nearest, *(below[c] for c in (code, *line) if c in below)]), [UNK])

    return [start(code) for code in codes]


def _codes(store: Path) -> pa.Table:
    file = store / "codes.parquet"
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read ({error}); is {store} a store?") from error


def _extended(module: nn.Module, starts: Sequence[Sequence[int]]) -> nn.Module:
    """The module with a row more for each start, in all weights that the vocabulary sizes."""
    config: dict[str, Any] = module.config  # type: ignore[assignment]
    if "vocabulary_size" not in config:
        return module
    size = config["vocabulary_size"] + len(starts)
    larger = type(module)(**config | {"vocabulary_size": size})
    weights = module.state_dict()
    for name, needed in larger.state_dict().items():
        if needed.shape != weights[name].shape:
            rows = [weights[name][list(tokens)].mean(dim=0) for tokens in starts]
            weights[name] = torch.cat([weights[name], torch.stack(rows)])
    larger.load_state_dict(weights)
    return larger


def _report(
    token: np.ndarray,
    count: np.ndarray,
    strange: np.ndarray,
    chosen: np.ndarray,
    starts: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Training events and codes of the store, before and after; ``strange``: no token by itself."""
    saved = np.isin(np.arange(len(token)), chosen)
    unknown, rolled = strange & (token == UNK), strange & (token != UNK)
    total = max(int(count[token != NO_TOKEN].sum()), 1)
    return {
        "codes_added": len(chosen),
        "codes_from_unknown": int((saved & unknown).sum()),
        "codes_from_roll_up": int((saved & rolled).sum()),
        "codes_left_unknown": int((unknown & ~saved).sum()),
        "codes_left_rolled_up": int((rolled & ~saved).sum()),
        "events": total,
        "events_from_unknown": int(count[saved & unknown].sum()),
        "events_from_roll_up": int(count[saved & rolled].sum()),
        "unknown_share_before": round(float(count[unknown].sum() / total), 6),
        "unknown_share_after": round(float(count[unknown & ~saved].sum() / total), 6),
        "started_at_unknown": sum(tokens == [UNK] for tokens in starts),
        "started_at_one_code": sum(len(tokens) == 1 and tokens != [UNK] for tokens in starts),
        "started_at_a_mean": sum(len(tokens) > 1 for tokens in starts),
    }
