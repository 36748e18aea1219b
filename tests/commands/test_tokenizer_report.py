"""How words are cut, what more tokens would save, and that they do; vectors of notes."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import medbert  # noqa: E402
from medbert.data.sources.columns import identifiers  # noqa: E402
from medbert.schema import InputError  # noqa: E402
from medbert.text.corpus.documents import Corpus  # noqa: E402
from medbert.text.encoders.extension import extend  # noqa: E402
from medbert.text.encoders.folders import tokenizer_of  # noqa: E402
from medbert.text.encoders.masked_lm import fresh  # noqa: E402
from medbert.text.encoders.vectors import NoteEncoder  # noqa: E402
from medbert.text.encoders.vocabulary import learn_pieces  # noqa: E402
from medbert.text.notes import COLUMNS, Note, read, write  # noqa: E402

GENERAL = ("han", "gikk", "en", "lang", "tur", "skogen", "kom", "hjem", "da", "det", "ble", "kaldt")
TERMS = ("trombocytopeni", "hypertensjon", "pneumoni")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
}


def notes(n: int = 60) -> list[Note]:
    draw, made = random.Random(0), []
    for i in range(n):
        words = draw.choices((*GENERAL, *TERMS), k=draw.randrange(5, 90))
        words += ["Quistgaard"] * (i == 3) * 9
        time = datetime(2020, 1, 1) + timedelta(days=i)
        made.append(Note(f"n{i}", " ".join(words), f"{i % 30}", time, "nursing", "nb"))
    return made


def unigram(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """As of XLM-RoBERTa."""
    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[*special.values()], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer=trainer)
    marks = [(special[name], made.token_to_id(special[name])) for name in ("bos", "eos")]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=marks
    )
    named = {f"{name}_token": token for name, token in special.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=32, cls_token="<s>", sep_token="</s>", **named
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """general.txt, notes.jsonl, corpus/, and a model of each kind of tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizers")
    draw = random.Random(1)
    lines = [" ".join(draw.choices(GENERAL, k=20)) for _ in range(300)]
    (folder / "general.txt").write_text("\n".join(lines), encoding="utf-8")
    write(notes(), folder / "notes.jsonl", format="jsonl", fields=tuple(COLUMNS))
    medbert.corpus(
        in_=str(folder / "notes.jsonl"), out=str(folder / "corpus"), fractions=[1.0, 0.0, 0.0]
    )
    alphabet = "abcdefghijklmnopqrstuvwxyzæøå"
    texts = [*lines, " ".join([*alphabet, f"a{alphabet}"])]
    families = {"wordpiece": "bert", "bpe": "roberta", "unigram": "xlm-roberta"}
    for kind, family in families.items():
        if kind == "unigram":
            made = unigram(texts)
        else:
            made = learn_pieces(texts, kind=kind, size=400, lowercase=True, min_count=1, length=32)
        made.save_pretrained(folder / f"{kind}_tokenizer")
        model = fresh(folder / f"{kind}_tokenizer", model_type=family, config=SMALL, seed=0)
        model.save(folder / kind)
    return folder


@pytest.fixture(scope="module")
def report(place: Path) -> dict:
    return medbert.tokenizer_report(
        tokenizer=str(place / "wordpiece"),
        corpus=str(place / "corpus"),
        general=str(place / "general.txt"),
        sizes=[1, 2, 100],
        out=str(place / "report"),
    )


def test_the_report_counts_pieces(place, report):
    tokenizer = tokenizer_of(place / "wordpiece")
    texts = Corpus(place / "corpus").texts()
    words = [word for text in texts for word in text.split()]
    pieces = [len(tokenizer.tokenize(word)) for word in words]
    assert report["all"]["words"] == len(words) and report["all"]["pieces"] == sum(pieces)
    assert report["all"]["in_one_piece"] == pytest.approx(np.mean(np.array(pieces) == 1))
    assert report["all"]["unknown"] == 0
    assert report["general"]["fertility"] == 1.0
    (row,) = report["groups"]
    assert (row["kind"], row["words"]) == ("nursing", len(words))


def test_what_is_proposed_is_frequent_in_many_patients_and_no_name(place, report):
    proposed = (place / "report" / "words.txt").read_text(encoding="utf-8").split()
    assert {*proposed} == {*TERMS}
    one, two, three = report["prices"]
    assert (one["tokens"], two["tokens"], three["tokens"]) == (1, 2, 3)
    assert three["parameters"] == 3 * (16 + 1)
    assert report["advice"].endswith("extend it")
    assert three["pieces_saved"] == report["all"]["pieces"] - report["all"]["words"] - sum(
        n for n in _of_the_name(place)
    )


