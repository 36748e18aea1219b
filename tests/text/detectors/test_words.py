"""Names and places by lists, and what is known of a patient, in every spelling."""

from datetime import date

import pytest

from medbert.schema import InputError
from medbert.text.detectors.known import Known
from medbert.text.detectors.words import Names, Persons, Phrases, listed
from medbert.text.lists import common, cues, months, shipped
from medbert.text.spans import merge


def found(detector, text):
    return [text[s.start : s.end] for s in detector.detect(text)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a woman, Anna S., seen", ["Anna S."]),
        ("for John D", ["John D"]),
        ("Robert Smith, 60", ["Robert Smith"]),
        ("Jane A. Doe was", ["Jane A. Doe"]),
        ("Mary Lou van der Berg came", ["Mary Lou van der Berg"]),
        ("by J. Smith.", ["J. Smith"]),
        ("LERSTAD, OSCAR\n", ["LERSTAD, OSCAR"]),
        ("Lerstad, Oscar ble", ["Lerstad, Oscar"]),
        ("Ole-Kristian Walberg kom", ["Ole-Kristian Walberg"]),
        ("seen with Sarah today", ["Sarah"]),
        ("and Mary's pain", ["Mary"]),
        ("pt maria gonzalez says", ["maria gonzalez"]),
        ("Grace Johnson and Mark B. came", ["Grace Johnson", "Mark B."]),
        ("Will Johnson", ["Will Johnson"]),
        ("broken: Robert\nJohnson", ["Robert\nJohnson"]),
        ("John Smith MD", ["John Smith"]),
    ],
)
def test_people_by_lists(text, names):
    assert found(Names(), text) == names


@pytest.mark.parametrize(
    "text",
    """May help. Will try in May|Grace period; Hope so|Wilson's disease and Wells score
Lou Gehrig’s disease|a Framingham Risk Score of 3|positive Babinski sign|Mark the site. Rose up
Vitamin D and Hepatitis B|under Guillain-Barré syndrome|Are ACE inhibitors safe|he may bill us
Han hans hun den|Stein i nyre. Liv og lyst""".replace("\n", "|").split("|"),
)
def test_words_that_are_names_elsewhere(text):
    assert not Names().detect(text)


def test_the_users_own_names_and_places_count():
    assert found(Names(given=["Xerxanthe"]), "saw Xerxanthe B. today") == ["Xerxanthe B."]
    units = Phrases({"LOCATION:CARE_UNIT": ["Avdeling Nord", "NKS"]})
    assert found(units, "fra Avdeling Nord, til NKS, nks, Nks og avdeling nord") == [
        "Avdeling Nord",
        "NKS",
    ]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("from Chicago to New York", ["Chicago", "New York"]),
        ("at Johns Hopkins and UCSF", ["Johns Hopkins", "UCSF"]),
        ("bor i Tromsø", ["Tromsø"]),
        ("she lives in Reading", ["Reading"]),
        ("Reading is hard. The ADA diet", []),
        ("Framingham Heart Study", []),
    ],
)
def test_places(text, places):
    assert found(listed()[1], text) == places


def test_lists_hold_what_they_say():
    lists = shipped()
    assert {"anna", "ingeborg", "muhammad"} <= lists.given and "hansen" in lists.surnames
    assert not lists.function & lists.common and len(months()) == 12
    assert common("May") and common("will") and not common("Hansen") and "mandag" in cues("weekday")


ROW = {
    "given_name": "Åse Marie",
    "surname": "Bjørnstad-Hansen",
    "birth_date": date(1962, 5, 3),
    "fnr": "03056200123",
    "MRN": "A-77 123",
    "phone": ["+47 912 34 567", None],
    "email": "aase@post.no",
    "address": "Storgata 5B, 0450 Oslo",
}


@pytest.mark.parametrize(
    ("written", "label"),
    [
        *[(name, "NAME") for name in ("Åse", "ASE", "aase", "Marie Bjornstad", "Hansen, Åse M.")],
        *[(name, "NAME") for name in ("Å. Hansen", "bjørnstad hansen", "Bjørnsted", "Åses")],
        *[(day, "DATE") for day in ("1962-05-03", "03.05.1962", "3/5/62", "5/3/1962", "030562")],
        *[
            (day, "DATE")
            for day in ("3. mai 1962", "May 3rd, 1962", "3 de mayo de 1962", "3 MAI 62")
        ],
        *[(number, "ID") for number in ("030562 00123", "0305\n6200123", "A77123", "a-77123")],
        *[
            (phone, "CONTACT")
            for phone in ("91234567", "912 34 567", "004791234567", "(+47) 91 23 45 67")
        ],
        ("AASE@post.no", "CONTACT"),
        ("storgata 5b, Oslo", "LOCATION"),
        ("0450 OSLO", "LOCATION"),
    ],
)
def test_what_is_known_is_found_in_any_spelling(written, label):
    text = f"hun, {written}; og"
    spans = Known.of(ROW).detect(text)
    whole = {i for s in spans if s.label == label for i in range(s.start, s.end)}
    inside = range(text.index(written), text.index(written) + len(written))
    assert all(i in whole or not text[i].isalnum() for i in inside)
    assert merge(spans) == spans


@pytest.mark.parametrize(
    "text",
    ["marinert laks", "2062-05-03", "13.05.1962", "912 34 568", "1030562001234", "Storgata 51"],
)
def test_what_is_near_and_not_the_patients(text):
    assert not Known.of(ROW).detect(text)


def test_ordinary_words_in_a_known_name_need_a_capital_in_a_sentence():
    will = Known.of({"name": "Will May"})
    assert found(will, "will may rest. May rest. We saw Will today, WILL MAY.") == [
        "Will",
        "WILL MAY",
    ]
    assert not Known.of({"name": None, "phone": float("nan"), "city": ""}).detect("nan None")


def test_a_column_that_tells_nothing_is_refused_without_its_value():
    with pytest.raises(InputError, match="'shoe'") as told:
        Known.of({"shoe": "Secret"})
    assert "Secret" not in str(told.value)
    assert found(Known.of({"shoe": "Qsecret"}, columns={"shoe": "NAME"}), "a qsecret b") == [
        "qsecret"
    ]
    assert not Known.of({"shoe": "Qsecret"}, columns={"shoe": ""}).detect("Qsecret")


def test_one_wrong_letter_only_where_it_is_asked_for():
    assert found(Persons(["Johannesen"], fuzzy=True), "Johanesen Johannessen johanesen") == [
        "Johanesen Johannessen"
    ]
    assert not Persons(["Johannesen"]).detect("Johanesen")
    assert not Persons(["Hansen"], fuzzy=True).detect("Jansen")
