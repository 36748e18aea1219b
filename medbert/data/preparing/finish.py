"""From finished shards to a store: vocabulary, splits, codes, labels and ``dataset.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medbert.data.preparing import gather
from medbert.data.preparing.codebook import Codebook
from medbert.data.preparing.shift import certain_end
from medbert.data.preparing.spill import BUCKETS
from medbert.data.store import FORMAT
from medbert.data.vocabulary import Block, Rule, Vocabulary, fit
from medbert.schema import (
    CODE,
    KINDS,
    NO_TOKEN,
    PARENTS,
    SPLITS,
    SUBJECT_ID,
    SUBJECT_SPLITS,
    TRAIN,
    UNK,
    Findings,
    InputError,
    Records,
)

_IDS_AT_ONCE = 10_000_000


class Made:
    """The shards of a store and what they counted."""

    def __init__(self, folder: Path, work: Path, n_shards: int, codes: Codebook) -> None:
        self.folder, self.work, self.codes = folder, work, codes
        self.shards = [
            json.loads((work / "shards" / f"{k}.json").read_text(encoding="utf-8"))
            for k in range(n_shards)
        ]
        n = len(codes.names)
        self.counts = dict.fromkeys(("events", "train_events", "train_subjects"), np.zeros(n, int))
        self.split = []
        for k in range(n_shards):
            with np.load(work / "shards" / f"{k}.npz") as file:
                self.counts = {name: n + file[name] for name, n in self.counts.items()}
                self.split.append(file["split"])

    def finish(self, records: Records, vocabulary: Rule | Vocabulary) -> dict[str, Any]:
        """Vocabulary, splits, codes, labels and ``dataset.json``; the work folder goes."""
        codes, folder = self.codes, self.folder
        if not sum(shard["events"] for shard in self.shards):
            raise InputError("the source has no events; check source.path and the column names")
        if isinstance(vocabulary, Rule):
            vocabulary = fit(
                codes.names,
                counts=self.counts["train_events"],
                n_subjects=self.counts["train_subjects"],
                titles=codes.titles,
                parents=codes.parents,
                rule=vocabulary,
                scan=self._training_events,
            )
        tokens = vocabulary.tokens(codes.names, codes.parents)
        vocabulary.save(folder / "vocabulary.parquet")
        self._write_splits()
        self._write_codes(tokens.plain)
        for name, table in records.labels.items():
            (folder / "labels").mkdir(exist_ok=True)
            pq.write_table(table, folder / "labels" / f"{name}.parquet")
        for name, path in records.files.items():
            shutil.copy(path, folder / name)
        info = self._info(records, vocabulary, tokens.plain)
        (folder / "dataset.json").write_text(json.dumps(info, indent=2, default=str), "utf-8")
        shutil.rmtree(self.work)
        return info

    def _training_events(self) -> Iterator[Block]:
        """The events of training subjects, shard by shard."""
        for shard, split in zip(self.shards, self.split, strict=True):
            code, value = self._column(shard, "code"), self._column(shard, "value")
            subject = np.repeat(np.arange(len(split)), np.diff(code.offsets))
            train = (split == SPLITS.index(TRAIN))[subject]
            code_T, value_T = code.values.to_numpy()[train], value.values.to_numpy()[train]
            yield Block(subject[train], code_T, value_T)

    def _write_splits(self) -> None:
        """Subjects in the order of the store."""
        with pq.ParquetWriter(self.folder / "subject_splits.parquet", SUBJECT_SPLITS) as writer:
            for shard, split in zip(self.shards, self.split, strict=True):
                ids = self._column(shard, SUBJECT_ID)
                writer.write_table(pa.table([ids, np.array(SPLITS)[split]], SUBJECT_SPLITS))

    def _write_codes(self, plain: np.ndarray) -> None:
        names, titles, parents = self.codes.names, self.codes.titles, self.codes.parents
        columns = {
            CODE: pa.array(names, pa.string()),
            "token": pa.array(plain, pa.int32()),
            "train_count": pa.array(self.counts["train_events"], pa.int64()),
            "train_subjects": pa.array(self.counts["train_subjects"], pa.int64()),
            "title": pa.array([titles.get(code) for code in names], pa.string()),
            PARENTS: pa.array([parents.get(code) for code in names], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), self.folder / "codes.parquet")

    def _info(self, records: Records, vocabulary: Vocabulary, plain: np.ndarray) -> dict[str, Any]:
        findings, changed = self._found(records)
        subjects = np.bincount(np.concatenate(self.split), minlength=len(SPLITS)).tolist()
        events = self.counts["events"]
        n_tokens = int(events[plain != NO_TOKEN].sum())
        known = vocabulary.knows(self.codes.names)
        unknown, rolled = (events[(plain == UNK) & ~known], events[(plain > UNK) & ~known])
        return {
            "format": FORMAT,
            "medbert": version("medbert"),
            "time": records.metadata["time"],
            "end": certain_end(max(shard["end"] for shard in self.shards), records.metadata),
            "vocabulary_sha256": vocabulary.sha256,
            "visit_kinds": list(KINDS),
            "counts": {
                "subjects": sum(subjects),
                **{f"subjects_{name}": n for name, n in zip(SPLITS, subjects, strict=True)},
                "events": sum(shard["events"] for shard in self.shards),
                "visits": sum(shard["visits"] for shard in self.shards),
                **changed,
                "codes": int(np.sum(events > 0)),
                "vocabulary": len(vocabulary),
                "tokens": n_tokens,
                "unknown_share": round(float(unknown.sum() / max(n_tokens, 1)), 6),
                "rolled_up_share": round(float(rolled.sum() / max(n_tokens, 1)), 6),
            },
            "findings": findings,
            "recoding": self.codes.recoding,
            "source": records.metadata,
            "shards": [shard["shard"] for shard in self.shards],
        }

    def _found(self, records: Records) -> tuple[Mapping[str, Any], dict[str, int]]:
        """Findings of parts and shards, and what was changed in the records."""
        findings = Findings()
        changed: dict[str, int] = {}
        for i in range(len(records.parts)):
            part = self.work / "parts" / str(i) / "part.json"
            findings.add(json.loads(part.read_text(encoding="utf-8"))["findings"])
        for shard in self.shards:
            findings.add(shard["findings"])
            for name, count in shard["changed"].items():
                changed[name] = changed.get(name, 0) + count
        if records.own_visit_ids:
            self._note_shared_visits(findings, records)
        return findings.to_dict(), changed

    def refuse_shared_subjects(self, records: Records) -> None:
        """Raises InputError where two shards, so two files, have the same subject."""
        ids = np.concatenate([self._column(shard, SUBJECT_ID).to_numpy() for shard in self.shards])
        ids.sort()
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            first = {part.name: gather.first_row(part, int(twice[0])) for part in records.parts}
            (one, _), (other, row), *_ = [(name, row) for name, row in first.items() if row >= 0]
            raise gather.shared_subject(other, row, one, others=len(np.unique(twice)) - 1)

    def _column(self, shard: dict[str, Any], name: str) -> pa.Array:
        """A column of a shard, memory-mapped."""
        with pa.memory_map(str(self.folder / "data" / shard["shard"]["file"])) as source:
            return pa.ipc.open_file(source).get_batch(0)[name]

    def refuse_swapped_visits(self, max_bad_share: float) -> None:
        """Raises InputError where too many visits end before they start."""
        reason = "discharge_before_admission"
        bad = [s["findings"][reason] for s in self.shards if reason in s["findings"]]
        count = sum(found["count"] for found in bad)
        timed = sum(shard["changed"]["visits_with_both_ends"] for shard in self.shards)
        if count > max_bad_share * timed:
            raise InputError(
                f"{bad[0]['first']}: {count} of {timed} visits end before they start, more than "
                f"max_bad_share={max_bad_share}. The two are probably swapped: exchange them, or "
                "raise max_bad_share to read such visits with an unknown length of stay"
            )

    def _note_shared_visits(self, findings: Findings, records: Records) -> None:
        """Visit ids that several subjects have: each keeps a visit of its own."""
        ids = [self.work / "shards" / f"{k}.npz" for k in range(len(self.shards))]
        passes = 1 + sum(shard["visits"] for shard in self.shards) // _IDS_AT_ONCE
        shared = np.zeros(0, np.int64)
        for i in range(passes):  # bounded memory: a share of the ids at a time
            found = np.concatenate([v[v % passes == i] for v in map(_visit_ids, ids)])
            found.sort()
            shared = np.union1d(shared, found[1:][found[1:] == found[:-1]])
        where = ""
        for i, part in enumerate(records.parts if len(shared) else ()):
            for rows in gather.load(self.work / "parts" / str(i), "visits", range(BUCKETS)):
                if not where and (bad := np.isin(rows["visit"], shared)).any():
                    where = f"{part.name}: column of the visit id: row {rows['row'][bad].min() + 1}"
        findings.note("visit_ids_of_several_subjects", len(shared), where)


def _visit_ids(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["visit_ids"]
