"""Rows of packed texts: what a model sees of them, what is hidden, in which order they come."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medbert.schema import InputError  # noqa: E402
from medbert.text.corpus.plain import PlainText  # noqa: E402
from medbert.text.encoders.masked_lm import (  # noqa: E402
    MaskedText,
    TextEncoder,
    fresh,
    load,
    masked_losses,
)
from medbert.text.encoders.masks import Free, Replacement, Spans, Words  # noqa: E402
from medbert.text.encoders.pieces import Frame, cut, pack, pair, write_tokens  # noqa: E402
from medbert.text.encoders.rows import Index, InOrder, Rows, RowSampler, loader, source  # noqa: E402
from medbert.text.encoders.vocabulary import learn_pieces  # noqa: E402

SENTENCES = (
    "The patient slept well. Pain in the left knee since Monday!",
    "No fever. No cough. Appetite returned after the second day of treatment. Walks with a stick.",
    "Discharged.",
    "Blood pressure 140 over 90, treated with tablets twice daily; follow-up in three weeks.",
    "She was seen by the nurse. Wound clean and dry? Dressing changed. Next visit is on Friday.",
    "Known diabetes. Metformin continued. Kidney function stable, eyes were checked last year.",
)
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 80,
}
FAMILIES = {
    "bert": SMALL,
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "camembert": SMALL,
    "deberta-v2": SMALL
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": SMALL | {"local_attention": 8, "global_attn_every_n_layers": 3},
}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    made = learn_pieces(
        SENTENCES * 2, kind="wordpiece", size=200, lowercase=False, min_count=2, length=80
    )
    made.save_pretrained(folder)
    return folder


def encoder(words: Path, family: str) -> TextEncoder:
    return fresh(words, model_type=family, config=FAMILIES[family], seed=0).eval()


def sharpen(made: TextEncoder) -> None:
    for weight in made.parameters():
        if weight.ndim > 1:
            weight.copy_(torch.randn_like(weight) * 0.3)


def rows(made: TextEncoder, folder: Path, masking=None, *, pairs=False, length=64, seed=0) -> Rows:
    tokens = write_tokens(SENTENCES, folder, tokenizer=made.tokenizer, sentences=True)
    frame = Frame.of(made.tokenizer)
    laid = source(tokens, frame=frame, length=length, pairs=pairs, seed=0)
    shown = made.replacement()
    return Rows([laid], frame=frame, masking=masking or Words(), replacement=shown, seed=seed)


# --- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_packed_text_has_the_vectors_that_it_has_alone(words, tmp_path, family):
    made = encoder(words, family).double()  # what is left is no rounding
    sharpen(made)
    data = rows(made, tmp_path)
    batch = data[Index(0, 0.0, np.arange(len(data)))]
    assert batch.piece_T.max() >= len(data), "rows hold several texts"
    hidden_TD = made(batch)
    worst = naive = 0.0
    for piece in batch.piece_T.unique():
        own_T = batch.piece_T == piece
        alone = made.model(input_ids=batch.tokens_T[own_T][None]).logits[0]
        worst = max(worst, float((made.logits(hidden_TD[own_T]) - alone).abs().max()))
    row_T = batch.place_T // batch.width
    for row in row_T.unique():
        leaky = made.model(input_ids=batch.tokens_T[row_T == row][None]).logits[0]
        own = made.logits(hidden_TD[row_T == row])
        naive = max(naive, float((leaky - own).abs().max()))
    assert worst < 1e-6 < 1e-2 < naive


def test_a_deberta_with_a_convolution_is_not_packed(words):
    config = FAMILIES["deberta-v2"] | {"conv_kernel_size": 3}
    assert not fresh(words, model_type="deberta-v2", config=config, seed=0).packs
    assert encoder(words, "deberta-v2").packs


def test_every_piece_is_in_one_row_that_it_fits():
    length_P = np.random.default_rng(0).integers(1, 40, size=500)
    order_P, offsets_R1 = pack(length_P, row=64)
    assert sorted(order_P) == list(range(500))
    filled_R = np.add.reduceat(length_P[order_P], offsets_R1[:-1])
    assert filled_R.max() <= 64 and filled_R.sum() / (64 * len(filled_R)) > 0.97


def test_all_of_a_text_is_cut_into_pieces(words, tmp_path):
    made = encoder(words, "bert")
    tokens = write_tokens(SENTENCES, tmp_path, tokenizer=made.tokenizer)
    pieces = cut(tokens, longest=7)
    taken = np.concatenate(
        [tokens.token_T[a:b] for a, b in zip(pieces.start_P, pieces.end_P, strict=True)]
    )
    assert (taken == tokens.token_T).all() and (pieces.end_P - pieces.start_P).max() == 7
    whole = made.tokenizer(SENTENCES[1], add_special_tokens=False)["input_ids"]
    assert tokens.token_T[tokens.offsets_N1[1] : tokens.offsets_N1[2]].tolist() == whole


# --- what is hidden -----------------------------------------------------------------------------


def test_special_tokens_are_never_hidden_and_a_mask_depends_on_seed_batch_and_row(words, tmp_path):
    made = encoder(words, "bert")
    data = rows(made, tmp_path, Words(rate=0.5))
    everything = data[Index(3, 0.5, np.arange(len(data)))]
    special = set(made.tokenizer.all_special_ids)
    assert not special & set(everything.target_M.tolist())
    alone = data[Index(3, 0.5, np.array([1]))]
    of_row_1 = everything.place_T // everything.width == 1
    assert (everything.tokens_T[of_row_1] == alone.tokens_T).all()
    others = data[Index(4, 0.5, np.array([1]))], rows(made, tmp_path / "other", Words(rate=0.5))
    assert (others[0].hidden_M.tolist()) != alone.hidden_M.tolist()
    other_seed = rows(made, tmp_path / "seed", Words(rate=0.5), seed=1)[Index(3, 0.5, [1])]
    assert other_seed.hidden_M.tolist() != alone.hidden_M.tolist()


def free(n: int, *, word: int = 3, piece: int = 60) -> Free:
    place_F = np.arange(n)
    return Free(begins_F=place_F % word == 0, piece_F=place_F // piece)


def share_hidden(masking: Words, progress: float) -> float:
    random = np.random.default_rng(0)
    return np.mean(
        [len(masking.choose(free(400), random, progress=progress).place_M) for _ in range(200)]
    ) / (400)


@pytest.mark.parametrize("kind", [Words, Spans])
def test_the_rate_is_as_asked_and_falls_over_the_training(kind):
    for progress, rate in ((0.0, 0.30), (0.5, 0.225), (1.0, 0.15)):
        falling = kind(rate=[0.30, 0.15])
        assert falling.rate_at(progress) == pytest.approx(rate)
        assert share_hidden(falling, progress) == pytest.approx(rate, abs=0.01)
    assert share_hidden(Words(whole_words=True), 0.0) == pytest.approx(0.15, abs=0.01)


def test_words_are_hidden_whole():
    random = np.random.default_rng(0)
    hidden = Words(rate=0.3, whole_words=True).choose(free(300), random, progress=0.0)
    assert set(Counter(hidden.place_M // 3).values()) == {3}


def test_spans_are_short_runs_within_a_text_that_are_replaced_alike():
    random = np.random.default_rng(0)
    hidden = Spans(rate=0.3, longest=4).choose(free(3000), random, progress=0.0)
    sizes = []
    for unit in np.unique(hidden.unit_M):
        place = hidden.place_M[hidden.unit_M == unit]
        assert (np.diff(place) == 1).all() and len(set(place // 60)) == 1
        sizes.append(len(place))
    assert max(sizes) == 4 and 1.8 < np.mean(sizes) < 3.0
    shown = Replacement(mask=1, ordinary=np.arange(10, 1000))
    token_M = np.full(len(hidden.place_M), 5)
    told = shown(token_M, hidden.unit_M, random)
    for unit in np.unique(hidden.unit_M):
        fate = told[hidden.unit_M == unit]
        assert (fate == 1).all() or (fate == 5).all() or (fate >= 10).all()


def test_of_ten_hidden_tokens_eight_are_masks_and_one_is_another():
    shown = Replacement(mask=1, ordinary=np.arange(10, 1000))
    n = 20_000
    told = shown(np.full(n, 5), np.arange(n), np.random.default_rng(0))
    assert (told == 1).mean() == pytest.approx(0.8, abs=0.01)
    assert (told >= 10).mean() == pytest.approx(0.1, abs=0.01)


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="rate"):
        Words(rate=1.5)


# --- pairs of sentences -------------------------------------------------------------------------


def test_half_of_the_pairs_follow_and_the_others_are_of_another_text(words, tmp_path):
    made = encoder(words, "bert")
    tokens = write_tokens(SENTENCES * 20, tmp_path, tokenizer=made.tokenizer, sentences=True)
    pieces = pair(tokens, longest=40, seed=0)
    text_T = np.repeat(np.arange(len(tokens.offsets_N1) - 1), np.diff(tokens.offsets_N1))
    follows, elsewhere = pieces.random_P == 0, pieces.random_P == 1
    assert (pieces.start2_P == pieces.end_P)[follows].all()
    assert (text_T[pieces.start2_P] == pieces.text_P)[follows].all()
    assert (text_T[pieces.start2_P] != pieces.text_P)[elsewhere].all()
    assert 0.4 < elsewhere.sum() / (follows | elsewhere).sum() <= 0.5
    sizes = pieces.end_P - pieces.start_P + pieces.end2_P - pieces.start2_P
    assert sizes.max() <= 40
    begins = made.tokenizer.convert_ids_to_tokens(tokens.token_T[pieces.start2_P[follows]])
    assert not any(piece.startswith("##") for piece in begins)


@torch.no_grad()
def test_a_packed_pair_is_asked_as_by_transformers(words, tmp_path):
    made = fresh(words, model_type="bert", config=SMALL, seed=0, next_sentence=True).eval()
    sharpen(made)
    data = rows(made, tmp_path, Words(next_sentence=True), pairs=True)
    batch = data[Index(0, 0.0, np.arange(len(data)))]
    asked = made.next_sentence(made(batch)[batch.first_P])
    assert len(batch.first_P) >= 4
    for p, first in enumerate(batch.first_P):
        own_T = batch.piece_T == batch.piece_T[first]
        tokens, kind = batch.tokens_T[own_T][None], batch.kind_T[own_T][None]
        alone = made.model(input_ids=tokens, token_type_ids=kind).seq_relationship_logits
        assert torch.allclose(asked[p], alone[0], atol=1e-5)
        separators = (tokens == made.tokenizer.sep_token_id).sum()
        assert separators == 2 and kind.max() == 1


def test_only_a_bert_is_asked_for_the_next_sentence(words, tmp_path):
    encoder(words, "roberta").save(tmp_path)
    with pytest.raises(InputError, match="next-sentence"):
        load(tmp_path, next_sentence=True)


# --- loss ---------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers_at_hidden_tokens(words, tmp_path):
    made = encoder(words, "modernbert")
    batch = rows(made, tmp_path, length=20)[Index(0, 0.0, np.array([0]))]
    assert batch.piece_T.max() == 0
    asks = MaskedText(divisor=lambda n, **_: max(n, 1), next_sentence=False)
    labels = torch.full_like(batch.tokens_T, -100)
    labels[batch.hidden_M] = batch.target_M
    theirs = made.model(input_ids=batch.tokens_T[None], labels=labels[None]).loss
    assert torch.isclose(asks(made, batch).loss, theirs, rtol=1e-5)


def test_losses_are_told_text_by_text_and_are_the_same_again(words, tmp_path):
    made = encoder(words, "bert")
    data = rows(made, tmp_path, Words(rate=0.5))
    found = masked_losses(made, loader(data, InOrder(len(data), rows=2)), texts=len(SENTENCES))
    again = masked_losses(made, loader(data, InOrder(len(data), rows=2)), texts=len(SENTENCES))
    assert (found.count_N > 0).all() and np.allclose(found.nats_N, again.nats_N)
    assert found.mean == pytest.approx(np.log(200), rel=0.1), "untrained"


def test_vectors_of_what_was_not_read_stay_as_they_were(words, tmp_path):
    made = encoder(words, "modernbert")
    table = made.model.get_input_embeddings().weight
    before = table.detach().clone()
    tokens = write_tokens(SENTENCES[:1], tmp_path, tokenizer=made.tokenizer)
    made.start_at(tokens)
    changed = (table != before).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == sorted({*tokens.token_T.tolist()})
    assert len(changed) < len(table)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_new_model_begins_at_the_frequencies_of_tokens(words, tmp_path, family):
    torch.manual_seed(0)
    made = encoder(words, family)
    data = rows(made, tmp_path, Words(rate=0.5))
    every = loader(data, InOrder(len(data), rows=2))
    uniform = masked_losses(made, every, texts=len(SENTENCES)).mean
    made.start_at(data.sources[0].tokens)
    assert masked_losses(made, every, texts=len(SENTENCES)).mean < uniform - 0.15
    made.save(tmp_path / "saved")
    again = load(tmp_path / "saved").eval()
    assert masked_losses(again, every, texts=len(SENTENCES)).mean < uniform - 0.15


def test_a_model_without_its_head_is_refused(words, tmp_path):
    made = encoder(words, "bert")
    made.base.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="missing"):
        load(tmp_path)


def test_what_follows_from_the_context_is_learned(tmp_path):
    random = np.random.default_rng(0)
    known = (
        "He has a cough.",
        "She fell on the ice.",
        "A child cries at night.",
        "They went home.",
    )
    texts = [" ".join(known[i] for i in random.integers(4, size=4)) for _ in range(200)]
    words = learn_pieces(texts, kind="wordpiece", size=100, lowercase=False, min_count=2, length=80)
    words.save_pretrained(tmp_path)
    made = encoder(tmp_path, "modernbert")
    tokens = write_tokens(texts, tmp_path / "tokens", tokenizer=words)
    frame = Frame.of(words)
    laid = source(tokens, frame=frame, length=64, pairs=False, seed=0)
    shown = made.replacement()
    data = Rows([laid], frame=frame, masking=Words(), replacement=shown, seed=0)
    every = loader(data, InOrder(len(data), rows=16))
    made.start_at(tokens)
    frequencies_alone = masked_losses(made, every, texts=len(texts)).mean
    asks = MaskedText(divisor=lambda n, **_: max(n, 1), next_sentence=False)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for index in RowSampler([laid.rows], rows=8, batches=120, seed=0):
        loss = asks(made, data[index]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert masked_losses(made, every, texts=len(texts)).mean < frequencies_alone / 2


# --- order --------------------------------------------------------------------------------------


def test_each_row_comes_once_before_any_comes_again_and_a_share_is_general_text():
    sampler = RowSampler([12, 7], rows=4, replay=0.25, seed=0)
    batches = list(sampler)
    assert len(batches) == 4 and [len(b.rows) for b in batches] == [4] * 4
    rows_seen = np.concatenate([b.rows for b in batches])
    assert sorted(rows_seen[rows_seen < 12]) == list(range(12))
    assert (rows_seen >= 12).sum() == 4 and len(set(rows_seen)) == 16


def test_a_batch_depends_on_its_number_alone():
    def batches(start: int = 0, epoch: int = 0) -> list[list[int]]:
        sampler = RowSampler([10, 4], rows=3, batches=5, replay=0.5, epochs=2, seed=1)
        sampler.start = start
        sampler.set_epoch(epoch)
        return [[b.batch, b.progress, *b.rows] for b in sampler]

    assert batches(start=3) == batches()[3:]
    assert batches(epoch=1)[0][:2] == [5, 0.5]
    flat = [row for batch in batches() + batches(epoch=1) for row in batch[2:] if row < 10]
    assert sorted(flat[:10]) == list(range(10))


def test_a_share_without_general_text_is_refused():
    with pytest.raises(InputError, match="general"):
        RowSampler([10], rows=3, replay=0.5, seed=1)


# --- vocabulary and plain text ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_learned_vocabulary_gives_texts_back(tmp_path, kind):
    made = learn_pieces(SENTENCES * 2, kind=kind, size=400, lowercase=False, min_count=2, length=80)
    made.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = again("No fever.")["input_ids"]
    assert [ids[0], ids[-1]] == [again.cls_token_id, again.sep_token_id]
    assert again.decode(ids, skip_special_tokens=True).replace(" ", "") == "Nofever."
    assert again("a [SEP] b", split_special_tokens=True)["input_ids"].count(again.sep_token_id) == 1


def test_a_text_is_in_one_split_wherever_it_stands(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"text number {i % 300}" for i in range(600)), encoding="utf-8")
    split_of: dict[str, set[str]] = {}
    for document in PlainText(file).documents():
        split_of.setdefault(document.text, set()).add(document.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {next(iter(s)) for s in split_of.values()} == {"train", "tuning", "held_out"}
