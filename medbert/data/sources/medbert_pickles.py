"""Med-BERT's pickled lists (ZhiGroup/Med-BERT, and pytorch_ehr's) with their ``.types``.

The one place where pickles are opened; see `Plain`.
"""

from __future__ import annotations

import glob
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.sources import reading
from medbert.data.sources.columns import Block, complete
from medbert.schema import (
    CODE,
    LABELS,
    ORDER,
    RANK,
    ROW,
    SPLITS,
    SUBJECT_ID,
    SUBJECT_SPLITS,
    TIME,
    TRAIN,
    VISIT_ID,
    Findings,
    InputError,
    Piece,
    Records,
)

SPLIT_OF_ENDING = dict(zip((".train", ".valid", ".test"), SPLITS, strict=True))
_SECOND, _LAST_RANK, _LARGEST = 1_000_000, np.iinfo(np.int16).max, 1 << 31


class Plain(pickle.Unpickler):
    """Lists, tuples, dictionaries, numbers and text. Everything else that a pickle can hold is made
    by calling something that it names, and that is refused before it is looked up."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        asked = f"{module_name}.{global_name}"[:80]
        raise InputError(
            f"the pickle asks for {asked!r}; only lists, dictionaries, numbers and text are "
            "admitted, since more may run code. Make numpy values plain (.tolist()) and write it "
            "again; if you do not know why it asks, distrust the file"
        )


class Patients(NamedTuple):
    """The patients of one pickle, one entry each; visits count from 1, the earliest first."""

    ids: list[Any]
    labels: list[Any]  # None: there is none
    stays: list[list[float | None]]  # days, of each visit; empty: unknown
    codes: list[list[int]]  # of all visits, end to end
    visits: list[list[int]]  # of each code


@dataclass(frozen=True)
class MedBertPickles:
    """Codes in order, without dates: what Med-BERT's scripts write for pretraining and fine-tuning.

    The k-th visit of a patient begins at second 2k of 1970-01-01 and ends at second 2k + 1; these
    are ordinals, and no gap between them means anything (the gaps that the lists hold are not
    used, as Med-BERT does not). The length of stay is known in lists for pretraining only; a visit
    of more than 0 days is inpatient. Labels are of the end of the last visit. Where several of
    .train, .valid and .test are read, their patients stay in these splits. A pickle is held in
    memory whole; Med-BERT writes one per 100,000 patients, end to end in one file.

    Args:
        path: a list, a folder of lists, or what their names have in common (``out/dhf.bencs``).
        types: the dictionary from codes to numbers; null: the one ``.types`` beside the lists.
        newest_first: whether nested visits are in pytorch_ehr's order; other lists never are.
    """

    path: str
    types: str | None = None
    newest_first: bool = True

    def read(self) -> Records:
        files = _lists(Path(self.path).expanduser())
        types = reading.existing(self.types) if self.types else _beside(files[0].parent)
        vocabulary(types, reading.stamp(types))
        parts = [List(file.name, file, types, self.newest_first) for file in files]
        splits, labels, unlabelled = _stated(parts)
        metadata: dict[str, Any] = {"name": files[0].name.partition(".")[0], "time": ORDER}
        metadata["patients_without_a_label_of_0_or_1"] = unlabelled
        found = Records(parts, metadata, splits=splits, labels=labels)
        return found._replace(one_file_each=True, own_visit_ids=False)


@dataclass(frozen=True)
class List(reading.FilePart):
    """A `Part`: one file of lists."""

    types: Path
    newest_first: bool

    @property
    def stamp(self) -> str:
        return f"{reading.stamp(self.path)} {reading.stamp(self.types)}"

    def patients(self, findings: Findings) -> Iterator[tuple[Block, pa.Array, Patients]]:
        """Of each pickle: the ids as they are, the subjects (null: left out) and the histories."""
        row = 0
        for content in _unpickled(self.path):
            patients = self._unpacked(content, row)
            ids = [None if i is None or i != i else str(i) for i in patients.ids]
            table = pa.table({SUBJECT_ID: pa.array(ids, pa.string())})
            block = Block(table, self.name, row, {SUBJECT_ID: "patient id"}, findings)
            subject = block.subjects().combine_chunks()
            twice = pd.Series(ids).duplicated().to_numpy() & pc.is_valid(subject).to_numpy(False)
            block.note("patient_twice_in_a_pickle", twice, SUBJECT_ID)
            yield block, pc.if_else(pa.array(twice), None, subject), patients
            row += len(ids)

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        numbers, codes = vocabulary(self.types, reading.stamp(self.types))
        for block, subject, patients in self.patients(findings):
            owner, place, number = _flat(patients.codes, np.int64)
            visit = _flat(patients.visits, np.int64)[2]
            known = pc.index_in(pa.array(number), value_set=numbers)
            strange = owner[known.is_null().to_numpy(zero_copy_only=False)]
            findings.check(
                "patients_with_codes_not_in_types",
                np.isin(np.arange(len(subject)), strange),
                where=f"{self.name}: codes",
                first_row=block.first_row,
                cure=f"Is {self.types.name} the dictionary of this list? Set source.types",
            )
            events = {
                SUBJECT_ID: subject.take(pa.array(owner)),
                TIME: _ordinals(2 * visit + 1),
                CODE: pa.DictionaryArray.from_arrays(known, codes),
                VISIT_ID: visit,
                RANK: np.minimum(place, _LAST_RANK).astype(np.int16),
            }
            stays = _visits(block, subject, patients.stays)
            yield Piece(complete(pa.table(events)), stays, block.names())
        findings.settle()

    def _unpacked(self, content: Any, row: int) -> Patients:
        if not isinstance(content, list):
            raise InputError(
                f"{self.name}: holds a {type(content).__name__}, not a list of patients; "
                "source.path is a list such as .bencs.train, source.types the .types"
            )
        found = [_history(record, self.newest_first) for record in content]
        if None in found:
            raise InputError(
                f"{self.name}: row {row + found.index(None) + 1} is no patient as Med-BERT writes "
                "them: [id, stays, gaps, codes, visit of each code], [id, label, codes, visit of "
                "each code] or [id, label, [[[gap], codes], ...]]. A .ptencs has no patient ids: "
                "give the .bencs of the same name"
            )
        columns = zip(*filter(None, found), strict=True)
        return Patients(*map(list, columns)) if found else Patients(*[[]] * 5)


def _history(record: Any, newest_first: bool) -> tuple[Any, ...] | None:
    """An entry of `Patients`; None: in none of the layouts."""
    label, stays = None, list[float | None]()
    match record:
        case [int() | float() | str() | None as i, list(stays), list(), list(codes), list(visits)]:
            pass
        case [int() | float() | str() | None as i, label, list(codes), list(visits)]:
            pass
        case [int() | float() | str() | None as i, label, list(nested)]:
            pairs = (isinstance(v, list) and len(v) == 2 for v in nested)
            if not all(pairs) or not all(isinstance(codes, list) for _, codes in nested):
                return None
            each = [codes for _, codes in nested][:: -1 if newest_first else 1]
            visits = [k + 1 for k, codes in enumerate(each) for _ in codes]
            codes = list(chain.from_iterable(each))
        case _:
            return None
    whole = {*map(type, codes), *map(type, visits)} <= {int}
    sound = whole and len(codes) == len(visits) and {*map(type, stays)} <= {int, float, type(None)}
    if sound and codes:
        sound = visits[0] >= 1 and visits == sorted(visits) and min(codes) >= 0
        sound = sound and visits[-1] <= (len(stays) or _LARGEST) and max(codes) <= _LARGEST
    return (i, label, stays, codes, visits) if sound else None


def _visits(block: Block, subject: pa.Array, stays: list[list[float | None]]) -> pa.Table:
    """The visits of known length; events alone speak of the others."""
    owner, place, days = _flat(stays, np.float32)
    backward = np.isin(np.arange(len(subject)), owner[days < 0])
    block.note("patients_with_a_negative_length_of_stay", backward, SUBJECT_ID)
    columns = {
        SUBJECT_ID: subject.take(pa.array(owner)),
        VISIT_ID: place + 1,
        "start": _ordinals(2 * place + 2),
        "end": _ordinals(2 * place + 3),
        "kind": np.where(days > 0, "inpatient", "unknown"),
        "length_of_stay": days,
        ROW: owner + block.first_row,
    }
    return complete(pa.table(columns).filter(pa.array(days >= 0)), names=(SUBJECT_ID,))


def _flat(lists: Sequence[Sequence[Any]], dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the values of all lists end to end: the list, the place in it (both from 0), the value."""
    owner = np.repeat(np.arange(len(lists)), [*map(len, lists)])
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return owner, place, np.array([*chain.from_iterable(lists)], dtype)


