"""A base from general Norwegian text, continued on medical text, on more general text, and on text
of another domain: what is the gain of the domain, and what is forgotten?

    python benchmarks/adapt.py ../shared/data models/ [--base 8800] [--arm 1200] [--only mlm span]

Makes ``models/tokenizer16k``, ``models/base`` and, each of as many steps of the base:

    adapted_{mlm,span,schedule}   notes of Nor-DeID (train) and terms of NorMedTerm
    control_{mlm,span,schedule}   the same with more general text: compute-matched
    irrelevant                    the same with speeches of parliament (mlm)
    replay                        as adapted_mlm, a quarter of the rows general text

then tells masked losses on NorMedQA, another source of which no model has read anything, in bokmål
and nynorsk, and on general text (NoReC's development reviews), with paired 95% intervals over
questions and reviews. What is made already is kept. Nor-DeID has no licence: the texts stay here.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import medbert
from medbert.text.masked_lm import Losses, load, masked_losses
from medbert.text.masks import Words
from medbert.text.pieces import Frame, write_tokens
from medbert.text.rows import InOrder, Rows, loader, source

NYNORSK = ("8.pdf", "16.pdf")
TERMS, MOST_TERMS = 25, 20_000  # a line, of 78,105
OBJECTIVES = ("mlm", "span", "schedule")
QUICK = {
    "length": 128,
    "batch_rows": 8,
    "judged": 40,
    "looks": 2,
    "patience": 1000,
    "gate_override": "public text",
    "optimizer": {"shape": "linear", "floor": 0.02},
}


def medical(data: Path) -> Iterator[str]:
    with (data / "deid" / "nor_deid_synth" / "train.jsonl").open(encoding="utf-8") as notes:
        yield from (" ".join(json.loads(line)["text"].split()) for line in notes)
    with (data / "norwegian" / "NorMedTerm.csv").open(encoding="utf-8") as rows:
        terms = [row[0] for row in csv.reader(rows, delimiter="\t") if row]
    np.random.default_rng(0).shuffle(terms)
    yield from (", ".join(terms[i : i + TERMS]) for i in range(0, MOST_TERMS, TERMS))


def parliament(data: Path) -> Iterator[str]:
    folder = data / "norwegian" / "language_id"
    with (folder / "parliament_speeches_1998_2016_nob_nyn.csv").open(encoding="utf-8") as rows:
        yield from (row["text"] for row in csv.DictReader(rows))
    for file in sorted(folder.glob("sentences_*.txt")):
        sentences = file.read_text(encoding="utf-8").splitlines()
        yield from (" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8))


def questions(data: Path) -> tuple[list[str], list[str]]:
    """Texts of NorMedQA and their languages."""
    file = data / "norwegian" / "norwegian_medical_qa_v2_txt_only.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    texts = [f"{row['question_text']} {row['answer_text']}" for row in rows]
    return texts, ["nn" if row["source_file"] in NYNORSK else "nb" for row in rows]


def reviews(data: Path, most: int) -> list[str]:
    with gzip.open(data / "norwegian" / "norec_dev_1k5.txt.gz", "rt", encoding="utf-8") as lines:
        return [line.strip() for _, line in zip(range(most), lines, strict=False)]


def made(name: str, models: Path, **settings: object) -> None:
    if (models / name).exists():
        return
    begun = time.process_time()
    medbert.adapt(*settings.pop("words", ()), out=models / name, **(QUICK | settings))
    print(f"{name}: {time.process_time() - begun:.0f} CPU-s", flush=True)


def everything(data: Path, models: Path, *, base: int, arm: int, only: list[str]) -> None:
    general = data / "norwegian" / "norec_train_12k.txt.gz"
    if not (models / "tokenizer16k").exists():
        medbert.tokenizer_train(corpus=general, size=16_000, out=models / "tokenizer16k")
    for name, texts in (("medical", medical(data)), ("parliament", parliament(data))):
        file = models / f"{name}.txt"
        if not file.exists():
            file.write_text("\n".join(texts), encoding="utf-8")
    linear = QUICK["optimizer"]
    shape = {"hidden_size": 96, "intermediate_size": 192}
    made(
        "base",
        models,
        words=["architecture=modernbert"],
        corpus=general,
        base=None,
        tokenizer=models / "tokenizer16k",
        architecture={"config": shape},
        steps=base,
        optimizer=linear | {"lr": 2e-3},
    )
    shared = {"base": models / "base", "steps": arm, "optimizer": linear | {"lr": 2e-3}}
    for objective in only:
        words = [f"text_objective={objective}"]
        for kind, corpus in (("adapted", models / "medical.txt"), ("control", general)):
            made(f"{kind}_{objective}", models, words=words, corpus=corpus, **shared)
    made("irrelevant", models, corpus=models / "parliament.txt", **shared)
    made("replay", models, corpus=models / "medical.txt", general=general, replay=0.25, **shared)


def losses(folder: Path, texts: list[str], place: Path) -> Losses:
    encoder = load(folder)
    frame = Frame.of(encoder.tokenizer)
    tokens = write_tokens(texts, place, tokenizer=encoder.tokenizer)
    laid = source(tokens, frame=frame, length=128, pairs=False, seed=0)
    shown = encoder.replacement(masked=1.0, other=0.0)
    data = Rows([laid], frame=frame, masking=Words(), replacement=shown, seed=0)
    return masked_losses(encoder, loader(data, InOrder(len(data), rows=16)), texts=len(texts))


def interval(one: Losses, other: Losses, chosen: np.ndarray) -> str:
    """One minus another, nats a token, over resampled texts."""
    change, count = (one.nats_N - other.nats_N)[chosen], one.count_N[chosen]
    drawn = np.random.default_rng(0).integers(len(count), size=(2000, len(count)))
    low, high = np.quantile(change[drawn].sum(1) / count[drawn].sum(1), [0.025, 0.975])
    return f"{change.sum() / count.sum():+.3f} ({low:+.3f} to {high:+.3f})"


def tell(data: Path, models: Path, *, reviewed: int) -> None:
    (texts, languages), general = questions(data), reviews(data, reviewed)
    names = [f.parent.name for f in sorted(models.glob("*/model.safetensors"))]
    of = {}
    for name in names:
        place = models / "judged_texts"
        of[name] = [losses(models / name, some, place) for some in (texts, general)]
    rows = np.array(languages)
    print(f"{len(texts)} questions, {len(general)} reviews; nats a masked token, and minus control")
    print("| model | questions | bokmål | nynorsk | general text | questions, minus control |")
    print("|---|---|---|---|---|---|")
    for name in names:
        asked, other = of[name]
        cells = [
            Losses(asked.nats_N[chosen], asked.count_N[chosen]).mean
            for chosen in (rows != "", rows == "nb", rows == "nn")
        ] + [other.mean]
        control = f"control_{name.partition('_')[2] or 'mlm'}"
        minus = ""
        if control in of and control != name and name != "base":
            minus = interval(asked, of[control][0], np.arange(len(rows)))
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + f" | {minus} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument(
        "--base", type=int, default=8_800, help="steps of the base, 1,024 tokens each"
    )
    parser.add_argument("--arm", type=int, default=1_200, help="steps of each arm")
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--reviewed", type=int, default=150, help="reviews that are judged")
    parser.add_argument("--tell", action="store_true", help="only the table")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.models.mkdir(parents=True, exist_ok=True)
    if not chosen.tell:
        everything(chosen.data, chosen.models, base=chosen.base, arm=chosen.arm, only=chosen.only)
    tell(chosen.data, chosen.models, reviewed=chosen.reviewed)


if __name__ == "__main__":
    main()
