"""Records to a token store, of any size: map, agree on the codes, reduce, fit the vocabulary.

    map       each part of the source is cut into buckets of subjects      (spill.py)
    codes     the distinct codes of all parts: resolved, spelled, recoded
    reduce    some buckets of all parts become one file of the store       (shards.py)
    fit       the vocabulary, from what the shards counted on training subjects

Map and reduce are jobs for an executor; each leaves its result whole or not at all, and a result
that is there is not made again, so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medbert.data import splits as subject_splits
from medbert.data.preparing import Settings
from medbert.data.preparing.codebook import agree
from medbert.data.preparing.finish import Made
from medbert.data.preparing.gather import bucket_sizes
from medbert.data.preparing.shards import Plan, ShardJob, write_shard
from medbert.data.preparing.spill import BUCKETS, SpillJob, spill
from medbert.data.vocabulary import Rule, Vocabulary
from medbert.schema import Part, Records

_BYTES_PER_EVENT = 300  # of memory while a shard is made, measured

Follow = Callable[[Iterable[int], str, int], Iterator[int]]


def silent(done: Iterable[int], what: str, total: int) -> Iterator[int]:
    """A ``Follow`` that shows nothing: ``done`` yields the events of each finished job."""
    yield from done


def write_store(
    records: Records,
    folder: Path,
    *,
    vocabulary: Rule | Vocabulary,
    splits: pa.Table | None,
    settings: Settings,
    executor: Executor | None = None,
    follow: Follow = silent,
) -> dict[str, Any]:
    """Writes a store into ``folder`` and returns what ``dataset.json`` says.

    Unfinished work in ``folder`` is taken up. A ``Rule`` fits a vocabulary on the training
    subjects; a ``Vocabulary`` (an encoder's) is used as it is. ``splits`` go before the source's
    own, and those before a hash of the subject id.
    """
    folder = Path(folder).absolute()
    work = _work_folder(folder, records)
    most = int(max(settings.memory_gb * 1e9 / _BYTES_PER_EVENT, 1))
    rows = [_rows_if_direct(records, part, most) for part in records.parts]
    jobs = [
        SpillJob(part, work / "parts" / str(i), settings.max_bad_share, rows[i] is not None)
        for i, part in enumerate(records.parts)
    ]
    for _ in follow(_done(spill, jobs, executor), "reading", len(jobs)):
        pass
    codes = agree(records, work, settings)
    _write_splits_given(work, records.splits if splits is None else splits)
    _forget_other_shards(folder, work)
    (folder / "data").mkdir(exist_ok=True)
    (work / "shards").mkdir(exist_ok=True)
    plan = Plan(work, folder, records.parts, settings, records.one_file_each)
    shard_jobs = [
        ShardJob(plan, k, numbers, buckets)
        for k, (numbers, buckets) in enumerate(_shards(work, rows, most))
    ]
    for _ in follow(_done(write_shard, shard_jobs, executor), "sorting", len(shard_jobs)):
        pass
    made = Made(folder, work, len(shard_jobs), codes)
    made.refuse_swapped_visits(settings.max_bad_share)
    if records.one_file_each:
        made.refuse_shared_subjects(records)
    return made.finish(records, vocabulary)


def _work_folder(folder: Path, records: Records) -> Path:
    """Where the stages leave their results; empty where the source is not what it was."""
    work = folder / "work"
    stamps = json.dumps([(part.name, part.stamp) for part in records.parts])
    _begin_anew_unless(work / "source.json", stamps, [work, folder / "data", folder / "subjects"])
    return work


def _begin_anew_unless(file: Path, said: str, made: Sequence[Path]) -> None:
    """Removes the folders ``made``, unless ``file`` says what it will say then."""
    if not file.is_file() or file.read_text(encoding="utf-8") != said:
        for old in made:
            shutil.rmtree(old, ignore_errors=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(said, encoding="utf-8")
        part.replace(file)


def _done(
    function: Callable[[Any], int], jobs: Sequence[Any], executor: Executor | None
) -> Iterator[int]:
    """What each job returns, as they finish."""
    if executor is None:
        yield from map(function, jobs)
        return
    futures = [executor.submit(function, job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _write_splits_given(work: Path, splits: pa.Table | None) -> None:
    (work / "splits.npz").unlink(missing_ok=True)
    if splits is not None:
        ids, places = subject_splits.checked(splits, origin="subject splits")
        np.savez(work / "splits.npz", ids=ids, places=places)


def _forget_other_shards(folder: Path, work: Path) -> None:
    """Shards that an interrupted run made with other codes or splits are made anew."""
    plan = b"".join(path.read_bytes() for path in sorted(work.glob("*.npz")))
    made = [work / "shards", folder / "data", folder / "subjects"]
    _begin_anew_unless(work / "plan.sha256", hashlib.sha256(plan).hexdigest(), made)


def _rows_if_direct(records: Records, part: Part, most: int) -> int | None:
    """The rows of a part that can become a shard, or a share of one, just as it is; else None."""
    rows = getattr(part, "rows", None) if records.one_file_each else None
    return rows if rows is not None and rows <= most else None


def _shards(
    work: Path, rows: Sequence[int | None], most: int
) -> Iterator[tuple[list[int], range | None]]:
    """What each shard is made of, no more than ``most`` events (or one part, or one bucket):
    consecutive parts as they are, then consecutive buckets of all the others.
    """
    group: list[int] = []
    held = 0
    for i, n in enumerate(rows):
        if n is not None and group and held + n > most:
            yield group, None
            group, held = [], 0
        if n is not None:
            group.append(i)
            held += n
    if group:
        yield group, None
    others = [i for i, n in enumerate(rows) if n is None]
    if not others:
        return
    sizes = np.sum([bucket_sizes(work / "parts" / str(i)) for i in others], axis=0)
    n_shards = int(np.ceil(sizes.sum() / most)) or 1
    before = np.concatenate([[0], np.cumsum(sizes)])
    goals = before[-1] * np.arange(1, n_shards) / n_shards
    edges = [0, *np.unique(np.searchsorted(before, goals)).tolist(), BUCKETS]
    yield from ((others, range(a, b)) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a)
