"""Prolonged stay, the second of Med-BERT's pretraining tasks: of a subject, or of each visit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbert.model.encoder import initialise
from medbert.model.heads import pool
from medbert.model.together import divisor
from medbert.schema import Batch, Encoder, LossOutput, owner


class ProlongedStay(nn.Module):
    """Did a visit last longer than ``days``? A linear layer on pooled tokens.

    The published auxiliary task asks it once per subject, of any visit (more than 7 days, sum of
    token outputs, see ``pooling``); ``per_visit`` asks it of each visit, by the mean of the outputs
    of its own tokens. An unknown stay (NaN) is masked: a known long stay is a yes whatever else is
    unknown, and a subject without any known stay, or a visit without tokens (of a history cut
    short), is left out; with none left the loss is 0 and there is no metric. Metric:
    ``prolonged_stay``, the binary cross-entropy (nats).

    All codes of a visit are shown at the age of its first one: diagnoses stand at the discharge,
    and an encoder that is told ages would read the stay off them.
    """

    def __init__(
        self, *, hidden: int, days: float = 7, pooling: str = "sum", per_visit: bool = False
    ) -> None:
        super().__init__()
        self.days, self.pooling, self.per_visit = days, pooling, per_visit
        self.output = nn.Linear(hidden, 1)
        initialise(self.output)

    def corrupt(self, batch: Batch) -> tuple[Batch, None]:
        (stay_V, _), row_T, inf = _stays(batch), visit_rows(batch), float("inf")
        age_T = torch.nan_to_num(batch.age_T, nan=inf)
        first_V = age_T.new_full((len(stay_V) + 1,), inf).scatter_reduce(0, row_T, age_T, "amin")
        dated_T = (row_T < len(stay_V)) & first_V.isfinite()[row_T]
        return batch._replace(age_T=torch.where(dated_T, first_V[row_T], batch.age_T)), None

    def loss(self, encoder: Encoder, hidden_TD: Tensor, batch: Batch, target: None) -> LossOutput:
        logits, prolonged = self.predictions(encoder, hidden_TD, batch)
        known = len(logits)
        loss = F.binary_cross_entropy_with_logits(
            logits, prolonged.to(logits.dtype), reduction="sum"
        ) / divisor(known, training=self.training, device=hidden_TD.device)
        return LossOutput(loss, {"prolonged_stay": loss.detach()} if known else {})

    def predictions(
        self, encoder: Encoder, hidden_TD: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Logits and truths (bool) of the subjects, or visits, whose stay is known."""
        known, prolonged = self.labels(batch)
        if self.per_visit:
            pooled = _visit_means(hidden_TD, batch)
        else:
            pooled = pool(hidden_TD, batch, self.pooling)
        return self.output(pooled).squeeze(-1)[known], prolonged[known]

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two lines of B (or V) bools: is a stay known, and is a known stay longer than ``days``.

        A visit without tokens counts as unknown where visits are asked.
        """
        stay_V, offsets_B1 = _stays(batch)
        known_V, prolonged_V = ~stay_V.isnan(), stay_V > self.days
        if self.per_visit:
            tokens_V = visit_rows(batch).bincount(minlength=len(stay_V) + 1)[:-1]
            return known_V & (tokens_V > 0), prolonged_V
        subject_V, n = owner(offsets_B1, len(stay_V)), len(batch.rows_B)
        known_B, prolonged_B = (subject_V[v].bincount(minlength=n) for v in (known_V, prolonged_V))
        return known_B > 0, prolonged_B > 0


def visit_rows(batch: Batch) -> Tensor:
    """The entry of ``stay_V`` that each token belongs to (T,); V for those outside visits."""
    stay_V, offsets_B1 = _stays(batch)
    row_T = offsets_B1[batch.subject_T] + batch.visit_T - 1
    return torch.where(batch.visit_T > 0, row_T, len(stay_V))


def _visit_means(hidden_TD: Tensor, batch: Batch) -> Tensor:
    """(V, D): the mean of the tokens of each visit, zeros where it has none."""
    row_T, stays = visit_rows(batch), len(_stays(batch)[0])
    sum_VD = hidden_TD.new_zeros(stays + 1, hidden_TD.shape[1]).index_add(0, row_T, hidden_TD)
    tokens_V = row_T.bincount(minlength=stays + 1)
    return (sum_VD / tokens_V.clamp(min=1)[:, None])[:-1]


def _stays(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.stay_V is None or batch.visit_offsets_B1 is None:
        raise ValueError(
            "prolonged stay needs lengths of stay, and this batch has none: use a store that "
            "has them, or pretrain with masked codes alone"
        )
    return batch.stay_V, batch.visit_offsets_B1
