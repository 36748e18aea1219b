"""Notes to a corpus: what is left out and counted, who is where, and what other sites may have."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import medbert
from medbert.schema import InputError
from medbert.text.corpus.documents import Corpus, admitted, gate_of
from medbert.text.corpus.duplicates import Signatures, alike, near_copies, stacked
from medbert.text.notes import COLUMNS, Note, write

WORDS = {  # invented; of each language as such
    "nb": "pasienten ble innlagt fra hjemmet etter et fall og hun kjenner ikke smerter noe sted "
    "hvor hun går uten hjelp men klarer seg ellers fint ifølge sykepleieren jeg snakket med",
    "nn": "pasienten vart innlagd frå heimen etter eit fall og ho kjenner ikkje smerter nokon stad "
    "kvar ho går utan hjelp men klarar seg elles fint ifølgje sjukepleiaren eg snakka med",
    "en": "the patient was admitted from home after a fall and she has no pain anywhere when she "
    "walks without help but she is otherwise well according to the nurse whom I spoke with",
}


def sentence(draw: random.Random, language: str) -> str:
    return " ".join(draw.choices(WORDS[language].split(), k=14)).capitalize() + "."


def notes(*, n_patients: int, sites: tuple[str, ...] = ("North", "South")) -> list[Note]:
    """Five each, of which the later repeat a line of the first."""
    draw, made = random.Random(7), []
    for patient in range(n_patients):
        language = ("nb", "nb", "nn", "en")[patient % 4]
        begin = datetime(2019, 1, 1) + timedelta(days=30 * patient)
        history = sentence(draw, language)
        for visit in range(5):
            lines = ["Vurdering", history, *(sentence(draw, language) for _ in range(3))]
            made.append(
                Note(
                    f"{patient}-{visit}",
                    "\n".join(lines),
                    patient_id=str(patient),
                    time=begin + timedelta(days=visit),
                    kind=("discharge", "nursing")[visit % 2],
                    site=sites[patient % len(sites)],
                )
            )
    return made


def written(folder: Path, some: list[Note], name: str = "notes.jsonl") -> Path:
    shuffled = random.Random(1).sample(some, len(some))
    write(shuffled, folder / name, format="jsonl", fields=tuple(COLUMNS))
    return folder / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Note]]:
    folder = tmp_path_factory.mktemp("corpus")
    given = notes(n_patients=40)
    copy = given[0]._replace(note_id="copy", patient_id="other", time=datetime(2021, 1, 1))
    given += [copy, Note("short", "Ingen merknad.", patient_id="9", site="North")]
    out = folder / "corpus"
    medbert.corpus(
        in_=str(written(folder, given)), out=str(out), fractions=[0.6, 0.2, 0.2], workers=1
    )
    return out, given


def test_a_corpus_says_what_is_in_it(made):
    out, given = made
    corpus = Corpus(out)
    documents = [*corpus.documents()]
    manifest = corpus.manifest
    assert manifest["documents"] == len(documents) == len(given) - 2
    assert manifest["notes"]["notes"] == len(given)
    assert manifest["dropped"] == {
        "near copies": 1,
        "too short": 1,
        "paragraphs": 160,
        "paragraph characters": manifest["dropped"]["paragraph characters"],
    }
    assert sum(row["documents"] for row in manifest["groups"]) == len(documents)
    assert sum(row["words"] for row in manifest["groups"]) == manifest["words"]
    assert sum(one["documents"] for one in manifest["splits"].values()) == len(documents)
    assert max(one.copies for one in documents) == 2
    assert [*corpus.texts()] == [one.text for one in documents]
    assert corpus.table().num_rows == len(documents) and not (out / "work").exists()


def test_what_a_patient_s_earlier_note_says_is_gone_and_headings_stay(made):
    out, given = made
    original = {note.note_id: note.text.splitlines() for note in given}
    for one in Corpus(out).documents():
        first = one.note_id.endswith("-0")
        expected = original[one.note_id]
        assert one.text.splitlines() == (expected if first else [expected[0], *expected[2:]])


def test_patients_stay_together_in_the_order_of_time(made):
    out, _ = made
    documents = [*Corpus(out).documents()]
    patients = [one.patient_id for one in documents]
    runs = [p for i, p in enumerate(patients) if i == 0 or p != patients[i - 1]]
    assert len(runs) == len({*runs})
    for one, two in zip(documents, documents[1:], strict=False):
        if one.patient_id == two.patient_id:
            assert one.time <= two.time and one.split == two.split
    assert {one.split for one in documents} == {"train", "tuning", "held_out"}
    for split in ("train", "held_out"):
        wanted = [one for one in documents if one.split == split]
        assert [*Corpus(out).documents(split=split)] == wanted


def test_languages_are_told_apart(made):
    out, _ = made
    documents = [one for one in Corpus(out).documents() if one.patient_id.isdigit()]
    right = [one.language == ("nb", "nb", "nn", "en")[int(one.patient_id) % 4] for one in documents]
    assert np.mean(right) > 0.97


def test_the_same_notes_in_another_order_make_the_same_corpus(made, tmp_path):
    out, given = made
    folder = tmp_path / "notes"
    folder.mkdir()
    for i, half in enumerate((given[::2], given[1::2])):
        written(folder, half, f"{i}.jsonl")
    with pytest.raises(InputError, match="read as notes"):
        medbert.corpus(in_=str(folder), out=str(folder / "out"))
    again = medbert.corpus(in_=str(folder), out=str(tmp_path / "out"), fractions=[0.6, 0.2, 0.2])
    assert again["sha256"] == Corpus(out).sha256


def test_quotas_are_kept(tmp_path):
    given = written(tmp_path, notes(n_patients=80))
    wanted = {"language": ("nn", 0.4), "site": ("South", 0.55)}
    words = [f"+quotas.{field}.{value}={share}" for field, (value, share) in wanted.items()]
    told = medbert.corpus(*words, in_=str(given), out=str(tmp_path / "out"))
    for field, (value, share) in wanted.items():
        n = sum(row["words"] for row in told["groups"] if row[field] == value)
        assert n / told["words"] == pytest.approx(share, abs=0.05)
    assert told["dropped"]["over its quota"] > 0
    with pytest.raises(InputError, match="meets all"):  # nynorsk is at North alone
        over = ["+quotas.language.nn=0.5", "+quotas.site.South=0.7"]
        medbert.corpus(*over, in_=str(given), out=str(tmp_path / "no"))


def test_later_notes_of_other_people_are_held_out(tmp_path):
    given = written(tmp_path, notes(n_patients=60))
    out = tmp_path / "out"
    told = medbert.corpus(
        in_=str(given), out=str(out), fractions=[0.5, 0.2, 0.3], held_out_from="2021-01-01"
    )
    for one in Corpus(out).documents():
        assert (one.time >= datetime(2021, 1, 1)) == (one.split == "held_out")
    assert told["dropped"]["outside its split's time"] > 0


def test_patients_of_a_store_stay_in_their_split(tmp_path):
    splits = pa.table({"subject_id": [0, 1, 2], "split": ["held_out", "tuning", "held_out"]})
    parquet.write_table(splits, tmp_path / "splits.parquet")
    given = written(tmp_path, notes(n_patients=4))
    medbert.corpus(
        in_=str(given),
        out=str(tmp_path / "out"),
        splits=str(tmp_path / "splits.parquet"),
        fractions=[1.0, 0.0, 0.0],
    )
    of = {one.patient_id: one.split for one in Corpus(tmp_path / "out").documents()}
    assert of == {"0": "held_out", "1": "tuning", "2": "held_out", "3": "train"}


def test_sites_find_what_both_have_without_text(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCHANGE", "a secret that both sites have")
    draw, shared = random.Random(3), notes(n_patients=6, sites=("A",))
    other = []
    for note in shared:  # the same letters, a few words of them different
        words = note.text.split(" ")
        words[draw.randrange(len(words))] = "annerledes"
        changed = " ".join(words)
        other.append(note._replace(text=changed, patient_id=f"b{note.patient_id}", site="B"))
    own = [note._replace(site="B", text=note.text[::-1]) for note in notes(n_patients=9)]
    for name, some in (("a", shared), ("b", [*other, *(n for n in own if int(n.patient_id) > 5)])):
        (tmp_path / name).mkdir()
        given = written(tmp_path / name, some)
        out = str(tmp_path / name / "corpus")
        medbert.corpus(in_=str(given), out=out, key="env:EXCHANGE", near=0.95)
    folders = [str(tmp_path / name / "corpus" / "exchange") for name in "ab"]
    told = medbert.corpus_compare(in_=folders, out=str(tmp_path / "overlap"), near=0.6)
    (pair,) = told["near_copies"]
    assert 25 <= pair["documents"] <= 30  # of 30, each with one word in sixty changed
    for file in Path(folders[1]).iterdir():
        assert b"innlagt" not in file.read_bytes()
    again = medbert.corpus(
        in_=str(tmp_path / "b" / "notes.jsonl"),
        out=str(tmp_path / "again"),
        key="env:EXCHANGE",
        without=str(tmp_path / "overlap"),
        near=0.95,
    )
    assert again["dropped"]["at another site"] == pair["documents"]
    monkeypatch.setenv("EXCHANGE", "another secret of the same length")
    medbert.corpus(
        in_=str(given), out=str(tmp_path / "b" / "corpus"), key="env:EXCHANGE", overwrite=True
    )
    with pytest.raises(InputError, match="different keys"):
        medbert.corpus_compare(in_=folders, out=str(tmp_path / "no"))


def test_small_counts_do_not_leave_a_site(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCHANGE", "a secret that both sites have")
    some = [*notes(n_patients=4), Note("rare", sentence(random.Random(5), "nb"), kind="autopsy")]
    given = written(tmp_path, some)
    medbert.corpus(in_=str(given), out=str(tmp_path / "out"), key="env:EXCHANGE")
    sent = json.loads((tmp_path / "out" / "exchange" / "manifest.json").read_text())
    (row,) = [row for row in sent["groups"] if row["kind"] == "autopsy"]
    assert row["documents"] is None and row["words"] is None


def test_unfinished_work_is_taken_up(tmp_path, monkeypatch):
    from medbert.commands import corpus as verb

    given = written(tmp_path, notes(n_patients=10))
    monkeypatch.setattr(verb, "_FILE_BYTES", 4000)
    calls = []

    def stops(file: Path, made: Path, rules: object) -> int:
        calls.append(file.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return clean_file(file, made, rules)

    clean_file = verb.clean_file
    monkeypatch.setattr(verb, "clean_file", stops)
    with pytest.raises(KeyboardInterrupt):
        medbert.corpus(in_=str(given), out=str(tmp_path / "out"))
    first = calls[:2]
    told = medbert.corpus(in_=str(given), out=str(tmp_path / "out"))
    assert not {*first} & {*calls[3:]} and told["documents"] == 50


def test_nothing_is_trained_on_at_an_unopened_gate(made):
    out, _ = made
    assert gate_of(out) is None
    with pytest.raises(InputError, match="was not asked"):
        admitted(out)
    told = admitted(out, override="invented notes")
    assert told == {"state": "overridden", "sha256": None, "reason": "invented notes"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"fractions": [0.5, 0.2, 0.2]}, "fractions"),
        ({"quotas": {"+language": {"sv": 1.0}}}, "quotas.language.sv"),
        ({"held_out_from": "last year"}, "held_out_from"),
        ({"identify": "some"}, "identify"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, words, said):
    given = written(tmp_path, notes(n_patients=2))
    over = [
        f"+quotas.language.{k}={v}" for k, v in words.pop("quotas", {}).get("+language", {}).items()
    ]
    with pytest.raises(InputError, match=said):
        medbert.corpus(*over, in_=str(given), out=str(tmp_path / "out"), **words)


def test_signatures_estimate_the_overlap_and_near_copies_are_found():
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(3000)]
    texts = [draw.choices(vocabulary, k=200) for _ in range(400)]
    copies = []
    for words in texts[:100]:
        words = [*words]
        for at in draw.sample(range(200), 2):
            words[at] = "annet"
        copies.append(words)

    def shingles(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 5]) for i in range(196)}

    sign = Signatures()
    made = stacked([sign.of(" ".join(words)) for words in texts + copies])
    true = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        for a, b in zip(texts, copies, strict=False)
    ]
    assert np.abs(alike(made[:100], made[400:]) - true).mean() < 0.04
    of = near_copies(made, threshold=0.8)
    assert (of[:400] == -1).all() and (of[400:] == np.arange(100)).mean() > 0.97
    other = Signatures(b"another key of a site").of(" ".join(texts[0]))
    assert alike(other, made[0]) < 0.1
