"""A masked-language model of Hugging Face on rows of packed texts, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medbert.schema import InputError, LossOutput
from medbert.text.encoders.cooccurrence import vectors
from medbert.text.encoders.folders import config_of, library, longest, opened, tokenizer_of
from medbert.text.encoders.masks import Replacement
from medbert.text.encoders.pieces import Tokens
from medbert.text.encoders.rows import TextBatch

_FAMILIES = ("bert", "camembert", "deberta-v2", "modernbert", "roberta", "xlm-roberta")
_BEYOND = 5  # times the spread of other weights: that of the vectors of neighbours
_AS_ROBERTA = ("camembert", "roberta", "xlm-roberta")


class TextEncoder(nn.Module):
    """``model`` (…ForMaskedLM, or BertForPreTraining) and its tokenizer, called with a `TextBatch`.

    A piece sees itself alone: attention is cut to blocks, and positions begin anew. Its vectors are
    those it has by itself (tested to float tolerance; ``packs`` is False for a DeBERTa with a
    convolution, which would see the neighbours).
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.family = str(model.config.model_type)
        if self.family not in _FAMILIES:
            raise InputError(f"{self.family}: not a family that is known; {', '.join(_FAMILIES)}")
        for token in ("mask_token_id", "pad_token_id"):
            if getattr(tokenizer, token) is None:
                raise InputError(f"this tokenizer has no {token.removesuffix('_id')}")
        self.model, self.tokenizer = model.train(), tokenizer
        self.base = getattr(model, model.base_model_prefix)
        self.pad = int(tokenizer.pad_token_id)
        self.length = longest(model.config, tokenizer)

    @property
    def packs(self) -> bool:
        return self.family != "deberta-v2" or self.base.encoder.conv is None

    def forward(self, batch: TextBatch) -> Tensor:
        """The hidden vectors, (T, D)."""

        def laid(value_T: Tensor, empty: int = 0) -> Tensor:
            grid_RL = value_T.new_full((len(batch.rows_B), batch.width), empty)
            grid_RL.view(-1)[batch.place_T] = value_T
            return grid_RL

        ids_RL, piece_RL = laid(batch.tokens_T, self.pad), laid(batch.piece_T, -1)
        position_RL, kind_RL = laid(batch.position_T), laid(batch.kind_T)
        same_RLL = piece_RL[:, :, None] == piece_RL[:, None, :]  # padding sees padding
        if self.family == "modernbert":
            place_L = torch.arange(batch.width, device=ids_RL.device)
            near_LL = (place_L[:, None] - place_L).abs() <= self.base.config.sliding_window
            near_RLL = (same_RLL & near_LL)[:, None]
            masks = {"full_attention": same_RLL[:, None], "sliding_attention": near_RLL}
            hidden_RLD = self.base(ids_RL, attention_mask=masks, position_ids=position_RL)[0]
        elif self.family == "deberta-v2":
            embedded = self.base.embeddings(ids_RL, kind_RL, position_RL, mask=piece_RL >= 0)
            hidden_RLD = self.base.encoder(embedded, same_RLL).last_hidden_state
        else:
            if self.family in _AS_ROBERTA:  # counts from behind the position of padding
                position_RL = position_RL + self.model.config.pad_token_id + 1
                kind_RL = kind_RL * 0
            hidden_RLD = self.base(
                ids_RL,
                attention_mask=same_RLL[:, None],
                token_type_ids=kind_RL,
                position_ids=position_RL,
            )[0]
        return hidden_RLD.flatten(0, 1)[batch.place_T]

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Of the tokens that are hidden there, (M, C)."""
        if self.family == "modernbert":
            return self.model.decoder(self.model.head(hidden_MD))
        if self.family in _AS_ROBERTA:
            return self.model.lm_head(hidden_MD)
        if hasattr(self.model, "lm_predictions"):
            return self.model.lm_predictions(hidden_MD, self.base.embeddings.word_embeddings)
        return self.model.cls.predictions(hidden_MD)

    def next_sentence(self, first_PD: Tensor) -> Tensor:
        """From the vectors of the first tokens of pairs, (P, 2): follows, is from elsewhere."""
        return self.model.cls.seq_relationship(self.base.pooler(first_PD[:, None]))

    def replacement(self, **shares: float) -> Replacement:
        ordinary = np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)
        return Replacement(mask=int(self.tokenizer.mask_token_id), ordinary=ordinary, **shares)

    @torch.no_grad()
    def start_at(self, tokens: Tokens) -> None:
        """Begins where counting leads to, so that training need not find it: the vectors of tokens
        are those of their neighbours (see `cooccurrence`), and the bias of the output layer, where
        there is one, is the log of their frequencies."""
        table_CD = self.model.get_input_embeddings().weight
        n = len(table_CD)
        near_CD = torch.from_numpy(vectors(tokens, n=n, width=table_CD.shape[1])).to(table_CD)
        seen_C = near_CD.any(dim=1)
        table_CD[seen_C] = near_CD[seen_C] * (_BEYOND * self.model.config.initializer_range)
        bias_C = getattr(self.model.get_output_embeddings(), "bias", None)
        if bias_C is not None:
            count_C = torch.from_numpy(np.bincount(tokens.token_T, minlength=n)).to(bias_C) + 1
            bias_C.copy_((count_C / count_C.sum()).log())

    def save(self, folder: Path) -> None:
        """A folder that ``AutoModelForMaskedLM.from_pretrained`` opens."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(folder: str | Path, *, next_sentence: bool = False) -> TextEncoder:
    """A masked-language model of Hugging Face from a folder; nothing is fetched or unpickled.

    With ``next_sentence``, a BERT; a head for it that the folder does not have is new.
    """
    kind = "BertForPreTraining" if next_sentence else "AutoModelForMaskedLM"
    new = ("pooler", "seq_relationship") if next_sentence else ()
    if next_sentence and (family := config_of(folder).model_type) != "bert":
        raise InputError(f"{folder}: a {family} has no next-sentence head; bert has")
    model, tokenizer, missing = opened(folder, kind)
    if missing := [name for name in missing if not any(part in name for part in new)]:
        raise InputError(f"{folder}: weights are missing ({missing[0]} ...): no masked-LM model")
    return TextEncoder(model, tokenizer)


