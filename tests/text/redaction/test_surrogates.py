"""Surrogates are consistent where they should be, and keep form, sex, language and check digits."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from medbert.schema import InputError, Span
from medbert.text.ids import adds_up
from medbert.text.redaction.redact import Redacted, redact
from medbert.text.redaction.surrogates import (
    STRATEGIES,
    Mention,
    Surrogates,
    Whose,
    _sexes,
    lists_of,
)

KEY = b"a secret of more than sixteen bytes"
WHOSE = Whose(patient="17", note="n1", language="en", names=("John Smith", "Mary-Ann O'Brien"))
MAKE = Surrogates(key=KEY)


def surrogate(text: str, label: str = "NAME", whose: Whose = WHOSE, make: Surrogates = MAKE) -> str:
    return make(Mention(text, label, whose, Counter(), set()))


def test_a_name_has_one_surrogate_in_all_its_forms():
    given, surname = surrogate("John Smith").split()
    assert {given, surname}.isdisjoint({"John", "Smith"})
    assert surrogate("Smith") == surname and surrogate("John") == given
    assert surrogate("SMITH, JOHN") == f"{surname}, {given}".upper()
    assert surrogate("john smith") == f"{given} {surname}".lower()
    assert surrogate("J. Smith") == f"{given[0]}. {surname}"
    assert surrogate("JS") == given[0] + surname[0]
    assert surrogate("Smith's") == f"{surname}'s" and surrogate("Smith’s") == f"{surname}’s"
    assert surrogate("Dr. John\r\nSmith") == f"Dr. {given}\r\n{surname}"
    assert surrogate("Mary-Ann O'Brien").count("-") == 1
    assert surrogate("john.smith@site.org", "CONTACT:EMAIL") == (
        f"{given}.{surname}@example.org".lower()
    )


def test_genitives_keep_their_ending():
    whose = Whose(patient="1", language="nb", names=("Kari Nordmann",))
    assert surrogate("Karis", whose=whose) == surrogate("Kari", whose=whose) + "s"
    assert surrogate("Nordmanns", whose=whose) == surrogate("Nordmann", whose=whose) + "s"
    assert surrogate("Anders", whose=whose) in lists_of("nb")["male"]


def test_the_same_in_every_note_and_process_but_not_for_another_patient_or_key():
    names = ["John Smith", "Mary-Ann O'Brien", "Qvistgaarden"]
    here = [surrogate(name) for name in names]
    assert here == [surrogate(name, whose=WHOSE._replace(note="n2")) for name in names]
    assert here == [surrogate(name, make=Surrogates(key=KEY)) for name in names]
    assert here == [surrogate(name, whose=WHOSE._replace(patient="17.0")) for name in names]
    for other in (
        [surrogate(name, whose=WHOSE._replace(patient="18")) for name in names],
        [surrogate(name, make=Surrogates(key=KEY[::-1])) for name in names],
    ):
        assert other != here


def test_given_name_and_surname_in_two_spans_are_one_name():
    text = "Ottbjart Fiskevik kom. Ottbjart gikk."
    spans = [Span(0, 8, "NAME"), Span(9, 17, "NAME"), Span(23, 31, "NAME")]
    words = redact(text, spans, {"NAME": MAKE}, whose=Whose("1", language="nb")).text.split()
    assert words[0] == words[3] and words[0] in lists_of("nb")["female"] + lists_of("nb")["male"]
    assert words[1] in lists_of("nb")["surnames"]


@pytest.mark.parametrize("language", ["nb", "nn", "en", "de", "es"])
def test_sex_and_language_are_kept(language):
    lists = lists_of(language)
    for listed, sex in (("female", "F"), ("male", "M")):
        whose = Whose(patient="3", language=f"{language}-XX")
        for name in [n for n in lists[listed] if _sexes().get(n.casefold()) == sex][:40]:
            assert surrogate(name, whose=whose) in lists[listed]
        whose = whose._replace(sex=sex, names=("Qxz Zxq",))
        assert surrogate("Qxz", whose=whose) in lists[listed]
    assert surrogate("Xyzzygata 3", "LOCATION", Whose(language=language)).split(" ")[0] in {
        street.split(" ")[0] for street in lists["streets"]
    }


def test_a_language_without_lists_has_those_of_the_default():
    norwegian = Surrogates(key=KEY, language="nb")
    for language in (None, "fi", "no", "no_NO"):
        found = surrogate("Zyxw", whose=Whose(language=language), make=norwegian)
        assert found in {*lists_of("nb")["surnames"]}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("FNR", "010190 12480"),
        ("NHS", "943 476 5919"),
        ("SSN", "123-45-6789"),
        ("DNI", "12345678Z"),
        ("CARD", "4111 1111 1111 1111"),
        ("BSN", "111222333"),
        ("KVNR", "A123456780"),
    ],
)
def test_numbers_keep_shape_and_check_digits(kind, text):
    assert adds_up(kind, text)
    for patient in ("1", "2"):
        new = surrogate(text, f"ID:{kind}", Whose(patient=patient))
        assert adds_up(kind, new) and new != text
        assert re.sub("[A-Z]", "A", re.sub(r"\d", "0", new)) == re.sub(
            "[A-Z]", "A", re.sub(r"\d", "0", text)
        )
    bare = re.sub(r"\W", "", text)
    assert surrogate(bare, f"ID:{kind}") == re.sub(r"\W", "", surrogate(text, f"ID:{kind}"))


def test_a_wrong_number_stays_a_number_of_its_shape():
    assert re.fullmatch(r"[1-9]\d{5} \d{5}", surrogate("932312 86033", "ID:FNR"))
    assert re.fullmatch(r"[A-Z]{2}-[a-z]\d{3}", surrogate("MR-x123", "ID:MRN"))


def test_even_a_short_number_becomes_another():
    for text in ("7", "A", "10"):
        new = {surrogate(text, "ID", Whose(patient=str(p))) for p in range(60)}
        assert text not in new and all(len(number) == len(text) for number in new)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("+47 912 34 567", r"\+47 \d{3} \d\d \d{3}"),
        ("(555) 123-4567", r"\(\d{3}\) \d{3}-\d{4}"),
        ("+1 555 123 4567", r"\+1 \d{3} \d{3} \d{4}"),
        ("anna@sykehus", r"[a-z]+@example\.org"),
        ("a.b99@ward.hospital.nhs.uk", r"[a-z]+\.[a-z]+\d\d@example\.uk"),
        (
            "https://www.sykehus.no/pasient/12?x=1",
            r"https://www\.example\.no/[a-z]{7}/\d\d\?[a-z]=\d",
        ),
        ("192.168.12.7", r"192\.0\.2\.\d{1,3}"),
    ],
)
def test_contacts_keep_their_format(text, form):
    new = surrogate(text, "CONTACT")
    assert re.fullmatch(form, new) and new != text


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Storgata 12 B, 0155 Oslo", r"\D+ \d\d [A-Z], \d{4} \D+"),
        ("12 Main Street, Springfield, IL 62704", r"\d\d \D+, \D+, [A-Z]{2} \d{5}"),
        ("SW1A 1AA", r"[A-Z]{2}\d[A-Z] \d[A-Z]{2}"),
        ("OSLO", r"[A-ZÆØÅ ]+"),
        ("Kirkegata", r"\D+"),
    ],
)
def test_places_keep_their_form(text, form):
    new = surrogate(text, "LOCATION", Whose(language="nb"))
    assert re.fullmatch(form, new)
    assert not set(re.findall(r"\w{3,}", text.casefold())) & set(
        re.findall(r"\w{3,}", new.casefold())
    )


def test_particles_and_bare_titles_do_not_come_through():
    assert " " not in surrogate("van der Meer")
    assert surrogate("Dr.") == "[NAME]" and surrogate("-") == "[NAME]"
    assert surrogate("...", "ID") == "[ID]"


# --- strategies -----------------------------------------------------------------------------------


def mentions(strategy: str, *, n: int = 300, stay: float = 0.8, note: str = "n1") -> list[str]:
    text = " ".join(["Smith"] * n)
    spans = [Span(6 * i, 6 * i + 5, "NAME") for i in range(n)]
    make = Surrogates(key=KEY, strategy=strategy, stay=stay)
    done: Redacted = redact(text, spans, {"NAME": make}, whose=WHOSE._replace(note=note))
    return done.text.split()


def test_strategies_differ_in_how_long_a_surrogate_stays():
    kept = {
        s: [a == b for a, b in zip(x, x[1:], strict=False)]
        for s in STRATEGIES
        for x in [mentions(s)]
    }
    assert all(kept["consistent"])
    assert sum(kept["random"]) < 10  # by chance, of 299
    assert 0.72 < sum(kept["markov"]) / 299 < 0.88  # 0.8 and 3.5 standard errors
    assert all("Smith" not in mentions(strategy) for strategy in STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_the_same_when_repeated(strategy):
    assert mentions(strategy, n=30) == mentions(strategy, n=30)
    assert (mentions(strategy, n=30) == mentions(strategy, n=30, note="n2")) == (
        strategy == "consistent"
    )


def test_an_unknown_strategy_or_language_is_refused():
    with pytest.raises(InputError, match="strategy is one of consistent, random, markov"):
        Surrogates(key=KEY, strategy="markow")
    with pytest.raises(InputError, match="language one of nb, nn, en, de, es"):
        Surrogates(key=KEY, language="fi")


@pytest.mark.parametrize("language", ["nb", "nn", "en", "de", "es"])
def test_the_lists_are_clean_and_long_enough(language):
    lists = lists_of(language)
    for name, least in {"female": 100, "male": 100, "surnames": 100, "places": 50}.items():
        assert len(lists[name]) == len(set(lists[name])) >= least
    for words in lists.values():
        assert all(word and word == word.strip() and "\n" not in word for word in words)
    assert all(template.count("{place}") == 1 for template in lists["organisations"])
