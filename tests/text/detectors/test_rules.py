"""What has a form, or words before it, is found; what only looks like it is not."""

import json
from pathlib import Path
from time import process_time

import pytest

from medbert.text.detectors.rules import RULES, Rules
from medbert.text.detectors.words import listed
from medbert.text.lists import any_of
from medbert.text.scoring.policy import SAFE_HARBOR
from medbert.text.spans import LABELS, Ensemble, coarse

RULED = Rules()
ASQ = Path(__file__).parents[4] / "shared" / "data" / "deid" / "asq_phi" / "all.jsonl"


def found(text: str, label: str) -> list[str]:
    return [text[s.start : s.end] for s in RULED.detect(text) if s.label.startswith(label)]


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("den 3.5. ble hun", "3.5"),
        ("on 08/22, with", "08/22"),
        ("den 12/8 kom", "12/8"),
        ("født 12.03.\n1962 i", "12.03.\n1962"),
        ("12.03.2020kl14:30", "12.03.2020"),
        ("2022-05-30T14:30:00Z", "2022-05-30T14:30:00Z"),
        ("seen in May with", "May"),
        ("since last December", "December"),
        ("siden mars har", "mars"),
        ("fnr 120362, DOB 120362", "120362"),
        ("diagnosed in 2021.", "2021"),
        ("mellom 2019-2021", "2019-2021"),
        ("on Wednesday he", "Wednesday"),
        ("sist onsdag", "onsdag"),
    ],
)
def test_dates_that_need_what_stands_beside_them(text, date):
    assert date in [one.rstrip(".") for one in found(text, "DATE")]


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("fra 29.07.2023-01.08.2023 var", ["29.07.2023", "01.08.2023"]),
        ("vom 11.01.-14.01.2026 auf", ["11.01.", "14.01.2026"]),
        ("(05.11-18.11.2024)", ["05.11", "18.11.2024"]),
        ("am 06/07.11.2024 und", ["06", "07.11.2024"]),
        ("den 10. og 11.10.2033", ["11.10.2033"]),
        ("am 10 und 11.10.2033", ["10", "11.10.2033"]),
        ("from 10-11/2022, again", ["10", "11/2022"]),
        ("on 12/03/2020-14/03/2020", ["12/03/2020", "14/03/2020"]),
        ("den 3/12-2020 og", ["3/12-2020"]),
        ("Bonn, 17.10.2029/RAD", ["17.10.2029"]),
    ],
)
def test_days_of_a_span_are_dates_of_their_own(text, dates):
    assert found(text, "DATE") == dates


@pytest.mark.parametrize(
    "text",
    """You may 2 times daily|BP 120/80, pain 10/10|INR of 2.0-3.0|dose 1-0-1|HbA1c 5.6 and 7.2
pH 7.35, 3/6 murmur|pH 6.5-8.5. and 6.5-8.5.9
version 1.2.3.4|march 2 miles|2000 mg daily|in 2000 mg|2.5 mg may help
ratio 1:20|C5-C6 and L4/5|SpO2 98|5-year survival""".replace("\n", "|").split("|"),
)
def test_what_is_no_date(text):
    assert not found(text, "DATE")


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("a 34-year-old", "34"),
        ("34 y/o", "34"),
        ("70yo M", "70"),
        ("er 41 år", "41"),
        ("41 år gammel", "41"),
        ("31-årig mann", "31"),
        ("en 56-åring", "56"),
        ("aged 92", "92"),
        ("Alder: 92", "92"),
        ("i 80-årene", "80"),
        ("in her early 90s", "90"),
        ("6-month-old", "6"),
        ("varón de 53 años", "53"),
        ("eine 53-jährige", "53"),
        ("94\nyears old", "94"),
        ("ninety-two-year-old", "ninety-two"),
        ("a nonagenarian", "nonagenarian"),
        ("101 years of age", "101"),
    ],
)
def test_ages(text, age):
    assert found(text, "AGE") == [age]


@pytest.mark.parametrize(
    "text",
    ["for 10 år siden", "i 5 år", "3 years ago", "10 year history", "over 2 år", "5-yr survival"],
)
def test_what_is_no_age(text):
    assert not found(text, "AGE")


