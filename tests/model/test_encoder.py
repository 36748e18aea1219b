"""The encoder is BERT, and what it says of a subject depends on that subject alone."""

from __future__ import annotations

import pytest
import torch

from medbert.model.encoder import BertEncoder, age_row
from medbert.model.formats.hugging_face import from_hugging_face, to_hugging_face
from medbert.model.layers.attention import LengthGroups
from medbert.schema import Batch, InputError

VOCABULARY, POSITIONS, VISITS = 50, 40, 6


def encoder(**changes: float) -> BertEncoder:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": VOCABULARY, "layers": 2, "heads": 4, "hidden": 32}
    rest = {
        "feed_forward": 48,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "positions": POSITIONS,
        "visits": VISITS,
    }
    built = BertEncoder(**{**sizes, **rest, **changes})
    with torch.no_grad():  # make every weight matter: biases and norms start at 0 and 1
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return built.eval()


def subjects(lengths: list[int], *, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return [
        {
            "tokens": torch.randint(4, VOCABULARY, (length,)),
            "visit": torch.randint(0, 2 * VISITS, (length,)).sort().values,
            "age": torch.rand(length) * 40_000,
        }
        for length in lengths
    ]


def lay(people: list[dict[str, torch.Tensor]]) -> Batch:
    lengths = torch.tensor([0] + [len(person["tokens"]) for person in people])
    return Batch(
        tokens_T=torch.cat([person["tokens"] for person in people]),
        visit_T=torch.cat([person["visit"] for person in people]),
        age_T=torch.cat([person["age"] for person in people]),
        offsets_B1=lengths.cumsum(0),
        rows_B=torch.arange(len(people)),
    )


RAGGED = [7, 20, 1, 0, 19, 33, 7, 40, 18, 2]


def test_published_preset_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        published = BertEncoder(
            vocabulary_size=82_603,
            layers=6,
            heads=6,
            hidden=192,
            feed_forward=64,
            dropout=0.1,
            attention_dropout=0.1,
            positions=512,
            visits=1000,
        )
    assert sum(weight.numel() for weight in published.parameters()) == 17_193_408


def test_starts_as_bert_does() -> None:
    torch.manual_seed(0)
    fresh = BertEncoder(
        vocabulary_size=2000,
        layers=1,
        heads=2,
        hidden=64,
        feed_forward=64,
        dropout=0.0,
        attention_dropout=0.0,
        positions=8,
        visits=8,
    )
    for name, weight in fresh.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not weight.any()
    assert fresh.codes.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert fresh.layers[0].attention.project.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_config_builds_the_same_encoder() -> None:
    built = encoder(ages=5)
    again = BertEncoder(**built.config)
    again.load_state_dict(built.state_dict())
    batch = lay(subjects(RAGGED))
    assert torch.equal(again.eval()(batch), built(batch))


@pytest.mark.parametrize("ages", [0, 30])
def test_neighbours_and_order_do_not_change_a_subject(ages: int) -> None:
    model, people = encoder(ages=ages), subjects(RAGGED)
    alone = [model(lay([person])) for person in people]
    order = torch.randperm(len(people)).tolist()
    together = model(lay(people)).split(RAGGED)
    shuffled = model(lay([people[i] for i in order])).split([RAGGED[i] for i in order])
    for i, own in enumerate(alone):
        torch.testing.assert_close(together[i], own, atol=1e-5, rtol=0)
        torch.testing.assert_close(shuffled[order.index(i)], own, atol=1e-5, rtol=0)


def test_a_subject_gets_no_gradient_from_its_neighbours() -> None:
    model, people = encoder(), subjects([9, 10, 10])
    people[0]["tokens"].fill_(4)
    people[1]["tokens"].fill_(5)
    people[2]["tokens"].fill_(6)
    model(lay(people)).split([9, 10, 10])[1].square().sum().backward()
    touched = model.codes.weight.grad.abs().sum(1).nonzero().squeeze(1)
    assert touched.tolist() == [5]


def test_gradients_are_those_of_subjects_alone() -> None:
    model, people = encoder(), subjects([9, 10, 3, 0])
    model(lay(people)).pow(3).sum().backward()
    together = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    for person in people:
        model(lay([person])).pow(3).sum().backward()
    for weight, grad in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(weight.grad, grad, atol=1e-3, rtol=1e-4)


def test_training_mode_drops_out_and_stays_finite() -> None:
    model, batch = encoder(dropout=0.3).train(), lay(subjects(RAGGED))
    first, second = model(batch), model(batch)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_groups_hold_every_token_once_and_lengths_within_a_tenth() -> None:
    batch = lay(subjects(RAGGED))
    groups = LengthGroups(batch.offsets_B1)
    assert torch.equal(groups.token_P[groups.place_T], torch.arange(sum(RAGGED)))
    real = []
    for index_GL, mask_GL in zip(groups.indices, groups.masks, strict=True):
        mask_GL = torch.ones_like(index_GL, dtype=torch.bool) if mask_GL is None else mask_GL
        assert mask_GL.sum(1).min() >= 0.9 * index_GL.shape[1]
        for row, mask in zip(index_GL, mask_GL, strict=True):
            assert len(batch.subject_T[row].unique()) == 1
            real.append(row[mask])
    assert torch.equal(torch.cat(real).sort().values, torch.arange(sum(RAGGED)))
    assert groups.longest == 40


def test_equal_lengths_need_no_mask() -> None:
    assert LengthGroups(torch.tensor([0, 5, 10, 10, 15])).masks == [None]


def test_a_batch_without_tokens_is_empty() -> None:
    assert encoder()(lay(subjects([0, 0]))).shape == (0, 32)


def test_too_long_a_subject_is_refused() -> None:
    with pytest.raises(ValueError, match="41 codes.*40 positions.*truncate"):
        encoder()(lay(subjects([3, 41])))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="hidden=32 must be a multiple of heads=5"):
        encoder(heads=5)


