"""BertEncoder to and from a Hugging Face ``BertModel``, and from TensorFlow checkpoints of the
first BERT (google-research/bert), which is what Med-BERT was trained with."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medbert.model.checkpoint import CONFIG, WEIGHTS, fill, load_weights, save_weights
from medbert.model.encoder import INITIAL_DEVIATION, NORM_EPSILON, BertEncoder
from medbert.model.formats.tensorflow import read_tensors
from medbert.schema import PAD, InputError

TABLE = "embeddings.word_embeddings.weight"
BERT_CONFIG = "bert_config.json"  # beside a TensorFlow checkpoint

# ours -> theirs
_OUTSIDE_LAYERS = {
    "codes.weight": TABLE,
    "positions.weight": "embeddings.position_embeddings.weight",
    "visits.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_IN_LAYER = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "output_norm": "output.LayerNorm",
}
_PROJECTED = ("query", "key", "value")  # three layers there, one here
_NOT_OURS = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
# of a BertModel's config.json: what BertEncoder is, and what a BertModel may also be
_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": NORM_EPSILON,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
_LAST = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def to_hugging_face(encoder: BertEncoder) -> dict[str, Tensor]:
    """Weights for ``transformers.BertModel(config, add_pooling_layer=False)``, copied.

    Raises InputError if the encoder has an age embedding, which a BertModel cannot hold.
    """
    if encoder.ages is not None:
        raise InputError(
            f"this encoder has ages={encoder.config['ages']}, and a Hugging Face BertModel has no "
            "age embedding: pretrain with encoder.ages=0 to convert it"
        )
    ours = encoder.state_dict()
    theirs = {}
    for our_key, their_keys in _names(len(encoder.layers)):
        for their_key, part in zip(their_keys, ours[our_key].chunk(len(their_keys)), strict=True):
            theirs[their_key] = part.clone()
    return theirs


def from_hugging_face(
    state_dict: Mapping[str, Tensor],
    *,
    heads: int,
    dropout: float = 0.1,
    attention_dropout: float | None = None,
) -> BertEncoder:
    """The encoder with the weights of a Hugging Face ``BertModel``, copied; sizes are read off.

    ``heads`` cannot be read from weights and must be told; ``attention_dropout`` is ``dropout``
    where it is not. A pooler and the buffer of position ids
    are passed over; any other missing, extra or misshapen weight raises InputError.
    """
    cure = "give the state_dict of a plain BertModel (of a model with a task head, its .bert)"
    theirs = {key: weight for key, weight in state_dict.items() if key not in _NOT_OURS}
    numbers = re.findall(r"^encoder\.layer\.(\d+)\.", "\n".join(theirs), flags=re.MULTILINE)
    layers = max(map(int, numbers), default=-1) + 1
    names = _names(layers)
    wanted = {their_key for _, their_keys in names for their_key in their_keys}
    if layers == 0 or theirs.keys() != wanted:
        missing, extra = sorted(wanted - theirs.keys()), sorted(theirs.keys() - wanted)
        first = [keys[0] if keys else "nothing" for keys in (missing, extra)]
        raise InputError(
            f"not the weights of a BertModel: {layers} layers, missing {first[0]}, unknown "
            f"{first[1]}; {cure}"
        )
    encoder = BertEncoder(
        vocabulary_size=theirs[TABLE].shape[0],
        layers=layers,
        heads=heads,
        hidden=theirs[TABLE].shape[1],
        feed_forward=theirs["encoder.layer.0.intermediate.dense.weight"].shape[0],
        dropout=dropout,
        attention_dropout=dropout if attention_dropout is None else attention_dropout,
        positions=theirs["embeddings.position_embeddings.weight"].shape[0],
        visits=theirs["embeddings.token_type_embeddings.weight"].shape[0],
    )
    ours = {
        our_key: torch.cat([theirs[key] for key in their_keys]) for our_key, their_keys in names
    }
    fill(encoder, ours, where="the converted BertModel", prefix="", cure=cure)
    return encoder


def _names(layers: int) -> list[tuple[str, list[str]]]:
    """Each of our weights, and the ones of a BertModel that it is made of, in order."""
    names = [(ours, [theirs]) for ours, theirs in _OUTSIDE_LAYERS.items()]
    for number, kind in itertools.product(range(layers), ("weight", "bias")):
        here, there = f"layers.{number}", f"encoder.layer.{number}"
        projected = [f"{there}.attention.self.{part}.{kind}" for part in _PROJECTED]
        names.append((f"{here}.attention.project.{kind}", projected))
        names += [
            (f"{here}.{ours}.{kind}", [f"{there}.{theirs}.{kind}"])
            for ours, theirs in _IN_LAYER.items()
        ]
    return names


# --- folders ------------------------------------------------------------------------------------


def save_hugging_face(folder: Path, encoder: BertEncoder, *, extra: Mapping[str, Any]) -> None:
    """Writes what ``BertModel.from_pretrained(folder, add_pooling_layer=False)`` of transformers
    reads; ``extra`` goes into config.json."""
    ours = encoder.config
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": ours["vocabulary_size"],
        "hidden_size": ours["hidden"],
        "num_hidden_layers": ours["layers"],
        "num_attention_heads": ours["heads"],
        "intermediate_size": ours["feed_forward"],
        "hidden_dropout_prob": ours["dropout"],
        "attention_probs_dropout_prob": ours["attention_dropout"],
        "max_position_embeddings": ours["positions"],
        "type_vocab_size": ours["visits"],
        "initializer_range": INITIAL_DEVIATION,
        "pad_token_id": PAD,
        **_FIXED,
        **extra,
    }
    save_weights(to_hugging_face(encoder), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_bert(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, under the names of a BertModel, and the configuration of a folder of one, or of a
    TensorFlow checkpoint (its folder, or its .index if there are several) with bert_config.json.

    Raises InputError for anything else, and where BertEncoder would not compute the same.
    """
    path = Path(path)
    indices = sorted(path.glob("*.index")) if path.is_dir() else [path]
    if path.is_dir() and not indices:
        file = path / CONFIG
        config = _read_config(file)
        if config.get("model_type") != "bert":
            raise InputError(f"{file}: not that of a BertModel")
        weights = _read_weights(path)
    elif len(indices) == 1 and indices[0].suffix == ".index":
        file = indices[0].with_name(BERT_CONFIG)
        config = _read_config(file)
        weights = _from_tensorflow(indices[0])
    else:
        raise InputError(
            f"{path}: neither the folder of a BertModel nor one TensorFlow checkpoint; where a "
            "folder has several, name the .index of one"
        )
    if TABLE not in weights:
        raise InputError(f"{path}: has no {TABLE}, so it is no BertModel")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise InputError(f"{file}: {key}={config[key]}, and encoder=medbert has {value} only")
    return weights, config


