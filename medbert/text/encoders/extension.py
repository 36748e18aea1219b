"""New tokens for a tokenizer of Hugging Face and its model: whole words that it cut into pieces.

A new token begins as the mean of the vectors of its pieces. The words become pieces like any other,
so that they also begin longer words and no text is read differently than before but in larger
pieces: WordPiece gets entries, BPE merges (and what stands between: a token a merge), Unigram
entries a little likelier than their pieces together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medbert.schema import InputError
from medbert.text.encoders.folders import tokenizer_of
from medbert.text.encoders.masked_lm import load

_LIKELIER = 0.5  # nats by which a new word of a Unigram tokenizer beats its pieces


def parameters_of_a_token(folder: str | Path) -> int | None:
    """What one more token costs a model: its vector, once more where the output layer has its own,
    and its bias there. None: the folder holds no model."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    width = config.get("embedding_size") or config.get("hidden_size")
    tied = config.get("tie_word_embeddings", True)
    return None if width is None else width * (1 if tied else 2) + 1


def extend(base: str | Path, out: Path, words: Sequence[str]) -> dict[str, Any]:
    """Writes the model and tokenizer of ``base`` with the ``words`` as tokens into ``out``, and
    returns how many are one piece now and how many tokens and parameters are new. Old tokens keep
    numbers and vectors.

    Raises InputError: no model there, or every word is a token already.
    """
    tokenizer = tokenizer_of(base)
    size = len(tokenizer)
    made_of = _save(tokenizer, out, [*words])
    if not made_of:
        raise InputError(f"{base}: knows all of these words as one piece; nothing to add")
    made = tokenizer_of(out)
    rows = made.convert_tokens_to_ids([*made_of])
    if len(made) != size + len(made_of) or sorted(rows) != [*range(size, len(made))]:
        raise InputError(f"{base}: its tokenizer does not take new pieces (numbers have gaps)")
    whole = made([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    model = load(base).model
    before = sum(p.numel() for p in model.parameters())
    parts = [tokenizer.convert_tokens_to_ids(own) for own in made_of.values()]
    _grow(model, rows, parts, size=len(made))
    model.save_pretrained(out)
    return {
        "words": len(whole),
        "in_one_piece": sum(len(ids) == 1 for ids in whole),
        "tokens": len(made_of),
        "parameters": sum(p.numel() for p in model.parameters()) - before,
    }


def _save(tokenizer: Any, out: Path, words: Sequence[str]) -> dict[str, list[str]]:
    """Saves the tokenizer with the words, and returns the pieces of each new token."""
    cut = [tokenizer.tokenize(f" {word}") for word in words]
    cut = [own for own in cut if len(own) > 1 and tokenizer.unk_token not in own]
    tokenizer.save_pretrained(out)
    file = out / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    kind = state["model"]["type"]
    if kind not in _WAYS:
        raise InputError(f"a tokenizer of the kind {kind}: known are {', '.join(_WAYS)}")
    made_of = _WAYS[kind](state["model"], cut, len(tokenizer))
    file.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    return made_of


def _word_pieces(model: Any, cut: Sequence[list[str]], first: int) -> dict[str, list[str]]:
    mark = model["continuing_subword_prefix"]
    made_of = {"".join([own[0], *(p.removeprefix(mark) for p in own[1:])]): own for own in cut}
    model["vocab"].update({token: first + i for i, token in enumerate(made_of)})
    return made_of


def _unigram(model: Any, cut: Sequence[list[str]], first: int) -> dict[str, list[str]]:
    if len(model["vocab"]) != first:
        raise InputError("a Unigram tokenizer with tokens outside of its vocabulary: not extended")
    score = dict(model["vocab"])
    made_of = {"".join(own): own for own in cut}
    for token, own in made_of.items():
        model["vocab"].append([token, sum(score[piece] for piece in own) + _LIKELIER])
    return made_of


def _merges(model: Any, cut: Sequence[list[str]], first: int) -> dict[str, list[str]]:
    """New merges come last, so that a word is first cut as ever; each makes a token."""
    made_of: dict[str, list[str]] = {}
    new: dict[tuple[str, str], str] = {}
    for own in cut:
        now, parts = [*own], [[piece] for piece in own]
        for pair in new:  # what earlier words have brought
            _merge(now, parts, pair)
        while len(now) > 1:
            pair = (now[0], now[1])
            token = "".join(pair)
            if token in model["vocab"] or token in made_of:
                break  # there by another way: this word stays in pieces
            new[pair], made_of[token] = token, parts[0] + parts[1]
            _merge(now, parts, pair)
    model["vocab"].update({token: first + i for i, token in enumerate(made_of)})
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] += [" ".join(pair) if as_text else [*pair] for pair in new]
    return made_of


def _merge(now: list[str], parts: list[list[str]], pair: tuple[str, str]) -> None:
    i = 0
    while i + 1 < len(now):
        if (now[i], now[i + 1]) == pair:
            now[i : i + 2] = ["".join(pair)]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1


_WAYS = {"WordPiece": _word_pieces, "BPE": _merges, "Unigram": _unigram}


def _grow(model: Any, rows: Sequence[int], pieces: Sequence[Sequence[int]], *, size: int) -> None:
    old = model.get_input_embeddings().weight.shape[0]
    if size > old:
        model.resize_token_embeddings(size, mean_resizing=False)
    layers = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None:
        layers += [head.weight] if head.weight is not layers[0] else []
        layers += [head.bias] if getattr(head, "bias", None) is not None else []
    with torch.no_grad():
        for weights in layers:
            for row, own in zip(rows, pieces, strict=True):
                weights[row] = weights[torch.as_tensor(np.asarray(own))].mean(0)
