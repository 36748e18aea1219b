"""Finders of PHI beside each other, on annotated notes. Prints Markdown.

    python benchmarks/deidentify.py NOTES.jsonl [NOTES.jsonl ...]           # nothing is trained
    python benchmarks/deidentify.py --train T.jsonl --tuning D.jsonl --test E.jsonl --language es
    python benchmarks/deidentify.py --folds grascco_phi/all.jsonl --language de

``--tagger`` is the folder of a Hugging Face encoder, to be fine-tuned beside the CRF.

Each line of a file: ``{"text": ..., "spans": [{"start", "end", "label", "coarse"}, ...]}``. A CSV
is taken for MTS-Dialog: sections and dialogues without PHI.

Without training, rules and word lists (and with ``--peers`` others, ``deid_peers.py``) are cut to
the Safe Harbor policy (ages under 90, bare years, states and countries stay), gold is as annotated
or cut alike, and any PHI counts whatever its label.

With training, the CRF of ``medbert train detector`` is trained on T, its thresholds are set on D,
and it is trained again on both (``refit``); the other detectors have both from the start (with
``--no-refit``, nobody has D). Labels are the fine ones; strict F1 is of both ends and the label,
everything else of any PHI. ``leak-free``: documents of which every word character of PHI was found,
with Clopper and Pearson's upper bound (95%, one-sided) of the share that leak. Differences are
paired: bootstrap over documents.
``--keep`` holds trained detectors for another run.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import deid_peers as peers
import numpy as np

from medbert.schema import Span
from medbert.text.detectors.crf import CRF
from medbert.text.detectors.rules import Rules
from medbert.text.detectors.tagger import Tagger
from medbert.text.detectors.thresholds import ANY, F1, RECALL
from medbert.text.detectors.words import listed
from medbert.text.notes import Note
from medbert.text.scoring.measures import Scores, upper_bound
from medbert.text.scoring.policy import SAFE_HARBOR
from medbert.text.spans import Ensemble
from medbert.text.synthetic.augment import augmented

Find = Callable[[str], list[Span]]
RESAMPLES = 2_000
FOLDS_THRESHOLD = 0.02
# Folds of calgo-lab/redakt-grascco (README at b75e074): fold k is tested on row k and TEST, and
# tuned on the row before it and TUNING.
GRASCCO = (
    "Cajal Colon_Fake_H Fabry Fuss Ilgner Obradovic Popovic Schnitzler Weber Zezelj",
    "Beuerle Colon_Fake_B Colon_Fake_C Colon_Fake_D Haefner Jenninger Koenig Leitner Tupolev_4 Utz",
    "Colon_Fake_A Colon_Fake_K Meyr Neubauer Osler Quervain Stölzl Sudeck Tupolev_2 Ypsilanti",
    "Baastrup Colon_Fake_E Colon_Fake_G Colon_Fake_I Ehrenberger Queisser Rieser Tupolev_1 Vogler"
    " Xavier",
    "Albers Clausthal Colon_Fake_F Colon_Fake_J Dewald Gebauer Jadassohn Kawasaki Praechtel Wankel",
)
TEST, TUNING = "Boeck Joubert Meulengracht Recklinghausen", "Dupuytren Schuh"
# Its labels as ours, so that copies of its letters can be of other people.
GRASCCO_LABELS = {
    "NAME_TITLE": "TITLE",
    "LOCATION_HOSPITAL": "LOCATION:CARE_UNIT",
    "LOCATION_ORGANIZATION": "ORGANISATION",
}
# Nor-DeID: tags that its language model made up are what they mean, or (others) no label at all.
MADE_UP = {
    "Dato": "Date",
    "Sted": "Location",
    "Alder": "Age",
    "Helseenhet": "Health_Care_Unit",
    "health_Care_Unit": "Health_Care_Unit",
    "Etternavn": "Last_Name",
    "Patient_Age": "Age",
    "Patient_First_Name": "First_Name",
    "Patient_Last_Name": "Last_Name",
    "Telefonnummer": "Phone_Number",
    "Personnummer": "Social_Security_Number",
    "Sosial_Security_Number": "Social_Security_Number",
    "Patient_Social_Security_Number": "Social_Security_Number",
}


def notes_of(path: Path, label: str, *, language: str | None = None) -> list[Note]:
    """``label``: the key of a span that is its label; of Nor-DeID, made-up tags are left out."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        texts = [text for row in rows for text in (row["section_text"], row["dialogue"])]
        return [Note(str(n), text, spans=()) for n, text in enumerate(texts)]
    made, made_up, german = [], *(kind in path.parent.name for kind in ("nor_deid", "grascco"))
    for line in path.read_text(encoding="utf-8").splitlines():
        one, spans = json.loads(line), []
        for s in one["spans"]:
            name = MADE_UP.get(s["label"], s["label"])
            if not made_up or s["coarse"] != "OTHER" or name != s["label"]:
                name = GRASCCO_LABELS.get(name, name.replace("_", ":", 1)) if german else name
                name = name if label == "label" else s.get("coarse", "ID")
                spans.append(Span(s["start"], s["end"], name))
        name, text = str(one.get("doc_id", len(made))), one["text"]
        made.append(Note(name, text, language=language, spans=tuple(spans)))
    return made