def encoder_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> BertEncoder:
    """The encoder of what ``read_bert`` gives; InputError where the two disagree."""
    heads, hidden = config.get("num_attention_heads"), weights[TABLE].shape[-1]
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise InputError(f"num_attention_heads={heads} does not divide the width of {hidden}")
    return from_hugging_face(
        weights,
        heads=heads,
        dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
    )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read ({error}); name the folder of a BertModel, or of a TensorFlow "
            f"checkpoint with its {BERT_CONFIG}"
        ) from error
    return config if isinstance(config, dict) else {}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Without the heads of a model for pretraining or a task."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(
            f"{file}: not found (a pytorch_model.bin is a pickle, which is not opened); save the "
            "model again with transformers' save_pretrained, or give the TensorFlow checkpoint"
        )
    weights = load_weights(file)
    inside = {k.removeprefix("bert."): w for k, w in weights.items() if k.startswith("bert.")}
    return inside or weights


def _from_tensorflow(index: Path) -> dict[str, Tensor]:
    def of_the_encoder(name: str) -> bool:  # and no state of an optimizer, which has longer names
        last = name.rpartition("/")[2]
        inside = name.startswith(("bert/embeddings/", "bert/encoder/"))
        return inside and (last in _LAST or last in _TABLES)

    found = {}
    for name, array in read_tensors(index, of_the_encoder).items():
        *place, last = name.removeprefix("bert/").split("/")
        words = [*place, last, "weight"] if last in _TABLES else [*place, _LAST[last]]
        key = re.sub(r"layer_(\d+)", r"layer.\1", ".".join(words))
        found[key] = torch.tensor(array.T if last == "kernel" else array)
    return found
