"""Taggers: windows, folders, and models of others."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_bert import encoder, filled, note, taught, texts  # noqa: E402

from medbert.schema import InputError  # noqa: E402
from medbert.text.detectors.tagger import Tagger, iob2  # noqa: E402
from medbert.text.detectors.thresholds import load_detector  # noqa: E402


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return taught()


@pytest.fixture(scope="module")
def folder(tagger: Tagger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    tagger.save(folder)
    return folder


def test_new_names_and_ages_are_found_whole(tagger):
    random, hits, total = Random(1), 0, 0
    for _ in range(20):
        one = note(random)
        gold, found = {s[:3] for s in one.spans}, tagger.detect(one.text)
        hits, total = hits + len(gold & {s[:3] for s in found}), total + len(gold)
        assert all(0 < s.score <= 1 for s in found)
    assert hits / total > 0.9


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
