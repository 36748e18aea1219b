"""A tiny BERT, made and taught here, for the tests of taggers."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from medbert.schema import Span
from medbert.text.detectors.tagger import Tagger
from medbert.text.notes import Note

WORDS = ["patient", "was", "seen", "by", "today", "and", "has", "pain", "in", "the", "knee"]
PIECES = 512  # that the model reads at once


def encoder(folder: Path) -> Path:
    """An untrained BERT of one small layer, whose vocabulary is single characters and WORDS."""
    characters = string.ascii_letters + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    vocabulary += [f"##{c}" for c in characters] + WORDS
    tokenizer = transformers.BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        do_lower_case=False,
        model_max_length=PIECES,
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=PIECES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    model.embeddings.position_embeddings.weight.data.zero_()  # most positions are never trained
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def name(random: Random) -> str:
    return random.choice(string.ascii_uppercase) + "".join(random.choices("abcdefghij", k=5))


def note(random: Random) -> Note:
    text, spans = "", []
    for _ in range(10):
        word, label = random.choice(WORDS), None
        if random.random() < 0.2:  # as in "q4h": pieces within a word that are no PHI
            word = random.choice("abcdefghij") + "4" + random.choice("abcdefghij")
        elif random.random() < 0.4:
            word, label = (name(random), "NAME") if random.random() < 0.6 else ("34", "AGE")
        if label:
            spans.append(Span(len(text), len(text) + len(word), label))
        text += word + " "
    return Note("n", text, spans=tuple(spans))


@cache
def taught() -> Tagger:
    """Knows names of six letters and "34"."""
    random = Random(0)
    notes = [note(random) for _ in range(60)]
    with TemporaryDirectory() as folder:
        base = str(encoder(Path(folder)))
        return Tagger.train(notes, base=base, epochs=12, learning_rate=0.015, device="cpu")


def pipeline(folder: Path) -> Any:
    """A tagger that was saved, as model cards show it."""
    return transformers.pipeline(
        "token-classification", model=str(folder), aggregation_strategy="simple", device="cpu"
    )


def filled(n_pieces: int) -> str:
    """So many pieces without PHI."""
    return "".join(f"{WORDS[i % 8]} " for i in range(n_pieces))


def texts(text: str, spans: list[Span]) -> list[tuple[str, str]]:
    return [(text[s.start : s.end], s.label) for s in spans]
