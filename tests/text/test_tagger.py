"""A tiny BERT, made and taught here, beside the pipeline that model cards show."""

from __future__ import annotations

import string
from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medbert.schema import InputError, Span  # noqa: E402
from medbert.text.notes import Note  # noqa: E402
from medbert.text.tagger import Tagger, iob2  # noqa: E402
from medbert.text.thresholds import load_detector  # noqa: E402

WORDS = ["patient", "was", "seen", "by", "today", "and", "has", "pain", "in", "the", "knee"]
PIECES = 512  # that the model reads at once


def encoder(folder: Path) -> Path:
    """An untrained BERT of one small layer, whose vocabulary is single characters and WORDS."""
    characters = string.ascii_letters + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    vocabulary += [f"##{c}" for c in characters] + WORDS
    tokenizer = transformers.BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        do_lower_case=False,
        model_max_length=PIECES,
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=PIECES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    model.embeddings.position_embeddings.weight.data.zero_()  # most positions are never trained
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def name(random: Random) -> str:
    return random.choice(string.ascii_uppercase) + "".join(random.choices("abcdefghij", k=5))


def note(random: Random) -> Note:
    text, spans = "", []
    for _ in range(10):
        word, label = random.choice(WORDS), None
        if random.random() < 0.2:  # as in "q4h": pieces within a word that are no PHI
            word = random.choice("abcdefghij") + "4" + random.choice("abcdefghij")
        elif random.random() < 0.4:
            word, label = (name(random), "NAME") if random.random() < 0.6 else ("34", "AGE")
        if label:
            spans.append(Span(len(text), len(text) + len(word), label))
        text += word + " "
    return Note("n", text, spans=tuple(spans))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    random = Random(0)
    notes = [note(random) for _ in range(60)]
    base = encoder(tmp_path_factory.mktemp("encoder"))
    return Tagger.train(notes, base=str(base), epochs=12, learning_rate=0.015, device="cpu")


@pytest.fixture(scope="module")
def folder(tagger: Tagger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    tagger.save(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path):
    return transformers.pipeline(
        "token-classification", model=str(folder), aggregation_strategy="simple", device="cpu"
    )


def filled(n_pieces: int) -> str:
    """So many pieces without PHI."""
    return "".join(f"{WORDS[i % 8]} " for i in range(n_pieces))


def texts(text: str, spans: list[Span]) -> list[tuple[str, str]]:
    return [(text[s.start : s.end], s.label) for s in spans]


def test_new_names_and_ages_are_found_whole(tagger):
    random, hits, total = Random(1), 0, 0
    for _ in range(20):
        one = note(random)
        gold, found = {s[:3] for s in one.spans}, tagger.detect(one.text)
        hits, total = hits + len(gold & {s[:3] for s in found}), total + len(gold)
        assert all(0 < s.score <= 1 for s in found)
    assert hits / total > 0.9


def leaks(text: str, start: int, end: int, found: list[dict]) -> bool:
    covered = {i for entity in found for i in range(entity["start"], entity["end"])}
    return not covered.issuperset(range(start, end))


def test_a_name_over_several_pieces_is_one_and_the_pipeline_splits_it(tagger, pipeline):
    random = Random(2)
    split = 0
    for _ in range(20):
        text = f"patient {name(random)} was seen"
        start, end = 8, 14
        assert texts(text, tagger.detect(text)) == [(text[start:end], "NAME")]
        split += leaks(text, start, end, pipeline(text))
    assert split, "the pipeline leaves part of a name behind"


def test_phi_behind_the_longest_input_is_found_and_the_pipeline_is_blind_to_it(tagger, pipeline):
    text = filled(PIECES) + "Hagbad was seen"  # its first piece is number 513
    start = text.index("Hagbad")
    assert texts(text, tagger.detect(text)) == [("Hagbad", "NAME")]
    assert leaks(text, start, start + 1, pipeline(text)), "not even its first letter is read"


def test_phi_at_the_border_of_a_window_is_found_whole(tagger):
    borders = [end for _, end in tagger.windows(1500)][:2]
    for border in borders:
        for shift in range(-7, 3):
            text = filled(border + shift) + "Hagbad " + filled(600)
            assert texts(text, tagger.detect(text)) == [("Hagbad", "NAME")], (border, shift)


def test_windows_leave_nothing_out_and_share_an_overlap(tagger):
    for n in (1, 509, 510, 511, 892, 893, 5000):
        windows = list(tagger.windows(n))
        assert windows[0][0] == 0 and windows[-1][1] == n
        assert all(end - first <= tagger.length for first, end in windows)
        shared = [a[1] - b[0] for a, b in zip(windows, windows[1:], strict=False)]
        assert all(s >= tagger.overlap for s in shared)


def test_windows_read_together_are_read_as_alone(tagger):
    text = filled(700) + "Hagbad 34 " + filled(50)
    together = tagger.score(text).probability_WL
    tagger.batch_size, before = 1, tagger.batch_size
    alone = tagger.score(text).probability_WL
    tagger.batch_size = before
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("text", ["", " \n ", "\u200b", "🙂\u0301 Hagbad 🙂", "[SEP] Hagbad [CLS]"])
def test_odd_texts(tagger, text):
    scored = tagger.score(text)
    assert len(scored.words) == len(scored.probability_WL)
    assert ("Hagbad" in text) == ("Hagbad" in {text[s.start : s.end] for s in tagger.detect(text)})


def test_a_folder_gives_the_same_detector_and_a_changed_one_none(tagger, folder, tmp_path):
    tagger.tune([note(Random(3)) for _ in range(10)], recall=0.9)
    tagger.save(tmp_path)
    again, text = load_detector(tmp_path), note(Random(4)).text
    assert isinstance(again, Tagger) and again.points == tagger.points
    assert again.detect(text) == tagger.detect(text)
    card = tmp_path / "detector.json"
    card.write_text(card.read_text().replace("B-AGE", "B-DATE"))
    with pytest.raises(InputError, match="changed since it was written"):
        load_detector(tmp_path)


def test_a_token_classifier_of_others_is_read_and_an_encoder_is_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = texts("Hagbad was 34", load_detector(tmp_path).detect("Hagbad was 34"))
    assert found == [("Hagbad", "NAME"), ("34", "AGE")]
    with pytest.raises(InputError, match="without a trained classifier"):
        load_detector(encoder(tmp_path / "encoder"))


def test_labels_of_other_schemes_become_iob2():
    assert iob2({0: "B-NAME", 1: "I-NAME", 2: "O"}) == (["O", "B-NAME", "I-NAME"], [1, 2, 0])
    assert iob2({0: "O", 1: "S-ID", 2: "E-ID", 3: "AGE"})[1] == [0, 3, 4, 2]
    with pytest.raises(InputError, match="B-NAME are needed"):
        iob2({0: "LABEL_0", 1: "LABEL_1"})
