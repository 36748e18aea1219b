"""A checkpoint comes back bit for bit, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medbert.model.checkpoint import load_module, read_config, save_module
from medbert.model.encoder import BertEncoder
from medbert.model.heads import FrozenLogistic, Pooled, Recurrent, Retain
from medbert.schema import InputError

HEADS = [
    Pooled(hidden=16, pooling="max"),
    Recurrent(hidden=16, width=4, bidirectional=True),
    Retain(hidden=16, width=4),
    FrozenLogistic(hidden=16, pooling=("sum", "max")),
]


def encoder() -> BertEncoder:
    return BertEncoder(
        vocabulary_size=20,
        layers=1,
        heads=2,
        hidden=16,
        feed_forward=8,
        dropout=0.1,
        attention_dropout=0.1,
        positions=8,
        visits=5,
        ages=3,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modules = {"encoder": encoder(), "head": Pooled(hidden=16)}
    save_module(tmp_path, modules=modules, extra={"vocabulary_sha256": "abc"})
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    """As a writer would who makes no hash of it."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("config_sha256", None)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights and the hash with them, as a wrong writer would."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    change_config(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def refused(folder: Path, *words: str, name: str = "encoder") -> None:
    with pytest.raises(InputError) as caught:
        load_module(folder, name)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_modules_come_back_bit_for_bit(tmp_path: Path, head: torch.nn.Module) -> None:
    saved = {"encoder": encoder(), "head": head}
    save_module(tmp_path, modules=saved, extra={"note": [1, "two"]})
    before = torch.random.get_rng_state()
    for name, module in saved.items():
        loaded = load_module(tmp_path, name)
        assert type(loaded) is type(module)
        assert loaded.config == module.config
        assert loaded.state_dict().keys() == module.state_dict().keys()
        for key, weight in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], weight), key
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_config_says_what_is_there(folder: Path) -> None:
    config = read_config(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    own = config.pop("config_sha256")
    canonical = json.dumps(config, sort_keys=True)
    assert own == hashlib.sha256(canonical.encode()).hexdigest()
    assert config == {
        "format": 1,
        "encoder": {
            "class": "medbert.model.encoder.BertEncoder",
            "arguments": encoder().config,
        },
        "head": {
            "class": "medbert.model.heads.Pooled",
            "arguments": {"hidden": 16, "pooling": "sum"},
        },
        "weights_sha256": digest,
        "vocabulary_sha256": "abc",
    }


def test_a_missing_folder_or_file_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json: cannot be read .*medbert pretrain"):
        read_config(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors: not found", "copy the folder again")
    (folder / "config.json").unlink()
    refused(folder, "config.json: cannot be read")


def test_a_truncated_or_changed_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:-1] + b"\x7f", b""):
        path.write_bytes(damaged)
        refused(folder, "model.safetensors: truncated or changed", "copy the folder again")
        change_config(folder, weights_sha256=hashlib.sha256(damaged).hexdigest())
        if len(damaged) < len(whole):
            refused(folder, "model.safetensors: not a safetensors file")
        change_config(folder, weights_sha256=hashlib.sha256(whole).hexdigest())


@pytest.mark.parametrize("text", ["{", "", "[]", "null", "\udcff"])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, "config.json")


def test_another_format_is_refused(folder: Path) -> None:
    change_config(folder, format=2)
    refused(folder, "format 2", "reads format 1", "install the version")


@pytest.mark.parametrize("change", [{"vocabulary_sha256": "abd"}, {"more": 1}, {"format": 1.0}])
def test_an_edited_config_is_refused(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config))  # laid out anew
    load_module(folder, "encoder")
    path.write_text(json.dumps({**config, **change}))
    refused(folder, "config.json: changed since it was written", "copy the folder again")


def test_a_model_of_hugging_face_is_told_where_to_go(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused(folder, "a Hugging Face model (bert)", "medbert convert path=... to=encoder")


def test_a_missing_weight_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("encoder.norm.bias"))
    refused(folder, "weight encoder.norm.bias is missing")
    load_module(folder, "head")


def test_an_extra_weight_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"encoder.more": torch.zeros(1)}))
    refused(folder, "weight encoder.more is not one of the module's")
    change_weights(folder, lambda weights: weights.pop("encoder.more"))
    change_weights(folder, lambda weights: weights.update({"other.weight": torch.zeros(1)}))
    refused(folder, "weight other.weight belongs to no module")


def test_a_wrong_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"encoder.norm.bias": torch.zeros(1)}))
    refused(folder, "weight encoder.norm.bias has shape (1,), expected (16,)")


@pytest.mark.parametrize(
    "class_name",
    [
        "os.system",
        "torch.nn.Linear",
        "medbertx.model.encoder.BertEncoder",
        "medbert.model.encoder.nn",
        "medbert.model.encoder.Tensor",
        "medbert.model.encoder.initialise",
        "medbert.model.encoder.Nothing",
        "medbert.nowhere.BertEncoder",
        "medbert.train.module.TrainingModule",
        "BertEncoder",
    ],
)
def test_another_class_is_refused(folder: Path, class_name: str) -> None:
    change_config(folder, encoder={"class": class_name, "arguments": encoder().config})
    refused(folder, "config.json", class_name)


@pytest.mark.parametrize("arguments", [None, [], {"hidden": 16}, {**encoder().config, "heads": 3}])
def test_wrong_arguments_are_refused(folder: Path, arguments: Any) -> None:
    entry = {"class": "medbert.model.encoder.BertEncoder", "arguments": arguments}
    change_config(folder, encoder=entry)
    refused(folder, "encoder cannot be built as medbert.model.encoder.BertEncoder")


def test_an_unknown_module_is_refused(folder: Path) -> None:
    refused(folder, "no module 'tail'", "encoder, head", name="tail")


def test_names_are_not_taken_twice(tmp_path: Path) -> None:
    for modules, extra in (
        ({"encoder": encoder()}, {"encoder": 1}),
        ({"format": encoder()}, {}),
        ({"a.b": encoder()}, {}),
    ):
        with pytest.raises(ValueError, match="distinct identifiers"):
            save_module(tmp_path, modules=modules, extra=extra)
    assert not list(tmp_path.iterdir())
