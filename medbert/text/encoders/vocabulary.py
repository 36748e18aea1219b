"""A vocabulary of word pieces, learned from texts: a tokenizer folder as transformers reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medbert.schema import InputError
from medbert.text.encoders.folders import library

KINDS = ("wordpiece", "bpe")
_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def learn_pieces(
    texts: Iterable[str], *, kind: str, size: int, lowercase: bool, min_count: int, length: int
) -> Any:
    """A fast tokenizer of ``size`` pieces that each occurred ``min_count`` times or more.

    ``wordpiece`` as in BERT; ``bpe`` over bytes, which knows every character. ``length``: how many
    pieces a model is to read at most.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind}: choose one of {', '.join(KINDS)}")
    transformers = library()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    wanted: dict[str, Any] = {"vocab_size": size, "min_frequency": min_count}
    wanted |= {"special_tokens": list(_SPECIAL.values()), "show_progress": False}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk"]))
        made.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=lowercase)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(**wanted)
    else:
        made = Tokenizer(models.BPE())
        folded = [normalizers.Lowercase()] if lowercase else []
        made.normalizer = normalizers.Sequence([normalizers.NFC(), *folded])
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **wanted
        )
    made.train_from_iterator(texts, trainer=trainer)
    marks = [(_SPECIAL[name], made.token_to_id(_SPECIAL[name])) for name in ("cls", "sep")]
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    named = {f"{name}_token": token for name, token in _SPECIAL.items()}
    fast = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=made, model_max_length=length, **named)