def _ordinals(seconds: np.ndarray) -> pa.Array:
    return pa.array(seconds * _SECOND).cast(pa.timestamp("us"))


def _stated(parts: Sequence[List]) -> tuple[pa.Table | None, dict[str, pa.Table], int]:
    """The splits and labels that the lists state; and how many patients lack a label of 0 or 1."""
    endings = {part.path.suffix for part in parts}
    splits: dict[int, str] = {}
    labels, unlabelled = dict[int, tuple[int, bool]](), 0
    for part in parts:
        for _, subject, patients in part.patients(Findings(max_bad_share=1.0)):
            labelled = any(label is not None for label in patients.labels)
            if len(endings) == 1 and not labelled:
                break
            each = zip(subject.to_pylist(), patients.visits, patients.labels, strict=True)
            for i, visits, label in each:
                if i is not None:
                    splits[i] = SPLIT_OF_ENDING.get(part.path.suffix, TRAIN)
                    if visits and label in (0, 1):
                        labels[i] = ((2 * visits[-1] + 1) * _SECOND, bool(label))
                    else:
                        unlabelled += labelled
    by_split = pa.table([list(splits), list(splits.values())], schema=SUBJECT_SPLITS)
    columns = [list(labels), *map(list, zip(*labels.values(), strict=True))]
    by_label = {"label": pa.table(columns, schema=LABELS)} if labels else {}
    return by_split if len(endings) > 1 else None, by_label, unlabelled


