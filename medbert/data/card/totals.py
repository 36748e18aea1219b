"""One pass over a store, counting everything that a dataset card tells of. Exact, so private."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medbert.data.store import History, Store
from medbert.schema import BIRTH, DATES, DAY_US, DAYS_PER_YEAR, KINDS, NO_TOKEN, SPLITS, STATIC, UNK

CHUNK_EVENTS = 1_000_000  # read at once: bounds the memory
PROLONGED_DAYS = 7  # as in the prolonged-stay objective
OLDEST = 90  # and all who are older
STAYS = [KINDS.index(kind) for kind in ("inpatient", "unknown")]  # they may last for days
NO_SYSTEM = "without a system"
ANY = -1  # in place of a code system: all of them
AGE, DAYS = "Age at the first event (years)", "Length of stay (days)"
VISITS, VISIT_CODES = "Visits of a subject", "Codes of a visit"
CODES, DIFFERENT = "Codes of a subject", "Different codes of a subject"
_SYSTEM = r"^(MEDS(?=_)|[A-Za-z][\w .-]*(?=/))"  # what stands before the first slash


class Tally:
    """How many ``of`` something have each number from 0 on, in steps of 1 / ``scale``."""

    def __init__(self, of: str, *, scale: int = 1) -> None:
        self.of, self.scale, self.counts = of, scale, np.zeros(1, np.int64)

    def add(self, values: np.ndarray) -> None:
        steps = np.rint(np.maximum(values, 0) * self.scale).astype(np.int64)
        counts = np.bincount(steps, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def above(self, value: int) -> int:
        return int(self.counts[value * self.scale + 1 :].sum())


class Totals:
    """Counts of all records. S splits, C codes, K code systems, V visits.

    ``years``: events and subjects of each year and code system (its number, or ANY).
    """

    def __init__(self, store: Store) -> None:
        self.store, self.codes = store, pd.Series(store.codes, dtype=object)
        found = self.codes.str.extract(_SYSTEM, expand=False).fillna(NO_SYSTEM)
        self.system_C, names = pd.factorize(found, sort=True)
        self.systems: list[str] = list(names)
        self._birth_C = self.codes.str.startswith(BIRTH).to_numpy(bool)
        self._split_B = pd.Categorical(store.split_of_row, categories=SPLITS).codes
        self.subjects_S = np.bincount(self._split_B, minlength=len(SPLITS))
        self.events_S, self.inputs_S, self.unknown_S = np.zeros((3, len(SPLITS)), np.int64)
        sizes = (4, len(self.codes))
        self.events_C, self.inputs_C, self.unknown_C, self.subjects_C = np.zeros(sizes, np.int64)
        self.subjects_K = np.zeros(len(self.systems), np.int64)
        self.kinds = np.zeros((3, len(KINDS)), np.int64)  # visits; of known length; prolonged
        self.tallies = {name: Tally("Subjects") for name in (AGE, VISITS, CODES, DIFFERENT)}
        self.tallies |= {VISIT_CODES: Tally("Visits"), DAYS: Tally("Stays", scale=10)}
        self.no_birth = 0
        nothing = pd.MultiIndex.from_arrays([[], []], names=["year", "system"])
        self.years = pd.DataFrame({"events": [], "subjects": []}, index=nothing)
        size = max(1, CHUNK_EVENTS * len(store) // max(1, store.info["counts"]["events"]))
        for first in range(0, len(store), size):
            rows = np.arange(first, min(first + size, len(store)))
            self._add(rows, store.history(rows))

    def by_system(self, counts_C: np.ndarray) -> np.ndarray:
        """The sum of each code system."""
        n = len(self.systems)
        return np.bincount(self.system_C, weights=counts_C, minlength=n).astype(np.int64)

    def _add(self, rows: np.ndarray, history: History) -> None:
        subject_T = np.repeat(np.arange(len(rows)), np.diff(history.offsets_B1))
        self._add_codes(rows, history, subject_T)
        self._add_visits(history, subject_T)
        self.no_birth += int((history.birth_B == STATIC).sum())
        lived_T = (history.time_T != STATIC) & ~self._birth_C[history.code_T]
        if self.store.time == DATES and lived_T.any():
            self._add_times(history, subject_T[lived_T], np.flatnonzero(lived_T))

    def _add_codes(self, rows: np.ndarray, history: History, subject_T: np.ndarray) -> None:
        n_codes, n_systems, code_T = len(self.codes), len(self.systems), history.code_T
        split_T, input_T = self._split_B[rows][subject_T], history.token_T != NO_TOKEN
        unknown_T = history.token_T == UNK
        for mask_T, by_split, by_code in (
            (slice(None), self.events_S, self.events_C),
            (input_T, self.inputs_S, self.inputs_C),
            (unknown_T, self.unknown_S, self.unknown_C),
        ):
            by_split += np.bincount(split_T[mask_T], minlength=len(SPLITS))
            by_code += np.bincount(code_T[mask_T], minlength=n_codes)
        self.tallies[CODES].add(np.bincount(subject_T[input_T], minlength=len(rows)))
        owner_P, code_P = np.divmod(pd.unique(subject_T * n_codes + code_T), n_codes)
        self.subjects_C += np.bincount(code_P, minlength=n_codes)
        input_P = self.store.token_of_code[code_P] != NO_TOKEN
        self.tallies[DIFFERENT].add(np.bincount(owner_P[input_P], minlength=len(rows)))
        system_P = pd.unique(owner_P * n_systems + self.system_C[code_P]) % n_systems
        self.subjects_K += np.bincount(system_P, minlength=n_systems)

    def _add_visits(self, history: History, subject_T: np.ndarray) -> None:
        inside_T = (history.visit_T > 0) & (history.token_T != NO_TOKEN)
        visit_T = history.visit_offsets_B1[subject_T] + history.visit_T - 1
        kind_V = pd.Categorical(history.kind_V, categories=KINDS).codes
        known_V, long_V = ~np.isnan(history.stay_V), history.stay_V > PROLONGED_DAYS
        self.tallies[VISIT_CODES].add(np.bincount(visit_T[inside_T], minlength=len(kind_V)))
        self.tallies[VISITS].add(np.diff(history.visit_offsets_B1))
        self.tallies[DAYS].add(history.stay_V[known_V & np.isin(kind_V, STAYS)].astype(float))
        for row, mask_V in zip(self.kinds, (slice(None), known_V, long_V), strict=True):
            row += np.bincount(kind_V[mask_V], minlength=len(KINDS))

    def _add_times(self, history: History, subject: np.ndarray, at: np.ndarray) -> None:
        """Ages and years of the events at the places ``at``, which are in order of time."""
        time = history.time_T[at]
        first = np.flatnonzero(np.diff(subject, prepend=-1))
        birth = history.birth_B[subject[first]]
        days = (time[first] - birth)[birth != STATIC] / DAY_US
        self.tallies[AGE].add(np.floor(np.clip(days / DAYS_PER_YEAR, 0, OLDEST)))
        year = time.view("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
        system = self.system_C[history.code_T[at]]
        events = pd.DataFrame({"year": year, "system": system, "subject": subject})
        for frame in (events, events.assign(system=ANY)):
            by = frame.groupby(["year", "system"])["subject"]
            found = by.agg(events="size", subjects="nunique")
            self.years = self.years.add(found, fill_value=0)
