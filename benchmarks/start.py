"""What does a new text model gain by beginning at the vectors of neighbours?

    python benchmarks/start.py ../shared/data [--steps 1000] [--lr 4e-3]

One tokenizer (8,000 pieces, of the same reviews) and one untrained ModernBERT (architecture=
modernbert), trained on the same rows twice: begun at token frequencies alone, and begun as `medbert
adapt base=null` begins it. Prints masked losses on 200 reviews that are not trained on (nats a
token, all hidden ones shown as masks) beside the CPU-seconds spent, the counting among them.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hydra.utils import instantiate

import medbert
from medbert.text.encoders.masked_lm import MaskedText, TextEncoder, masked_losses
from medbert.text.encoders.masks import Words
from medbert.text.encoders.pieces import Frame, Tokens, write_tokens
from medbert.text.encoders.rows import InOrder, Rows, RowSampler, loader, source

HELD, LENGTH, ROWS, LOOKS, WARM = 200, 128, 8, 5, 0.06


def frequencies(encoder: TextEncoder, tokens: Tokens) -> None:
    bias = encoder.model.get_output_embeddings().bias
    counts = torch.from_numpy(np.bincount(tokens.token_T, minlength=len(bias))) + 1
    with torch.no_grad():
        bias.copy_((counts / counts.sum()).log())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--architecture", default="modernbert")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    corpus = asked.data / "norwegian" / "norec_train_12k.txt.gz"
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        texts = [line.strip() for line in lines]
    with TemporaryDirectory() as place:
        folder = Path(place)
        medbert.tokenizer_train(corpus=corpus, size=8_000, out=folder / "tokenizer")
        print("| begun at | step | CPU-s | masked loss |\n|---|---|---|---|")
        for name in ("token frequencies", "neighbours"):
            run(name, texts, folder, asked)


def run(name: str, texts: list[str], folder: Path, asked: argparse.Namespace) -> None:
    recipe = medbert.compose("adapt", architecture=asked.architecture, corpus="_", out="_")
    made = instantiate(recipe.architecture, _convert_="all")
    encoder = made(folder / "tokenizer", seed=0, next_sentence=False)
    frame, sides = Frame.of(encoder.tokenizer), {}
    for side, some in (("held", texts[:HELD]), ("read", texts[HELD:])):
        tokens = write_tokens(some, folder / side, tokenizer=encoder.tokenizer)
        laid = source(tokens, frame=frame, length=LENGTH, pairs=False, seed=0)
        shares = {"masked": 1.0, "other": 0.0} if side == "held" else {}
        shown = encoder.replacement(**shares)
        sides[side] = Rows([laid], frame=frame, masking=Words(), replacement=shown, seed=0)
    begun = time.process_time()
    (frequencies if name == "token frequencies" else TextEncoder.start_at)(encoder, tokens)
    asks = MaskedText(divisor=lambda n, **_: max(n, 1), next_sentence=False)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1.0, betas=(0.9, 0.98))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: asked.lr * min((step + 1) / (WARM * asked.steps), 1 - step / asked.steps),
    )
    judged = loader(sides["held"], InOrder(len(sides["held"]), rows=16))
    order = RowSampler([len(sides["read"])], rows=ROWS, batches=asked.steps, seed=0)
    spent = time.process_time() - begun
    for step, index in enumerate([*order, None]):
        if step % (asked.steps // LOOKS) == 0:
            loss = masked_losses(encoder, judged, texts=HELD).mean
            print(f"| {name} | {step:,} | {spent:.0f} | {loss:.3f} |", flush=True)
        if index is not None:
            begun = time.process_time()
            asks(encoder, sides["read"][index]).loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            spent += time.process_time() - begun


if __name__ == "__main__":
    main()
