"""Encoders go to a BertModel and come back; Med-BERT's own checkpoint comes in."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import medbert
from medbert import Encoder, InputError
from medbert.data.vocabulary import Vocabulary
from medbert.model.checkpoint import load_module, read_config, save_module
from medbert.model.encoder import BertEncoder
from medbert.model.formats.tensorflow import read_tensors
from medbert.schema import MASK, PAD, SPECIAL_TOKENS, UNK, Batch

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TENSORFLOW = FIXTURES / "tensorflow_bert"  # written by TensorFlow, of google-research/bert
INDEX = "model.ckpt-45.index"
TYPES = {
    "empty_pad": 0,
    **{f"ICD9_{250 + i}.0": i for i in range(1, 8)},
    **{f"ICD10_C5{i}": i for i in range(8, 12)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder without ages, as encoder=medbert has none."""
    vocabulary = Vocabulary.load(FIXTURES / "encoder_format_1" / "bert")
    torch.manual_seed(5)
    encoder = BertEncoder(
        vocabulary_size=len(vocabulary),
        layers=2,
        heads=2,
        hidden=8,
        feed_forward=12,
        dropout=0.2,
        attention_dropout=0.3,
        positions=16,
        visits=6,
    )
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    (tmp_path / "encoder").mkdir()
    extra = {"vocabulary_sha256": vocabulary.sha256, "trained_on": {"sha256": "1"}}
    save_module(tmp_path / "encoder", modules={"encoder": encoder}, extra=extra)
    vocabulary.save(tmp_path / "encoder" / "vocabulary.parquet")
    return tmp_path / "encoder"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with a TensorFlow checkpoint and its dictionary."""
    shutil.copytree(TENSORFLOW, tmp_path / "tf1")
    (tmp_path / "tf1" / "codes.types").write_bytes(pickle.dumps(TYPES, 2))
    return tmp_path / "tf1"


def hidden(module: torch.nn.Module, tokens: list[int], visits: list[int]) -> torch.Tensor:
    ages, offsets = torch.full((len(tokens),), torch.nan), torch.tensor([0, len(tokens)])
    batch = Batch(torch.tensor(tokens), torch.tensor(visits), ages, offsets, torch.tensor([0]))
    with torch.inference_mode():
        return module.eval()(batch)


def test_to_a_bert_model_and_back(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_module(folder, "encoder")
    theirs = medbert.convert(path=folder, to="huggingface", out=tmp_path / "bert")
    files = {"config.json", "model.safetensors", "vocabulary.parquet"}
    assert {file.name for file in theirs.iterdir()} == files
    model, told = transformers.BertModel.from_pretrained(
        theirs, add_pooling_layer=False, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokens, visits = [4, 7, 9, 5, 11], [0, 1, 2, 3, 5]
    with torch.inference_mode():
        said = model.eval()(torch.tensor([tokens]), token_type_ids=torch.tensor([visits]))
    expected = hidden(ours, tokens, visits)
    torch.testing.assert_close(said.last_hidden_state[0], expected, atol=1e-5, rtol=0)
    shutil.copy(theirs / "vocabulary.parquet", tmp_path)
    model.save_pretrained(theirs)  # as transformers itself writes it
    back = medbert.convert(path=theirs, to="encoder", out=tmp_path / "back")
    again = Encoder.from_pretrained(back)
    assert again.module.config == ours.config
    assert again.config["trained_on"] == {"sha256": "1"}
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name


def test_a_bert_model_with_a_head_comes_in_with_the_dictionary_of_codes(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = json.loads((checkpoint / "bert_config.json").read_text())
    model = transformers.BertForPreTraining(transformers.BertConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "bert")
    given = {"path": tmp_path / "bert", "to": "encoder", "types": checkpoint / "codes.types"}
    encoder = Encoder.from_pretrained(medbert.convert(**given, out=tmp_path / "encoder"))
    numbers, visits = [3, 5, 10], [1, 1, 2]
    with torch.inference_mode():
        said = model.bert(torch.tensor([numbers]), token_type_ids=torch.tensor([visits]))
    places = [number + len(SPECIAL_TOKENS) - 1 for number in numbers]
    found = hidden(encoder.module, places, visits)
    torch.testing.assert_close(found, said.last_hidden_state[0], atol=1e-5, rtol=0)


def test_a_tensorflow_checkpoint_says_what_tensorflow_says(checkpoint, tmp_path):
    given = {"to": "encoder", "types": checkpoint / "codes.types"}
    out = medbert.convert(path=checkpoint, **given, out=tmp_path / "encoder")
    encoder = Encoder.from_pretrained(out)
    codes = encoder.vocabulary.codes
    assert codes[4:7] == ("ICD9CM/251.0", "ICD9CM/252.0", "ICD9CM/253.0")
    assert codes[11:] == ("ICD10CM/C58", "ICD10CM/C59", "ICD10CM/C51.0", "ICD10CM/C51.1")
    expected = json.loads((TENSORFLOW / "expected.json").read_text())
    for numbers, visits, said in zip(
        *(expected[k] for k in ("ids", "visits", "hidden")), strict=True
    ):
        places = [number + len(SPECIAL_TOKENS) - 1 for number in numbers]
        found = hidden(encoder.module, places, visits)
        torch.testing.assert_close(found, torch.tensor(said), atol=1e-5, rtol=0)
    rows = encoder.module.codes.weight
    assert torch.equal(rows[PAD], rows[MASK])
    torch.testing.assert_close(rows[UNK], rows[len(SPECIAL_TOKENS) :].mean(0))
    assert encoder.vocabulary.encode(["GENDER//F", "ICD9CM/251.0"]).tolist() == [-1, 4]
    by_name = medbert.convert(path=checkpoint / INDEX, **given, out=tmp_path / "by_name")
    assert read_config(by_name)["weights_sha256"] == read_config(out)["weights_sha256"]


def test_of_two_spellings_of_a_code_the_first_counts(checkpoint, tmp_path):
    typed(checkpoint, {"DIAGNOSIS//ICD//9//2520": 4, "ICD9_252.0": 2, "DRUG/1": 5})
    given = {"to": "encoder", "types": checkpoint / "codes.types"}
    folder = medbert.convert(path=checkpoint, **given, out=tmp_path / "encoder")
    vocabulary, table = Vocabulary.load(folder), load_module(folder, "encoder").codes.weight
    name = "bert/embeddings/word_embeddings"
    rows = read_tensors(TENSORFLOW / INDEX, lambda found: found == name)[name]
    assert vocabulary.codes == (*SPECIAL_TOKENS, "ICD9CM/252.0", "DRUG/1")
    np.testing.assert_array_equal(table.detach()[len(SPECIAL_TOKENS) :], rows[[2, 5]])
    assert vocabulary.encode(["LAB//1", "MEDS_BIRTH"]).tolist() == [UNK, -1]


def test_an_imported_encoder_reads_a_store(checkpoint, make_store, tmp_path):
    from conftest import records_of

    given = {"to": "encoder", "types": checkpoint / "codes.types"}
    folder = medbert.convert(path=checkpoint, **given, out=tmp_path / "encoder")
    vocabulary = Vocabulary.load(folder)
    events = [
        (1, "2020-01-01", "ICD9CM/253.0"),
        (1, "2021-01-01", "ICD9CM/255.0"),
        (1, "2021-01-01", "GENDER//F"),
    ]
    store = make_store(records_of(events), vocabulary=vocabulary)
    found = Encoder.from_pretrained(folder).embed(store=store)
    alone = hidden(load_module(folder, "encoder"), [6, 8], [1, 2]).mean(0)
    np.testing.assert_allclose(found.to_numpy()[0], alone, atol=1e-5)


def test_of_a_checkpoint_only_what_is_wanted_is_read():
    found = read_tensors(TENSORFLOW / INDEX, lambda name: name.endswith("/adam_m"))
    assert {name: array.shape for name, array in found.items()} == {
        "bert/embeddings/word_embeddings/adam_m": (12, 8)
    }
    with pytest.raises(InputError, match="no float32"):
        read_tensors(TENSORFLOW / INDEX, lambda name: name == "global_step")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / INDEX).write_bytes((f / INDEX).read_bytes()[:-9]), "truncated"),
        (lambda f: cut(f / INDEX.replace("index", "data-00000-of-00001")), "is truncated"),
        (lambda f: (f / INDEX.replace("index", "data-00000-of-00001")).unlink(), "No such file"),
        (lambda f: (f / "bert_config.json").unlink(), "bert_config.json: cannot be read"),
        (lambda f: configured(f, hidden_act="relu"), "hidden_act=relu"),
        (lambda f: configured(f, num_attention_heads=3), "does not divide"),
        (lambda f: shutil.copy(f / INDEX, f / "other.index"), "name the .index of one"),
        (lambda f: typed(f, {"ICD9_250.0": 12}), "not the dictionary of a model with 12 codes"),
        (lambda f: typed(f, np.float64(1)), "the pickle asks for"),
        (lambda f: (f / INDEX).unlink(), "cannot be read"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, spoil, words):
    spoil(checkpoint)
    with pytest.raises(InputError, match=words) as error:
        given = {"to": "encoder", "types": checkpoint / "codes.types"}
        medbert.convert(path=checkpoint, **given, out=tmp_path / "encoder")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("encoder*"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1_000])


def configured(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "bert_config.json").read_text())
    (folder / "bert_config.json").write_text(json.dumps(config | changes))


def typed(folder: Path, content: object) -> None:
    (folder / "codes.types").write_bytes(pickle.dumps(content))


def test_damage_anywhere_in_an_index_is_an_input_error(checkpoint):
    whole = (checkpoint / INDEX).read_bytes()
    random = np.random.default_rng(0)
    for place, value in zip(random.integers(len(whole), size=100), random.bytes(100), strict=True):
        (checkpoint / INDEX).write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            read_tensors(checkpoint / INDEX, lambda name: name.startswith("bert/"))
        except InputError as error:
            assert "\n" not in str(error)


def test_what_cannot_be_converted_is_said(folder, checkpoint, tmp_path):
    causal = FIXTURES / "encoder_format_1" / "causal"
    aged = FIXTURES / "encoder_format_1" / "bert"
    bert = medbert.convert(path=folder, to="huggingface", out=tmp_path / "bert")
    (tmp_path / "pickled").mkdir()
    shutil.copy(bert / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    swapped = shutil.copytree(bert, tmp_path / "swapped")
    shutil.copy(aged / "vocabulary.parquet", swapped)
    told = json.loads((swapped / "config.json").read_text())
    told["medbert"]["vocabulary_sha256"] = "0" * 64
    (swapped / "config.json").write_text(json.dumps(told))
    for path, to, words in (
        (tmp_path / "nowhere", "encoder", "neither the folder of a BertModel"),
        (folder, "keras", "choose one of encoder, huggingface, onnx"),
        (causal, "huggingface", "a ModernEncoder is no BertModel; say to=onnx"),
        (aged, "huggingface", "ages=4"),
        (checkpoint, "encoder", "say types=FILE"),
        (folder, "encoder", "not that of a BertModel"),
        (tmp_path / "pickled", "encoder", "a pickle, which is not opened"),
        (swapped, "encoder", "not that of this BertModel"),
        (bert, "onnx", "a Hugging Face model"),
    ):
        with pytest.raises(InputError, match=words):
            medbert.convert(path=path, to=to, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="query: say store=FOLDER too"):
        medbert.convert(path=causal, to="onnx", query="ICD10CM/I10", out=tmp_path / "out")
