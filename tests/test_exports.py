from __future__ import annotations

import subprocess
import sys

import medbert
from medbert.commands import VERBS


def test_all_is_what_imports():
    assert medbert.__all__ == sorted(medbert.__all__)
    for name in medbert.__all__:
        assert getattr(medbert, name) is not None
    assert set(VERBS) <= set(medbert.__all__)


def test_importing_medbert_loads_nothing_heavy():
    code = "import medbert, sys; dir(medbert), medbert.pretrain; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "pytorch_lightning", "pandas", "sklearn", "hydra", "pyarrow", "numpy"}
    heavy |= {"scipy", "matplotlib", "omegaconf", "safetensors", "polars", "huggingface_hub"}
    assert not heavy & set(done.stdout.split())


def test_an_unknown_name_is_an_attribute_error():
    try:
        medbert.pretrian  # noqa: B018
    except AttributeError as error:
        assert "pretrian" in str(error)
    else:
        raise AssertionError


def test_an_encoder_is_asked_without_what_trains_one():
    code = "import medbert, sys; medbert.Encoder, medbert.MedBertClassifier; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pytorch_lightning", "torchmetrics", "lightgbm", "matplotlib.pyplot"} & set(
        done.stdout.split()
    )
