"""The reduce stage: some buckets of all parts, so whole subjects, to one file of the store.

Everything that needs to see all of a subject happens here: impossible ages, visits, what is known
at discharge, the order of events, exact repeats. The file depends on what the subjects' rows are,
not on the order in which they came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data import splits as subject_splits
from medbert.data.preparing import Settings, births, gather, order
from medbert.data.preparing.spill import NO_VISIT, Columns
from medbert.data.store import write_subjects
from medbert.data.visits import Stays, made_of_events, put_together, runs_of
from medbert.schema import SPLITS, STATIC, SUBJECT_ID, TRAIN, Findings, InputError, Part


class Plan(NamedTuple):
    """What all shards share. ``folder`` holds parts/ and codes.npz (see ``prepare``)."""

    folder: Path
    store: Path
    parts: Sequence[Part]
    settings: Settings
    one_file_each: bool


class ShardJob(NamedTuple):
    """``buckets`` of the parts ``numbers``; None: those parts themselves."""

    plan: Plan
    number: int
    numbers: Sequence[int]
    buckets: range | None


class Codes(NamedTuple):
    """Facts about the codes of a dataset, in the order of ``codes.parquet``."""

    local: dict[int, np.ndarray]  # part -> its own number of a code -> the number, -1: no code
    is_diagnosis: np.ndarray
    in_no_visit: np.ndarray  # birth and death
    sexes: np.ndarray
    birth: int

    @classmethod
    def read(cls, folder: Path, parts: Sequence[int]) -> Codes:
        with np.load(folder / "codes.npz") as file:
            local = {i: file[f"local{i}"] for i in parts}
            masks = {name: file[name] for name in ("is_diagnosis", "in_no_visit", "sexes")}
            return cls(local, **masks, birth=int(file["birth"]))


def write_shard(job: ShardJob) -> int:
    """Writes shard ``number`` and what it counted; returns its events. Done before: nothing."""
    plan = job.plan
    done = plan.folder / "shards" / f"{job.number}.json"
    if not done.exists():
        findings = Findings(plan.settings.max_bad_share)
        codes = Codes.read(plan.folder, job.numbers)
        shard = _Shard(job, codes, findings)
        shard.drop_impossible_ages()
        visits = shard.find_visits()
        shard.sort()
        stays = shard.number_visits(visits)
        info = shard.write(stays) | {"findings": findings.to_dict()}
        part = done.with_suffix(".part")
        part.write_text(json.dumps(info), encoding="utf-8")
        part.replace(done)
    return json.loads(done.read_text(encoding="utf-8"))["events"]


class _Shard:
    """The events of the subjects in some buckets, through the steps of ``write_shard``.

    ``events`` are columns of equal length: subject (its place in ``ids``), time, code, and value,
    visit (its id), rank where any event has one.
    """

    def __init__(self, job: ShardJob, codes: Codes, findings: Findings) -> None:
        self.job, self.plan, self.codes, self.findings = job, job.plan, codes, findings
        self.changed: dict[str, int] = {}
        folder = self.plan.folder / "parts"
        if job.buckets is None:
            parts = {i: self.plan.parts[i] for i in job.numbers}
            batches = gather.from_parts(folder, parts, findings)
        else:
            batches = gather.from_buckets(folder, job.numbers, job.buckets)
        self.events, part = gather.together(batches, "events")
        self.events["code"] = gather.translated(self.events["code"], part, codes.local)
        self.births, self.birth_part = gather.together(batches, "births")
        self.stated, self.stated_part = gather.together(batches, "visits")
        self.names, _ = gather.together(batches, "names")
        columns = [self.events, self.births, self.stated]
        subjects = [c.pop("subject") for c in columns]
        self.ids, found = gather.places(subjects, by_bucket=job.buckets is not None)
        for held, place in zip(columns, found, strict=True):
            held["subject"] = place
        if self.plan.one_file_each:
            self._check_one_file_each(part)
        self._keep(self.events["code"] >= 0)

    def _keep(self, keep: np.ndarray) -> None:
        if not keep.all():
            self.events = {name: column[keep] for name, column in self.events.items()}

    def _where(self, part: int, row: int, what: str) -> str:
        return f"{self.plan.parts[part].name}: {what}" + (f": row {row + 1}" if row >= 0 else "")

    def _check_one_file_each(self, part: np.ndarray) -> None:
        subject = self.events["subject"]
        a_part = np.zeros(len(self.ids), part.dtype)
        a_part[subject] = part
        elsewhere = np.flatnonzero(a_part[subject] != part)
        if len(elsewhere):
            twice = subject[elsewhere]
            first, second = (self.plan.parts[p[elsewhere[0]]] for p in (part, a_part[subject]))
            row = gather.first_row(second, int(self.ids[twice[0]]))
            others = len(np.unique(twice)) - 1
            raise gather.shared_subject(second.name, row, first.name, others=others)

    # --- births -------------------------------------------------------------------------------

    def drop_impossible_ages(self) -> None:
        """Events before the birth or long after it are kept out; or the birth, where it is the odd
        one out (most events of the subject are impossible by it, or it is stated twice).
        """
        birth, conflicting, place = births.agreed(self.births, len(self.ids))
        self._note_births("conflicting_birth", conflicting, place)
        subject, time = self.events["subject"], self.events["time"]
        if (birth != STATIC).any():
            early, late = births.out_of_life(birth, subject, time)
            n = np.maximum(np.bincount(subject[time != STATIC], minlength=len(birth)), 1)
            for reason, bad in (("born_after_visit", early), ("age_over_120", late)):
                wrong = np.bincount(subject[bad], minlength=len(birth)) / n > 0.5
                self._note_births(reason, np.flatnonzero(wrong), place)
                birth[wrong] = STATIC
            early, late = births.out_of_life(birth, subject, time)
            for reason, bad in (("events_before_birth", early), ("events_after_age_120", late)):
                self._note_births(reason, np.unique(subject[bad]), place, count=int(bad.sum()))
            self._keep(~(early | late))
            early, late = births.out_of_life(birth, self.stated["subject"], self.stated["start"])
            if (early | late).any():
                first = int(np.flatnonzero(early | late)[0])
                self.findings.note("visits_outside_life", (early | late).sum(), self._visit(first))
                self.stated_part = self.stated_part[~(early | late)]
                self.stated = {k: column[~(early | late)] for k, column in self.stated.items()}
        self.birth = birth
        born = np.flatnonzero(birth != STATIC)
        if len(born):
            code = np.full(len(born), self.codes.birth)
            extra = {"subject": born, "time": birth[born], "code": code}
            self.events = gather.joined([self.events, extra])

    def _note_births(
        self, reason: str, subjects: np.ndarray, place: np.ndarray, *, count: int | None = None
    ) -> None:
        if len(subjects):
            first = place[subjects].min()
            where = self._where(self.birth_part[first], self.births["row"][first], "birth")
            self.findings.note(reason, len(subjects) if count is None else count, where)

    # --- visits -------------------------------------------------------------------------------

    def _visit(self, place: int) -> str:
        what = "start and end of the visit"
        return self._where(self.stated_part[place], self.stated["row"][place], what)

    def find_visits(self) -> Stays:
        """The visits that the source names; ``events`` gets ``stay``, the visit of each (-1: none),
        and diagnoses become known at the end of theirs.
        """
        subject, time = self.events["subject"], self.events["time"]
        visit, stay = self.events.pop("visit", None), np.full(len(subject), -1)
        rows = np.flatnonzero(visit != NO_VISIT) if visit is not None else stay[:0]
        named = visit[rows] if visit is not None else rows
        runs, run_of_event = runs_of(subject[rows], named, time[rows])
        stays, self.visit_ids, of_run, timed = put_together(
            self.stated, runs, findings=self.findings, locate=self._visit
        )
        self.changed["visits_with_both_ends"] = timed
        if len(rows):
            stay[rows] = of_run[run_of_event]
            settled = rows[self.codes.is_diagnosis[self.events["code"][rows]]]
            end = stays.end[stay[settled]]
            moved = (end > time[settled]) & (time[settled] != STATIC)
            self.changed["diagnoses_moved_to_discharge"] = int(moved.sum())
            time[settled[moved]] = end[moved]
            if self.plan.settings.visit.named:
                self.events["stay"] = stay
        return stays if self.plan.settings.visit.named else stays.take(np.zeros(0, np.int64))

    def sort(self) -> None:
        """By subject, time (static first) and rank, codes shuffled; exact repeats are dropped."""
        before = len(self.events["subject"])
        shuffle = order.Shuffle(self.ids, len(self.codes.is_diagnosis))
        shuffle.apply(self.events)
        self.events = order.sorted_distinct(self.events)
        shuffle.undo(self.events)
        self.changed["duplicate_events_dropped"] = before - len(self.events["subject"])
        self._drop_conflicting_sexes()

    def _drop_conflicting_sexes(self) -> None:
        subject, code = self.events["subject"], self.events["code"]
        sex = np.flatnonzero(self.codes.sexes[code])
        a_sex = np.full(len(self.ids), -1, np.int32)
        a_sex[subject[sex]] = code[sex]
        several = np.unique(subject[sex[a_sex[subject[sex]] != code[sex]]])
        if len(several):
            self.findings.note("conflicting_sex", len(several))
            keep = np.ones(len(subject), bool)
            keep[sex[np.isin(subject[sex], several)]] = False
            self._keep(keep)

    def number_visits(self, named: Stays) -> Stays:
        """All visits in the order of the store; ``events`` gets ``visit``, counted from 1 (0: none)
        in its subject.
        """
        subject, time = self.events["subject"], self.events["time"]
        stay = self.events.pop("stay", None)
        made = named.take(np.zeros(0, np.int64))
        rows: np.ndarray | slice = slice(0)
        if self.plan.settings.visit.by != "column":
            loose = (time != STATIC) & ~self.codes.in_no_visit[self.events["code"]]
            if stay is not None:
                loose &= stay < 0
            rows = slice(None) if loose.all() else np.flatnonzero(loose)
            made, of_row = made_of_events(self.plan.settings.visit, subject[rows], time[rows])
        number = np.full(len(subject), -1) if stay is None else stay
        if len(made.start):
            number[rows] = of_row + len(named.start)
        stays = made
        if len(named.start):
            stays = Stays(*(np.concatenate(both) for both in zip(named, made, strict=True)))
            by = np.lexsort((stays.start, stays.subject))
            stays = stays.take(by)
            place = np.empty(len(by) + 1, np.int64)
            place[by], place[-1] = np.arange(len(by)), -1  # the last one stands for no visit
            number = place[number]
        first = np.searchsorted(stays.subject, np.arange(len(self.ids)))
        number -= first[subject]
        number += 1
        self.events["visit"] = np.maximum(number, 0).astype(np.int32)
        return stays

    # --- writing ------------------------------------------------------------------------------

    def write(self, stays: Stays) -> dict[str, Any]:
        """The Arrow file, what the vocabulary needs to know, names and splits; counts."""
        plan, k = self.plan, self.job.number
        subject, code = self.events["subject"], self.events["code"]
        given = plan.folder / "splits.npz"
        if given.exists():
            split = subject_splits.stored(given, self.ids)
        else:
            by = plan.settings
            split = subject_splits.places(self.ids, fractions=by.fractions, seed=by.seed)
        n_codes = len(self.codes.is_diagnosis)
        train = (split == SPLITS.index(TRAIN))[subject]
        np.savez(
            plan.folder / "shards" / f"{k}.npz",
            events=np.bincount(code, minlength=n_codes),
            train_events=np.bincount(code[train], minlength=n_codes),
            train_subjects=order.distinct_subjects(subject[train], code[train], n_codes),
            visit_ids=self.visit_ids,
            split=split,
        )
        if len(self.names["subject"]):
            _write_names(plan.store / "subjects" / f"{k}.parquet", self.names)
        file = plan.store / "data" / f"{k}.arrow"
        time = self.events["time"]
        return {
            "shard": write_subjects(file, self.ids, self.birth, self.events, stays),
            "events": len(subject),
            "visits": len(stays.start),
            "end": int(time.max()) if len(time) else STATIC,
            "changed": self.changed,
        }


def _write_names(path: Path, names: Columns) -> None:
    """The source's own names of the subjects: private to the store."""
    table = pa.table({SUBJECT_ID: names["subject"], "name": pa.array(names["name"], pa.string())})
    table = table.group_by([SUBJECT_ID, "name"]).aggregate([]).sort_by(SUBJECT_ID)
    if len(table[SUBJECT_ID].unique()) < len(table):
        raise InputError(
            "two subjects' ids have the same hash; number the subjects with whole numbers instead"
        )
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
