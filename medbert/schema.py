"""The dictionary all rooms agree on: names, tables, values and seams.

Shape suffixes, everywhere in the package:

    B subjects in a batch     T tokens of all subjects, end to end     V visits of all subjects
    D hidden width            C vocabulary (codes)                     M masked tokens
    H attention heads         L length of the longest subject in a padded group

``offsets_B1`` has B + 1 entries: subject i owns the tokens ``offsets_B1[i]:offsets_B1[i + 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor

SUBJECT_ID, TIME, CODE = "subject_id", "time", "code"
NUMERIC_VALUE, TEXT_VALUE, VISIT_ID = "numeric_value", "text_value", "visit_id"
PREDICTION_TIME, BOOLEAN_VALUE = "prediction_time", "boolean_value"
RANK, ROW, PARENTS = "rank", "row", "parent_codes"
PROBABILITY, DECISION = "predicted_boolean_probability", "predicted_boolean_value"

TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
SPLITS = (TRAIN, TUNING, HELD_OUT)

PAD, UNK, MASK, CLS = range(4)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]")
NO_TOKEN = -1  # a code that is no input at all (birth, death, a code kind left out)

BIRTH, DEATH, SEX = "MEDS_BIRTH", "MEDS_DEATH", "GENDER"
UNKNOWN_SEX, FEMALE, MALE = range(3)

DATES, ORDER = "dates", "order"  # what the times of a source mean (metadata["time"])
DAY_US = 86_400_000_000  # microseconds in a day; all times are timestamp[us]
DAYS_PER_YEAR = 365.25
STATIC = np.iinfo(np.int64).min  # a null time in microseconds: before, and known at, every time

_TIME = pa.timestamp("us")

EVENTS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(TIME, _TIME),  # null: static
        pa.field(CODE, pa.string(), nullable=False),
        pa.field(NUMERIC_VALUE, pa.float32()),  # null: none
        pa.field(TEXT_VALUE, pa.large_string()),
        pa.field(VISIT_ID, pa.int64()),  # null: outside any visit
        pa.field(RANK, pa.int16()),  # order among codes of one moment, where the source has one
    ]
)

VISITS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(VISIT_ID, pa.int64(), nullable=False),
        pa.field("start", _TIME),
        pa.field("end", _TIME),
        pa.field("kind", pa.string(), nullable=False),  # one of KINDS
        pa.field("length_of_stay", pa.float32()),  # days; null: unknown, and masked from any loss
    ]
)
# What a source says of a visit; several rows may speak of one: its first start, its last end, its
# strongest kind, and no length of stay where two starts or two ends disagree. Without
# length_of_stay it is end - start.
STATED_VISITS = pa.schema(
    [VISITS.field(SUBJECT_ID), VISITS.field(VISIT_ID), VISITS.field("start"), VISITS.field("end")]
    + [pa.field("kind", pa.string()), VISITS.field("length_of_stay"), pa.field(ROW, pa.int64())]
)
# The strongest first. "day" and "gap" are visits made of events that name none.
KINDS = ("inpatient", "emergency", "outpatient", "unknown", "day", "gap")

CODES = pa.schema(
    [
        pa.field(CODE, pa.string(), nullable=False),
        ("description", pa.string()),
        (PARENTS, pa.list_(pa.string())),  # MEDS parent_codes; null: none known
    ]
)

LABELS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(PREDICTION_TIME, _TIME, nullable=False),
        pa.field(BOOLEAN_VALUE, pa.bool_(), nullable=False),
    ]
)

SUBJECT_SPLITS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)


class InputError(ValueError):
    """Something the user gave cannot be used; the message says which file, what, and the cure."""


class Unfinished(RuntimeError):
    """Work stopped where it can be taken up: repeating the command goes on with it."""


_ENOUGH_ROWS = 10_000  # of a file, to tell from its beginning whether it is misread


class Findings:
    """What was found wrong in the records: counts by reason, and where the first of each is.

    Dirt in single rows is kept out by rule and noted here; where more than ``max_bad_share`` of the
    rows have the same fault, the file is misread rather than dirty, and reading stops.
    """

    def __init__(self, max_bad_share: float = 0.01) -> None:
        self.max_bad_share = max_bad_share
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self._checked: dict[tuple[str, str], tuple[int, int, str, str]] = {}

    def note(self, reason: str, count: int, where: str = "") -> None:
        """Adds ``count`` rows; ``where`` names file, column and rows, never a patient."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + int(count)
            self.first.setdefault(reason, where)

    def check(
        self, reason: str, bad: np.ndarray, *, where: str, first_row: int | None, cure: str
    ) -> None:
        """Notes the rows of the mask ``bad``; ``first_row`` (from 0; null: rows have no numbers) is
        the row of its first entry.

        Raises:
            InputError: of the rows so far, if they are many, more than ``max_bad_share`` are bad.
        """
        count = int(bad.sum())
        place = where
        if count and first_row is not None:
            place = f"{where}: {row_names(np.flatnonzero(bad) + first_row)}"
        self.note(reason, count, place)
        before, rows, first, _ = self._checked.get((reason, where), (0, 0, "", ""))
        checked = before + count, rows + len(bad), first or (place if count else ""), cure
        self._checked[reason, where] = checked
        if checked[1] >= _ENOUGH_ROWS or not self.max_bad_share:
            self._judge(reason, *checked)

    def settle(self) -> None:
        """To be called at the end of a file: judges what ``check`` was told, by all of its rows."""
        checked, self._checked = self._checked, {}
        for (reason, _), found in checked.items():
            self._judge(reason, *found)

    def _judge(self, reason: str, bad: int, rows: int, place: str, cure: str) -> None:
        if bad > self.max_bad_share * rows:
            raise InputError(
                f"{place}: {reason.replace('_', ' ')}; {bad} of {rows} rows, more than "
                f"max_bad_share={self.max_bad_share}. {cure}"
            )

    def add(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds what another ``to_dict`` says."""
        for reason, found in other.items():
            self.note(reason, found["count"], found["first"])

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {r: {"count": n, "first": self.first[r]} for r, n in sorted(self.counts.items())}


def row_names(rows: np.ndarray) -> str:
    """What messages call rows of a file (from 0): counted from 1, below the header.

    >>> row_names(np.array([1, 2]))
    'row 2, row 3'
    """
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(f"row {row + 1}" for row in rows[:5]) + more


class Piece(NamedTuple):
    """Some rows of a source in our words; a subject may be in any number of pieces.

    ``events`` follows EVENTS and ``visits`` STATED_VISITS, where columns that the source does not
    have may be missing; codes are trimmed but not yet canonical, and may be dictionary-encoded.
    Events may have ROW too, the row of the file (from 0): messages about births name it.
    ``names``: SUBJECT_ID and ``name`` (string), of subjects whose own ids are not whole numbers.
    """

    events: pa.Table | None = None
    visits: pa.Table | None = None
    names: pa.Table | None = None


class Part(Protocol):
    """A piece of work: one file, a range of one, or a query. It can be pickled and read anywhere.

    ``name`` is what messages call it; ``stamp`` changes when its content does (size and time of a
    file), so that unfinished work is not mixed with another state of the source.
    """

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    def pieces(self, findings: Findings) -> Iterator[Piece]: ...


class Resolved(NamedTuple):
    """The codes that were meant (null: none), their titles, and which of them are diagnoses: those
    of a visit are known at its end. ICD diagnoses are known to be some.
    """

    codes: list[str | None]
    titles: Mapping[str, str] = {}
    diagnoses: Collection[str] = ()


class Records(NamedTuple):
    """What a source yields. Tables follow CODES, SUBJECT_SPLITS and LABELS.

    ``metadata`` holds at least ``name`` and ``time`` (DATES, or ORDER where a source knows the
    order of visits but no dates; times are then ordinals and no gap between them means anything).
    ``resolve`` turns the distinct codes of all parts into the codes meant, once.
    ``one_file_each``: a subject in several parts is an error. ``own_visit_ids``: visit ids mean
    something without the subject, so that two subjects with one id are worth a note.
    ``files``: names in the store -> paths of files to copy there.
    """

    parts: Sequence[Part]
    metadata: dict[str, Any]
    codes: pa.Table | None = None
    splits: pa.Table | None = None
    labels: Mapping[str, pa.Table] = {}  # outcomes that the source itself states, never an input
    resolve: Callable[[list[str]], Resolved] | None = None
    one_file_each: bool = False
    own_visit_ids: bool = True
    files: Mapping[str, str] = {}


class Batch(NamedTuple):
    """Subjects laid end to end; no padding.

    tokens_T int64 vocabulary ids; visit_T int64 ordinal of the visit in its subject, from 1
    (0: outside any visit); age_T float32 days since birth, NaN where unknown; offsets_B1 int64;
    rows_B int64, the row of the dataset each subject came from; stay_V float32 days, NaN where
    unknown; visit_offsets_B1 int64 into stay_V; labels_B float32; sex_B int64, one of UNKNOWN_SEX,
    FEMALE, MALE; end_B float32, the age in days up to which a subject is observed: the prediction
    time, or death or the end of the data (visits, where no age is known). The optional ones are
    None where there is nothing.
    """

    tokens_T: Tensor
    visit_T: Tensor
    age_T: Tensor
    offsets_B1: Tensor
    rows_B: Tensor
    stay_V: Tensor | None = None
    visit_offsets_B1: Tensor | None = None
    labels_B: Tensor | None = None
    sex_B: Tensor | None = None
    end_B: Tensor | None = None

    @property
    def lengths_B(self) -> Tensor:
        return self.offsets_B1.diff()

    @property
    def subject_T(self) -> Tensor:
        """The subject (0..B-1) that owns each token."""
        return owner(self.offsets_B1, self.tokens_T.shape[0])

    @property
    def position_T(self) -> Tensor:
        """The place of each token in its subject, from 0."""
        import torch

        place_T = torch.arange(self.tokens_T.shape[0], device=self.tokens_T.device)
        return place_T - self.offsets_B1[self.subject_T]


def owner(offsets_B1: Tensor, total: int) -> Tensor:
    """Which of B subjects owns each of ``total`` items laid end to end."""
    import torch

    subject_B = torch.arange(offsets_B1.shape[0] - 1, device=offsets_B1.device)
    return torch.repeat_interleave(subject_B, offsets_B1.diff(), output_size=total)


class LossOutput(NamedTuple):
    """A scalar loss to minimise, and named scalars to log."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Span(NamedTuple):
    """Characters ``start:end`` of a text that are PHI; all that finding and removing share."""

    start: int
    end: int
    label: str
    score: float = 1.0


class Source(Protocol):
    """Reads one format; ends at the event and visit tables."""

    def read(self) -> Records: ...


class Encoder(Protocol):
    """Turns a batch into one hidden vector per token, independent of the neighbours."""

    hidden: int

    def __call__(self, batch: Batch) -> Tensor: ...  # (T, D)


class Objective(Protocol):
    """Pretraining objectives and fine-tuning heads alike: one training loop for both."""

    def __call__(self, encoder: Encoder, batch: Batch) -> LossOutput: ...
