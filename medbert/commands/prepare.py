"""``medbert prepare``: a source's records to a token store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from medbert.commands.output.artefacts import artefact
from medbert.commands.output.progress import follow
from medbert.data import splits as subject_splits
from medbert.data.preparing import prepare as preparing
from medbert.data.preparing.shift import shifted
from medbert.data.visits import VisitRule
from medbert.data.vocabulary import Rule, Vocabulary
from medbert.schema import Source
from medbert.text.redaction.shift import Shift

log = logging.getLogger(__name__)


def prepare(
    *,
    source: Source,
    vocabulary: str | None,
    rule: Rule,
    splits: str | None,
    fractions: Sequence[float],
    visit: VisitRule,
    shift: dict[str, Any],
    use_parents: Sequence[str],
    icd9_to_icd10: str | None,
    look_up_titles: bool,
    max_bad_share: float,
    memory_gb: float,
    executor: Callable[[], AbstractContextManager[Any]],
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out``/ and returns its path; an unfinished one is taken up.

    ``vocabulary`` names an encoder or store folder whose vocabulary is reused; without it one is
    fitted by ``rule`` on the training subjects. ``splits`` names a Parquet of subject splits.
    ``shift`` are the arguments of ``Shift.of``; its key is not among them, but where it is kept.
    """
    moved_by = Shift.of(**shift)
    given = None if splits is None else subject_splits.read(splits)
    chosen = rule if vocabulary is None else Vocabulary.load(vocabulary)
    told = {k: v for k, v in settings.items() if k != "executor"}  # the store is the same
    with (
        artefact(out, overwrite=overwrite, settings=told, free=()) as folder,
        executor() as runner,
    ):
        records = source.read()
        if moved_by is not None:
            records = shifted(records, moved_by.days, told=moved_by.told)
        info = preparing.write_store(
            records,
            folder,
            vocabulary=chosen,
            splits=given,
            settings=preparing.Settings(
                visit=visit,
                fractions=fractions,
                seed=seed,
                memory_gb=memory_gb,
                max_bad_share=max_bad_share,
                use_parents=use_parents,
                icd9_to_icd10=icd9_to_icd10,
                look_up_titles=look_up_titles,
            ),
            executor=runner,
            follow=follow,
        )
    _tell(info)
    log.info("made %s; next: medbert inspect store=%s out=card/", out, out)
    log.info("            or: medbert pretrain store=%s out=encoder/", out)
    return Path(out)


def _tell(info: dict[str, Any]) -> None:
    """What came in, what was made of its codes, and what was found wrong."""
    for name, value in info["counts"].items():
        log.info("%s: %s", name.replace("_", " "), f"{value:,}")
    for outcome, told in info["recoding"].items():
        if outcome != "kept":
            codes, events = f"{told['codes']:,}", f"{told['events']:,}"
            log.info("codes %s: %s, %s events", outcome.replace("_", " "), codes, events)
    for reason, found in info["findings"].items():
        where = f" (first: {found['first']})" if found["first"] else ""
        log.info("found, %s: %s%s", reason.replace("_", " "), f"{found['count']:,}", where)
    if info["counts"]["unknown_share"] > 0.2:
        log.warning(
            "%.0f%% of the codes are unknown to this vocabulary: it may be of another dataset or "
            "code system (see: medbert vocabulary extend --help)",
            100 * info["counts"]["unknown_share"],
        )
