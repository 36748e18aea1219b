"""An encoder is a folder: ``model.safetensors``, ``config.json``, and no pickle.

``config.json`` says which class each module is, the arguments that build it, and the hashes of the
weights and of itself (not in the first folders of format 1). Loading is strict: all weights of the
right shape, or an InputError in one line. Writing is not atomic here; the caller writes into a
folder of its own and moves it when all is done.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medbert.schema import InputError

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
COPY_AGAIN = "copy the folder again, or make it anew"
_OWN_HASH = "config_sha256"
OWN_KEYS = ("format", "weights_sha256", _OWN_HASH)  # of config.json: neither modules nor extra


def save_module(
    folder: str | Path, *, modules: Mapping[str, nn.Module], extra: Mapping[str, Any]
) -> None:
    """Write modules, each with a ``config`` of its constructor arguments, into an existing folder.

    ``extra`` goes into config.json as it is. Raises ValueError if a name is taken twice or is no
    identifier.
    """
    folder = Path(folder)
    taken = [*modules, *extra, *OWN_KEYS]
    if len(set(taken)) < len(taken) or not all(name.isidentifier() for name in modules):
        raise ValueError(f"module and extra names must be distinct identifiers: {taken}")
    weights = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    save_weights(weights, folder / WEIGHTS)
    described = {
        name: {"class": _class_name(type(module)), "arguments": module.config}
        for name, module in modules.items()
    }
    config = {"format": FORMAT, **described, "weights_sha256": _hash(folder / WEIGHTS), **extra}
    config[_OWN_HASH] = _hash_of(config)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Who may read the file is as with other files; safetensors would keep it from all others."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(weights), path, metadata={"format": "pt"})
    path.chmod(mode)


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
    if found is None and isinstance(config, dict) and "model_type" in config:
        raise InputError(
            f"{path}: a Hugging Face model ({config['model_type']}), no encoder of medbert; if it "
            "is a BertModel over codes: medbert convert path=... to=encoder"
        )
    if found != FORMAT:
        raise InputError(
            f"{path}: format {found!r}, but this version reads format {FORMAT}; "
            "install the version of medbert that wrote it"
        )
    if config.get(_OWN_HASH, own := _hash_of(config)) != own:
        raise InputError(f"{path}: changed since it was written; {COPY_AGAIN}")
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
    module = build(Path(folder) / CONFIG, name, described[name])
    weights = _read_weights(path, config.get("weights_sha256"))
    strays = [key for key in weights if key.partition(".")[0] not in described]
    if strays:
        raise InputError(f"{path}: weight {strays[0]} belongs to no module; {COPY_AGAIN}")
    mine = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in weights.items()
        if key.startswith(f"{name}.")
    }
    fill(module, mine, where=path, prefix=f"{name}.", cure=COPY_AGAIN)
    return module


def build(path: Path, name: str, entry: Mapping[str, Any]) -> nn.Module:
    """A module of the class and arguments that config.json names; the random state is kept."""
    class_name, arguments = str(entry["class"]), entry.get("arguments", {})
    where, _, last = class_name.rpartition(".")
    if not where.startswith("medbert.model."):
        raise InputError(f"{path}: {name} is a {class_name}; only modules of medbert are loaded")
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
    return load_weights(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {COPY_AGAIN}") from error


def fill(
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


def _hash_of(config: Mapping[str, Any]) -> str:
    """Of all but the hash itself, however it is laid out."""
    rest = json.loads(json.dumps({k: v for k, v in config.items() if k != _OWN_HASH}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
