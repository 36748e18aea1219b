"""The measures against seqeval, against cases worked out by hand, and against their definitions."""

from __future__ import annotations

import json
import random

import pytest
from conftest import SHARED
from scipy.stats import binom
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2

from medbert.schema import Span
from medbert.text.notes import Note, read
from medbert.text.scoring.browser import Browser, shape
from medbert.text.scoring.measures import Scores, Sides, Terms, upper_bound

MEDDOCAN = SHARED / "deid" / "meddocan" / "dev.jsonl"
TEXT = "Ola Moe f. 12.03.1950 bor i Bergen. Fikk Paracet."
NAME, DATE, PLACE = Span(0, 7, "NAME"), Span(11, 21, "DATE"), Span(28, 34, "LOCATION")


def measured(text, gold, found, measure):
    scores = Scores(label=str)
    scores.add(Note("1", text), gold, found)
    return scores.to_dict()["all"]["all"]["measures"][measure]


@pytest.mark.parametrize(
    ("found", "measure", "recall", "precision"),
    [
        ([NAME, DATE, PLACE], "strict typed", 1, 1),
        ([NAME._replace(score=0.2), DATE, PLACE], "strict typed", 1, 1),
        ([NAME._replace(label="DATE")], "strict", 1 / 3, 1),
        ([NAME._replace(label="DATE")], "strict typed", 0, 0),
        ([NAME._replace(end=8)], "strict", 0, 0),
        ([NAME._replace(end=9)], "relaxed typed", 1 / 3, 1),
        ([NAME._replace(end=10)], "relaxed", 0, 0),
        ([NAME._replace(start=1)], "relaxed", 0, 0),
        # Both words, found apart: covered; one of the two found is not the whole.
        ([Span(0, 3, "NAME"), Span(4, 7, "NAME")], "covered typed", 1 / 3, 1),
        ([Span(0, 3, "NAME"), Span(4, 7, "DATE")], "covered", 1 / 3, 1),
        ([Span(0, 3, "NAME"), Span(4, 7, "DATE")], "covered typed", 0, 0.5),
        ([Span(0, 34, "NAME")], "covered", 1, 0),
        ([Span(0, 3, "NAME"), Span(4, 7, "NAME")], "strict", 0, 0),
        ([Span(0, 3, "NAME"), Span(4, 7, "NAME")], "merged", 1 / 3, 1),
        # Gold tokens: Ola Moe 12 03 1950 Bergen.
        ([NAME], "token", 2 / 6, 1),
        ([Span(0, 6, "NAME")], "token", 1 / 6, 1),  # "Mo" of "Moe": leaked
        ([NAME._replace(label="DATE")], "token typed", 0, 0),
        ([Span(0, 10, "NAME")], "token", 2 / 6, 2 / 3),
    ],
)
def test_cases_by_hand(found, measure, recall, precision):
    got = measured(TEXT, [NAME, DATE, PLACE], found, measure)
    assert (got["recall"], got["precision"]) == pytest.approx((recall, precision))
    p, r = got["precision"], got["recall"]
    assert got["f2"] == pytest.approx(5 * p * r / (4 * p + r) if p + r else 0)
    assert got["f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)


def test_agrees_with_seqeval_in_strict_iob2():
    rng = random.Random(3)
    scores = Scores(label=str)
    all_tags = []
    for number in range(60):
        words = ["w" + "x" * rng.randrange(4) for _ in range(rng.randrange(1, 30))]
        starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words) + 1)]
        sides, tags = [], []
        for _ in range(2):
            spans, tag, at = [], ["O"] * len(words), 0
            while at < len(words):
                n = min(rng.randrange(1, 4), len(words) - at)
                if rng.random() < 0.5:
                    label = rng.choice(["NAME", "DATE", "ID"])
                    spans.append(Span(starts[at], starts[at + n] - 1, label))
                    tag[at : at + n] = [f"B-{label}"] + [f"I-{label}"] * (n - 1)
                at += n
            sides.append(spans)
            tags.append(tag)
        scores.add(Note(str(number), " ".join(words)), *sides)
        all_tags.append(tags)
    gold, found = zip(*all_tags, strict=True)
    told = scores.to_dict()
    for average, ours in (("micro", told["all"]["all"]), (None, None)):
        theirs = precision_recall_fscore_support(
            list(gold), list(found), average=average, scheme=IOB2
        )
        if ours is not None:
            m = ours["measures"]["strict typed"]
            assert (m["precision"], m["recall"], m["f1"]) == pytest.approx(theirs[:3])
        else:
            for label, *row in zip(["DATE", "ID", "NAME"], *theirs, strict=True):
                m = told["label"][label]["measures"]["strict typed"]
                assert [m["precision"], m["recall"], m["f1"], m["gold"]] == pytest.approx(row)


def test_merged_spans_are_counted_as_meddocan_counts_them():
    """Two pairs of neighbours. Of the first, one side has both, the other the two joined: the
    joined pair is one match, and its parts are no errors. Of the second, half is found."""
    text = "Calle Mayor, 13 - Madrid y Juan Sol"
    gold = [Span(0, 15, "CALLE"), Span(18, 24, "TERRITORIO"), Span(27, 31, "N"), Span(32, 35, "N")]
    found = [Span(0, 24, "CALLE"), Span(27, 31, "N")]
    got = measured(text, gold, found, "merged")
    # Matches: 0-24 (joined) and 27-31 (strict); missed: 32-35; nothing wrong.
    assert (got["recall"], got["precision"]) == pytest.approx((2 / 3, 1))
    assert got["missed"] == 1


