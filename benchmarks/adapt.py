"""A base from general Norwegian text, continued on medical text, on more general text, and on text
of another domain: what is the gain of the domain, and what is forgotten?

    python benchmarks/adapt.py ../shared/data models/ [--base 8800] [--arm 1200] [--seeds 3]

Makes ``models/tokenizer16k``, ``models/base`` (newspaper reviews, and the nynorsk of NorNE) and,
each of as many steps of it:

    adapted_{mlm,span,schedule}   notes of Nor-DeID (train), terms of NorMedTerm and 70% of the
                                  questions of NorMedQA; a quarter of the rows is general text
    control_{mlm,span,schedule}   the same with more general text: compute-matched
    without_replay                as adapted_mlm, all rows medical
    irrelevant                    as adapted_mlm, of speeches of parliament

and with ``--seeds`` the first two for mlm again, in other orders (``adapted_mlm_1``). What is made
already is kept. ``adapt_tasks.py`` tells what they know. Nor-DeID and NorNE may not be passed on:
the texts stay here.
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
from typing import NamedTuple

import numpy as np
import torch

import medbert
from medbert.text.bench.choices import clusters

NYNORSK = ("8.pdf", "16.pdf")
ALIKE = 0.45  # the cosine of character n-grams from which two questions are one
JUDGED = 0.3  # of the clusters of questions
TERMS, MOST_TERMS = 25, 10_000  # a line, of 78,105
SENTENCES = 8  # a line
REPLAY = 0.25
OBJECTIVES = ("mlm", "span", "schedule")
BASE_LR, ARM_LR = 4e-3, 1e-3  # of the optimizer, at their highest
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
    asked = questions(data)
    yield from (
        text for text, judged in zip(asked.texts, asked.judged_N, strict=True) if not judged
    )
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


class Questions(NamedTuple):
    """Exam questions with all their answers; of those that are alike all are judged, or none."""

    texts: list[str]
    languages: np.ndarray
    cluster_N: np.ndarray
    judged_N: np.ndarray


def question_file(data: Path) -> Path:
    return data / "norwegian" / "norwegian_medical_qa_v2_txt_only.json"


def questions(data: Path) -> Questions:
    rows = json.loads(question_file(data).read_text(encoding="utf-8"))
    parts = ("question_text", "answer_text", "wrong_answers_text")
    texts = [" ".join(row[part] for part in parts) for row in rows]
    cluster_N = clusters(texts, alike=ALIKE)
    judged_C = np.random.default_rng(0).random(cluster_N.max() + 1) < JUDGED
    languages = np.array(["nn" if row["source_file"] in NYNORSK else "nb" for row in rows])
    return Questions(texts, languages, cluster_N, judged_C[cluster_N])


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
    optimizer = QUICK["optimizer"] | {"lr": ARM_LR}
    shared = {"base": models / "base", "steps": steps, "optimizer": optimizer}
    adapted = {"corpus": texts["medical"], "general": texts["general"], "replay": REPLAY}
    control = {"corpus": texts["general"]}
    for objective in only:
        words = [f"text_objective={objective}"]
        for kind, own in (("adapted", adapted), ("control", control)):
            made(f"{kind}_{objective}", models, words=words, seed=1, **own, **shared)
    made("without_replay", models, seed=1, **adapted | {"replay": 0.0}, **shared)
    made("irrelevant", models, seed=1, **adapted | {"corpus": texts["parliament"]}, **shared)
    for seed in range(1, seeds):
        for kind, own in (("adapted", adapted), ("control", control)):
            made(f"{kind}_mlm_{seed}", models, seed=1 + seed, **own, **shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--base", type=int, default=8_800, help="its steps, 1,024 tokens each")
    parser.add_argument("--arm", type=int, default=600, help="steps of each arm")
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", type=int, default=1, help="of adapted_mlm and control_mlm")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen.models.mkdir(parents=True, exist_ok=True)
    begun(chosen.data, chosen.models, steps=chosen.base)
    continued(chosen.data, chosen.models, steps=chosen.arm, only=chosen.only, seeds=chosen.seeds)


if __name__ == "__main__":
    main()
