"""A base from general Norwegian text, continued on medical text, on more general text, and on text
of another domain: what is the gain of the domain, and what is forgotten?

    python benchmarks/adapt.py ../shared/data models/ [--base 8800] [--arm 1200] [--seeds 3]

Makes ``models/tokenizer16k``, ``models/base`` (newspaper reviews, and the nynorsk of NorNE) and,
each of as many steps of it:

    adapted_{mlm,span,schedule}   notes of Nor-DeID (train) and terms of NorMedTerm
    control_{mlm,span,schedule}   the same with more general text: compute-matched
    irrelevant                    the same with speeches of parliament (mlm)
    replay                        as adapted_mlm, a quarter of the rows general text

and with ``--seeds`` the first two for mlm again, in other orders (``adapted_mlm_1``). Then it tells
masked losses on NorMedQA, another source of which no model has read anything, in bokmål and
nynorsk, on notes of the source that was read (Nor-DeID's test), and on general text (NoReC's
development reviews), with paired 95% intervals over clusters of questions that are alike. What is
made already is kept. Nor-DeID and NorNE may not be passed on: the texts stay here.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import medbert
from medbert.text.bench.choices import clusters
from medbert.text.encoders.masked_lm import Losses, load, masked_losses
from medbert.text.encoders.masks import Words
from medbert.text.encoders.pieces import Frame, write_tokens
from medbert.text.encoders.rows import InOrder, Rows, loader, source

NYNORSK = ("8.pdf", "16.pdf")
ALIKE = 0.45  # the cosine of character n-grams from which two questions are one
TERMS, MOST_TERMS = 25, 20_000  # a line, of 78,105
SENTENCES = 8  # a line
OBJECTIVES = ("mlm", "span", "schedule")
BASE_LR, ARM_LR = 4e-3, 2e-3  # of the optimizer, at their highest
QUICK = {
    "length": 128,
    "batch_rows": 8,
    "judged": 40,
    "looks": 2,
    "patience": 1000,
    "gate_override": "public text",
    "optimizer": {"shape": "linear", "floor": 0.02},
}


def general(data: Path) -> Iterator[str]:
    folder = data / "norwegian"
    with gzip.open(folder / "norec_train_12k.txt.gz", "rt", encoding="utf-8") as lines:
        yield from (line.strip() for line in lines)
    with gzip.open(folder / "norne_nno.conll.gz", "rt", encoding="utf-8") as lines:
        rows = "".join(lines).split("\n\n")
    words = [[row.split("\t")[1] for row in part.splitlines() if "\t" in row] for part in rows]
    said = [" ".join(sentence) for sentence in words if sentence]
    yield from (" ".join(said[i : i + SENTENCES]) for i in range(0, len(said), SENTENCES))


def notes(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (" ".join(json.loads(line)["text"].split()) for line in lines)


def medical(data: Path) -> Iterator[str]:
    yield from notes(data / "deid" / "nor_deid_synth" / "train.jsonl")
    with (data / "norwegian" / "NorMedTerm.csv").open(encoding="utf-8") as rows:
        terms = [row[0] for row in csv.reader(rows, delimiter="\t") if row]
    np.random.default_rng(0).shuffle(terms)
    yield from (", ".join(terms[i : i + TERMS]) for i in range(0, MOST_TERMS, TERMS))


def parliament(data: Path) -> Iterator[str]:
    folder = data / "norwegian" / "language_id"
    with (folder / "parliament_speeches_1998_2016_nob_nyn.csv").open(encoding="utf-8") as rows:
        yield from (row["text"] for row in csv.DictReader(rows))
    for file in sorted(folder.glob("sentences_*.txt")):
        said = file.read_text(encoding="utf-8").splitlines()
        yield from (" ".join(said[i : i + SENTENCES]) for i in range(0, len(said), SENTENCES))


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


def text_of(name: str, data: Path, models: Path) -> Path:
    file = models / f"{name}.txt"
    if not file.exists():
        texts = {"general": general, "medical": medical, "parliament": parliament}[name](data)
        file.write_text("\n".join(texts), encoding="utf-8")
    return file


def begun(data: Path, models: Path, *, steps: int) -> None:
    corpus = text_of("general", data, models)
    if not (models / "tokenizer16k").exists():
        medbert.tokenizer_train(corpus=corpus, size=16_000, out=models / "tokenizer16k")
    made(
        "base",
        models,
        words=["architecture=modernbert"],
        corpus=corpus,
        base=None,
        tokenizer=models / "tokenizer16k",
        steps=steps,
        optimizer=QUICK["optimizer"] | {"lr": BASE_LR},
    )


def continued(data: Path, models: Path, *, steps: int, only: list[str], seeds: int) -> None:
    texts = {name: text_of(name, data, models) for name in ("general", "medical", "parliament")}
    kinds = (("adapted", texts["medical"]), ("control", texts["general"]))
    shared = {
        "base": models / "base",
        "steps": steps,
        "optimizer": QUICK["optimizer"] | {"lr": ARM_LR},
    }
    for objective in only:
        words = [f"text_objective={objective}"]
        for kind, corpus in kinds:
            made(f"{kind}_{objective}", models, words=words, corpus=corpus, seed=1, **shared)
    more = {"general": texts["general"], "replay": 0.25}
    made("replay", models, corpus=texts["medical"], seed=1, **more, **shared)
    made("irrelevant", models, corpus=texts["parliament"], seed=1, **shared)
    for seed in range(1, seeds):
        for kind, corpus in kinds:
            made(f"{kind}_mlm_{seed}", models, corpus=corpus, seed=1 + seed, **shared)


def losses(folder: Path, texts: list[str], place: Path) -> Losses:
    encoder = load(folder)
    frame = Frame.of(encoder.tokenizer)
    tokens = write_tokens(texts, place, tokenizer=encoder.tokenizer)
    laid = source(tokens, frame=frame, length=128, pairs=False, seed=0)
    shown = encoder.replacement(masked=1.0, other=0.0)
    data = Rows([laid], frame=frame, masking=Words(), replacement=shown, seed=0)
    return masked_losses(encoder, loader(data, InOrder(len(data), rows=16)), texts=len(texts))


def interval(one: Losses, other: Losses, cluster_N: np.ndarray, chosen_N: np.ndarray) -> str:
    """One minus another, nats a token, over resampled clusters."""
    change_C = np.bincount(cluster_N, (one.nats_N - other.nats_N) * chosen_N)
    count_C = np.bincount(cluster_N, one.count_N * chosen_N)
    drawn = np.random.default_rng(0).integers(len(count_C), size=(2000, len(count_C)))
    low, high = np.quantile(change_C[drawn].sum(1) / count_C[drawn].sum(1), [0.025, 0.975])
    return f"{change_C.sum() / count_C.sum():+.3f} ({low:+.3f} to {high:+.3f})"


def tell(data: Path, models: Path, *, reviewed: int) -> None:
    texts, languages = questions(data)
    cluster_N, language_N = clusters(texts, alike=ALIKE), np.array(languages)
    read = list(notes(data / "deid" / "nor_deid_synth" / "test.jsonl"))
    sets = (texts, read, reviews(data, reviewed))
    place, of = models / "judged_texts", {}
    for name in sorted(f.parent.name for f in models.glob("*/model.safetensors")):
        of[name] = [losses(models / name, some, place) for some in sets]
    sizes = f"{len(texts)} questions in {cluster_N.max() + 1} clusters, {len(read)} notes"
    print(f"{sizes}, {reviewed} reviews; nats a masked token, and minus the control")
    heads = ("questions", "bokmål", "nynorsk", "notes", "general text")
    heads += tuple(f"{head}, minus control" for head in heads[:3])
    print(f"| model | {' | '.join(heads)} |\n" + "|---" * (len(heads) + 1) + "|")
    parts = [np.isin(language_N, some) for some in (("nb", "nn"), ("nb",), ("nn",))]
    for name, (asked, *others) in of.items():
        cells = [f"{Losses(asked.nats_N[p], asked.count_N[p]).mean:.3f}" for p in parts]
        cells += [f"{other.mean:.3f}" for other in others]
        control = f"control_{name.partition('_')[2] or 'mlm'}"
        if control in of and control != name and name != "base":
            cells += [interval(asked, of[control][0], cluster_N, part) for part in parts]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--base", type=int, default=8_800, help="its steps, 1,024 tokens each")
    parser.add_argument("--arm", type=int, default=1_200, help="steps of each arm")
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", type=int, default=1, help="of adapted_mlm and control_mlm")
    parser.add_argument("--reviewed", type=int, default=150, help="reviews that are judged")
    parser.add_argument("--tell", action="store_true", help="only the table")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen.models.mkdir(parents=True, exist_ok=True)
    if not chosen.tell:
        begun(chosen.data, chosen.models, steps=chosen.base)
        continued(
            chosen.data, chosen.models, steps=chosen.arm, only=chosen.only, seeds=chosen.seeds
        )
    tell(chosen.data, chosen.models, reviewed=chosen.reviewed)


if __name__ == "__main__":
    main()
