"""Text models that adapt made, on tasks, against their compute-matched controls.

    python benchmarks/adapt_tasks.py MODELS DATA OUT first|all|more [ARM ...]

MODELS holds folders of Hugging Face models (see ARMS), DATA the data sets as
their publishers give them (those that are absent are left out). OUT keeps every
single answer, so that a run that was killed goes on.
Nothing of DATA is written into a report.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from adapt import question_file, questions

import medbert

SEEDS, FEW = 10, 5
TRAINING = {"epochs": 8, "learning_rate": 3e-3}  # the best of three for the base, on dev notes
ARMS = (
    "base",
    "control_mlm",
    "control_span",
    "control_schedule",
    "adapted_mlm",
    "adapted_span",
    "adapted_schedule",
    "irrelevant",
    "without_replay",
)
PAIRS = (
    *(("adapted_" + way, "control_" + way) for way in ("span", "schedule")),
    *(("adapted_" + way, "base") for way in ("mlm", "span", "schedule")),
    ("adapted_mlm", "without_replay"),
    ("adapted_mlm", "irrelevant"),
)


def clinical_words(file: Path, out: Path) -> tuple[Path, Path]:
    """NorSynthClinical's columns as CoNLL, and its sentences a line each."""
    sentences: list[list[tuple[str, str]]] = [[]]
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            sentences.append([])
        elif not line.startswith("# sent_id"):
            word, _, label = line.partition("\t")
            sentences[-1].append((word.replace(" ", ""), label.strip().replace("NA", "") or "O"))
    sentences = [sentence for sentence in sentences if sentence]
    with (out / "clinical.conll").open("w", encoding="utf-8") as conll:
        for sentence in sentences:
            before = "O"
            for word, label in sentence:
                tag = label if label == "O" else f"{'I' if label == before else 'B'}-{label}"
                conll.write(f"{word} {tag}\n")
                before = label
            conll.write("\n")
    lines = [" ".join(word for word, _ in sentence) for sentence in sentences]
    text = re.sub(r" (?=[.,;:)])", "", "\n".join(lines))
    (out / "clinical.txt").write_text(text + "\n", encoding="utf-8")
    return out / "clinical.conll", out / "clinical.txt"


def sentences_of_treebanks(folder: Path, out: Path) -> Path:
    """General sentences whose written norm people have named."""
    with out.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["note_id", "language", "text"])
        for language, name in (("nb", "bokmaal"), ("nn", "nynorsk")):
            text = (folder / f"no_{name}-ud-test.conllu").read_text(encoding="utf-8")
            for i, said in enumerate(re.findall(r"^# text = (.+)$", text, re.MULTILINE)):
                writer.writerow([f"{language}{i}", language, said])
    return out


def unread(data: Path, out: Path) -> tuple[Path, Path]:
    """The exam questions that no model has read: their texts, those that are alike as of one
    patient; and they themselves."""
    asked, rows = questions(data), json.loads(question_file(data).read_text(encoding="utf-8"))
    judged = asked.judged_N.nonzero()[0].tolist()
    with (out / "questions.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["note_id", "patient_id", "language", "text"])
        for i in judged:
            writer.writerow([i, asked.cluster_N[i], asked.languages[i], asked.texts[i]])
    (out / "questions.json").write_text(json.dumps([rows[i] for i in judged]), encoding="utf-8")
    return out / "questions.csv", out / "questions.json"


def twins(exam: Path, out: Path) -> Path:
    """A bokmål question with the same one in nynorsk (1), and with another one near it (0)."""
    from medbert.text.bench.choices import Choices

    asked = Choices(str(exam)).questions
    by_language = {name: [q for q in asked if q.language == name] for name in ("nb", "nn")}
    with out.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["first", "second", "label"])
        for first, second in _same(asked):
            others = [q for q in by_language["nn"] if q.cluster != first.cluster]
            words = {*first.text.lower().split()}
            near = max(others, key=lambda q: len(words & {*q.text.lower().split()}))
            writer.writerow([first.text, second.text, 1])
            writer.writerow([first.text, near.text, 0])
    return out


