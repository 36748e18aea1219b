"""Records to a token store: map, agree on the codes, reduce, fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medbert.data.visits import VisitRule


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a store is made.

    Args:
        visit: what a visit is.
        fractions: shares of train, tuning and held_out, where no splits are given.
        seed: of the splits.
        memory_gb: for the events of one shard; a store depends on it, but not on the executor.
        max_bad_share: share of rows with the same fault that may be kept out.
        use_parents: code systems; a code that is no diagnosis becomes its parent in one of them.
        icd9_to_icd10: a file of the CMS General Equivalence Mappings; None: ICD-9 stays.
        look_up_titles: of ICD codes in packages that carry them, where the source has none.
    """

    visit: VisitRule
    fractions: Sequence[float]
    seed: int
    memory_gb: float
    max_bad_share: float
    use_parents: Sequence[str]
    icd9_to_icd10: str | None
    look_up_titles: bool
