"""``transformers.AutoModel.from_pretrained(folder)``, once this module is imported, for a folder
that ``Encoder.save_pretrained`` wrote (pip install 'medbert[transformers]').
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from medbert.model import checkpoint
from medbert.model.checkpoint import build
from medbert.model.encoder import INITIAL_DEVIATION
from medbert.model.hazards import Hazards
from medbert.schema import Batch


class MedBertConfig(PreTrainedConfig):
    """``encoder``: as in config.json, its ``class``, one of medbert's, and its ``arguments``."""

    model_type = "medbert"

    def __init__(self, encoder: dict[str, Any] | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.encoder = encoder or {}


class MedBertModel(PreTrainedModel):
    config_class = MedBertConfig
    base_model_prefix = "medbert"

    def __init__(self, config: MedBertConfig) -> None:
        super().__init__(config)
        self.encoder: Any = build(Path(checkpoint.CONFIG), "encoder", config.encoder)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Of modules whose weights were not in the folder; buffers never are."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Hazards):
            module.edge_P.copy_(torch.tensor(self.encoder.config["edges"]))

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.codes

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        sex: Tensor | None = None,
    ) -> BaseModelOutput:
        """All (B, L): tokens, which of them are no padding, visits, and days since birth (NaN:
        unknown); ``sex`` (B,): 0 unknown, 1 female, 2 male. ``last_hidden_state`` is (B, L, D),
        0 at padding."""
        mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask_BL = mask_BL.bool()
        visits = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        ages = torch.full(input_ids.shape, torch.nan) if ages is None else ages
        batch = Batch(
            tokens_T=input_ids[mask_BL],
            visit_T=visits[mask_BL],
            age_T=ages.to(input_ids.device)[mask_BL],
            offsets_B1=torch.nn.functional.pad(mask_BL.sum(1).cumsum(0), (1, 0)),
            rows_B=torch.arange(len(input_ids), device=input_ids.device),
            sex_B=sex,
        )
        hidden_TD = self.encoder(batch)
        hidden_BLD = hidden_TD.new_zeros(*mask_BL.shape, self.encoder.hidden)
        hidden_BLD[mask_BL] = hidden_TD
        return BaseModelOutput(last_hidden_state=hidden_BLD)


AutoConfig.register(MedBertConfig.model_type, MedBertConfig)
AutoModel.register(MedBertConfig, MedBertModel)
