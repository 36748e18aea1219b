"""The dictionary all rooms agree on: names, tables, values and seams.

Shape suffixes, everywhere in the package:

    B subjects in a batch     T tokens of all subjects, end to end     V visits of all subjects
    D hidden width            C vocabulary (codes)                     M masked tokens
    H attention heads         L length of the longest subject in a padded group

``offsets_B1`` has B + 1 entries: subject i owns the tokens ``offsets_B1[i]:offsets_B1[i + 1]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor

SUBJECT_ID, TIME, CODE = "subject_id", "time", "code"
NUMERIC_VALUE, TEXT_VALUE, VISIT_ID = "numeric_value", "text_value", "visit_id"
PREDICTION_TIME, BOOLEAN_VALUE = "prediction_time", "boolean_value"
PROBABILITY, DECISION = "predicted_boolean_probability", "predicted_boolean_value"

TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
SPLITS = (TRAIN, TUNING, HELD_OUT)

PAD, UNK, MASK, CLS = range(4)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]")
NO_TOKEN = -1  # a code that is no input at all (birth, death, a code kind left out)

BIRTH, DEATH, SEX = "MEDS_BIRTH", "MEDS_DEATH", "GENDER"

DATES, ORDER = "dates", "order"  # what the times of a source mean (metadata["time"])
DAY_US = 86_400_000_000  # microseconds in a day; all times are timestamp[us]
DAYS_PER_YEAR = 365.25

_TIME = pa.timestamp("us")

EVENTS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(TIME, _TIME),  # null: static
        pa.field(CODE, pa.string(), nullable=False),
        pa.field(NUMERIC_VALUE, pa.float32()),  # null: none
        pa.field(TEXT_VALUE, pa.large_string()),
        pa.field(VISIT_ID, pa.int64()),  # null: outside any visit
    ]
)

VISITS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(VISIT_ID, pa.int64(), nullable=False),
        pa.field("start", _TIME),
        pa.field("end", _TIME),
        pa.field("kind", pa.string(), nullable=False),  # inpatient, emergency, outpatient, unknown
        pa.field("length_of_stay", pa.float32()),  # days; null: unknown, and masked from any loss
    ]
)

CODES = pa.schema([pa.field(CODE, pa.string(), nullable=False), ("description", pa.string())])

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


class Records(NamedTuple):
    """What a source yields. Tables follow EVENTS, VISITS, CODES, SUBJECT_SPLITS and LABELS.

    ``metadata`` holds at least ``name`` and ``time`` (DATES, or ORDER where a source knows the
    order of visits but no dates; times are then ordinals and no gap between them means anything),
    and ``set_aside``: counts of rows kept out, by reason.
    """

    events: pa.Table
    visits: pa.Table
    metadata: dict[str, Any]
    codes: pa.Table | None = None
    splits: pa.Table | None = None
    labels: Mapping[str, pa.Table] = {}  # outcomes that the source itself states, never an input


class Batch(NamedTuple):
    """Subjects laid end to end; no padding.

    tokens_T int64 vocabulary ids; visit_T int64 ordinal of the visit in its subject, from 1
    (0: outside any visit); age_T float32 days since birth, NaN where unknown; offsets_B1 int64;
    rows_B int64, the row of the dataset each subject came from; stay_V float32 days, NaN where
    unknown; visit_offsets_B1 int64 into stay_V; labels_B float32. The optional ones are None where
    there is nothing.
    """

    tokens_T: Tensor
    visit_T: Tensor
    age_T: Tensor
    offsets_B1: Tensor
    rows_B: Tensor
    stay_V: Tensor | None = None
    visit_offsets_B1: Tensor | None = None
    labels_B: Tensor | None = None

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
