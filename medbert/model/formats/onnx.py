"""An encoder as an ONNX graph: padded records in; a vector for each subject, perhaps a risk, out.

The graph needs neither medbert nor torch to run; ``padded`` shows how its inputs are made.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from medbert.model.hazards import clock
from medbert.model.heads import POOLINGS
from medbert.model.modern import APART, ModernEncoder, Sums, angles
from medbert.schema import PAD, UNKNOWN_SEX, Batch, InputError

INPUTS = {  # of B subjects, each padded to the L tokens of the longest
    "tokens": "int64 (B, L): rows of vocabulary.parquet, oldest code first; behind them 0",
    "visits": "int64 (B, L): ordinal of the visit in its subject, from 1; 0: outside any visit",
    "ages": "float32 (B, L): days since birth; NaN: unknown",
    "sex": "int64 (B,): 0 unknown, 1 female, 2 male",
    "since": "float32 (B,): days from the last code to the prediction time; 0: unknown",
    "lengths": "int64 (B,): how many codes each subject has",
}
OPSET = 18


def export(
    encoder: nn.Module,
    file: str | Path,
    *,
    pooling: str = "mean",
    question: dict[str, Any] | None = None,
) -> list[str]:
    """Writes the graph and returns the names of its outputs.

    ``embeddings`` (B, D), as ``heads.pool``; with a ``question`` (see
    ``hazards.foretell``) also ``risk`` (B,), a probability. Raises InputError without onnxscript.
    """
    outputs = ["embeddings", *(["risk"] if question else [])]
    two = torch.tensor([0, 1, 3])
    batch = Batch(torch.ones(3).long(), torch.ones(3).long(), torch.ones(3), two, torch.arange(2))
    example = {name: torch.from_numpy(array) for name, array in padded(batch).items()}
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("L")}
    shapes = {n: {d: sizes[d] for d in range(array.dim())} for n, array in example.items()}
    with _quietly():
        try:
            torch.onnx.export(
                _Scorer(encoder, pooling, question).eval(),
                kwargs=example,
                f=str(file),
                input_names=list(INPUTS),
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except ImportError as error:
            raise InputError(f"{error}: pip install 'medbert[onnx]'") from error
    return outputs


def padded(batch: Batch) -> dict[str, np.ndarray]:
    """The inputs of a graph for the subjects of a batch, at least one token wide."""
    lengths, last_B = batch.lengths_B, (batch.offsets_B1[1:] - 1).clamp(min=0)
    since_B = torch.zeros(len(lengths))
    if batch.end_B is not None and len(batch.tokens_T):
        since_B = torch.nan_to_num(batch.end_B - clock(batch)[last_B]).clamp(min=0)
        since_B = since_B.masked_fill(lengths == 0, 0.0)

    def rectangle(values_T: Tensor, padding: float) -> Tensor:
        rows = pad_sequence(
            list(values_T.split(lengths.tolist())), batch_first=True, padding_value=padding
        )
        return rows if rows.shape[1] else F.pad(rows, (0, 1), value=padding)

    inputs = {
        "tokens": rectangle(batch.tokens_T, PAD),
        "visits": rectangle(batch.visit_T, 0),
        "ages": rectangle(batch.age_T, torch.nan),
        "sex": torch.full_like(lengths, UNKNOWN_SEX) if batch.sex_B is None else batch.sex_B,
        "since": since_B,
        "lengths": lengths,
    }
    return {name: values.numpy() for name, values in inputs.items()}


class _Scorer(nn.Module):
    def __init__(self, encoder: Any, pooling: str, question: dict[str, Any] | None) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling={pooling}: choose one of {', '.join(POOLINGS)}")
        self.encoder, self.pooling, self.question = encoder, pooling, question

    def forward(
        self,
        tokens: Tensor,
        visits: Tensor,
        ages: Tensor,
        sex: Tensor,
        since: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, ...]:
        (rows, length), place_L = tokens.shape, torch.arange(tokens.shape[1])
        real_BL = place_L < lengths[:, None]
        seen = real_BL[:, None, None, :]
        if self.encoder.config.get("causal"):  # padding stands last: nothing sees it
            seen = place_L <= place_L[:, None]
        batch = _Rectangle(
            tokens_T=tokens.flatten(),
            visit_T=visits.flatten(),
            age_T=torch.where(real_BL, ages, torch.nan).flatten(),
            offsets_B1=lengths,  # not asked for
            rows_B=torch.arange(rows),
            sex_B=sex,
        )
        hidden_PD = self._hidden(batch, _Rows(seen, rows, length))

        def last(each_PX: Tensor) -> Tensor:
            place_B = torch.arange(rows) * length + (lengths - 1).clamp(min=0)
            return torch.where(real_BL[:, :1], each_PX[place_B], 0.0)

        hidden_BLD = hidden_PD.view(rows, length, -1)
        embeddings = self._pooled(hidden_BLD, real_BL, last(hidden_PD))
        if self.question is None:
            return (embeddings,)
        every_P, sums = torch.arange(rows * length), _sums(self.encoder, batch)
        last_BD = last(self.encoder.with_regression(hidden_PD, batch, every_P, sums))
        asked = dict(self.question)
        table, codes_K = self.encoder.codes.weight, asked.pop("tokens")
        risk = self.encoder.hazards.risk(last_BD, table, codes_K, since_B=since, **asked)
        return embeddings, risk.sigmoid()

    def _hidden(self, batch: Batch, packing: _Rows) -> Tensor:
        """(B L, D): the forward pass of either encoder, with another packing."""
        encoder, turn = self.encoder, list[Any]()
        hidden_PD = encoder.embed(batch)
        if isinstance(encoder, ModernEncoder):
            turn = [None]
            if encoder.time != "none":
                angle_Pe = angles(batch, time=encoder.time, turns=encoder.turns)
                turn = [(angle_Pe.cos(), angle_Pe.sin())]
        for layer in encoder.layers:
            hidden_PD = layer(hidden_PD, packing, *turn)
        if not turn:
            return hidden_PD
        return encoder.finish(hidden_PD, batch, _sums(encoder, batch))

    def _pooled(self, hidden_BLD: Tensor, real_BL: Tensor, last_BD: Tensor) -> Tensor:
        if self.pooling == "last":
            return last_BD
        if self.pooling == "max":
            most_BD = hidden_BLD.masked_fill(~real_BL[:, :, None], -torch.inf).amax(1)
            return torch.where(real_BL[:, :1], most_BD, 0.0)
        sum_BD = torch.where(real_BL[:, :, None], hidden_BLD, 0.0).sum(1)
        if self.pooling == "sum":
            return sum_BD
        return sum_BD / real_BL.sum(1, keepdim=True).clamp(min=1)


def _sums(encoder: ModernEncoder, batch: Batch) -> list[Sums]:
    """``ModernEncoder.sums`` of a rectangle."""
    tokens_BL, visit_BL, age_BL = (
        values_T.view(batch.rows_B.shape[0], -1)
        for values_T in (batch.tokens_T, batch.visit_T, batch.age_T)
    )
    same_BLL = torch.triu(tokens_BL[:, :, None] == tokens_BL[:, None, :], diagonal=1)
    dated_B1 = (~age_BL.isnan()).any(1, keepdim=True)
    undated_BL = torch.where(visit_BL > 0, visit_BL.to(age_BL.dtype), torch.nan)
    clock_BL = torch.where(dated_B1, age_BL, undated_BL).nan_to_num(nan=-APART / 4)
    back_LL = torch.ones_like(same_BLL[0]).tril()
    now_BL = torch.where(back_LL, clock_BL[:, None, :], -APART).amax(2)

    again_BLL = same_BLL.to(clock_BL.dtype).cumsum(2).transpose(1, 2) > 0  # by each place

    def within(days: float) -> Sums:
        near_BLL = back_LL & ~again_BLL & (now_BL[:, None, :] > now_BL[:, :, None] - days)
        counted_BLL = near_BLL.to(clock_BL.dtype)
        return lambda each_TX: (counted_BLL @ each_TX.view(*tokens_BL.shape, -1)).flatten(0, 1)

    return [within(days) for days in encoder.windows]


class _Rectangle(Batch):
    """Rows of one length: whose a token is, and its place, follow from the shape alone."""

    __slots__ = ()

    @property
    def subject_T(self) -> Tensor:
        length = self.tokens_T.shape[0] // self.rows_B.shape[0]
        return self.rows_B[:, None].expand(-1, length).flatten()

    @property
    def position_T(self) -> Tensor:
        length = self.tokens_T.shape[0] // self.rows_B.shape[0]
        return torch.arange(length).expand(self.rows_B.shape[0], -1).flatten()


class _Rows:
    """Of a `Packing` what a layer asks: every row attends to what it may see of itself."""

    def __init__(self, seen: Tensor, rows: int, length: int) -> None:
        self.seen, self.rows, self.length = seen, rows, length

    def attend(self, projected_PK: Tensor, *, heads: int, dropout: float) -> Tensor:
        split = projected_PK.view(self.rows, self.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        attended_BHLd = F.scaled_dot_product_attention(query, key, value, attn_mask=self.seen)
        return attended_BHLd.transpose(1, 2).reshape(self.rows * self.length, -1)


@contextlib.contextmanager
def _quietly() -> Any:
    """Without the exporter's talk of itself and of what is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
