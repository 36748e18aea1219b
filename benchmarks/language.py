"""The language model of medbert/text/data, made again, and measured beside lingua.

    python benchmarks/language.py train   NORWEGIAN UD    # writes medbert/text/data/language.npz
    python benchmarks/language.py measure NORWEGIAN UD    # pip install lingua-language-detector

NORWEGIAN: a folder with language_id/ (Talk of Norway and parliament speeches, NLOD) and
norne_{nob,nno}.conll.gz, which hold the sentences of UD Norwegian's training part (CC BY-SA 4.0).
UD: the dev and test files of Universal Dependencies (CC BY-SA 4.0) for nb, nn, da, sv, en, de, fr,
es and fi. Test sentences, and those that are written like one, are never trained on.
"""

from __future__ import annotations

import csv
import gzip
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.special import betaincinv
from sklearn.linear_model import LogisticRegression

from medbert.text.language import BITS, NAMED, OTHER, Languages, buckets, words

MADE = Path(__file__).resolve().parents[1] / "medbert" / "text" / "data" / "language.npz"
NAMES = [*NAMED, OTHER]
UD = {"no_bokmaal": "nb", "no_nynorsk": "nn", "en_ewt": "en"} | {
    name: OTHER for name in ("da_ddt", "sv_talbanken", "de_gsd", "fr_gsd", "es_gsd", "fi_tdt")
}
WEIGHT = {"da_ddt": 5.0, "sv_talbanken": 3.0}  # near Norwegian, and few sentences
LONG = {"nob": "nb", "nno": "nn"}
HELD_BACK = 1000  # sentences of Talk of Norway, of each
C = 10.0  # chosen among 3 and 10 on Talk of Norway held back
CLIP = 99.99  # per cent of the weights that are told apart


def treebank(folder: Path, name: str, part: str) -> list[str]:
    lines = (folder / f"{name}-ud-{part}.conllu").read_text(encoding="utf-8").splitlines()
    return [line[9:] for line in lines if line.startswith("# text = ")]


def tagged(file: Path) -> Iterator[str]:
    """The sentences of a CoNLL file, as words with blanks between them."""
    sentence: list[str] = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                sentence.append(line.split("\t")[1])
            elif sentence:
                yield " ".join(sentence)
                sentence = []


def debates(folder: Path) -> dict[str, list[str]]:
    """Talk of Norway in an order of its own: what is held back stands first."""
    out = {}
    for name, short in LONG.items():
        file = folder / "language_id" / f"sentences_talk_of_norway_cleaned_10k_{name}.txt"
        lines = file.read_text(encoding="utf-8").splitlines()
        out[short] = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    return out


def tests(norwegian: Path, ud: Path) -> dict[str, list[tuple[str, str]]]:
    """Name -> sentences and their languages."""
    out = {f"UD {n}": [(t, lang) for t in treebank(ud, n, "test")] for n, lang in UD.items()}
    for lang, lines in debates(norwegian).items():
        out[f"Talk of Norway {lang}"] = [(text, lang) for text in lines[:HELD_BACK]]
    return out


def training(norwegian: Path, ud: Path) -> Iterator[tuple[str, str]]:
    for name, lang in UD.items():
        yield from ((text, lang) for text in treebank(ud, name, "dev"))
    for lang, lines in debates(norwegian).items():
        yield from ((text, lang) for text in lines[HELD_BACK:])
    for name, lang in LONG.items():
        yield from ((text, lang) for text in tagged(norwegian / f"norne_{name}.conll.gz"))
    speeches = norwegian / "language_id" / "parliament_speeches_1998_2016_nob_nyn.csv"
    with speeches.open(encoding="utf-8", newline="") as file:
        yield from ((row["text"], LONG[row["language"]]) for row in csv.DictReader(file))


remembered = cache(buckets)


