"""An encoder is a folder: ``model.safetensors``, ``config.json``, and no pickle.

``config.json`` says which class each module is, the arguments that build it, and the hash of the
weights. Loading is strict: all weights of the right shape, or an InputError in one line. Writing is
not atomic here; the caller writes into a folder of its own and moves it when all is done.

Also the map between the weights of ``BertEncoder`` and those of a Hugging Face ``BertModel``.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medbert.model.encoder import BertEncoder
from medbert.schema import InputError

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
COPY_AGAIN = "copy the folder again, or make it anew"

# ours -> theirs
_OUTSIDE_LAYERS = {
    "codes.weight": "embeddings.word_embeddings.weight",
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


def save_module(
    folder: str | Path, *, modules: Mapping[str, nn.Module], extra: Mapping[str, Any]
) -> None:
    """Write modules, each with a ``config`` of its constructor arguments, into an existing folder.

    ``extra`` goes into config.json as it is. Raises ValueError if a name is taken twice or is no
    identifier.
    """
    folder = Path(folder)
    taken = [*modules, *extra, "format", "weights_sha256"]
    if len(set(taken)) < len(taken) or not all(name.isidentifier() for name in modules):
        raise ValueError(f"module and extra names must be distinct identifiers: {taken}")
    weights = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    described = {
        name: {"class": _class_name(type(module)), "arguments": module.config}
        for name, module in modules.items()
    }
    config = {"format": FORMAT, **described, "weights_sha256": _hash(folder / WEIGHTS), **extra}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder; InputError if there is none that can be used."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); is {folder} a folder that `medbert "
            "pretrain` or `medbert finetune` made?"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); {COPY_AGAIN}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: format {found!r}, but this version reads format {FORMAT}; "
            "install the version of medbert that wrote it"
        )
    return config


def load_module(folder: str | Path, name: str) -> nn.Module:
    """One module of a checkpoint folder, on the CPU and in training mode, as newly built.

    Raises InputError, in one line with the file and the cure, if anything is missing, damaged,
    left over or of another shape, or if the class is not of this package.
    """
    config, path = read_config(folder), Path(folder) / WEIGHTS
    described = {
        key: entry for key, entry in config.items() if isinstance(entry, dict) and "class" in entry
    }
    if name not in described:
        there = ", ".join(described) or "none"
        raise InputError(f"{Path(folder) / CONFIG}: no module {name!r} here (there is: {there})")
    module = _build(Path(folder) / CONFIG, name, described[name])
    weights = _read_weights(path, config.get("weights_sha256"))
    strays = [key for key in weights if key.partition(".")[0] not in described]
    if strays:
        raise InputError(f"{path}: weight {strays[0]} belongs to no module; {COPY_AGAIN}")
    mine = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in weights.items()
        if key.startswith(f"{name}.")
    }
    _fill(module, mine, where=path, prefix=f"{name}.", cure=COPY_AGAIN)
    return module


def _build(path: Path, name: str, entry: Mapping[str, Any]) -> nn.Module:
    """A module of the class and arguments that config.json names; the random state is kept."""
    class_name, arguments = str(entry["class"]), entry.get("arguments", {})
    where, _, last = class_name.rpartition(".")
    if not where.startswith("medbert."):
        raise InputError(f"{path}: {name} is a {class_name}; only classes of medbert are loaded")
    try:
        found = getattr(importlib.import_module(where), last)
        if not (issubclass(found, nn.Module) and _class_name(found) == class_name):
            raise TypeError("not a module of medbert")
        with torch.random.fork_rng(devices=[]):
            return found(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: {name} cannot be built as {class_name} from {arguments} ({error}); "
            "install the version of medbert that wrote it"
        ) from error


def _read_weights(path: Path, expected_hash: object) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: not found; {COPY_AGAIN}")
    if _hash(path) != expected_hash:
        raise InputError(
            f"{path}: truncated or changed, its hash is not the weights_sha256 of {CONFIG}; "
            f"{COPY_AGAIN}"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {COPY_AGAIN}") from error


def _fill(
    module: nn.Module, weights: Mapping[str, Tensor], *, where: str | Path, prefix: str, cure: str
) -> None:
    """Load weights only if they are exactly those of the module."""
    expected = module.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights:
            raise InputError(f"{where}: weight {prefix}{key} is missing; {cure}")
        if key not in expected:
            raise InputError(f"{where}: weight {prefix}{key} is not one of the module's; {cure}")
        shape, needed = tuple(weights[key].shape), tuple(expected[key].shape)
        if shape != needed:
            raise InputError(
                f"{where}: weight {prefix}{key} has shape {shape}, expected {needed}; {cure}"
            )
    module.load_state_dict(dict(weights))


def _class_name(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    state_dict: Mapping[str, Tensor], *, heads: int, dropout: float = 0.1
) -> BertEncoder:
    """The encoder with the weights of a Hugging Face ``BertModel``, copied; sizes are read off.

    ``heads`` cannot be read from weights and must be told. A pooler and the buffer of position ids
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
    sizes: dict[str, Any] = {**_sizes(theirs), "layers": layers, "heads": heads}
    encoder = BertEncoder(**sizes, dropout=dropout, attention_dropout=dropout)
    ours = {
        our_key: torch.cat([theirs[key] for key in their_keys]) for our_key, their_keys in names
    }
    _fill(encoder, ours, where="the converted BertModel", prefix="", cure=cure)
    return encoder


def _sizes(theirs: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        "vocabulary_size": theirs["embeddings.word_embeddings.weight"].shape[0],
        "hidden": theirs["embeddings.word_embeddings.weight"].shape[1],
        "positions": theirs["embeddings.position_embeddings.weight"].shape[0],
        "visits": theirs["embeddings.token_type_embeddings.weight"].shape[0],
        "feed_forward": theirs["encoder.layer.0.intermediate.dense.weight"].shape[0],
    }


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
