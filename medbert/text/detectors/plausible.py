"""Whether what a rule has found can be what it is taken for: how many of its characters count.

Each takes the text found and returns a length, from its beginning; 0: it is something else.
"""

from __future__ import annotations

import re

from medbert.text.lists import PARTICLES, WORD, common, place_words, shipped


def day(text: str) -> int:
    """Whether numbers can be day and month (and year), in any order."""
    a, b, *_ = (int(n) for n in re.findall(r"\d+", text))
    return len(text) * (1 <= min(a, b) <= 12 and max(a, b) <= 31)


def month(text: str) -> int:
    """A month in letters; those that are words too need a capital or a year ("you may 2 ...")."""
    words = re.findall(r"[^\W\d_]+", text)
    doubtful = any(w in ("may", "mar", "march", "dec", "des", "set", "ago") for w in words)
    return len(text) * (not doubtful or bool(re.search(r"\d{4}", text)))


def person(text: str) -> int:
    """Up to the first word that is no part of a name: behind one, ordinary words need a capital."""
    end, lists = 0, shipped()
    for found in re.finditer(rf"({WORD.pattern})(\.?)", text):
        low = found[1].casefold()
        if len(low) > 1 and low not in PARTICLES:
            listed = low in lists.given or low in lists.surnames
            first = listed and not end  # "Dr. May", "Dr. will Smith"
            if low in lists.function and not (
                first and (found[1].istitle() or _rare(text[found.end() :]))
            ):
                break
            ordinary = common(low) and not (listed or low in lists.function)
            if ordinary and not (end and found[1][0].isupper()):
                break
        if low not in PARTICLES or not found[1].islower():
            end = found.end(2) if len(low) == 1 else found.end(1)
    return end


def _rare(text: str) -> bool:
    """Whether a capitalised word that is no ordinary one begins here."""
    word = WORD.match(text.strip())
    return word is not None and word[0][0].isupper() and not common(word[0])


def unusual(text: str) -> int:
    """As ``person``, where one of the words is no ordinary one."""
    length, lists = person(text), shipped()
    words = WORD.findall(text[:length])
    rare = [w for w in words if not common(w) and (w[0].isupper() or w in lists.given)]
    return length * (bool(rare) or text[1:length] == ".")


def several(text: str) -> int:
    """As ``unusual``, of two words or a listed one: not the drug in "gave the patient Pinex"."""
    length, lists = unusual(text), shipped()
    words = WORD.findall(text[:length])
    known = any(w.casefold() in lists.given or w.casefold() in lists.surnames for w in words)
    return length * (len(words) > 1 or known)


def surname(text: str) -> int:
    """In lower case only listed names that are no ordinary words."""
    words, lists = text.split(), shipped()
    known = [w in lists.surnames | lists.given and not common(w) for w in words]
    return len(text) if all(known) else len(words[0]) * known[0]


def number(text: str, least: int = 4) -> int:
    """At least four signs, with digits that are not just a year."""
    signs = re.sub(r"[\W_]", "", text)
    year = re.fullmatch(r"(19|20)\d\d", signs)
    return len(text) * (len(signs) >= least and sum(c.isdigit() for c in signs) > 1 and not year)


def long(text: str) -> int:
    return number(text, 5)


def named(text: str) -> int:
    """Whether one of the words is neither ordinary nor an abbreviation."""
    return len(text) * any(not w.isupper() and not common(w) for w in WORD.findall(text))


def listed(text: str) -> int:
    """Whether a place of the lists is in it."""
    words = WORD.findall(text.casefold())
    runs = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, i + 4))
    return len(text) * any(run in place_words() for run in runs)


def unit(text: str) -> int:
    """A unit or a town has a name: more than "The Hospital", "Our Clinic"."""
    first = text.split()[0].casefold()
    return len(text) * (first not in shipped().function or first in PARTICLES)
