from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import EVERY_CODE, records_of

from medbert.commands.vocabulary_extend import _extended, vocabulary_extend
from medbert.data.vocabulary import Vocabulary
from medbert.model.checkpoint import load_module, save_module
from medbert.model.encoder import BertEncoder
from medbert.schema import UNK, Batch, InputError

HERE = ["ICD10CM/E11", "ICD10CM/I10.1", "ICD10CM/I10.2", "ATC/A10BA02"]
THERE = {  # code: subjects
    "ICD10CM/E11": 6,
    "ICD10CM/E11.21": 5,
    "ICD10CM/I10.9": 5,
    "LAB//1": 4,
    "RARE": 2,
}


def history(codes: dict[str, int]) -> list[tuple]:
    return [(i, "2020-01-01", code) for code, n in codes.items() for i in range(n)]


@pytest.fixture(params=[False, True], ids=["unknown", "roll_up"])
def site(request, make_store, tmp_path) -> tuple[Path, Path]:
    """An encoder of one place, and a store of another that was prepared with its vocabulary."""
    rule = EVERY_CODE.__class__(**{**vars(EVERY_CODE), "roll_up": request.param})
    first = make_store(records_of(history(dict.fromkeys(HERE, 3))), name="first", vocabulary=rule)
    encoder = BertEncoder(
        vocabulary_size=len(first.vocabulary),
        layers=1,
        heads=2,
        hidden=8,
        feed_forward=8,
        dropout=0.1,
        attention_dropout=0.1,
        positions=8,
        visits=4,
    )
    folder = tmp_path / "encoder"
    folder.mkdir()
    extra = {"vocabulary_sha256": first.vocabulary.sha256, "note": "kept"}
    save_module(folder, modules={"encoder": encoder}, extra=extra)
    first.vocabulary.save(folder / "vocabulary.parquet")
    second = make_store(
        records_of(history(THERE)), name="second", vocabulary=Vocabulary.load(folder)
    )
    return folder, second.folder


def extended(site: tuple[Path, Path], **settings) -> Path:
    folder, store = site
    wanted = {"min_subjects": 4, "out": str(folder.parent / "new"), "overwrite": False}
    return vocabulary_extend(
        encoder_dir=str(folder), store=str(store), **{**wanted, **settings}, settings={}
    )


def output(encoder: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    tokens_T = torch.tensor(tokens)
    batch = Batch(
        tokens_T=tokens_T,
        visit_T=torch.ones_like(tokens_T),
        age_T=torch.full(tokens_T.shape, torch.nan),
        offsets_B1=torch.tensor([0, len(tokens)]),
        rows_B=torch.tensor([0]),
    )
    with torch.inference_mode():
        return encoder.eval()(batch)


def test_old_codes_keep_their_tokens_and_outputs(site):
    out = extended(site)
    old, new = Vocabulary.load(site[0]), Vocabulary.load(out)
    assert new.codes[: len(old)] == old.codes
    assert new.codes[len(old) :] == ("ICD10CM/E11.21", "ICD10CM/I10.9", "LAB//1")
    assert new.n_subjects[len(old) :].tolist() == [5, 5, 4]
    tokens = list(range(1, len(old)))
    before, after = load_module(site[0], "encoder"), load_module(out, "encoder")
    assert torch.equal(output(before, tokens), output(after, tokens))
    config = json.loads((out / "config.json").read_text())
    assert config["vocabulary_sha256"] == new.sha256 and config["note"] == "kept"


def test_a_new_code_starts_as_the_nearest_code_above_it(site):
    out = extended(site)
    vocabulary, encoder = Vocabulary.load(out), load_module(out, "encoder")
    child, parent, other = vocabulary.encode(["ICD10CM/E11.21", "ICD10CM/E11", "ATC/A10BA02"])
    assert torch.equal(output(encoder, [other, child]), output(encoder, [other, parent]))


def test_without_a_code_above_it_starts_as_the_mean_of_its_kin_or_as_unknown(site):
    out = extended(site)
    vocabulary = Vocabulary.load(out)
    vectors = load_module(out, "encoder").codes.weight
    new, lab, *kin = vocabulary.encode(["ICD10CM/I10.9", "LAB//1", *HERE[1:3]])
    assert torch.allclose(vectors[new], vectors[kin].mean(dim=0))
    assert torch.equal(vectors[lab], vectors[UNK])


def test_the_report_says_what_was_saved(site):
    told = json.loads((extended(site) / "vocabulary_report.json").read_text())
    roll_up = Vocabulary.load(site[0]).rule.roll_up
    assert told["codes_added"] == 3 and told["events"] == sum(THERE.values())
    assert told["events_from_unknown"] == (9 if roll_up else 14)
    assert told["events_from_roll_up"] == (5 if roll_up else 0)
    assert told["unknown_share_after"] == pytest.approx(2 / 22, abs=1e-6)
    kinds = ("started_at_one_code", "started_at_a_mean", "started_at_unknown")
    assert [told[kind] for kind in kinds] == [1, 1, 1]


def test_the_new_site_encodes_with_it(site, make_store):
    vocabulary = Vocabulary.load(extended(site))
    store = make_store(records_of(history(THERE)), name="third", vocabulary=vocabulary)
    assert store.info["counts"]["unknown_share"] == pytest.approx(2 / 22, abs=1e-6)


def test_rare_codes_are_not_added(site):
    with pytest.raises(InputError, match="in 9 or more training subjects"):
        extended(site, min_subjects=9)


def test_a_store_of_another_vocabulary_is_refused(site, make_store):
    other = make_store(records_of(history(THERE)), name="other")
    with pytest.raises(InputError, match=r"vocabulary=.*encoder"):
        extended((site[0], other.folder))


def test_all_that_the_vocabulary_sizes_grows():
    class Head(torch.nn.Module):
        def __init__(self, *, vocabulary_size: int, width: int) -> None:
            super().__init__()
            self.config = {"vocabulary_size": vocabulary_size, "width": width}
            self.output = torch.nn.Linear(width, vocabulary_size)

    head = Head(vocabulary_size=5, width=5)  # as wide as the vocabulary
    larger = _extended(head, [[4], [1, 3]])
    assert larger.output.weight.shape == (7, 5) and larger.output.bias.shape == (7,)
    assert torch.equal(larger.output.bias[5], head.output.bias[4])
    assert torch.equal(larger.output.weight[:5], head.output.weight)
