"""The rows of a shard: what the map stage left in its buckets, or its parts read whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from medbert.data.preparing.spill import BUCKETS, NO_VISIT, Columns, PieceColumns, bucket_of
from medbert.data.visits import heads
from medbert.schema import CODE, ROW, SUBJECT_ID, Findings, InputError, Part

_COLUMNS = {  # of each kind of rows, where there are none
    "events": ("subject", "time", "code"),
    "births": ("subject", "time", "row"),
    "visits": ("subject", "visit", "start", "end", "kind", "stay", "row"),
    "names": ("subject", "name"),
}
_NOTHING = {"value": np.float32(np.nan), "visit": NO_VISIT, "rank": np.int16(0)}


Batches = dict[str, list[tuple[int, Columns]]]  # kind of rows -> number of the part, columns


def from_buckets(folder: Path, numbers: Sequence[int], buckets: range) -> Batches:
    """What the parts of these numbers left in the buckets."""
    return {
        kind: [(i, rows) for i in numbers for rows in load(folder / str(i), kind, buckets)]
        for kind in _COLUMNS
    }


def from_parts(folder: Path, parts: Mapping[int, Part], findings: Findings) -> Batches:
    """The parts themselves, read whole."""
    batches: Batches = {kind: [] for kind in _COLUMNS}
    for i, part in parts.items():
        columns = PieceColumns(spoken(folder / str(i))[0])
        for piece in part.pieces(findings):
            for name, rows in columns.of(piece):
                if rows and len(rows["subject"]):
                    batches[name.partition("-")[0]].append((i, rows))
    findings.settle()
    return batches


def spoken(folder: Path) -> tuple[list[str], list[int]]:
    """The codes of a part in the order of its own numbers, and the events of each."""
    with pa.ipc.open_file(str(folder / "codes.arrow")) as file:
        table = file.read_all()
    return table[CODE].to_pylist(), table["events"].to_pylist()


def together(batches: Batches, kind: str) -> tuple[Columns, np.ndarray]:
    """The rows of a kind as one set of columns, and the part of each row."""
    if not batches[kind]:
        return {c: np.zeros(0, np.int64) for c in _COLUMNS[kind]}, np.zeros(0, np.int32)
    numbers = np.array([number for number, _ in batches[kind]], np.int32)
    sizes = [len(rows["subject"]) for _, rows in batches[kind]]
    return joined([rows for _, rows in batches.pop(kind)]), np.repeat(numbers, sizes)


def joined(batches: list[Columns]) -> Columns:
    """Columns laid end to end; where a batch lacks an optional one, it holds nothing there."""
    names = list(dict.fromkeys(name for batch in batches for name in batch))
    sizes = [len(batch["subject"]) for batch in batches]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    out: Columns = {}
    for name in names:
        there = next(batch[name] for batch in batches if name in batch)
        out[name] = np.empty(edges[-1], there.dtype)
        for first, last, batch in zip(edges[:-1], edges[1:], batches, strict=True):
            out[name][first:last] = batch[name] if name in batch else _NOTHING[name]
    return out


def translated(code: np.ndarray, part: np.ndarray, local: Mapping[int, np.ndarray]) -> np.ndarray:
    """Parts' own code numbers to the numbers of the dataset, in place; ``part`` is sorted."""
    for number, mapping in local.items():
        first, last = np.searchsorted(part, [number, number + 1])
        code[first:last] = mapping[code[first:last]]
    return code


def places(columns: list[np.ndarray], *, by_bucket: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct subject ids of several columns, sorted (within their buckets), and the place of
    each row's there.
    """
    runs = [np.flatnonzero(heads(c)) for c in columns]
    found = pa.array(np.concatenate([c[r] for c, r in zip(columns, runs, strict=True)]))
    encoded = found.dictionary_encode()
    ids = encoded.dictionary.to_numpy()
    by = np.lexsort((ids, bucket_of(ids))) if by_bucket else np.argsort(ids)
    place = np.empty(len(by), np.int64)
    place[by] = np.arange(len(by))
    of_run = np.split(place[encoded.indices.to_numpy()], np.cumsum([len(r) for r in runs])[:-1])
    lengths = [np.diff(r, append=len(c)) for c, r in zip(columns, runs, strict=True)]
    return ids[by], [np.repeat(p, n) for p, n in zip(of_run, lengths, strict=True)]


def load(folder: Path, name: str, buckets: range) -> Iterator[Columns]:
    """The rows of some buckets in the files of a part that are called ``name`` or ``name-...``."""
    for path in sorted(folder.glob(f"{name}-*.arrow" if name == "events" else f"{name}.arrow")):
        offsets = np.load(path.with_suffix(".offsets.npy"))
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            for i in range(file.num_record_batches):
                first, last = offsets[i, buckets.start], offsets[i, buckets.stop]
                if last > first:
                    batch = file.get_batch(i).slice(first, last - first)
                    yield {
                        key: batch[key].to_numpy(zero_copy_only=False) for key in batch.schema.names
                    }


def bucket_sizes(folder: Path) -> np.ndarray:
    """Events of a part in each bucket."""
    sizes = np.zeros(BUCKETS, np.int64)
    for path in folder.glob("events-*.offsets.npy"):
        sizes += np.diff(np.load(path), axis=1).sum(axis=0)
    return sizes


def first_row(part: Part, subject_id: int) -> int:
    """Reads the part again, up to the first event of the subject; -1: it has none."""
    before = 0
    for piece in part.pieces(Findings(1.0)):
        if piece.events is not None:
            found = np.flatnonzero(piece.events[SUBJECT_ID].to_numpy() == subject_id)
            if len(found):
                rows = piece.events[ROW] if ROW in piece.events.column_names else None
                return before + int(found[0]) if rows is None else rows[int(found[0])].as_py()
            before += piece.events.num_rows
    return -1


def shared_subject(file: str, row: int, other: str, *, others: int) -> InputError:
    """The error of a subject that two files have."""
    return InputError(
        f"{file}: column {SUBJECT_ID!r}: row {row + 1}: its subject is in {other} too, as are "
        f"{others} others; MEDS keeps a subject's events in a single file: write the files again "
        "by subject, and look for a copied one"
    )
