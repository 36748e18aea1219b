"""``medbert inspect``: three forms of one card, and nothing in it that may not leave."""

from __future__ import annotations

import io
import json
import re

import pytest
from conftest import SHARED, records_of
from rich.console import Console

import medbert
from medbert.data.card import describe
from medbert.evaluate.reports.card import Card


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    medbert.synthesize(n_subjects=600, seed=3, out=folder / "events")
    medbert.prepare("source=meds", f"source.path={folder}/events", out=folder / "store")
    return folder


@pytest.fixture(scope="module")
def card(made):
    return medbert.inspect(store=made / "store", out=made / "card")


def in_terminal(card: Card) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(card.for_terminal(places={"duplicate_events_dropped": "x.csv: row 3"}))
    return console.file.getvalue()


def test_the_folder_holds_the_numbers_and_the_page(made, card):
    written = json.loads((made / "card" / "card.json").read_text(encoding="utf-8"))
    assert written == card.to_dict()
    assert written["facts"]["subjects"] == 600 and written["facts"]["visits"] > 600
    assert (made / "card" / "card.html").read_text(encoding="utf-8") == card.html()


def test_the_page_needs_nothing_else_and_has_a_text_for_each_picture(card):
    text = card.html()
    assert text.count("<figure") == text.count("<figcaption>") >= 10
    assert (
        len(re.findall(r"<img src='data:image/svg\+xml;base64,[^']+' alt='[^']{10,}'", text)) >= 10
    )
    assert "<script" not in text and not re.search(r"(src|href)=.https?:", text)
    assert "$" not in re.sub(r"base64,[^']+", "", text)
    for what in ("ICD9CM", "ICD10CM", "What to change", "Length of stay"):
        assert what in text


def test_neither_page_nor_numbers_name_a_subject_or_a_place(made, card):
    ids = medbert.Store(made / "store").subject_ids
    numbers = set(re.findall(r"\d{5,}", json.dumps(card.to_dict())))
    assert not numbers & {str(i) for i in ids if i > 9999}
    assert str(made) not in card.html() + json.dumps(card.to_dict())


def test_the_terminal_has_100_columns_and_says_where(card):
    text = in_terminal(card)
    assert max(map(len, text.splitlines())) <= 100
    assert "ICD10CM" in text and "x.csv: row 3" in text
    assert text.count("\n") < 100


def test_a_notebook_shows_the_page(card):
    assert card._repr_html_().startswith("<iframe") and "srcdoc=" in card._repr_html_()


def test_a_store_too_small_to_be_shown_has_a_card_all_the_same(make_store):
    records = records_of([(1, "2015-01-01", "A/1", None, 1), (2, "2015-01-02", "B/1", None, 2)])
    card = Card(describe(make_store(records)))
    assert "&lt;10" in card.html() and "other systems" in in_terminal(card)
    assert "A/1" not in card.html() and "2015" not in card.html()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_real_records(tmp_path):
    medbert.prepare(
        "source=diabetes130", f"source.path={SHARED}/diabetes130", out=tmp_path / "store"
    )
    card = medbert.inspect(store=tmp_path / "store", out=tmp_path / "card")
    assert "no dates" in in_terminal(card)
    assert card.to_dict()["calendar"] is None
    sexes = {row["sex"]: row["subjects"] for row in card.to_dict()["sexes"]}
    assert sexes["Unknown"] is None  # three
    assert sexes["Female"] % 10 == 0 and f"{sexes['Female']:,}" in card.html()