@pytest.mark.skipif(not MEDDOCAN.is_file(), reason="../shared/data/deid/meddocan is not here")
def test_meddocan_by_sets_of_its_definition():
    """Micro-averages over sets of (document, start, end, type), types as annotated."""
    rng, scores = random.Random(1), Scores(label=str)
    gold_all, found_all = set(), set()
    for note in list(read(MEDDOCAN))[:15]:
        found = [s._replace(end=s.end - (rng.random() < 0.1)) for s in note.spans]
        found = [s for s in found if rng.random() < 0.9 and s.start < s.end]
        found.append(Span(0, 5, "FECHAS"))
        gold_all |= {(note.note_id, *s[:3]) for s in note.spans}
        found_all |= {(note.note_id, *s[:3]) for s in found}
        scores.add(note, note.spans, found)
    got = scores.to_dict()["all"]["all"]["measures"]["strict typed"]
    hits = len(gold_all & found_all)
    assert got["recall"] == pytest.approx(hits / len(gold_all))
    assert got["precision"] == pytest.approx(hits / len(found_all))


def test_documents_that_leak_and_what_is_lost():
    scores = Scores(label=str, terms=Terms(["paracet", "bor i", "Ola"]))
    for number, (gold, found) in enumerate(
        [
            ([NAME], [NAME]),
            ([NAME], [Span(0, 4, "NAME")]),  # Moe leaks
            ([NAME, DATE], [Span(0, 49, "X")]),  # nothing leaks, all is lost
            ([], [Span(41, 48, "NAME")]),  # Paracet is no name
            ([], []),
        ]
    ):
        scores.add(Note(str(number), TEXT, "p" + str(number // 2), language="nb"), gold, found)
    told = scores.to_dict()
    documents = told["all"]["all"]["documents"]
    assert documents["with_phi"] == 3 and documents["leaking"] == 1
    assert documents["share_without_leak"] == pytest.approx(2 / 3)
    assert documents["without_phi"] == 2 and documents["touched_of_these"] == 1
    # "Ola" is PHI in three of the notes and a term in the two others.
    assert documents["clinical_terms"] == 5 * 2 + 2 and documents["clinical_terms_lost"] == 3
    assert told["all"]["all"]["patients"]["with_phi"] == 2
    assert told["all"]["all"]["patients"]["leaking"] == 1
    assert told["language"]["nb"]["documents"] == documents
    assert set(told["label"]) == {"NAME", "DATE", "X"}


def test_the_bound_is_clopper_and_pearsons():
    for events, n in ((0, 100), (3, 40), (39, 40), (250, 1000)):
        bound = upper_bound(events, n, confidence=0.95)
        assert binom.cdf(events, n, bound) == pytest.approx(0.05, abs=1e-6)
    assert upper_bound(5, 5) == 1.0 and upper_bound(0, 0) is None
    assert upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)


def test_properties_of_random_cases():
    rng = random.Random(0)
    text = "".join(rng.choice("ab1 .,Å\n") for _ in range(400))
    for _ in range(30):
        gold, found = (
            [Span(s, s + rng.randrange(1, 12), rng.choice("XY")) for s in rng.sample(range(380), 9)]
            for _ in range(2)
        )
        got = Scores(label=str)
        sides = got.add(Note("1", text), gold, found)
        m = got.to_dict()["all"]["all"]["measures"]
        order = ("strict", "relaxed"), ("strict", "covered"), ("strict typed", "strict")
        for narrow, wide in (*order, ("token typed", "token"), ("covered typed", "covered")):
            assert m[narrow]["recall"] <= m[wide]["recall"]
        uncovered = {
            i
            for s in gold
            for i in range(s.start, s.end)
            if (text[i].isalnum()) and not any(f.start <= i < f.end for f in found)
        }
        assert sides.leaks() == bool(uncovered) == (m["covered"]["recall"] < 1)
        assert (m["token"]["recall"] < 1) == bool(uncovered)
        same = Scores(label=str)
        assert not same.add(Note("1", text), gold, gold).leaks()
        assert all(v["f1"] == 1 for v in same.to_dict()["all"]["all"]["measures"].values())


def test_the_browser_shows_shapes_unless_asked():
    found = [Span(0, 4, "NAME"), PLACE._replace(label="NAME"), Span(41, 48, "NAME")]
    pages = {}
    for show in (False, True):
        browser = Browser(show_text=show, most=2)
        for number in range(5):
            browser.add(f"note{number}", Sides(TEXT, [NAME, DATE, PLACE], found))
        pages[show] = browser.html()
        assert sum(browser.counts.values()) == 20
    assert "Moe" in pages[True] and "protected health information" in pages[True]
    words = ("Ola", "Moe", "1950", "Bergen", "Paracet", "Fikk")
    assert not any(word in pages[False] for word in words)
    assert "Xxx</mark> Xxx" not in pages[False] and "Xxx Xxx" in pages[False]
    assert pages[False].count("note4") == 0 and "the first 2 of them" in pages[False]
    for kind in ("missed: 5", "partly covered: 5", "other label: 5", "no PHI: 5"):
        assert kind in pages[False]
    assert json.dumps(shape("Åse-Lin 1.2 <b>")) == '"Xxx-Xxx 0.0 <x>"'


def test_text_is_escaped():
    browser = Browser(show_text=True)
    browser.add("<i>", Sides("<script>x</script>", [Span(8, 9, "<b>")], []))
    assert "<script>" not in browser.html() and "<b>" not in browser.html()
