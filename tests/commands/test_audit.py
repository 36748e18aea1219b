"""An encoder that remembers its subjects is told from one that does not, and nothing else leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import medbert
from medbert import InputError, Store
from medbert.commands.encoders.trained_on import training_set
from medbert.commands.privacy.disclosures import disclosures
from medbert.model import checkpoint
from medbert.schema import SPECIAL_TOKENS, TRAIN

TRAINED, OTHERS, CODES, LENGTH = 60, 320, 60, 16
DAY_US = 86_400_000_000
SMALL = ("encoder.hidden=48", "encoder.layers=1", "encoder.dropout=0", "optimizer.lr=1e-2")
QUICK = {"draws": 4, "alternatives": 127, "resamples": 200, "min_subjects": 3}


def write_events(folder: Path) -> None:
    """Random codes: all that can be learned of them is by heart."""
    random = np.random.default_rng(0)
    codes = random.integers(0, CODES, (TRAINED + OTHERS, LENGTH))
    days = 40 * np.arange(LENGTH) + random.integers(0, 900, (TRAINED + OTHERS, 1))
    ids = 1_000_000 + np.arange(len(codes))
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    events = {
        "subject_id": np.repeat(ids, LENGTH),
        "time": (10**15 + days.ravel() * DAY_US).astype("datetime64[us]"),
        "code": [f"C{code}" for code in codes.ravel()],
    }
    pq.write_table(pa.table(events), folder / "data" / "0.parquet")
    split = np.repeat(["train", "held_out", "tuning"], [TRAINED, OTHERS - 20, 20])
    splits = pa.table({"subject_id": ids, "split": split})
    pq.write_table(splits, folder / "metadata" / "subject_splits.parquet")


def pretrain(made: Path, name: str, epochs: int, *words: str) -> None:
    medbert.pretrain(
        *SMALL,
        "objective.rate=0.3",  # of 16 codes and 4 draws: losses of enough codes to tell
        f"+trainer.check_val_every_n_epoch={epochs}",  # so that the last weights are kept
        *words,
        store=made / "planted",
        encoder="tiny",
        objective="masked_code",
        batch_tokens=256,
        trainer={"max_epochs": epochs, "accelerator": "cpu"},
        out=made / name,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """store/, planted/ (with canaries) and two encoders of it: heart/, that knows it by heart, and
    begun/, that has hardly seen it: not even how common each code is."""
    folder = tmp_path_factory.mktemp("made")
    write_events(folder / "events")
    medbert.prepare(
        "source=meds", f"source.path={folder}/events", "rule.min_subjects=3", out=folder / "store"
    )
    medbert.audit_plant(
        store=folder / "store", n_canaries=3, n_codes=6, repeats=[1, 16], out=folder / "planted"
    )
    pretrain(folder, "heart", 60)
    pretrain(folder, "begun", 1, "objective.start_at_unigram=false", "optimizer.lr=1e-4")
    return folder


def audited(made: Path, name: str, **settings) -> dict:
    where = {"store": made / "planted", "encoder_dir": made / name, "out": made / f"of_{name}"}
    out = medbert.audit(**{**where, **QUICK, "overwrite": True, **settings})
    return json.loads((out / "audit.json").read_text())


def test_canaries_are_a_few_training_subjects_more_and_nothing_else_changes(made):
    before, after = Store(made / "store"), Store(made / "planted")
    told = json.loads((made / "planted" / "canaries.json").read_text())["canaries"]
    assert [len(one["subject_ids"]) for one in told] == [1] * 3 + [16] * 3
    assert len(after) == len(before) + 3 * 17
    assert np.array_equal(after.subject_ids[: len(before)], before.subject_ids)
    assert after.vocabulary.sha256 == before.vocabulary.sha256
    for one in told:
        rows = after.rows_of(np.array(one["subject_ids"]))
        assert set(after.split_of_row[rows]) == {TRAIN}
        tokens = after.history(rows).token_T.reshape(len(rows), -1)
        assert (tokens == one["tokens"]).all() and len(set(one["tokens"])) == 6
    n_subjects = before.vocabulary.n_subjects
    usual = np.median(n_subjects[len(SPECIAL_TOKENS) :])
    assert min(n_subjects[one["tokens"]].min() for one in told) >= usual  # of no rare outcome
    with pytest.raises(InputError, match="canaries already"):
        medbert.audit_plant(store=made / "planted", out=made / "again")


def test_splits_by_a_hash_of_the_id_stay_such(tmp_path):
    medbert.synthesize(n_subjects=200, seed=1, out=tmp_path / "events")
    medbert.prepare("source=meds", f"source.path={tmp_path}/events", out=tmp_path / "store")
    medbert.audit_plant(store=tmp_path / "store", n_canaries=2, out=tmp_path / "planted")
    told = [training_set(Store(tmp_path / name)) for name in ("store", "planted")]
    assert told[0]["fractions"] == told[1]["fractions"] == [0.7, 0.1, 0.2]
    assert told[0]["sha256"] != told[1]["sha256"]


def test_who_knows_them_by_heart_fails_and_every_canary_is_found(made):
    found = audited(made, "heart")
    auc, tpr, canaries, rare, files = found["findings"]
    assert found["verdict"] == "fail"
    assert (auc["verdict"], tpr["verdict"], canaries["verdict"]) == ("fail",) * 3
    assert auc["low"] > 0.8 and tpr["low"] > 0.2  # far beyond what has to be below 0.55 and 0.03
    known = {"found": 3, "bits": [7.0] * 3}  # of 127 alternatives none is as likely
    assert canaries["by_repeats"]["16"] == known
    assert (rare["verdict"], files["verdict"]) == ("pass", "pass")


def test_who_has_hardly_seen_them_does_not_fail(made):
    strict = audited(made, "begun")
    assert "fail" not in [one["verdict"] for one in strict["findings"]]
    auc = strict["findings"][0]
    assert auc["low"] < 0.5 < auc["high"] and auc["n"] == TRAINED  # without the canaries
    assert auc["verdict"] == "cannot tell" and "would tell" in auc["says"]
    assert strict["verdict"] == "cannot tell"  # which is no pass
    lenient = audited(made, "begun", max_auc=0.7, max_tpr=0.5, max_exposure=7.5)
    assert lenient["verdict"] == "pass"


def test_the_result_stands_beside_the_weights_that_it_is_of_and_names_nobody(made):
    audited(made, "heart")
    text = (made / "heart" / "audit.json").read_text()
    assert (
        json.loads(text)["weights_sha256"]
        == checkpoint.read_config(made / "heart")["weights_sha256"]
    )
    assert not any(str(i) in text for i in Store(made / "planted").subject_ids)
    assert "Verdict: fail" in (made / "of_heart" / "audit.md").read_text()


def test_a_reference_that_has_seen_others_sharpens_what_is_expected(made):
    """The reference has the same members here, so nobody is left; of an unknown store it cannot be
    said."""
    with pytest.raises(InputError, match="too few"):
        audited(made, "heart", reference=made / "begun")
    away = made / "away"
    shutil.copytree(made / "begun", away)
    settings = json.loads((away / "settings.json").read_text())
    (away / "settings.json").write_text(json.dumps({**settings, "store": str(made / "gone")}))
    with pytest.raises(InputError, match="whom it has seen"):
        audited(made, "heart", reference=away)


def test_only_the_store_of_the_training_will_do(made):
    with pytest.raises(InputError, match="not the store"):
        audited(made, "heart", store=made / "store")


def test_settings_that_name_other_code_than_objectives_are_not_run(made):
    changed = made / "changed"
    shutil.copytree(made / "heart", changed)
    settings = json.loads((changed / "settings.json").read_text())
    for target in ("os.system", "medbert.model.checkpoint.json.dumps", "medbert.model.objectives"):
        settings["objective"] = {"_target_": target, "_partial_": True}
        (changed / "settings.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match="no objective"):
            audited(made, "changed")
    (changed / "objective.safetensors").unlink()
    with pytest.raises(InputError, match="not found"):
        audited(made, "changed")


def test_what_files_say_of_people_is_found_and_what_is_kept_back_is_not_read(made, tmp_path):
    records, folder = Store(made / "planted"), tmp_path / "encoder"
    shutil.copytree(made / "heart", folder)
    found, kept_back = disclosures(folder, records)
    assert not found
    assert {"settings.json", "objective.safetensors", "logs"} <= set(kept_back)
    someone = int(records.subject_ids[7])
    leaks = {
        "notes.json": {"who": someone, "when": "seen 2019-03-07", "n": 3},
        "more.json": ["nurse@hospital.no", "/home/someone/store", "11223344556"],
    }
    for name, content in leaks.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text(f"Made 2026-01-01 by me@lab.org for {someone}")
    (folder / "list.bin").write_bytes(b"\0\1")
    table = pq.read_table(folder / "vocabulary.parquet")
    titles = ["of 03.04.2011", *table["title"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("title"), "title", pa.array(titles))
    pq.write_table(table, folder / "vocabulary.parquet")
    assert set(disclosures(folder, records)[0]) == {
        "notes.json: id of a subject",
        "notes.json: date",
        "more.json: e-mail address",
        "more.json: path",
        "more.json: long number",
        "README.md: id of a subject",
        "README.md: long number",
        "list.bin: cannot be looked into",
        "vocabulary.parquet: date",
    }


def test_what_is_passed_on_is_clean_and_says_what_the_audit_said(made, tmp_path):
    audited(made, "begun", max_auc=0.7, max_tpr=0.5, max_exposure=7.5)
    shared = medbert.Encoder.from_pretrained(made / "begun").save_pretrained(tmp_path / "shared")
    found, kept_back = disclosures(shared, Store(made / "planted"))
    assert not found and not kept_back
    assert "was passed" in (shared / "README.md").read_text()


def test_codes_of_few_subjects_fail_and_canaries_are_no_subjects(made):
    records = Store(made / "planted")
    least = int(records.vocabulary.n_subjects[4:].min())
    assert audited(made, "begun", min_subjects=least)["findings"][3]["verdict"] == "pass"
    rare = audited(made, "begun", min_subjects=least + 1)
    assert rare["findings"][3]["verdict"] == rare["verdict"] == "fail"


def test_private_training_says_what_it_promises(made):
    pytest.importorskip("opacus")
    medbert.pretrain(
        *SMALL,
        "privacy=dp",
        store=made / "planted",
        encoder="tiny",
        objective="masked_code",
        privacy={"accountant": "rdp", "batch_subjects": 200, "epsilon": 4.0},
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        out=made / "private",
    )
    promise = checkpoint.read_config(made / "private")["privacy"]
    assert 3.8 < promise["epsilon"] <= 4.0 and promise["steps"] == 1
    found = audited(made, "private")
    assert found["privacy"] == promise
    assert "epsilon" in (made / "of_private" / "audit.md").read_text()
    with pytest.raises(InputError, match="ckpt_path"):
        medbert.pretrain("privacy=dp", store=made / "planted", ckpt_path="x.ckpt", out=made / "not")
