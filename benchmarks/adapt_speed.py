"""Real tokens per CPU-second of continued pretraining: medbert beside Hugging Face's Trainer.

    OMP_NUM_THREADS=1 python benchmarks/adapt_speed.py [--steps 30] [--rounds 3] [--tokens 2048]

needs ``accelerate`` (the Trainer's). The same untrained model and invented texts (lognormal
lengths, median 150, at most 510 tokens; Zipf over 16,000 words), 15% hidden, gradients clipped,
AdamW, one thread. The peers are the stock Trainer and DataCollatorForLanguageModeling

    padded      a text a row, padded to the longest of the batch
    grouped     texts run together and cut to 512, as in run_mlm.py: they see each other
    sparse      as grouped, with ModernBERT's sparse_prediction

Every run is a fresh process, whose first five steps are not counted; variants take turns, round by
round; medians. Padding counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

LENGTH, WORDS, WARM = 512, 15_995, 5
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ModernBERT 2 x 128": (
        "modernbert",
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_position_embeddings": 512,
            "local_attention": 64,
            "global_attn_every_n_layers": 2,
        },
    ),
    "BERT 4 x 256": (
        "bert",
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
}


def texts(n: int) -> list[str]:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(150), 0.8, size=n), 5, LENGTH - 2).astype(int)
    words = np.minimum(random.zipf(1.2, size=lengths.sum()), WORDS) - 1
    return [" ".join(f"w{i}" for i in part) for part in np.split(words, np.cumsum(lengths)[:-1])]


def tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=LENGTH, **names
    ).save_pretrained(folder)
    return folder


class Clock:
    """CPU seconds and tokens from the fifth step on."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.begun = 0.0

    def step(self) -> None:
        self.steps += 1
        if self.steps == WARM:
            self.begun, self.tokens = time.process_time(), 0

    def rate(self) -> float:
        return self.tokens / (time.process_time() - self.begun)


def ours(encoder: Any, some: list[str], tokens: int, steps: int, place: Path) -> float:
    from functools import partial

    import pytorch_lightning as pl

    from medbert.text.encoders.masked_lm import MaskedText
    from medbert.text.encoders.masks import Words
    from medbert.text.encoders.pieces import Frame, write_tokens
    from medbert.text.encoders.rows import Rows, RowSampler, loader, source
    from medbert.train.module import TrainingModule
    from medbert.train.optimizers import adamw

    frame, clock = Frame.of(encoder.tokenizer), Clock()
    laid = source(
        write_tokens(some, place, tokenizer=encoder.tokenizer),
        frame=frame,
        length=LENGTH,
        pairs=False,
        seed=0,
    )
    data = Rows([laid], frame=frame, masking=Words(), replacement=encoder.replacement(), seed=0)
    sampler = RowSampler([laid.rows], rows=tokens // LENGTH, batches=steps, seed=0)

    class Steps(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, i: int
        ) -> None:
            clock.tokens += len(batch.tokens_T)
            clock.step()

    rates = {"lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1, "encoder_lr_factor": 1.0}
    module = TrainingModule(
        encoder=encoder,
        objective=MaskedText(divisor=lambda n, **_: max(n, 1), next_sentence=False),
        optimizer=partial(adamw, lazy_rows=False, **rates),
        seed=0,
    )
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[Steps()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader(data, sampler))
    return clock.rate()


def theirs(
    encoder: Any, some: list[str], tokens: int, steps: int, place: Path, *, kind: str
) -> float:
    from transformers import (
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    words, model, clock = encoder.tokenizer, encoder.model, Clock()
    ids = words(some, truncation=True, max_length=LENGTH)["input_ids"]
    rows, each = ids, tokens // LENGTH
    if kind == "padded":
        each = round(tokens / np.mean([len(i) for i in ids]))
    else:
        flat = np.concatenate([np.array(i) for i in ids])
        rows = [flat[i : i + LENGTH].tolist() for i in range(0, len(flat) - LENGTH, LENGTH)]
        model.config.sparse_prediction = model.sparse_prediction = kind == "sparse"
    collate = DataCollatorForLanguageModeling(words, mlm_probability=0.15)

    def counted(examples: list[dict[str, Any]]) -> Any:
        clock.tokens += sum(len(e["input_ids"]) for e in examples)
        return collate(examples)

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step()

    settings = TrainingArguments(
        output_dir=str(place),
        per_device_train_batch_size=each,
        max_steps=steps,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-3,
        remove_unused_columns=False,
    )
    examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    Trainer(
        model=model,
        args=settings,
        train_dataset=examples,
        data_collator=counted,
        callbacks=[Steps()],
    ).train()
    return clock.rate()


def one(model: str, kind: str, *, tokens: int, steps: int) -> float:
    import torch

    from medbert.text.encoders.masked_lm import fresh

    torch.set_num_threads(1)
    family, config = MODELS[model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = fresh(tokenizer(folder / "words"), model_type=family, config=config, seed=0)
        some = texts(tokens * (steps + 10) // 150)
        if kind == "medbert":
            return ours(encoder, some, tokens, steps, folder / "tokens")
        return theirs(encoder, some, tokens, steps, folder / "out", kind=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = {"tokens": chosen.tokens, "steps": chosen.steps}
    if chosen.one:
        print(json.dumps(one(*chosen.one, **sizes)))
        return
    same = [sys.executable, __file__, *(f"--{name}={n}" for name, n in sizes.items())]
    for model, (family, _) in MODELS.items():
        kinds = ["padded", "grouped", *(["sparse"] if family == "modernbert" else []), "medbert"]
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(chosen.rounds):
            for kind in kinds:
                done = subprocess.run(
                    [*same, "--one", model, kind], capture_output=True, text=True, check=True
                )
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
        for kind, rates in found.items():
            ratio = median(o / r for o, r in zip(found["medbert"], rates, strict=True))
            spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
            print(
                f"| {model} | {kind} | {median(rates):,.0f} ({spread}) | {ratio:.1f}x |", flush=True
            )


if __name__ == "__main__":
    main()
