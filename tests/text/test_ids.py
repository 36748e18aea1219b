"""National numbers: published examples add up, and a wrong digit does not."""

import pytest

from medbert.text.ids import CHECKS, adds_up

# Published as examples by those who give them out, or made of a date and a running number here.
RIGHT = {
    "FNR": ["01019000083", "010190 00083"],
    "PNR": ["811228-9874", "19811228-9874"],
    "CPR": ["070761-4285"],
    "HETU": ["131052-308T"],
    "NHS": ["943 476 5919"],
    "BSN": ["111222333"],
    "KVNR": ["A123456780"],
    "DNI": ["12345678Z", "X1234567L"],
    "SSN": ["123-45-6789"],
    "NPI": ["1234567893"],
    "CARD": ["4111 1111 1111 1111"],
}


@pytest.mark.parametrize("kind", sorted(CHECKS))
def test_published_numbers_add_up(kind):
    assert all(adds_up(kind, text) for text in RIGHT[kind])


@pytest.mark.parametrize("kind", sorted(set(CHECKS) - {"SSN"}))
def test_one_wrong_digit_is_noticed(kind):
    text = RIGHT[kind][0]
    places = [i for i, sign in enumerate(text) if sign.isdigit()]
    wrong = [text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :] for i in places]
    assert not any(adds_up(kind, one) for one in wrong)


def test_a_day_or_a_month_may_say_what_kind_of_fodselsnummer_it_is():
    def some(born: str) -> int:
        return sum(adds_up("FNR", f"{born}{n:05}") for n in range(1_500))

    assert all(some(born) for born in ("010190", "410190", "014190", "018190", "016690"))
    assert not any(some(born) for born in ("320190", "001190", "310490", "019990"))


def test_what_is_never_given_out_is_no_ssn():
    assert not any(adds_up("SSN", text) for text in ("000-12-3456", "666-12-3456", "912-34-5678"))
    assert not any(adds_up("SSN", text) for text in ("123-00-4567", "123-45-0000"))


def test_other_forms_and_unknown_kinds_do_not_add_up():
    assert not any(adds_up(kind, text) for kind in CHECKS for text in ("", "12", "abc", "0"))
    assert not adds_up("MRN", "123456")