class Result(NamedTuple):
    """``counts_D3``: of each document right, gold and found spans (strict, with their labels)."""

    scores: Mapping[str, Any]
    counts_D3: np.ndarray
    per_second: float

    @property
    def f1(self) -> float:
        right, gold, found = self.counts_D3.sum(0)
        return float(2 * right / max(gold + found, 1))

    def row(self, name: str) -> str:
        strict = self.scores["measures"]["strict typed"]
        token, of = self.scores["measures"]["token"], self.scores["documents"]
        clean, n = of["with_phi"] - of["leaking"], of["with_phi"]
        bound = upper_bound(of["leaking"], n)
        cells = [f"{strict[k]:.4f}" if strict[k] else "" for k in ("precision", "recall", "f1")]
        cells += [f"{token[k] or 0:.4f}" for k in ("recall", "precision")]
        cells += [f"{clean}/{n} ({clean / n:.0%})", f"{bound:.1%}" if bound is not None else ""]
        return f"| {name} | {' | '.join(cells)} | {self.per_second:,.0f} |"


HEADS = ("strict P", "R", "F1", "token recall", "precision", "leak-free", "leaking at most")


def measured(find: Find, notes: Sequence[Note]) -> Result:
    scores, counts, spent = Scores(label=str), [], 0.0
    for note in notes:
        begun = time.process_time()
        found = find(note.text)
        spent += time.process_time() - begun
        scores.add(note, note.spans or (), found)
        gold, ours = ({s[:3] for s in side} for side in (note.spans or (), found))
        counts.append((len(gold & ours), len(gold), len(ours)))
    return Result(scores.to_dict()["all"]["all"], np.array(counts), len(notes) / max(spent, 1e-9))


def beyond(a: Result, b: Result, *, seed: int = 0) -> str:
    """By how much the strict F1 of ``a`` is above that of ``b``, with a 95% interval."""
    pick = np.random.default_rng(seed).integers(
        len(a.counts_D3), size=(RESAMPLES, len(a.counts_D3))
    )
    each = [
        2 * c[..., 0] / (c[..., 1] + c[..., 2])
        for c in (a.counts_D3[pick].sum(1), b.counts_D3[pick].sum(1))
    ]
    low, high = np.quantile(each[0] - each[1], (0.025, 0.975))
    return f"{a.f1 - b.f1:+.4f} ({low:+.4f} to {high:+.4f})"


