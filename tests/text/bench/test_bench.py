"""The tasks of the text benchmark, on tiny untrained models."""

from __future__ import annotations

import csv
import json
import string
from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medbert.schema import InputError, Span  # noqa: E402
from medbert.text.bench.choices import Choices, clusters, options  # noqa: E402
from medbert.text.bench.entities import Entities  # noqa: E402
from medbert.text.bench.losses import MaskedLoss  # noqa: E402
from medbert.text.bench.masked import CHARACTERS, NATS, PIECES, MaskedModel, Row  # noqa: E402
from medbert.text.bench.pairs import Pairs  # noqa: E402
from medbert.text.bench.reading import by_line, table  # noqa: E402
from medbert.text.bench.terms import Terms  # noqa: E402
from medbert.text.notes import Note  # noqa: E402

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "norwegian"
LETTERS = string.ascii_letters + string.digits + string.punctuation + "æøåÆØÅ"
WORDS = ["patient", "has", "pain", "in", "the", "knee", "and", "fever"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
KINDS = ("bert", "roberta", "modernbert", "deberta-v2")


def model(folder: Path, *, kind: str = "bert", words: list[str] = WORDS, seed: int = 0) -> Path:
    """An untrained masked language model that spells, but for ``words``."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *words])}
    tokenizer = transformers.BertTokenizerFast(
        vocab=vocabulary, do_lower_case=False, model_max_length=60
    )
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(vocabulary), eos_token_id=3, **special, **SMALL
    )
    torch.manual_seed(seed)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_layer_sees_hidden_places_alone_and_says_what_the_whole_model_says(
    kind, tmp_path
):
    ours = MaskedModel(model(tmp_path, kind=kind), device="cpu")
    words = ["patient has pain", "the knee and fever and x7"]
    rows = [row for i, text in enumerate(words) for row in ours._rows(i, text, 7)]
    for row, nats in zip(rows, ours._nats(rows), strict=True):
        ids = torch.tensor([[*ours.frame.before, *row.ids_P.tolist(), *ours.frame.after]])
        places = torch.from_numpy(row.hidden_P).nonzero()[:, 0] + len(ours.frame.before)
        target = ids[0, places].clone()
        ids[0, places] = ours.tokenizer.mask_token_id
        with torch.inference_mode():
            logits = ours.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[places], target, reduction="sum")
        assert nats == pytest.approx(float(expected), rel=1e-4)


def test_every_word_is_hidden_once_whatever_the_tokenizer_and_the_length(folder, tmp_path):
    text = "patient has pain in the knee, 12.03.2020kl and fever. " * 9
    spelling = MaskedModel(model(tmp_path, words=["knee"]), device="cpu")
    for ours in (MaskedModel(folder, device="cpu"), spelling):
        rows = list(ours._rows(0, text, 7))
        assert max(len(row.ids_P) for row in rows) <= ours.length
        hidden, characters = sum(row.hidden_P.sum() for row in rows), len("".join(text.split()))
        pieces = len(ours.tokenizer(text, add_special_tokens=False)["input_ids"])
        counts = ours.losses([text])[0]
        assert hidden == pieces == counts[PIECES] and counts[NATS] > 0
        # A word that a window cuts is counted in both: fewer than one in a window.
        assert characters <= counts[CHARACTERS] < 1.1 * characters


def test_a_hidden_word_shows_none_of_its_pieces(folder):
    ours = MaskedModel(folder, device="cpu")
    row: Row
    for row in ours._rows(0, "xyz has pain", 7):
        assert row.hidden_P[:3].all() or not row.hidden_P[:3].any()


def test_a_text_costs_the_same_in_any_company(folder):
    ours = MaskedModel(folder, device="cpu")
    alone, together = ours.losses(["the knee"]), ours.losses(["the knee", "patient has fever " * 5])
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert ours.losses([""]).tolist() == [[0, 0, 0]]


def note(random: Random, number: int) -> dict:
    text, spans = "", []
    for _ in range(12):
        word = random.choice(WORDS)
        if random.random() < 0.3:
            word = random.choice(string.ascii_uppercase) + "".join(random.choices("abcd", k=4))
            spans.append({"start": len(text), "end": len(text) + len(word), "label": "NAME"})
        text += word + " "
    return {"note_id": f"n{number}", "text": text, "spans": spans, "language": "nb"}


def test_entities_are_learned_from_few_notes_and_slips_are_no_labels(folder, tmp_path):
    random, file = Random(0), tmp_path / "notes.jsonl"
    rows = [note(random, i) for i in range(60)]
    rows[0]["spans"].append({"start": 0, "end": 3, "label": "slip"})
    file.write_text("\n".join(map(json.dumps, rows)))
    task = Entities(str(file), labelled=30, epochs=12, learning_rate=2e-2, device="cpu")
    counts = task.run(folder, seed=0)
    assert task.measures[0].of(counts.sum(0)) > 0.9
    assert (task.run(folder, seed=0) == counts).all()
    gold = {row["note_id"]: sum(s["label"] == "NAME" for s in row["spans"]) for row in rows}
    assert counts[:, 1].tolist() == [gold[name] for name in task.items().cluster_N]
    assert set(task.items().groups["language"]) == {"nb"}
    with pytest.raises(InputError, match="at least 1000"):
        Entities(str(file), labelled=1000).items()


def test_lines_are_notes_with_their_spans():
    given = Note("n", "one Ola\n\ntwo Kari\n", spans=(Span(4, 7, "NAME"), Span(13, 17, "NAME")))
    lines = list(by_line([given]))
    assert [n.text[s.start : s.end] for n in lines for s in n.spans] == ["Ola", "Kari"]


def test_tables_with_and_without_a_header(tmp_path):
    (tmp_path / "a.tsv").write_text("x\tA\tmore\ny\tB\tmore\n")
    (tmp_path / "b.csv").write_text('class,term\nA,"x, or so"\n')
    names = ("term", "class")
    assert table(tmp_path / "a.tsv", names)[1] == {"term": "y", "class": "B"}
    assert table(tmp_path / "b.csv", names) == [{"term": "x, or so", "class": "A"}]
    with pytest.raises(InputError, match="term, label"):
        table(tmp_path / "b.csv", ("term", "label"))


def test_questions_that_are_asked_again_are_of_one_cluster_and_on_one_side(folder, tmp_path):
    random, rows = Random(0), []
    for _ in range(40):
        asked = " ".join("".join(random.choices(string.ascii_lowercase, k=6)) for _ in range(8))
        right, *wrong = ("".join(random.choices(string.ascii_lowercase, k=9)) for _ in range(3))
        rows += [[asked, right, "; ".join(wrong)], [asked + " again?", right, "; ".join(wrong)]]
    with (tmp_path / "q.csv").open("w") as out:
        csv.writer(out).writerows([["question", "answer", "wrong"], *rows])
    columns = ("question", "answer", "wrong")
    task = Choices(str(tmp_path / "q.csv"), columns=columns, epochs=1, device="cpu", longest=40)
    cluster = np.array([q.cluster for q in task.questions])
    assert len(np.unique(cluster)) == 40 and (cluster[::2] == cluster[1::2]).all()
    train, test = task._parts
    assert not {q.cluster for q in train} & {q.cluster for q in test}
    counts = task.run(folder, seed=0)
    assert counts.shape == (len(test), 4) and counts[:, 1].all() and counts[:, 2:].sum() == 0


def test_the_same_question_in_two_languages_is_compared(folder, tmp_path, monkeypatch):
    rows = [
        {"question_text": f"{w} ?", "answer_text": "aa", "wrong_answers_text": "bb; cc"}
        for i in range(20)
        for w in (f"hva {i} gjelder dette", f"kva {i} gjelder dette")
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    monkeypatch.setattr(
        "medbert.text.bench.choices.language_of", lambda n: "nn" if "kva" in n.text else "nb"
    )
    task = Choices(str(tmp_path / "q.json"), alike=0.2, share=1.0)
    counts = task.beside(seed=0)["the longest answer"]
    asked, same = counts[:, 3].sum(), counts[:, 2].sum()
    assert asked > 0 and same == asked


def test_an_answer_loses_its_rationale_and_options_their_letters():
    long = "Paracet. Fordi dette er det første valget ved smerter som ikke er sterke."
    assert options(long, "Ibux; Morfin")[0] == "Paracet."
    assert options("A", "") == ("A",) and options("", "B; C") == ()
    assert len(set(clusters(["det samme spørsmålet"] * 2 + ["noe helt annet"] * 2, alike=0.5))) == 2


def test_pairs_and_terms_are_learned_or_at_least_counted(folder, tmp_path):
    random = Random(0)
    pairs = [
        [" ".join(random.choices(WORDS, k=3)) + f" {i}", random.choice(WORDS), i % 2]
        for i in range(40)
    ]
    with (tmp_path / "p.csv").open("w") as out:
        csv.writer(out).writerows([["first", "second", "label"], *pairs])
    task = Pairs(str(tmp_path / "p.csv"), epochs=1, device="cpu")
    counts = task.run(folder, seed=0)
    assert (counts[:, 0] == 1).all() and set(counts[:, 2]) <= {0, 1}
    x, y = counts[:, 1], counts[:, 2]
    assert task.measures[0].of(counts.sum(0)) == pytest.approx(np.corrcoef(x, y)[0, 1])
    terms = [
        ["".join(random.choices(string.ascii_lowercase, k=9)) + end, kind]
        for end, kind in (("itt", "CONDITION"), ("mab", "SUBSTANCE"))
        for _ in range(60)
    ]
    with (tmp_path / "t.tsv").open("w") as out:
        csv.writer(out, delimiter="\t").writerows([*terms, ["slip", "OTHER"]])
    of = Terms(str(tmp_path / "t.tsv"), labelled=60, min_count=20, epochs=1, device="cpu")
    assert of.run(folder, seed=0).shape == (len(of.items().cluster_N), 6)
    grams = of.beside(seed=0)["character n-grams"]
    assert of.measures[0].of(grams.sum(0)) > 0.95


def test_masked_loss_of_texts_and_notes(folder, tmp_path):
    (tmp_path / "a.txt").write_text("the knee\n\npatient has fever\n")
    task = MaskedLoss(str(tmp_path / "a.txt"), device="cpu")
    counts = task.run(folder, seed=0)
    assert counts.shape == (2, 3) and list(task.items().groups) == ["language"]
    bits, nats = (measure.of(counts.sum(0)) for measure in task.measures)
    total = counts.sum(0)
    assert bits == pytest.approx(total[NATS] / np.log(2) / total[CHARACTERS])
    assert nats == pytest.approx(total[NATS] / total[PIECES]) and not task.measures[0].higher


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_the_same_exam_recurs_in_norwegian_questions():
    task = Choices(str(SHARED / "norwegian_medical_qa_v2_txt_only.json"))
    found = len(task.questions), len({q.cluster for q in task.questions})
    assert found[0] > 1000 and 450 < found[1] < 750
