"""What leaves the house, what is refused at the door, and that old folders still open."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medbert import Encoder, InputError
from medbert.commands.convert import vocabulary_of
from medbert.data.vocabulary import Vocabulary
from medbert.library.encoder import SHARED
from medbert.model.hazards import foretell
from medbert.model.heads import pool
from medbert.schema import Batch

FORMAT_1 = Path(__file__).resolve().parents[1] / "fixtures" / "encoder_format_1"
SHIPPED = Path(__file__).resolve().parents[2] / "data_synthetic" / "encoder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder with all that `pretrain` and the audit leave in it."""
    folder = tmp_path / "here" / "encoder"
    shutil.copytree(FORMAT_1 / "bert", folder)
    settings = {"store": "/srv/ward7/store", "out": "/srv/ward7/encoder", "max_tokens": 16}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "environment.json").write_text('{"system": "ward7"}')
    metrics = {"tuning/masked_code": 2.25, "by_chance": {"unigram": 4.5}, "by_frequency": [{}]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "checkpoints").mkdir()
    return folder


def test_the_encoder_that_is_shipped_opens_and_says_that_its_audit_was_passed():
    assert Encoder.from_pretrained(SHIPPED).module.hazards is not None
    assert "| Audit | pass |" in (SHIPPED / "README.md").read_text(encoding="utf-8")


def audited(folder: Path, verdict: str, *, weights: str | None = None) -> None:
    """As `medbert audit` writes it."""
    weights = weights or json.loads((folder / "config.json").read_text())["weights_sha256"]
    checks = [{"check": "rare codes", "verdict": verdict, "says": "0 of 12 | 5", "value": 1}]
    audit = {"verdict": verdict, "weights_sha256": weights, "findings": checks}
    (folder / "audit.json").write_text(json.dumps(audit))


def batch_of(said: dict) -> Batch:
    """Subjects as expected.json lays them end to end."""

    def days(values: list[float | None]) -> torch.Tensor:
        return torch.tensor([torch.nan if value is None else value for value in values])

    return Batch(
        tokens_T=torch.tensor(said["tokens"]),
        visit_T=torch.tensor(said["visits"]),
        age_T=days(said["ages"]),
        offsets_B1=torch.tensor(said["offsets"]),
        rows_B=torch.arange(3),
        sex_B=torch.tensor(said["sex"]),
        end_B=days(said["end"]),
    )


@pytest.mark.parametrize("name", ["bert", "causal"])
def test_a_folder_of_format_1_opens_and_says_what_it_said(name):
    expected = json.loads((FORMAT_1 / "expected.json").read_text())
    encoder, batch = Encoder.from_pretrained(FORMAT_1 / name), batch_of(expected)
    assert encoder.vocabulary.sha256 == expected["vocabulary_sha256"]
    with torch.inference_mode():
        mean = pool(encoder.module(batch), batch, "mean")
        torch.testing.assert_close(mean, torch.tensor(expected[name]), atol=1e-5, rtol=0)
        if name == "causal":
            asked = {"tokens": torch.tensor([6]), "gap": 0.0, "window": 365.0}
            risk = foretell(encoder.module, batch, **asked).sigmoid()
            # no code comes more often than once a day since then: a thousandth less
            torch.testing.assert_close(risk, torch.tensor(expected["risk"]), atol=1e-3, rtol=0)


# --- what is passed on --------------------------------------------------------------------------