def crf(train: list[Note], tuning: list[Note], options: Any, name: str) -> CRF:
    """As ``medbert train detector refit=true`` makes it; of folds, too small to set thresholds on,
    with those stated here."""
    if options.folds:
        made = trained([*train, *tuning], options, name)
        made.points = {F1: {ANY: 1.0}, RECALL: {ANY: FOLDS_THRESHOLD}}
        return made
    tuned = trained(train, options, f"{name}-tuned")
    told = tuned.tune(tuning, recall=options.recall)
    for point in (F1, RECALL):
        strict = told[point]["measures"]["strict typed"]
        token, of = told[point]["measures"]["token"], told[point]["documents"]
        print(
            f"<!-- on tuning, {point}: strict F1 {strict['f1']:.4f}, token recall "
            f"{token['recall']:.4f} precision {token['precision']:.4f}, {of['leaking']} of "
            f"{of['with_phi']} leak; {told[point]['thresholds']} -->",
            flush=True,
        )
    if options.no_refit:
        return tuned
    made = trained([*train, *tuning], options, name)
    made.points = tuned.points
    return made


def trained(notes: list[Note], options: Any, name: str) -> CRF:
    """From ``--keep``, where it is there."""
    kept = options.keep / name if options.keep else None
    if kept and (kept / CRF.file).is_file():
        return CRF.load(kept)
    begun = time.process_time()
    made = CRF.train(augmented(notes, copies=options.copies), max_iterations=options.iterations)
    spent = time.process_time() - begun
    print(f"<!-- {name}: {spent:.0f} CPU-seconds on {len(notes)} notes -->", flush=True)
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        made.save(kept)
    return made


def tagged(train: list[Note], tuning: list[Note], options: Any) -> Tagger:
    """As ``medbert train detector learner=tagger`` makes it, without a refit."""
    begun = time.process_time()
    made = Tagger.train(
        train, base=options.tagger, epochs=options.epochs, learning_rate=options.rate, device="cpu"
    )
    spent = time.process_time() - begun
    made.tune(tuning, recall=options.recall)
    print(f"<!-- tagger: {spent:.0f} CPU-seconds on {len(train)} notes -->", flush=True)
    return made


def finders(
    train: list[Note], tuning: list[Note], options: Any, name: str
) -> Iterator[tuple[str, Find]]:
    both = train if options.no_refit else [*train, *tuning]
    if "presidio" in options.peers:
        yield "Presidio, its patterns", peers.presidio(options.language)
    if "spacy" in options.peers:
        ner = peers.spacy_ner(both, language=options.language, epochs=options.epochs)
        yield "Presidio with spaCy's NER", peers.presidio(options.language, trained=ner)
    if "philter" in options.peers:
        yield "Philter", peers.philter()
    if "plain" in options.peers:
        yield "plain CRF", peers.plain_crf(both, max_iterations=options.iterations)
    yield "rules and word lists", Ensemble([Rules(), *listed()]).detect
    ours = crf(train, tuning, options, name)
    for ours.point in (F1, RECALL):
        yield f"CRF, `point={ours.point}`", ours.detect
    yield "rules, lists and CRF at `recall`", Ensemble([Rules(), *listed(), ours]).detect
    if options.tagger:
        tagger = tagged(train, tuning, options)
        for tagger.point in (F1, RECALL):
            yield f"tagger, `point={tagger.point}`", tagger.detect
        yield (
            "rules, lists, CRF and tagger at `recall`",
            Ensemble([Rules(), *listed(), ours, tagger]).detect,
        )


def in_domain(options: Any) -> None:
    train, tuning, test = (
        notes_of(p, "label", language=options.language)
        for p in (options.train, options.tuning, options.test)
    )
    print(
        f"\n{options.test.parent.name}: {len(train)} + {len(tuning)} notes, {len(test)} to test\n"
    )
    print(f"| | {' | '.join(HEADS)} | notes/s |\n" + "|---" * (len(HEADS) + 2) + "|")
    results = {}
    for name, find in finders(train, tuning, options, options.test.parent.name):
        results[name] = measured(find, test)
        print(results[name].row(name), flush=True)
    if plain := results.get("plain CRF"):
        print(f"\nCRF at f1 over the plain one: {beyond(results['CRF, `point=f1`'], plain)}")