def fresh(
    tokenizer: str | Path,
    *,
    model_type: str,
    config: dict[str, Any],
    seed: int,
    next_sentence: bool = False,
) -> TextEncoder:
    """An untrained masked-language model for a tokenizer; ``config`` as in transformers."""
    transformers = library()
    if not (Path(tokenizer) / "tokenizer.json").is_file():
        raise InputError(f"tokenizer={tokenizer}: no tokenizer.json; medbert tokenizer train makes")
    words = tokenizer_of(tokenizer)
    special = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "cls", "sep")
    }
    if model_type == "modernbert":
        special |= {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id}
    settings = {"vocab_size": -(-len(words) // 8) * 8, **special, **config}
    torch.manual_seed(seed)
    made = transformers.AutoConfig.for_model(model_type, **settings)
    if next_sentence:
        return TextEncoder(transformers.BertForPreTraining(made), words)
    return TextEncoder(transformers.AutoModelForMaskedLM.from_config(made), words)


class MaskedText(nn.Module):
    """Which tokens are hidden (nats each), and of pairs whether the second part follows.

    The output layer is worked out at hidden tokens alone. ``divisor(count, training, device)``:
    what sums are divided by, where several processes share a batch.
    """

    def __init__(self, *, divisor: Callable[..., Tensor | int], next_sentence: bool) -> None:
        super().__init__()
        self.divisor, self.next_sentence = divisor, next_sentence

    def forward(self, encoder: Any, batch: TextBatch) -> LossOutput:
        hidden_TD = encoder(batch)
        logits_MC = encoder.logits(hidden_TD[batch.hidden_M])
        nats = nn.functional.cross_entropy(logits_MC.float(), batch.target_M, reduction="sum")
        loss = nats / self._over(batch.target_M)
        metrics = {"masked_text": loss.detach()}
        if self.next_sentence:
            logits_P2 = encoder.next_sentence(hidden_TD[batch.first_P]).float()
            asked = nn.functional.cross_entropy(logits_P2, batch.random_P, reduction="sum")
            right = (logits_P2.argmax(1) == batch.random_P).float().sum()
            over = self._over(batch.random_P)
            metrics |= {"next_sentence": asked.detach() / over, "next_right": right / over}
            loss = loss + asked / over
        return LossOutput(loss, metrics)

    def _over(self, of: Tensor) -> Tensor | int:
        return self.divisor(len(of), training=self.training, device=of.device)


class Losses(NamedTuple):
    """Of N texts: nats_N, the sum over the tokens that were hidden, and how many these were."""

    nats_N: np.ndarray
    count_N: np.ndarray

    @classmethod
    def read(cls, nats: list[float], count: list[int]) -> Losses:
        return cls(np.array(nats), np.array(count, np.int64))

    @property
    def mean(self) -> float:
        return float(self.nats_N.sum() / max(self.count_N.sum(), 1))


@torch.no_grad()
def masked_losses(encoder: TextEncoder, data: DataLoader, *, texts: int) -> Losses:
    """How well the hidden tokens of each text are found; ``data`` hides the same ones each time."""
    device = next(encoder.parameters()).device
    was, nats_N, count_N = encoder.training, np.zeros(texts), np.zeros(texts, np.int64)
    encoder.eval()
    low = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()
    for batch in data:
        parts = batch._asdict().items()
        there = {k: part.to(device) for k, part in parts if isinstance(part, Tensor)}
        here = batch._replace(**there)
        with low:
            logits_MC = encoder.logits(encoder(here)[here.hidden_M])
        nats_M = nn.functional.cross_entropy(logits_MC.float(), here.target_M, reduction="none")
        np.add.at(nats_N, batch.text_M.numpy(), nats_M.cpu().numpy())
        np.add.at(count_N, batch.text_M.numpy(), 1)
    encoder.train(was)
    return Losses(nats_N, count_N)