def _same(asked: list) -> Iterator[tuple]:
    of_cluster: dict[int, list] = {}
    for question in asked:
        of_cluster.setdefault(question.cluster, []).append(question)
    for members in of_cluster.values():
        for a, b in combinations(members, 2):
            if (a.language, b.language) == ("nb", "nn"):
                yield a, b
                break


Tasks = dict[str, tuple[str, dict]]  # name -> kind, settings


def first_tasks(data: Path, out: Path) -> Tasks:
    """What is asked of three models: few notes, and what is asked of all."""
    return {"phi_25": phi(data, 25), **all_tasks(data, out)}


def phi(data: Path, labelled: int) -> tuple[str, dict]:
    notes = data / "deid" / "nor_deid_synth"
    own = {"path": notes / "train.jsonl", "test": notes / "test.jsonl", "labelled": labelled}
    return "entities", {**own, **TRAINING}


def all_tasks(data: Path, out: Path) -> Tasks:
    """What is asked of all models."""
    found: Tasks = {}
    norwegian = data / "norwegian"
    found["phi_100"] = phi(data, 100)
    if (data / "all_sentences.vert.entity").is_file():
        _, text = clinical_words(data / "all_sentences.vert.entity", out)
        found["clinical_text"] = "masked", {"path": text}
    if question_file(data).is_file():
        found["exam_text"] = "masked", {"path": unread(data, out)[0]}
    if (reviews := norwegian / "norec_dev_1k5.txt.gz").is_file():
        found["reviews"] = "masked", {"path": reviews, "n_texts": 150, "characters": 600}
    if (norwegian / "ud").is_dir():
        table = sentences_of_treebanks(norwegian / "ud", out / "treebanks.csv")
        found["treebanks"] = "masked", {"path": table, "n_texts": 400}
    return found


def more_tasks(data: Path, out: Path) -> Tasks:
    """What is asked of three models, with fewer seeds."""
    found: Tasks = {}
    if question_file(data).is_file():
        exam = unread(data, out)[1]
        found["exam"] = "choices", {"path": exam, "epochs": 2}
        found["twins"] = "pairs", {"path": twins(exam, out / "twins.csv"), "epochs": 4}
    if (data / "all_sentences.vert.entity").is_file():
        conll, _ = clinical_words(data / "all_sentences.vert.entity", out)
        own = {"path": conll, "lines": True, "labelled": 150, **TRAINING}
        found["clinical"] = "entities", own
    if (terms := data / "norwegian" / "NorMedTerm.csv").is_file():
        found["terms"] = "terms", {"path": terms, "epochs": 10}
    return found


REPORTS = {
    "first": (first_tasks, SEEDS, ("base", "control_mlm", "adapted_mlm")),
    "all": (all_tasks, SEEDS, ARMS),
    "more": (more_tasks, FEW, ("base", "control_mlm", "adapted_mlm")),
}


def main() -> None:
    models, data, out = map(Path, sys.argv[1:4])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (out / "data").mkdir(parents=True, exist_ok=True)
    report, *chosen = sys.argv[4:]
    tasks, seeds, arms = REPORTS[report]
    asked = tasks(data, out / "data")
    there = {
        arm: models / arm for arm in chosen or arms if (models / arm / "config.json").is_file()
    }
    told = medbert.benchmark_text(
        *(f"+text_task@tasks.{name}={kind}" for name, (kind, _) in asked.items()),
        *(f"+models.{arm}={folder}" for arm, folder in there.items() if arm != "base"),
        models={"base": there["base"]},
        reference="control_mlm",
        tasks={name: own for name, (_, own) in asked.items()},
        seeds=seeds,
        pairs=[":".join(pair) for pair in PAIRS if {*pair} <= {*there}],
        answers=out / "answers",
        out=out / report,
        overwrite=True,
    )
    for name, task in told["tasks"].items():
        sys.stdout.write(f"{name}: {json.dumps(task['seeds'])}\n")


if __name__ == "__main__":
    main()