def in_folds(options: Any) -> None:
    """Mean and standard deviation over the folds; documents are counted over all of them."""
    read = notes_of(options.folds, "label", language=options.language)
    notes = {note.note_id: note for note in read}
    results: dict[str, list[Result]] = {}
    for k, row in enumerate(GRASCCO):
        test = [notes[name] for name in f"{row} {TEST}".split()]
        tuning = [notes[name] for name in f"{GRASCCO[k - 1]} {TUNING}".split()]
        seen = {note.note_id for note in [*test, *tuning]}
        train = [note for name, note in notes.items() if name not in seen]
        for name, find in finders(train, tuning, options, f"grascco{k}"):
            results.setdefault(name, []).append(measured(find, test))
            print(f"<!-- fold {k + 1}: {results[name][-1].row(name)} -->", flush=True)
    heads = ("strict F1", "token recall", "precision", "leak-free", "notes/s")
    print(f"\n| | {' | '.join(heads)} |\n" + "|---" * (len(heads) + 1) + "|")
    for name, folds in results.items():
        f1 = [fold.f1 for fold in folds]
        token = [fold.scores["measures"]["token"] for fold in folds]
        of = [fold.scores["documents"] for fold in folds]
        clean, n = (sum(o["with_phi"] - m * o["leaking"] for o in of) for m in (1, 0))
        means = [np.mean([t[k] or 0 for t in token]) for k in ("recall", "precision")]
        print(
            f"| {name} | {np.mean(f1):.4f} ± {np.std(f1):.3f} | {means[0]:.4f} | {means[1]:.4f} | "
            f"{clean}/{n} | {np.mean([fold.per_second for fold in folds]):,.0f} |"
        )


def untrained(options: Any) -> None:
    names: dict[str, Find] = {"rules and word lists": Ensemble([Rules(), *listed()]).detect}
    if "presidio" in options.peers:
        names["Presidio, its patterns"] = peers.presidio(options.language)
    if "philter" in options.peers:
        names["Philter"] = peers.philter()
    heads = ("token recall", "token precision", "leak-free", "PHI-free touched", "notes/s")
    print(f"| notes | by | gold | {' | '.join(heads)} |")
    print("|---" * (3 + len(heads)) + "|")
    for path in options.files:
        for name, find in names.items():
            for line in _rows(find, notes_of(path, "coarse")):
                print(f"| {path.parent.name} | {name} | {line} |", flush=True)


def _rows(find: Find, notes: Iterable[Note]) -> Iterator[str]:
    sides = {name: Scores(label=lambda _: "PHI") for name in ("as annotated", "cut alike")}
    spent, n = 0.0, 0
    for n, note in enumerate(notes, start=1):  # noqa: B007
        begun = time.process_time()
        found = SAFE_HARBOR.apply(note.text, find(note.text))
        spent += time.process_time() - begun
        sides["as annotated"].add(note, note.spans or (), found)
        sides["cut alike"].add(note, SAFE_HARBOR.apply(note.text, list(note.spans or ())), found)
    for name, scores in sides.items():
        told = scores.to_dict()["all"]["all"]
        token, of = told["measures"].get("token", {}), told["documents"]
        cells = [f"{token.get(k) or 0:.3f}" for k in ("recall", "precision")]
        cells += [f"{of['with_phi'] - of['leaking']}/{of['with_phi']}"]
        cells += [f"{of['touched_of_these']}/{of['without_phi']}"]
        yield f"{name} | {' | '.join(cells)} | {n / spent:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    for name in ("train", "tuning", "test", "folds", "keep", "tagger"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--peers", nargs="*", default=[], help="presidio spacy philter plain")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--copies", type=int, default=0, help="of notes, with other people")
    parser.add_argument("--epochs", type=int, default=6, help="of spaCy's tagger and ours")
    parser.add_argument("--rate", type=float, default=3e-5, help="learning rate of our tagger")
    parser.add_argument("--no-refit", action="store_true", help="train on --train alone")
    options = parser.parse_args()
    if options.test:
        in_domain(options)
    if options.folds:
        in_folds(options)
    if options.files:
        untrained(options)


if __name__ == "__main__":
    main()
