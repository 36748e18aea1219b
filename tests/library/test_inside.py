"""Inside a model: what is shown is what it computes, of nothing later, with titles and no id."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import EVERY_CODE, SETTINGS, records_of
from matplotlib.figure import Figure
from matplotlib.text import Text

from medbert import Encoder, InputError, Inside, MedBertClassifier, nearest_codes, plot_codes
from medbert.data.batches import Sequences
from medbert.data.preparing.prepare import write_store
from medbert.data.store import Store
from medbert.data.vocabulary import Rule, Vocabulary
from medbert.library.attention import plain_attention
from medbert.library.code_table import titles
from medbert.model.checkpoint import save_module
from medbert.model.encoder import BertEncoder
from medbert.model.layers.attention import SelfAttention
from medbert.model.modern import ModernEncoder
from medbert.schema import Records

FIRST = 765_432_100  # an id that would be found in a page or a picture
N = 24
TITLES = {
    "ICD10CM/I50.9": "Heart </script> failure",
    "ICD10CM/E11.9": "Diabetes",
    "ICD9CM/250.00": "Diabetes, before",
    "ICD10CM/Q99.9": "Rare",
    "ATC/A10BA02": "Metformin",
}
CODES = ["ICD10CM/E11.9", "ICD9CM/250.00", "ATC/A10BA02", "LOINC/4548-4", "LOCAL//X"]
RARE = "ICD10CM/Q99.9"  # one subject has it
NOW = "2020-02-01"
QUERY = {"query": "ICD10CM/I50", "horizon": 365}
ENCODERS = ("bert", "modern", "causal")


def lives() -> tuple[list, list]:
    """Events and visits, every two months; half of the subjects have I50.9 in 2021."""
    random, events, visits = np.random.default_rng(0), [], []
    for s in range(FIRST, FIRST + N):
        events += [(s, None, "GENDER//F"), (s, "1950-01-01", "MEDS_BIRTH")]
        for n in range(18):
            day = f"20{18 + n // 6}-{1 + 2 * (n % 6):02d}"
            kind = ("outpatient", "inpatient")[n % 2]
            end = f"{day}-0{5 if n % 2 else 2}T12:00"
            visits.append((s, n, f"{day}-02", end, kind, None))
            codes = random.choice(CODES[: 2 + s % 4], 2, replace=False)
            events += [(s, f"{day}-02", str(code), None, n) for code in codes]
            if s % 2 and n > 12:
                events.append((s, f"{day}-02", "ICD10CM/I50.9", None, n))
    return [*events, (FIRST, "2018-01-02", RARE, None, 0)], visits


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that all matter."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return module


def written(folder: Path, records: Records, vocabulary: Vocabulary | Rule) -> Store:
    folder.mkdir()
    settings = SETTINGS(memory_gb=1.0)
    known = {"vocabulary": vocabulary, "splits": None, "executor": None}
    write_store(records, folder, **known, settings=settings)
    return Store(folder)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Path:
    """store/, in_order/ (without dates), and encoders that read up to 20 codes."""
    folder = tmp_path_factory.mktemp("inside")
    events, visits = lives()
    codes = pa.table({"code": [*TITLES], "description": [*TITLES.values()]})
    records = records_of(events, visits=visits)._replace(codes=codes)
    store = written(folder / "store", records, EVERY_CODE)
    in_order = records._replace(metadata={"name": "handmade", "time": "order"})
    written(folder / "in_order", in_order, store.vocabulary)
    sizes = {"layers": 2, "heads": 2, "hidden": 16, "feed_forward": 8}
    sizes |= {"vocabulary_size": len(store.vocabulary), "dropout": 0.1, "attention_dropout": 0.0}
    torch.manual_seed(0)
    for name, module in {
        "bert": BertEncoder(**sizes, positions=20, visits=9, ages=90),
        "modern": ModernEncoder(**sizes, time="both", positions=20),
        "causal": ModernEncoder(**sizes, causal=True, edges=[0, 30, 365], ever=True),
        "sums": ModernEncoder(**sizes, causal=True, edges=[0, 30, 365], ever=True, linear=2),
    }.items():
        (folder / name).mkdir()
        known = {"vocabulary_sha256": store.vocabulary.sha256}
        save_module(folder / name, modules={"encoder": shaken(module)}, extra=known)
        store.vocabulary.save(folder / name / "vocabulary.parquet")
        (folder / name / "settings.json").write_text('{"max_tokens": 20}')
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def encoder(name: str) -> Encoder:
    return Encoder.from_pretrained(name)


def row(subject: int = 1, time: str = NOW) -> dict:
    return {"subject_id": FIRST + subject, "prediction_time": time}


def classifier(head: str, name: str = "bert") -> MedBertClassifier:
    X = pd.DataFrame([row(s) for s in range(N)])
    made = MedBertClassifier(name, "store", head=head, max_epochs=1, lr=1e-2)
    made.fit(X, X["subject_id"] % 2 == 1)
    torch.manual_seed(1)
    shaken(made.head_)  # of so few subjects it has learned next to nothing
    return made


def texts(axes) -> str:
    return " ".join(text.get_text() for text in axes.figure.findobj(Text))


# --- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_times_values_are_what_attention_gives(name):
    model, seen = encoder(name), []

    def look(module: SelfAttention, given: tuple, output: torch.Tensor) -> None:
        hidden, _, *turn = given
        weight, value = plain_attention(module, hidden, *turn, causal=name == "causal")
        plain = module.output((weight @ value).transpose(0, 1).flatten(1))
        seen.append((weight, (plain - output).abs().max() / output.abs().max()))

    for layer in model.module.layers:
        layer.attention.register_forward_hook(look)
    found = Inside(model, row(), store="store").attention()
    assert len(seen) == 2 and all(error < 1e-5 for _, error in seen)
    np.testing.assert_array_equal(found.weights, torch.stack([w for w, _ in seen]))
    assert found.weights.shape == (2, 2, 20, 20) and len(found.events) == 20
    np.testing.assert_allclose(found.weights.sum(3), 1, atol=1e-5)
    later = np.triu(np.ones((20, 20), bool), 1)
    assert (found.weights[..., later].max() == 0) == (name == "causal")
    assert found.weights[..., later.T].std() > 0.01


def test_the_page_holds_the_weights_and_nothing_that_leads_elsewhere(tmp_path):
    found = Inside(encoder("causal"), row(time="2022-01-01"), store="store").attention()
    page = found.save(tmp_path / "attention.html", latest=6).read_text(encoding="utf-8")
    assert "Patient data" in page and "must not be passed on" in page
    assert not re.search(r"https?:|//cdn|@import|<link|\bsrc=|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page and str(FIRST)[:6] not in page
    (told,) = re.findall(r'<script type="application/json" id="told">(.*?)</script>', page)
    told = json.loads(told)
    assert [e[2] for e in told["events"]] == list(found.events["code"][-6:])
    assert {"Metformin", TITLES["ICD10CM/I50.9"]} & {e[1] for e in told["events"]}
    assert told["before"] == 14 and told["events"][-1][0] == "2020-11-05"
    shown = np.frombuffer(base64.b64decode(told["weights"]), "<u2").reshape(told["shape"]) / 65535
    np.testing.assert_allclose(shown[..., 1:], found.weights[:, :, 14:, 14:], atol=1e-5)
    np.testing.assert_allclose(shown.sum(3), 1, atol=1e-4)
    assert "srcdoc=" in found._repr_html_() and "<script" not in found._repr_html_()


# --- what the model reads -----------------------------------------------------------------------


@pytest.mark.parametrize("form", [pd.Series, lambda given: pd.DataFrame([given]), dict])
def test_events_are_those_that_the_model_reads(form):
    inside, store = Inside(encoder("bert"), form(row()), store="store"), Store("store")
    rows, until = store.rows_of(np.array([FIRST + 1])), np.datetime64(NOW, "us").astype(np.int64)
    batch = Sequences(store, rows, until=until[None], max_tokens=20)[np.zeros(1, int)]
    assert list(inside.events["code"]) == store.vocabulary.decode(batch.tokens_T.tolist())
    assert inside.events["code"][0] == "GENDER//F" and pd.isna(inside.events["time"][0])
    told = {(str(time), code) for subject, time, code, *_ in lives()[0] if subject == FIRST + 1}
    known_at_end = inside.events[1:]  # diagnoses of a stay are known at its end
    for time, code in zip(known_at_end["time"], known_at_end["code"], strict=True):
        assert (f"{time:%Y-%m}-02", code) in told and time <= pd.Timestamp(NOW)
    assert len(inside.events) == 20


def test_where_there_are_no_dates_visits_are_counted():
    inside = Inside(encoder("causal"), row(), store="in_order", **{**QUERY, "horizon": 1})
    visits = inside.events["time"]
    assert visits[0] == 0 and visits.iloc[-1] == 13 and visits.is_monotonic_increasing
    assert '["visit 13", "' in inside.attention().html()
    axes = inside.plot_timeline()
    assert axes.get_xlabel() == "Visit" and "1 visits" in texts(axes)
    assert steps(axes)[0][-1] == 13


def test_titles_fall_back_to_official_lists_and_to_the_code():
    vocabulary = Store("store").vocabulary
    codes = ["ATC/A10BA02", "ICD10CM/I50.9", "ICD9CM/428.0", "ICD10CM/J45", "LOCAL//X"]
    found = titles(codes, vocabulary)
    assert found[:2] == ["Metformin", "Heart </script> failure"] and found[4] == "LOCAL//X"
    assert "heart failure" in found[2].lower() and found[3] == "Asthma"


# --- attributions -------------------------------------------------------------------------------


def log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


@pytest.mark.parametrize("name", ["causal", "sums"])
def test_attributions_add_up_to_what_was_foretold(name):
    model = encoder(name)
    found = Inside(model, row(), store="store", **QUERY).attributions()
    foretold = model.predict(pd.DataFrame([row()]), store="store", **QUERY)
    told = log_odds(foretold["predicted_boolean_probability"].item())
    assert found.attrs["log_odds"] == pytest.approx(told, abs=1e-5)
    moved = found.attrs["log_odds"] - found.attrs["baseline"]
    assert abs(moved) > 0.001
    assert found["attribution"].sum() == pytest.approx(moved, abs=1e-3 * abs(moved))
    assert list(found.columns) == ["time", "code", "title", "attribution"]
    assert found["attribution"].abs().min() > 0


@pytest.mark.parametrize("head", ["frozen_logistic", "sum", "gru"])
def test_attributions_add_up_for_a_classifier(head):
    model = classifier(head)
    found = Inside(model, row()).attributions(steps=128)
    cohort = pd.DataFrame([row()])
    assert found.attrs["log_odds"] == pytest.approx(model.decision_function(cohort)[0], abs=1e-5)
    average = copy.deepcopy(model)  # all its codes say the same
    average.network_ = copy.deepcopy(model.network_ or encoder("bert").module)
    vocabulary, table = Store("store").vocabulary, average.network_.codes.weight.data
    weight = torch.from_numpy(vocabulary.counts[4:] + 1.0).float()
    table[:] = (weight @ table[4:] / weight.sum()).clone()
    before = average.decision_function(cohort)[0]
    assert found.attrs["baseline"] == pytest.approx(before, abs=1e-4)
    moved = model.decision_function(cohort)[0] - before
    assert abs(moved) > 0.003 and found["attribution"].std() > 0
    assert found["attribution"].sum() == pytest.approx(moved, abs=0.02 * max(1, abs(moved)))


def test_a_rest_that_is_too_large_is_told(caplog):
    inside = Inside(encoder("causal"), row(), store="store", **QUERY)
    inside._logits = lambda batch: (100 * batch.age_T.new_ones(3)).cumsum(0)[: len(batch.rows_B)]
    with pytest.raises(RuntimeError):  # nothing of the codes is in it: no gradient
        inside.attributions()
    real = Inside(encoder("causal"), row(), store="store", **QUERY)
    steep = real._logits
    real._logits = lambda batch: (steep(batch) * 40).sin() * 9
    found = real.attributions(steps=2)
    assert abs(found.attrs["rest"]) > 0.1 and "say steps=8" in caplog.text


def test_bars_are_the_strongest_events_or_codes():
    inside, ax = Inside(encoder("causal"), row(), store="store", **QUERY), Figure().subplots()
    found = inside.attributions()
    assert inside.plot_attributions(most=5, ax=ax) is ax
    widths = [bar.get_width() for bar in ax.patches]
    strongest = found.loc[found["attribution"].abs().nlargest(5).index].sort_index()[::-1]
    np.testing.assert_allclose(widths, strongest["attribution"], rtol=1e-4)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0].endswith(strongest["title"].iloc[0]) and names[0].startswith("20")
    by_code = inside.plot_attributions(by_code=True)
    sums = found.groupby("title")["attribution"].sum()
    widths = [bar.get_width() for bar in by_code.patches]
    np.testing.assert_allclose(sorted(widths), sorted(sums), rtol=1e-3, atol=1e-6)
    assert "Metformin (" in texts(by_code) and str(FIRST)[:6] not in texts(by_code)


# --- the code table -----------------------------------------------------------------------------


def test_nearest_codes_are_by_angle_and_without_rare_ones():
    model = encoder("bert")
    names, table = model.vocabulary.codes, model.module.codes.weight.data
    a, b, c = (names.index(code) for code in ("ICD10CM/E11.9", "ATC/A10BA02", "LOINC/4548-4"))
    table[b], table[c], table[names.index(RARE)] = 3 * table[a], -table[a], table[a]
    found = nearest_codes(model, "ICD10CM/E11.9", n=20)
    assert list(found.columns) == ["code", "title", "similarity", "subjects"]
    assert found.iloc[0].tolist()[:2] == ["ATC/A10BA02", "Metformin"]
    assert found["similarity"].iloc[0] == pytest.approx(1) and RARE not in set(found["code"])
    assert found["code"].iloc[-1] == "LOINC/4548-4" and found["similarity"].is_monotonic_decreasing
    assert (found["subjects"] % 10 == 0).all() and found["subjects"].min() >= 10
    assert RARE in set(nearest_codes(model, "ICD10CM/E11.9", n=20, min_count=1)["code"])
    nobody = np.zeros(len(names), int)  # where nothing was counted, nothing can be hidden
    model.vocabulary = dataclasses.replace(model.vocabulary, n_subjects=nobody)
    assert len(nearest_codes(model, "ICD10CM/E11.9", n=99)) == len(names) - 5


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_is_coloured_by_chapter_and_named(method):
    ax = Figure().subplots()
    assert plot_codes(encoder("modern"), method=method, ax=ax) is ax
    legend = {text.get_text() for text in ax.get_legend().get_texts()}
    assert legend == {"no diagnosis of ICD", "Endocrine and metabolic", "Circulation"}
    points = {each.get_label(): len(each.get_offsets()) for each in ax.collections}
    assert points["Endocrine and metabolic"] == 2 and sum(points.values()) == 6
    assert "Metformin" in texts(ax)
    assert "Malformations" in texts(plot_codes(encoder("modern"), min_count=1))


def test_a_classifier_has_a_code_table_too():
    model = classifier("sum")
    ours, theirs = (
        nearest_codes(model, "ICD10CM/E11.9"),
        nearest_codes(encoder("bert"), "ICD10CM/E11.9"),
    )
    assert set(ours["code"]) == set(theirs["code"])
    assert not np.allclose(ours["similarity"], theirs["similarity"], atol=1e-4)  # fine-tuned


# --- a life -------------------------------------------------------------------------------------


def steps(axes) -> tuple[pd.Index, np.ndarray]:
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    return pd.Index(line.get_xdata()), np.asarray(line.get_ydata(), float)


def test_the_risk_is_that_of_each_visit_and_ends_with_the_outcome():
    model, ax = encoder("causal"), Figure(figsize=(12, 8)).subplots()
    late = row(time="2021-01-01")
    assert Inside(model, late, store="store", **QUERY).plot_timeline(ax=ax) is ax
    times, risk = steps(ax)
    cohort = pd.DataFrame({"subject_id": FIRST + 1, "prediction_time": times})
    foretold = model.predict(cohort, store="store", **QUERY)["predicted_boolean_probability"]
    np.testing.assert_allclose(risk, foretold.to_numpy(float), atol=1e-6)
    assert len(times) == 19 and times[-1] == pd.Timestamp("2021-01-01")
    assert np.isnan(risk[-1]) and not np.isnan(risk[:13]).any() and np.nanstd(risk) > 1e-4
    assert times[1] == pd.Timestamp("2018-03-05 12:00")  # the end of a stay
    shown = texts(ax)
    for word in (
        "Metformin",
        "Diabetes",
        "Visits: inpatient",
        "Diagnoses",
        "Drugs",
    ):
        assert word in shown
    assert str(FIRST)[:6] not in shown
    stays = [line for lane in ax.collections for line in lane.get_segments()]
    lengths = np.array([end[0] - start[0] for start, end in stays])
    assert (lengths > 3).sum() == (lengths < 1).sum() == 9  # stays in, and visits
    levels = {line[0][1] for line, length in zip(stays, lengths, strict=True) if length > 3}
    named = dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.get_yticks(), strict=True))
    assert [*levels] == pytest.approx([named["Visits: inpatient"]])


def test_a_timeline_of_a_classifier_shows_nothing_later():
    model = classifier("frozen_logistic")
    axes = Inside(model, row()).plot_timeline()
    times, risk = steps(axes)
    cohort = pd.DataFrame({"subject_id": FIRST + 1, "prediction_time": times})
    np.testing.assert_allclose(risk, model.predict_proba(cohort)[:, 1], atol=1e-6)
    assert times.max() == pd.Timestamp(NOW) and "I50" not in texts(axes)
    assert "Heart" not in texts(axes)
    assert "Heart" in texts(Inside(model, row(1, "2021-01-01")).plot_timeline())


# --- what cannot be used ------------------------------------------------------------------------


def test_what_cannot_be_used_is_said_in_one_line(monkeypatch):
    model = encoder("causal")
    fitted = classifier("frozen_logistic")
    for act, words in [
        (lambda: Inside(model, row()), "store"),
        (lambda: Inside(fitted, row(), store="store"), "store"),
        (lambda: Inside(fitted, row(), query="ICD10CM/I50"), "query"),
        (lambda: Inside(model, pd.DataFrame([row(0), row(1)]), store="store"), "give one"),
        (lambda: Inside(model, row(90_000), store="store"), "lacks"),
        (lambda: Inside(encoder("bert"), row(), store="store", **QUERY).attributions(), "foretell"),
        (lambda: Inside(model, row(), store="store").attributions(), "query"),
        (
            lambda: Inside(model, row(1, "2022-01-01"), store="store", **QUERY).attributions(),
            "earlier time",
        ),
        (lambda: nearest_codes(model, "ICD10CM/E11"), "ICD10CM/E11.9"),
        (lambda: nearest_codes(model, RARE), "rare"),
        (lambda: plot_codes(model, method="umap"), "pca or tsne"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value) and str(FIRST)[:6] not in str(caught.value)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"medbert\[inside\]"):
        Inside(model, row(), store="store", **QUERY).attributions()