@pytest.mark.parametrize(
    ("text", "label", "value"),
    [
        ("Email: sarah.p@medsite.com.", "CONTACT:EMAIL", "sarah.p@medsite.com"),
        ("see https://a.no/x?y=1, or", "CONTACT:URL", "https://a.no/x?y=1"),
        ("at www.helse.no.", "CONTACT:URL", "www.helse.no"),
        ("from 192.168.1.1,", "CONTACT:IP", "192.168.1.1"),
        ("call (310) 555-1234", "CONTACT:PHONE", "(310) 555-1234"),
        ("1-800-555-1234", "CONTACT:PHONE", "1-800-555-1234"),
        ("+47 912 34 567", "CONTACT:PHONE", "+47 912 34 567"),
        ("004791234567 er", "CONTACT:PHONE", "004791234567"),
        ("tlf 91234567", "CONTACT:PHONE", "91234567"),
        ("Telefonnummer:91234567", "CONTACT:PHONE", "91234567"),
        ("ring 22 33 44 55", "CONTACT:PHONE", "22 33 44 55"),
        ("07700 900123", "CONTACT:PHONE", "07700 900123"),
        ("fax: 555-123-4567", "CONTACT:FAX", "555-123-4567"),
        ("(MRN: #SF-998877)", "ID:MRN", "#SF-998877"),
        ("MRN123456,", "ID", "MRN123456"),
        ("MRN:\n8876-\n5521", "ID:MRN", "8876-\n5521"),
        ("med rec #99887766", "ID", "#99887766"),
        ("pasientnr 4455667", "ID:MRN", "4455667"),
        ("insurance ID AX-987654.", "ID:PLAN", "AX-987654"),
        ("Policy No: 789-456-123", "ID:PLAN", "789-456-123"),
        ("Acct#: GRM-998877", "ID:ACCOUNT", "GRM-998877"),
        ("License No: CLN-112233", "ID:LICENCE", "CLN-112233"),
        ("NPI 1234567893", "ID:LICENCE", "1234567893"),
        ("SSN is 123-45-6789", "ID:SSN", "123-45-6789"),
        ("regnr AB 12345", "ID:VEHICLE", "AB 12345"),
        ("encounter 88123-A", "ID", "88123-A"),
        ("number 77889900112", "ID", "77889900112"),
        ("bor i Storgata 5B, og", "LOCATION:STREET", "Storgata 5B"),
        ("in Karl Johans gate 12", "LOCATION:STREET", "Karl Johans gate 12"),
        ("at 123 Maple Street, Apt 4", "LOCATION:STREET", "123 Maple Street, Apt 4"),
        ("0450 Oslo", "LOCATION:POSTCODE", "0450 Oslo"),
        ("zip code 33101", "LOCATION:POSTCODE", "33101"),
        ("lives in Atlanta, GA", "LOCATION", "Atlanta, GA"),
        ("født i Momarka", "LOCATION", "Momarka"),
        ("at Elm Street Medical Center on", "LOCATION:CARE_UNIT", "Elm Street Medical Center"),
        ("at St. Vincent's on", "LOCATION:CARE_UNIT", "St. Vincent's"),
        ("ved Førde sentralsjukehus den", "LOCATION:CARE_UNIT", "Førde sentralsjukehus"),
        (
            "Sykehuset Innlandet, DPS Elverum-Hamar, ruspoliklinikk Hamar 14.",
            "LOCATION:CARE_UNIT",
            "Sykehuset Innlandet, DPS Elverum-Hamar, ruspoliklinikk Hamar",
        ),
        ("hos Nordmo legekontor", "LOCATION:CARE_UNIT", "Nordmo legekontor"),
        ("works at Acme Inc.", "ORGANISATION", "Acme Inc"),
        ("seen by Dr. Patel in", "NAME:CLINICIAN", "Patel"),
        ("Dr.Hansen så", "NAME:CLINICIAN", "Hansen"),
        ("by Dr. A. Barnes", "NAME:CLINICIAN", "A. Barnes"),
        ("Mrs. L. Hernandez,", "NAME", "L. Hernandez"),
        ("mr smith was", "NAME", "smith"),
        ("Name: john smyth\n", "NAME", "john smyth"),
        ("Pasient: Are Dehli\nFødt", "NAME:PATIENT", "Are Dehli"),
        ("pasienten, Sigfred Knotten, er", "NAME:PATIENT", "Sigfred Knotten"),
        ("Mvh\nOla Nordmann\nLIS", "NAME", "Ola Nordmann"),
        ("kona Torvild Aas ringte", "NAME:RELATIVE", "Torvild Aas"),
        ("Szabina Gelen, MD", "NAME", "Szabina Gelen"),
    ],
)
def test_forms_and_cues(text, label, value):
    spans = [s for s in RULED.detect(text) if s.label.startswith(label)]
    assert value in [text[s.start : s.end].rstrip(".") for s in spans]


@pytest.mark.parametrize(
    "text",
    """Patient: Yeah, I know.|Patient: Um, I'm fine.
gave the patient Pinex|Pasient: innlagt med feber|Patient: Severe pneumonia
The Hospital called|plan 2 weeks of rest|visit 3, case 12|admitted to ICU
patient denies pain|platelets 250000|seen at the clinic|Navn: ukjent|policy 2023
Dr. unknown|from COPD""".replace("\n", "|").split("|"),
)
def test_what_is_no_phi(text):
    assert not RULED.detect(text)


@pytest.mark.parametrize(
    "odd", ["A'a", "Aa-", "1 ", "1-", "a@", "St. ", "Dr. ", "sykehus", "A. ", "\n"]
)
def test_odd_text_takes_no_longer_than_its_length(odd):
    began = process_time()
    RULED.detect(odd * 8_000)
    assert process_time() - began < 4  # seconds; a pattern that tries again and again takes minutes


def test_every_label_is_known_and_every_score_a_probability():
    assert {coarse(rule.label) for rule in RULES} <= set(LABELS)
    assert all(0 < rule.score <= 1 for rule in RULES)
    assert all(any_of(rule.start) for rule in RULES if len(rule.start) > 1)


def test_some_rules_alone():
    dates = Rules([rule for rule in RULES if rule.label.startswith("DATE")])
    assert [s.label for s in dates.detect("Dr. Hansen, 12.03.2020, tlf 91234567")] == ["DATE"]


@pytest.mark.skipif(not ASQ.is_file(), reason="the ASQ-PHI queries are not here")
def test_queries_of_clinicians_never_trained_on():
    """Token recall and queries without PHI that are touched, rules and lists alone."""
    detector = Ensemble([Rules(), *listed()])
    hit = missed = touched = clean = 0
    for line in ASQ.read_text(encoding="utf-8").splitlines()[::2]:
        note = json.loads(line)
        text, spans = note["text"], note["spans"]
        kept = SAFE_HARBOR.apply(text, detector.detect(text))
        clean += not spans
        touched += not spans and bool(kept)
        hidden = {i for s in kept for i in range(s.start, s.end)}
        for s in spans:
            words = [i for i in range(s["start"], s["end"]) if text[i].isalnum()]
            hit += sum(i in hidden for i in words)
            missed += sum(i not in hidden for i in words)
    assert hit / (hit + missed) > 0.95 and touched <= 0.1 * clean
