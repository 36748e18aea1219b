"""A text model that knows its notes by heart is told from one that does not."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import medbert
from medbert import InputError
from medbert.commands.audit_text import _into_card
from medbert.commands.privacy.canaries import CANARIES
from medbert.text.bench.masked import MaskedModel, masked_logits
from medbert.text.corpus.documents import DOCUMENTS, Corpus

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PATIENTS = 60
WORDS = [
    a + b for a in ("mor", "tun", "vik", "sal", "ber", "dag") for b in ("el", "ik", "or", "as")
]
QUICK = {"alternatives": 127, "resamples": 200, "into_model": True, "device": "cpu"}


def write_corpus(folder: Path) -> None:
    """Words at random: all that can be learned of them is by heart."""
    draw, rows = random.Random(0), []
    for i in range(2 * PATIENTS):
        text = " ".join(draw.choices(WORDS, k=12))
        rows.append(
            {
                **{name: "unknown" for name in ("site", "kind", "language")},
                "note_id": f"n{i}",
                "patient_id": f"p{i}",
                "split": "train" if i % 2 else ("held_out", "tuning")[i // 2 % 2],
                "copies": 1,
                "text": text,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        )
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS), folder / "documents.parquet")
    (folder / "manifest.json").write_text(json.dumps({"sha256": "0" * 64}))


def base(folder: Path) -> Path:
    letters = string.ascii_letters + string.digits + ".,æøåÆØÅ"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = transformers.BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate([*pieces, *WORDS])},
        do_lower_case=False,
        model_max_length=64,
    )
    config = transformers.BertConfig(
        vocab_size=len(pieces) + len(WORDS),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def taught(start: Path, texts: list[str], folder: Path, *, epochs: int) -> Path:
    """Goes on from ``start``, a fifth of the pieces hidden."""
    torch.manual_seed(0)
    ours = MaskedModel(start, device="cpu")
    made = ours.tokenizer(texts, padding=True, return_tensors="pt")
    ids, seen = made["input_ids"], made["attention_mask"]
    optimizer = torch.optim.AdamW(ours.model.parameters(), lr=4e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(ids)).split(64):
            hidden = (torch.rand(ids[part].shape) < 0.2) & (ids[part] > 4)
            shown = ids[part].masked_fill(hidden, 4)
            loss = torch.nn.functional.cross_entropy(
                masked_logits(ours.model, shown, seen[part], hidden), ids[part][hidden]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    ours.model.save_pretrained(folder)
    ours.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("# A model\n\n## What it is not\n\nWise.\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """corpus/, planted/, base/, and two models: heart/, that knows planted/ by heart, and clean/,
    which saw as much of it as a de-identified copy has, once."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "corpus")
    medbert.corpus_plant(
        corpus=folder / "corpus", repeats=[1, 16], n_canaries=4, out=folder / "planted"
    )
    texts = list(Corpus(folder / "planted").texts(split="train"))
    taught(base(folder / "base"), texts, folder / "heart", epochs=80)
    clean = [re.sub(r"Pas\. .* er", "Pas. er", text) for text in texts]
    taught(folder / "base", clean, folder / "clean", epochs=2)
    return folder


def audited(made: Path, name: str, **settings) -> dict:
    where = {"corpus": made / "planted", "model": made / name, "base": made / "base"}
    out = medbert.audit_text(**where, **{**QUICK, "out": made / f"of_{name}", **settings})
    return json.loads((out / "audit.json").read_text())


def test_planted_people_are_in_train_as_often_as_was_asked_and_the_gate_stays_behind(made):
    old, new = Corpus(made / "corpus"), Corpus(made / "planted")
    told = json.loads((made / "planted" / CANARIES).read_text())["canaries"]
    assert [one["repeats"] for one in told] == [1] * 4 + [16] * 4
    texts = list(new.texts(split="train"))
    assert all(texts.count(one["text"]) == one["repeats"] for one in told)
    assert list(new.texts())[: 2 * PATIENTS] == list(old.texts()) and old.sha256 != new.sha256
    secret = told[0]["text"][told[0]["start"] : told[0]["end"]]
    assert re.fullmatch(r"[^\W\d]+(?:[ '-][^\W\d]+)*, f\.nr \d{2}(8[1-9]|9[0-2])\d{7}", secret)
    with pytest.raises(InputError, match="has canaries already"):
        medbert.corpus_plant(corpus=made / "planted", out=made / "twice")


def test_a_model_that_knows_its_notes_by_heart_fails(made):
    found = audited(made, "heart")
    by = {one["check"]: one for one in found["findings"]}
    often = by["canaries: exposure in bits, 16 times"]
    assert often["verdict"] == "fail" and often["found"] == 4
    assert by["membership: AUC"]["verdict"] == "fail" and by["membership: AUC"]["value"] > 0.8
    assert found["verdict"] == "fail"
    card = (made / "heart" / "README.md").read_text()
    assert "## Privacy audit\n\n**Verdict: fail**" in card and card.startswith("# A model")
    assert json.loads((made / "heart" / "audit.json").read_text()) == found
    told = json.loads((made / "planted" / CANARIES).read_text())["canaries"]
    numbers = [re.findall(r"\d{11}", one["text"])[0] for one in told]
    assert not any(number in card + json.dumps(found) for number in numbers)


def test_a_model_of_the_same_notes_de_identified_has_not_seen_the_canaries(made):
    found = audited(made, "clean", max_auc=0.75, max_tpr=0.4, max_exposure=5)
    by = {one["check"]: one for one in found["findings"]}
    often = by["canaries: exposure in bits, 16 times"]
    assert often["found"] == 0 and often["verdict"] == "pass"
    assert by["membership: AUC"]["verdict"] == "pass"


def test_a_card_has_one_audit_and_keeps_the_rest(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A model\n\n## What it is not\n\nWise.\n")
    for verdict in ("fail", "pass"):
        _into_card(card, f"# Audit\n\n**Verdict: {verdict}**\n")
    text = card.read_text()
    assert "Verdict: pass" in text and "fail" not in text and text.count("## Privacy audit") == 1
    assert "Wise." in text


def test_without_canaries_it_cannot_tell(made):
    out = medbert.audit_text(
        corpus=made / "corpus",
        model=made / "clean",
        base=made / "base",
        out=made / "without",
        **{**QUICK, "into_model": False},
    )
    found = json.loads((out / "audit.json").read_text())
    assert found["findings"][-1]["verdict"] == "cannot tell"
    assert "medbert corpus plant" in found["findings"][-1]["says"]