def test_only_what_may_be_passed_on_is_written(folder, tmp_path):
    encoder = Encoder.from_pretrained(folder)
    shared = encoder.save_pretrained(tmp_path / "shared", license="cc-by-4.0")
    assert sorted(file.name for file in shared.iterdir()) == sorted(SHARED)
    assert len({file.stat().st_mode for file in shared.iterdir()}) == 1, "all may be read alike"
    for file in shared.iterdir():
        assert b"ward7" not in file.read_bytes() and b"/srv" not in file.read_bytes()
    own, passed = encoder.vocabulary, Vocabulary.load(shared)
    assert passed.sha256 == own.sha256 and passed.titles == own.titles
    for counts, exact in ((passed.counts, own.counts), (passed.n_subjects, own.n_subjects)):
        assert ((counts % 10 == 0) | (counts == 1)).all() and (counts <= exact).all()
        assert (exact - counts < 10).all() and (counts == 0).sum() == (exact == 0).sum()
    card = (shared / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: medbert\nlicense: cc-by-4.0\n")
    assert "| masked_code | 2.25 |" in card and "| by chance: unigram | 4.5 |" in card
    assert "3 of ICD10CM" in card and "$" not in card
    with pytest.raises(InputError, match="overwrite=true"):
        encoder.save_pretrained(shared)


def test_what_was_passed_on_is_the_same_encoder_and_can_be_passed_on(folder, tmp_path):
    audited(folder, "pass")
    first = Encoder.from_pretrained(folder)
    second = Encoder.from_pretrained(first.save_pretrained(tmp_path / "1", data_statement="Mine."))
    for key, weight in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[key], weight)
    assert second.settings["max_tokens"] == 16
    third = second.save_pretrained(tmp_path / "2")
    for name in SHARED:
        assert (third / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name
    assert "Mine." in (third / "README.md").read_text()


def test_the_card_tells_the_audit_of_these_weights_and_of_no_others(folder, tmp_path):
    def card(encoder: Encoder, name: str) -> str:
        return (encoder.save_pretrained(tmp_path / name) / "README.md").read_text()

    assert "**NO AUDIT." in card(Encoder.from_pretrained(folder), "none")
    audited(folder, "fail")
    assert "**THE AUDIT SAYS: fail." in card(Encoder.from_pretrained(folder), "failed")
    audited(folder, "pass")
    encoder = Encoder.from_pretrained(folder)
    passed = card(encoder, "passed")
    assert "was passed" in passed and "**" not in passed
    assert "| rare codes | pass | 0 of 12 / 5 |" in passed
    with torch.no_grad():
        encoder.module.norm.bias += 1
    changed = card(encoder, "changed")
    assert "**NO AUDIT." in changed and "2.25" not in changed
    audited(folder, "pass", weights="0" * 64)
    assert "**NO AUDIT." in card(Encoder.from_pretrained(folder), "of others")


def test_a_promise_of_privacy_holds_for_these_weights_only(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    promise = {"epsilon": 7.96, "delta": 1e-5, "unit": "subject", "not_covered": ["vocabulary"]}
    (folder / "config.json").write_text(json.dumps({**config, "privacy": promise}))
    encoder = Encoder.from_pretrained(folder)
    first = encoder.save_pretrained(tmp_path / "1")
    assert "epsilon 7.96, delta 1e-05; not covered: vocabulary" in (first / "README.md").read_text()
    assert Encoder.from_pretrained(first).config["privacy"] == promise
    with torch.no_grad():
        encoder.module.norm.bias += 1
    changed = encoder.save_pretrained(tmp_path / "2")
    assert "epsilon" not in (changed / "README.md").read_text()
    assert "privacy" not in Encoder.from_pretrained(changed).config


# --- a hub --------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as takes up files and gives them back."""

    files: dict[str, bytes] = {}
    private: bool | None = None
    address = ""

    def log_message(self, *_: object) -> None: ...

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._answer(json.dumps(content).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            if Hub.private is None:
                Hub.private = b"private" in body
            self._json({"url": f"{Hub.address}/ward/model"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": file["path"], **how} for file in asked]})
        elif "/commit/" not in self.path:  # the front matter of the card is looked at
            self._json({"warnings": [], "errors": []})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    Hub.files[line["value"]["path"]] = content
            done = {"commitUrl": f"{Hub.address}/ward/model/commit/1", "commitOid": "1" * 40}
            self._json({**done, "pullRequestUrl": None})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(c)} for name, c in Hub.files.items()]
            told = {"id": "ward/model", "sha": "1" * 40, "private": Hub.private, "tags": []}
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": "2" * 40}
                for n, c in Hub.files.items()
            ]
            self._json(tree if "/tree/" in self.path else {**told, "siblings": siblings})
        elif (name := self.path.rpartition("/")[2]) not in Hub.files:
            self.send_error(404)
        else:
            content = Hub.files[name]
            tag = hashlib.sha256(content).hexdigest()
            self._answer(content, ETag=f'"{tag}"', X_Repo_Commit="1" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.private = {}, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    template = Hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", Hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield Hub
    server.shutdown()
    server.server_close()


def test_only_an_audited_encoder_goes_to_a_hub_and_comes_back(folder, tmp_path, hub):
    encoder = Encoder.from_pretrained(folder)
    with pytest.raises(InputError, match="nothing was uploaded.* says: none.*unaudited=True"):
        encoder.push_to_hub("ward/model", token="t")
    assert hub.private is None
    audited(folder, "pass")
    encoder = Encoder.from_pretrained(folder)
    assert encoder.push_to_hub("ward/model", token="t").endswith("/commit/1")
    assert hub.private and sorted(hub.files) == sorted(SHARED)
    hub.files["evil.py"] = b"raise SystemExit"
    again = Encoder.from_pretrained("ward/model", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("evil.py"))
    for key, weight in encoder.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[key], weight)
    assert again.facts["audit"]["verdict"] == "pass"
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-1]
    with pytest.raises(InputError, match="truncated or changed"):
        Encoder.from_pretrained("ward/model", cache_dir=tmp_path / "other")


def test_a_public_repository_is_not_taken_for_a_private_one(folder, hub):
    hub.private = False
    with pytest.raises(InputError, match="is public; say private=False"):
        Encoder.from_pretrained(folder).push_to_hub("ward/model", unaudited=True, token="t")
    assert not hub.files


def test_a_repository_that_cannot_be_had_is_said_in_one_line(tmp_path):
    for name, words in (
        (tmp_path / "nowhere", "no such folder; name one"),
        ("ward/model", "ward/model: no such folder, and not to be had"),
    ):
        with pytest.raises(InputError, match=words) as error:
            Encoder.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
        assert "\n" not in str(error.value)


# --- at the door --------------------------------------------------------------------------------


def edited(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["arguments"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def swapped(folder: Path) -> None:
    table = pq.read_table(folder / "vocabulary.parquet")
    codes = table["code"].to_pylist()
    codes[4], codes[5] = codes[5], codes[4]
    pq.write_table(table.set_column(1, "code", [codes]), folder / "vocabulary.parquet")


def pickled(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps({"encoder.norm.bias": np.zeros(8)}))
    text = (FORMAT_1 / "bert" / "config.json").read_text()  # of a writer who made hashes, too
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = {**json.loads(text), "weights_sha256": digest}
    (folder / "config.json").write_text(json.dumps(config))


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swapped, "vocabulary.parquet: not the vocabulary of this encoder"),
        (lambda f: (f / "vocabulary.parquet").write_text("no"), "not a vocabulary"),
        (lambda f: (f / "vocabulary.parquet").unlink(), "not a vocabulary"),
        (lambda f: edited(f, heads=4), "config.json: changed since it was written"),
        (lambda f: edited(f, hidden=10**12), "config.json: changed since it was written"),
        (lambda f: (f / "config.json").write_text('{"format": 2}'), "reads format 1; install"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99), "truncated or changed"),
        (pickled, "model.safetensors: not a safetensors file"),
        (foreign, "a Hugging Face model .bert.*medbert convert"),
        (emptied, "config.json: cannot be read.*medbert pretrain"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(folder, tmp_path, spoil, words):
    shared = Encoder.from_pretrained(folder).save_pretrained(tmp_path / "shared")
    vocabulary_of(shared)
    spoil(shared)
    with pytest.raises(InputError, match=words) as error:
        Encoder.from_pretrained(shared)
    assert "\n" not in str(error.value) and str(shared) in str(error.value)


@pytest.mark.parametrize("name", ["bert", "causal"])
def test_transformers_opens_it_by_itself(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    import medbert.library.hugging_face  # noqa: F401

    encoder = Encoder.from_pretrained(FORMAT_1 / name)
    model = transformers.AutoModel.from_pretrained(encoder.save_pretrained(tmp_path / "shared"))
    said = json.loads((FORMAT_1 / "expected.json").read_text())
    batch = batch_of(said)
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = batch.lengths_B[:2].tolist()
    tokens, visits, ages = (
        pad(values.split(lengths), batch_first=True)
        for values in (batch.tokens_T, batch.visit_T, batch.age_T)
    )
    mask = torch.arange(tokens.shape[1]) < batch.lengths_B[:2, None]
    with torch.inference_mode():
        told = model.eval()(tokens, mask.long(), visits, ages, batch.sex_B[:2]).last_hidden_state
        torch.testing.assert_close(told[mask], encoder.module(batch), atol=1e-5, rtol=0)
    assert not told[~mask].any()
    theirs, ours = dict(model.encoder.named_buffers()), dict(encoder.module.named_buffers())
    assert theirs.keys() == ours.keys() and all(theirs[k].equal(ours[k]) for k in ours)