def counted(texts: list[str]) -> sparse.csr_matrix:
    """Over the root of the number of n-grams, as ``Languages.scores`` has them."""
    columns, values, ends = [], [], [0]
    for text in texts:
        parts = [remembered(word) for word in words(text)]
        all_of = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        at, n = np.unique(all_of, return_counts=True)
        columns.append(at)
        values.append(n / max(1.0, np.sqrt(len(all_of))))
        ends.append(ends[-1] + len(at))
    shape = (len(texts), 1 << BITS)
    data = np.concatenate(values).astype(np.float32)
    return sparse.csr_matrix((data, np.concatenate(columns), ends), shape=shape)


def train(norwegian: Path, ud: Path) -> None:
    kept_back = {tuple(words(t)) for some in tests(norwegian, ud).values() for t, _ in some}
    known = {(text, lang) for text, lang in training(norwegian, ud)}
    pairs = sorted((t, lang) for t, lang in known if tuple(words(t)) not in kept_back)
    x, y = counted([text for text, _ in pairs]), np.array([lang for _, lang in pairs])
    near = {text: w for name, w in WEIGHT.items() for text in treebank(ud, name, "dev")}
    weight = np.array([near.get(text, 1.0) for text, _ in pairs])
    weights, bias = [], []
    for name in NAMES:
        fitted = LogisticRegression(C=C, solver="liblinear", tol=1e-2, random_state=0)
        fitted.fit(x, y == name, sample_weight=weight)
        weights.append(fitted.coef_[0])
        bias.append(fitted.intercept_[0])
    weights_BL = np.stack(weights, 1)
    unit = np.percentile(np.abs(weights_BL), CLIP) / 127
    whole = np.clip(np.round(weights_BL / unit), -127, 127).astype(np.int8)
    saved = {"names": np.array(NAMES), "weights": whole, "unit": np.float32(unit)}
    np.savez_compressed(MADE, **saved, bias=np.array(bias, np.float32))
    sys.stdout.write(f"{len(pairs):,} sentences; {MADE.stat().st_size / 1e3:.0f} kB\n")


def interval(hits: int, n: int) -> str:
    """Clopper and Pearson's, 95%."""
    low = betaincinv(hits, n - hits + 1, 0.025) if hits else 0.0
    high = betaincinv(hits + 1, n - hits, 0.975) if hits < n else 1.0
    return f"{100 * hits / n:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def measure(norwegian: Path, ud: Path) -> None:
    ours = Languages.shipped()
    asked = {"medbert": ours.of_sentence}
    try:
        from lingua import Language, LanguageDetectorBuilder

        codes = {Language.BOKMAL: "nb", Language.NYNORSK: "nn", Language.ENGLISH: "en"}
        two = LanguageDetectorBuilder.from_languages(Language.BOKMAL, Language.NYNORSK).build()
        more = ("DANISH", "SWEDISH", "GERMAN", "FRENCH", "SPANISH", "FINNISH")
        every = [*codes, *(getattr(Language, name) for name in more)]
        nine = LanguageDetectorBuilder.from_languages(*every).build()
        asked["lingua, nb or nn"] = lambda t: codes.get(two.detect_language_of(t), OTHER)
        asked["lingua, nine"] = lambda t: codes.get(nine.detect_language_of(t), OTHER)
    except ImportError:
        pass
    for name, sentences in tests(norwegian, ud).items():
        for what, ask in asked.items():
            if what == "lingua, nb or nn" and sentences[0][1] not in ("nb", "nn"):
                continue
            begun = time.process_time()
            hits = np.array([ask(text) == lang for text, lang in sentences])
            spent = time.process_time() - begun
            lengths = np.array([len(words(text)) for text, _ in sentences])
            told = [
                f"{least}+ words {interval(int(hits[lengths >= least].sum()), n)} of {n:,}"
                for least in (0, 5, 8)
                if (n := int((lengths >= least).sum()))
            ]
            rate = f"{len(sentences) / max(spent, 1e-9):,.0f} sentences a CPU second"
            sys.stdout.write(f"{name} | {what} | {' | '.join(told)} | {rate}\n")


if __name__ == "__main__":
    {"train": train, "measure": measure}[sys.argv[1]](*map(Path, sys.argv[2:]))