def test_late_visits_share_the_last_row() -> None:
    model, people = encoder(), subjects([4, 4])
    people[1]["tokens"] = people[0]["tokens"]
    people[0]["visit"], people[1]["visit"] = torch.full((4,), VISITS - 1), torch.full((4,), 999)
    first, second = model(lay(people)).split([4, 4])
    torch.testing.assert_close(first, second)


def test_ages_are_whole_years_held_to_the_table() -> None:
    age_T = torch.tensor([0.0, 365.0, 366.0, 3650.0, 1e6, -3.0, float("nan")])
    assert age_row(age_T, rows=11).tolist() == [0, 0, 1, 9, 9, 0, 10]
    assert encoder(ages=10).ages.num_embeddings == 11


def test_age_matters_only_where_it_is_an_input() -> None:
    people = subjects([5])
    older = [{**people[0], "age": people[0]["age"] + 4000}]
    unknown = [{**people[0], "age": torch.full((5,), float("nan"))}]
    blind, aware = encoder(), encoder(ages=120)
    assert torch.equal(blind(lay(people)), blind(lay(unknown)))
    assert not torch.allclose(aware(lay(people)), aware(lay(older)))
    assert torch.isfinite(aware(lay(unknown))).all()


@pytest.fixture(scope="module")
def bert() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's BERT")
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        type_vocab_size=VISITS,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def hugging_face_hidden(bert: torch.nn.Module, batch: Batch) -> torch.Tensor:
    lengths = batch.lengths_B.tolist()
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad(batch.tokens_T.split(lengths), batch_first=True)
    visit = pad(batch.visit_T.clamp(max=VISITS - 1).split(lengths), batch_first=True)
    mask = torch.arange(tokens.shape[1]) < batch.lengths_B[:, None]
    output = bert(input_ids=tokens, token_type_ids=visit, attention_mask=mask.long())
    return output.last_hidden_state[mask]


def test_equals_a_hugging_face_bert_with_the_same_weights(bert: torch.nn.Module) -> None:
    batch = lay(subjects([length for length in RAGGED if length]))
    ours = from_hugging_face(bert.state_dict(), heads=4).eval()
    expected = hugging_face_hidden(bert, batch)
    torch.testing.assert_close(ours(batch), expected, atol=1e-5, rtol=0)


def test_a_hugging_face_bert_with_our_weights_equals_us(bert: torch.nn.Module) -> None:
    batch = lay(subjects([length for length in RAGGED if length]))
    ours = encoder()
    theirs = type(bert)(bert.config, add_pooling_layer=False).eval()
    theirs.load_state_dict(to_hugging_face(ours))
    torch.testing.assert_close(ours(batch), hugging_face_hidden(theirs, batch), atol=1e-5, rtol=0)


def test_weights_survive_the_way_there_and_back() -> None:
    ours = encoder()
    again = from_hugging_face(to_hugging_face(ours), heads=4, dropout=0.1)
    assert again.config == ours.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_converting_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(InputError, match="ages=9"):
        to_hugging_face(encoder(ages=9))
    whole = to_hugging_face(encoder())
    pooled = {"pooler.dense.weight": torch.zeros(32, 32), "pooler.dense.bias": torch.zeros(32)}
    from_hugging_face({**whole, **pooled, "embeddings.position_ids": torch.zeros(1, 40)}, heads=4)
    key = "encoder.layer.1.output.dense.bias"
    with pytest.raises(InputError, match="missing encoder.layer.1.output.dense.bias"):
        from_hugging_face({k: v for k, v in whole.items() if k != key}, heads=4)
    with pytest.raises(InputError, match="unknown cls.predictions.bias"):
        from_hugging_face({**whole, "cls.predictions.bias": torch.zeros(50)}, heads=4)
    with pytest.raises(InputError, match=r"layers.1.narrow.bias has shape \(3,\)"):
        from_hugging_face({**whole, key: torch.zeros(3)}, heads=4)
    with pytest.raises(InputError, match="not the weights of a BertModel: 0 layers"):
        from_hugging_face({}, heads=4)
