"""``medbert convert``: encoders to the formats of others, and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbert.commands.encoders.building import load_encoder
from medbert.commands.encoders.questions import foretelling, of_words
from medbert.commands.encoders.trained_on import TRAINED_ON
from medbert.commands.output.artefacts import artefact, write_json
from medbert.data.codes import canonical
from medbert.data.sources import medbert_pickles, reading
from medbert.data.store import Store
from medbert.data.vocabulary import Rule, Vocabulary
from medbert.model import checkpoint
from medbert.model.encoder import BertEncoder
from medbert.model.formats.hugging_face import TABLE, encoder_of, read_bert, save_hugging_face
from medbert.model.formats.onnx import INPUTS, export
from medbert.schema import BIRTH, DEATH, SPECIAL_TOKENS, InputError

log = logging.getLogger(__name__)

MIN_COUNT = 10  # smaller counts are not passed on
VOCABULARY, SHA256 = "vocabulary.parquet", "vocabulary_sha256"
_CHOICES = ("encoder", "huggingface", "onnx")
_DIAGNOSES = ("ICD9CM/", "ICD10CM/")


def convert(
    *,
    path: str,
    to: str,
    types: str | None,
    pooling: str,
    query: str | Sequence[str] | None,
    horizon: str | float,
    gap: str | float,
    store: str | None,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes the folder ``out`` and returns it.

    ``to=encoder``: what other verbs take. ``huggingface``: a BertModel. ``onnx``: model.onnx, and
    inputs.json on how to feed it. The latter two have the vocabulary beside them, but no count
    below 10, and no settings: they may be passed on.
    """
    if to not in _CHOICES:
        raise InputError(f"to={to}: choose one of {', '.join(_CHOICES)}")
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        if to == "encoder":
            encoder, vocabulary, extra = _read(Path(path), types)
            checkpoint.save_module(folder, modules={"encoder": encoder}, extra=extra)
            longest = min(512, encoder.config["positions"])
            write_json(folder / "settings.json", {**settings, "max_tokens": longest})
            vocabulary.save(folder / VOCABULARY)
        else:
            model, vocabulary = checkpoint.load_module(path, "encoder").eval(), vocabulary_of(path)
            for file in [*folder.iterdir()]:
                file.unlink()
            coarse(vocabulary).save(folder / VOCABULARY)
            if to == "onnx":
                asked = {"query": query, "horizon": horizon, "gap": gap}
                _write_graph(folder, model, _records(store, path, query), pooling, asked)
            elif isinstance(model, BertEncoder):
                kept = (SHA256, TRAINED_ON, "privacy")
                ours = {k: v for k, v in checkpoint.read_config(path).items() if k in kept}
                save_hugging_face(folder, model, extra={"medbert": ours})
            else:
                raise InputError(f"{path}: a {type(model).__name__} is no BertModel; say to=onnx")
    log.info("made %s", out)
    return Path(out)


def vocabulary_of(folder: str | Path) -> Vocabulary:
    """That of an encoder's folder; InputError if it is not the one it was trained with."""
    vocabulary = Vocabulary.load(folder)
    if checkpoint.read_config(folder).get(SHA256) != vocabulary.sha256:
        raise InputError(
            f"{folder}/{VOCABULARY}: not the vocabulary of this encoder (its hash differs from "
            f"config.json); {checkpoint.COPY_AGAIN}"
        )
    return vocabulary


def coarse(vocabulary: Vocabulary) -> Vocabulary:
    """The same (as its hash sees it), with counts rounded down to tens; 1 is any below ten."""

    def rounded(counts: np.ndarray) -> np.ndarray:
        return np.minimum(counts, np.maximum(counts // MIN_COUNT * MIN_COUNT, 1))

    counts, n_subjects = rounded(vocabulary.counts), rounded(vocabulary.n_subjects)
    return replace(vocabulary, counts=counts, n_subjects=n_subjects)


def _records(store: str | None, path: str, query: Any) -> Store | None:
    """Whose training subjects tell with how many codes a disease is written."""
    if query is None:
        return None
    if store is None:
        raise InputError("query: say store=FOLDER too, records that such risks are asked of")
    records = Store(store)
    load_encoder(path, records)  # speaks their vocabulary
    return records


def _write_graph(
    folder: Path, model: Any, records: Store | None, pooling: str, asked: dict[str, Any]
) -> None:
    question = None
    if records is not None:
        foretelling(model, "query")
        question = of_words(asked["query"], records, gap=asked["gap"], horizon=asked["horizon"])
    asked_of = None if question is None else question._asdict()
    outputs = export(model, folder / "model.onnx", pooling=pooling, question=asked_of)
    about: dict[str, Any] = {"inputs": INPUTS, "outputs": outputs, "pooling": pooling}
    write_json(folder / "inputs.json", about | (asked if question else {}))


def _read(path: Path, types: str | None) -> tuple[BertEncoder, Vocabulary, dict[str, Any]]:
    """An encoder, the vocabulary it speaks, and what more its config.json says."""
    weights, config = read_bert(path)
    told = config.get("medbert", {})
    if types is not None:
        vocabulary, weights[TABLE] = _of_types(reading.existing(types), weights[TABLE])
    elif (path / VOCABULARY).is_file():
        vocabulary = Vocabulary.load(path)
        if told.get(SHA256) != vocabulary.sha256 or len(vocabulary) != len(weights[TABLE]):
            raise InputError(f"{path}/{VOCABULARY}: not that of this BertModel; convert it again")
    else:
        raise InputError(f"{path}: which codes are its tokens? say types=FILE, Med-BERT's .types")
    return encoder_of(weights, config), vocabulary, {**told, SHA256: vocabulary.sha256}


def _of_types(file: Path, table: Tensor) -> tuple[Vocabulary, Tensor]:
    """The vocabulary of a ``.types``, and the rows of ``table`` in its order.

    PAD and MASK are the padding of Med-BERT, which is both there. UNK and CLS, which it does not
    have, are the mean of all codes. Counts are unknown, so 0.
    """
    numbers, names = medbert_pickles.vocabulary(file, reading.stamp(file))
    pairs = sorted(zip(numbers.to_pylist(), canonical(names).to_pylist(), strict=True))
    number_of: dict[str, int] = {}
    for number, code in pairs:
        number_of.setdefault(code, number)
    if not pairs or pairs[0][0] < 1 or pairs[-1][0] >= len(table):
        raise InputError(f"{file}: not the dictionary of a model with {len(table)} codes")
    if len(number_of) < len(pairs):
        log.warning("%s: %d codes are there in two spellings", file, len(pairs) - len(number_of))
    codes = (*SPECIAL_TOKENS, *number_of)
    rows = table[list(number_of.values())]
    pad, mean = table[:1], rows.mean(dim=0, keepdim=True)
    diagnoses = all(code.startswith(_DIAGNOSES) for code in number_of)
    rule = Rule(
        min_subjects=1,
        include=[f"^{system}" for system in _DIAGNOSES] if diagnoses else [],
        exclude=[] if diagnoses else [f"^{BIRTH}", f"^{DEATH}"],
        roll_up=True,
    )
    nothing, none = np.zeros(len(codes), np.int64), np.full(len(codes), np.nan, np.float32)
    vocabulary = Vocabulary(
        codes=codes,
        counts=nothing,
        n_subjects=nothing,
        titles=(None,) * len(codes),
        low=none,
        high=none,
        rule=rule,
    )
    return vocabulary, torch.cat([pad, mean, pad, mean, rows])