def _of_the_name(place: Path) -> list[int]:
    pieces = tokenizer_of(place / "wordpiece").tokenize("Quistgaard")
    return [9 * (len(pieces) - 1)]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_new_words_are_one_token_and_begin_as_the_mean_of_their_pieces(place, tmp_path, kind):
    out = tmp_path / "extended"
    told = medbert.tokenizer_extend(
        base=str(place / kind), words=str(_words(tmp_path)), out=str(out)
    )
    old, new = tokenizer_of(place / kind), tokenizer_of(out)
    before = transformers.AutoModelForMaskedLM.from_pretrained(place / kind)
    after = transformers.AutoModelForMaskedLM.from_pretrained(out)
    assert told["words"] == told["in_one_piece"] == len(TERMS)
    assert told["tokens"] == len(new) - len(old)
    assert told["parameters"] == sum(p.numel() for p in after.parameters()) - sum(
        p.numel() for p in before.parameters()
    )
    was, now = (m.get_input_embeddings().weight for m in (before, after))
    assert torch.equal(was[: len(old)], now[: len(old)])
    for word in TERMS:
        pieces = old(f" {word}", add_special_tokens=False)["input_ids"]
        (row,) = new(f" {word}", add_special_tokens=False)["input_ids"]
        assert row >= len(old)
        torch.testing.assert_close(now[row], was[pieces].mean(0))
        head = after.get_output_embeddings()
        torch.testing.assert_close(
            head.bias[row], before.get_output_embeddings().bias[pieces].mean()
        )
    sentence = "han kom hjem hypertensjon da trombocytopeni en lang tur"
    assert new.decode(new(sentence)["input_ids"], skip_special_tokens=True).strip().replace(
        " ,", ","
    ) == (sentence)
    inside = new.tokenize("hypertensjonen")  # a longer word stays whole or in pieces, never in two
    assert "".join(inside).replace("##", "").strip("Ġ▁") == "hypertensjonen"
    with pytest.raises(InputError, match="nothing to add"):
        extend(out, tmp_path / "again", TERMS)


def _words(folder: Path) -> Path:
    (folder / "words.txt").write_text("\n".join(TERMS), encoding="utf-8")
    return folder / "words.txt"


def test_a_vector_is_the_mean_over_windows_and_does_not_depend_on_the_batch(place):
    model = NoteEncoder(place / "wordpiece", batch_tokens=100, device="cpu")
    texts = [note.text for note in notes()[:12]] + [""]
    vectors, pieces = model.encode(texts)
    assert pieces.max() > model.length > pieces[pieces > 0].min() and not vectors[-1].any()
    alone = np.stack([model.encode([text])[0][0] for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    plain = transformers.AutoModel.from_pretrained(place / "wordpiece").eval()
    short = next(text for text, n in zip(texts, pieces, strict=True) if 0 < n <= model.length)
    with torch.no_grad():
        hidden = plain(**model.tokenizer(short, return_tensors="pt"))[0][0, 1:-1]
    np.testing.assert_allclose(model.encode([short])[0][0], hidden.mean(0).numpy(), atol=1e-5)


def test_notes_become_vectors_and_events_of_their_patients(place, tmp_path):
    out = medbert.embed_notes(
        in_=str(place / "corpus" / "documents.parquet"),
        encoder_dir=str(place / "wordpiece"),
        n_codes=4,
        out=str(tmp_path / "out"),
        device="cpu",
    )
    table = parquet.read_table(out / "embeddings.parquet")
    given = [*read(place / "corpus" / "documents.parquet")]
    assert table["note_id"].to_pylist() == [note.note_id for note in given]
    assert table["subject_id"].to_pylist() == [int(note.patient_id) for note in given]
    assert table["time"].to_pylist() == [note.time for note in given]
    assert np.isfinite(table["embedding"].combine_chunks().flatten().to_numpy()).all()
    events = parquet.read_table(out / "events.parquet")
    assert events.num_rows == len(given)
    assert {code.rpartition("//")[0] for code in events["code"].to_pylist()} == {"NOTE//nursing"}
    (tmp_path / "cohort" / "data").mkdir(parents=True)
    (out / "events.parquet").rename(tmp_path / "cohort" / "data" / "notes.parquet")
    medbert.prepare(
        "source=meds", f"source.path={tmp_path / 'cohort'}", out=str(tmp_path / "store")
    )
    vocabulary = parquet.read_table(tmp_path / "store" / "vocabulary.parquet")
    assert any(code.startswith("NOTE//nursing") for code in vocabulary["code"].to_pylist())
    assert identifiers(table["subject_id"]).equals(table["subject_id"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["notes"] == len(given) and summary["events"] == len(given)
