"""A CRF trained on invented notes of one form, and the operating points of any trained detector."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from random import Random

import numpy as np
import pytest

pytest.importorskip("pycrfsuite")

from medbert.schema import InputError, Span  # noqa: E402
from medbert.text.detectors import crf  # noqa: E402
from medbert.text.detectors.crf import CRF  # noqa: E402
from medbert.text.detectors.thresholds import (  # noqa: E402
    ANY,
    F1,
    RECALL,
    Scored,
    Trained,
    decode,
    load_detector,
    tag,
    tags_of,
)
from medbert.text.notes import Note, write  # noqa: E402
from medbert.text.synthetic.augment import augmented  # noqa: E402

FORMS = (
    "{NAME} was admitted on {DATE} with pneumonia.",
    "Seen today: {NAME}, mother of two. Next visit {DATE}.",
    "{DATE}: spoke to {NAME} about the lab results. Potassium 4.2, sodium 140.",
    "Afebrile, chest clear. Continue aspirin 75 mg, review in 3 weeks.",
)


def name(random: Random) -> str:
    words = ["".join(random.choices("abdegiklmnorstuv", k=6)).capitalize() for _ in range(2)]
    return " ".join(words)


def note(random: Random, n: int = 6) -> Note:
    text, spans = "", []
    for form in random.choices(FORMS, k=n):
        for part in form.replace("}", "{").split("{"):
            if part in ("NAME", "DATE"):
                day = f"{random.randint(1, 28):02}.{random.randint(1, 12):02}.2021"
                value = name(random) if part == "NAME" else day
                spans.append(Span(len(text), len(text) + len(value), part))
            text += value if part in ("NAME", "DATE") else part
        text += random.choice(("\n", " "))
    return Note("n", text, spans=tuple(spans))


def notes(n: int, seed: int) -> list[Note]:
    random = Random(seed)
    return [note(random) for _ in range(n)]


@pytest.fixture(scope="module")
def trained() -> CRF:
    detector = CRF.train(notes(60, seed=0), max_iterations=40)
    detector.tune(notes(20, seed=1), recall=0.95)
    return detector


def found(detector: Trained, one: Note) -> set[tuple]:
    return {span[:3] for span in detector.detect(one.text)}


def test_names_and_dates_never_seen_are_found(trained):
    hits = total = 0
    for one in notes(20, seed=2):
        gold = {span[:3] for span in one.spans}
        hits, total = hits + len(gold & found(trained, one)), total + len(gold)
    assert hits / total > 0.9


def test_spans_are_sorted_apart_and_scored(trained):
    for one in notes(10, seed=3):
        spans = trained.detect(one.text)
        assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
        assert all(
            0 < span.score <= 1 and one.text[span.start : span.end].strip() for span in spans
        )
    assert trained.detect("") == trained.detect(" \n") == []


def test_a_folder_gives_the_same_detector_and_a_changed_one_none(trained, tmp_path):
    trained.save(tmp_path)
    again, one = load_detector(tmp_path, point=F1), note(Random(5))
    assert again.points == trained.points and again.point == F1
    again.point = RECALL
    sent = ForkingPickler.loads(ForkingPickler.dumps(again))  # to another process
    assert again.detect(one.text) == trained.detect(one.text) == sent.detect(one.text)
    with pytest.raises(InputError, match="point=best: choose one of"):
        load_detector(tmp_path, point="best")
    model = tmp_path / CRF.file
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="changed since it was written"):
        load_detector(tmp_path)
    (tmp_path / "detector.json").write_text("{}")
    with pytest.raises(InputError, match="no description of a detector"):
        load_detector(tmp_path)


def test_a_long_text_is_decided_in_pieces_as_the_short_one_is(trained, monkeypatch):
    one = note(Random(6), n=40)
    whole = trained.score(one.text)
    monkeypatch.setattr(crf, "_PIECE", 50)
    pieces = trained.score(one.text)
    assert len([*trained._features.of(one.text).pieces()]) > 3
    np.testing.assert_allclose(whole.probability_WL, pieces.probability_WL, atol=0.2)
    assert (whole.inside_W == pieces.inside_W).mean() > 0.99


def test_few_words_are_kept_and_what_is_forgotten_is_made_again_alike(monkeypatch):
    text = "\n".join(one.text for one in notes(3, seed=8))
    whole = crf.Features().of(text).rows(0, 100)
    monkeypatch.setattr(crf, "_CACHED", 5)
    features = crf.Features()
    assert features.of(text).rows(0, 100) == whole
    assert features.known.cache_info().currsize == 5


def test_the_recall_that_was_asked_for_is_reached_on_the_tuning_notes(trained):
    """With names in capitals, which were not trained on, and at what price is told."""
    tuning = [one._replace(text=one.text.upper()) for one in notes(20, seed=7)]
    for recall in (0.9, 0.99):
        told = trained.tune(tuning, recall=recall)
        assert told[RECALL]["measures"]["token"]["recall"] >= recall - 0.01
        assert told[F1]["measures"]["strict typed"]["f1"] >= max(
            told[RECALL]["measures"]["strict typed"]["f1"] - 1e-9, 0
        )
    assert [*trained.points[RECALL]] == [ANY]
    trained.tune(tuning, recall=0.99, per_label=True)
    assert {*trained.points[RECALL]} == {ANY, "NAME", "DATE"}
    trained.tune(notes(20, seed=1), recall=0.95)
    with pytest.raises(InputError, match="a share between 0 and 1"):
        trained.tune(tuning, recall=99)
    with pytest.raises(InputError, match="no note has gold spans"):
        trained.tune([Note("n", "text", spans=())], recall=0.9)


TAGS = ["O", "B-AGE", "I-AGE", "B-NAME", "I-NAME"]
WORDS = [(0, 2), (3, 5), (6, 8)]


def scored(*rows: list[float]) -> Scored:
    p_WL = np.array(rows)
    return Scored(WORDS[: len(rows)], p_WL, p_WL.argmax(1) > 0)


def test_no_path_is_illegal_and_a_low_threshold_finds_more():
    inside_first = scored([0.1, 0, 0.1, 0.2, 0.6], [0.1, 0, 0, 0.1, 0.8], [0.8, 0.1, 0.1, 0, 0])
    assert decode(inside_first, TAGS, {ANY: 1.0}) == [Span(0, 5, "NAME", 0.9)]
    low = decode(inside_first, TAGS, {ANY: 1.0, "AGE": 0.15})
    assert [(s.start, s.end, s.label) for s in low] == [(0, 5, "NAME"), (6, 8, "AGE")]
    two = scored([0, 0, 0, 0.9, 0.1], [0, 0, 0, 0.7, 0.3])
    assert [(s.start, s.end) for s in decode(two, TAGS, {ANY: 0.5})] == [(0, 2), (3, 5)]
    torn = scored([0, 0.45, 0, 0.55, 0], [0, 0, 0.9, 0, 0.1])  # likelier as a whole
    assert [(s.end, s.label) for s in decode(torn, TAGS, {ANY: 0.5})] == [(5, "AGE")]


def test_tags_cover_every_word_that_a_span_touches():
    words = [(0, 4), (4, 5), (6, 10), (11, 15)]
    spans = [Span(2, 5, "ID"), Span(6, 10, "ID"), Span(12, 13, "NAME")]
    assert tag(words, spans) == ["B-ID", "I-ID", "B-ID", "B-NAME"]
    assert tags_of(spans) == ["O", "B-ID", "I-ID", "B-NAME", "I-NAME"]


def test_copies_of_training_notes_are_other_people_with_true_offsets():
    one = note(Random(8))
    old = {one.text[s.start : s.end] for s in one.spans}
    same, *copies = augmented([one], copies=5, variation=0.5, seed=1)
    assert same == one
    for copy in copies:
        new = [copy.text[s.start : s.end] for s in copy.spans]
        assert [s.label for s in copy.spans] == [s.label for s in one.spans]
        assert not old & {*new} and all(text == text.strip() != "" for text in new)
    assert len({copy.text for copy in copies}) == 5
    assert [*augmented([one], copies=5, seed=1)] == [*augmented([one], copies=5, seed=1)]


def test_copies_of_labels_that_are_not_ours_are_told_and_clinics_stay_clinics(caplog):
    text = "Klinikum Bonn, Zimmer 4, Herr Meyer am 02/2021 und 03"
    spans = [Span(0, 13, "LOCATION:CARE_UNIT"), Span(30, 35, "NAME_PATIENT")]
    spans += [Span(39, 46, "DATE"), Span(51, 53, "DATE")]
    one = Note("1", text, language="de", spans=tuple(spans))
    _, *copies = augmented([one], copies=20, variation=0, seed=1)
    assert "NAME_PATIENT" in caplog.text
    for copy in copies:
        clinic, name, month, day = (copy.text[s.start : s.end] for s in copy.spans)
        assert len(clinic.split()) > 1 and clinic != "Klinikum Bonn" and name == "Meyer"
        assert 1 <= int(month[:2]) <= 12 and 1 <= int(day) <= 12


def test_the_verb_trains_tells_and_refuses_notes_that_it_was_trained_on(tmp_path):
    import medbert

    for file, some in (("train", notes(30, seed=0)), ("tuning", notes(10, seed=1))):
        write(some, tmp_path / f"{file}.jsonl", format="jsonl", fields=("note_id", "text", "spans"))
    given = {"notes": str(tmp_path / "train.jsonl"), "learner": {"max_iterations": 20}}
    made = {"out": str(tmp_path / "detector"), "recall": 0.95, "copies": 1}
    told = medbert.train_detector(
        "+labels.DATE=null", **given, **made, tuning=str(tmp_path / "tuning.jsonl")
    )
    assert told["on_tuning"][RECALL]["measures"]["token"]["recall"] > 0.9
    assert (told["notes"], told["tuning_notes"]) == (30, 10)
    detector = load_detector(tmp_path / "detector")
    assert detector.tags == ["O", "B-NAME", "I-NAME"]
    again = medbert.train_detector(
        "+labels.DATE=null",
        **given,
        **made | {"out": str(tmp_path / "again")},
        tuning=str(tmp_path / "tuning.jsonl"),
        refit=True,
    )
    refitted = load_detector(tmp_path / "again")
    assert again["on_tuning"] == told["on_tuning"] and refitted.points == detector.points
    assert refitted.model != detector.model
    with pytest.raises(InputError, match="keep them apart"):
        medbert.train_detector(**given, **made, tuning=given["notes"], overwrite=True)