@lru_cache(maxsize=1)
def vocabulary(path: Path, stamp: str) -> tuple[pa.Array, pa.Array]:
    """The numbers of a ``.types`` dictionary and their codes, without the padding."""
    content = next(_unpickled(path), None)
    if not isinstance(content, dict) or not all(
        isinstance(code, str | int) and isinstance(number, int) for code, number in content.items()
    ):
        raise InputError(f"{path.name}: not a dictionary from codes to numbers; set source.types")
    codes = [code for code in content if code not in ("empty_pad", "")]
    numbers = [content[code] for code in codes]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{path.name}: several codes have one number; write the dictionary again")
    return pa.array(numbers, pa.int64()), pa.array(map(str.strip, map(str, codes)), "string")


def _unpickled(path: Path) -> Iterator[Any]:
    """The pickles of a file, which may hold several, end to end."""
    with path.open("rb") as stream:
        for number in takewhile(lambda _: stream.peek(1), count(1)):
            try:
                yield Plain(stream, encoding="latin1").load()  # the text of Python 2
            except InputError as error:
                raise InputError(f"{path.name}: {error}") from None
            except Exception as error:  # damage can make an unpickler raise anything
                raise InputError(
                    f"{path.name}: pickle {number} in it is truncated or damaged "
                    f"({type(error).__name__}); copy or write it again"
                ) from None


def _lists(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    near = path.iterdir() if path.is_dir() else path.parent.glob(glob.escape(path.name) + ".*")
    lists = (file for file in near if file.suffix in SPLIT_OF_ENDING)
    files = sorted(file for file in lists if not file.stem.endswith(".ptencs"))
    if len(sets := sorted({file.stem for file in files})) != 1:
        found = f"the lists of {', '.join(sets)}" if sets else "no such file and no list"
        raise InputError(
            f"{path}: {found} (.train, .valid, .test); give source.path one list, or what the "
            "names of one set have in common, such as out/dhf.bencs"
        )
    return files


def _beside(folder: Path) -> Path:
    found = sorted(folder.glob("*.types*"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} files called .types in it; name the one of these lists in "
            "source.types: it says which code each number stands for"
        )
    return found[0]
