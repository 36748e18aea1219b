"""PHI by its form and by the words around it: a rule a line.

A rule is tried where one of its cues stands (lists of ``data/cues.yaml``), or where a number, a
word with a capital or a sign before a number begins: not at every character, and so a hundred of
them are fast. What counts of a match is its first group, or all of it, and of that as many
characters as ``keep`` says (``plausible``). Scores are judgements, set below what annotated open
notes show, where there is less beside PHI than in a hospital's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medbert.schema import Span
from medbert.text.detectors.plausible import (
    day,
    listed,
    long,
    month,
    named,
    number,
    person,
    several,
    surname,
    unit,
    unusual,
)
from medbert.text.ids import adds_up
from medbert.text.lists import PARTICLES, UPPER, any_of, cues, months
from medbert.text.spans import merge

CARE, STREET, POST = "LOCATION:CARE_UNIT", "LOCATION:STREET", "LOCATION:POSTCODE"
PHONE = "CONTACT:PHONE"
NUMBER, CAPITAL, SIGN, ANYWHERE = "0", "A", "#", ""
_TOKEN = re.compile(rf"\d+|[#+(]|[{UPPER}]?[^\W\d_{UPPER}]+|[{UPPER}]+(?![^\W\d_{UPPER}])")

M = rf"(?i:{'|'.join(months())})(?![^\W\d_])\.?"  # digits may be glued to it
D, MM = r"(?:3[01]|[12]\d|0?[1-9])", r"(?:1[0-2]|0?[1-9])"
Y, SEP = r"(?:1[89]|20)\d\d", r"\s?[./-]{1,2}\s?"
YY = rf"(?:{Y}|['’]\d\d)"  # or '20
TH, OF, GAP = r"(?:st|nd|rd|th|º)?", r"(?:of |de |del )?", r"[\s,./-]{0,3}"
SHORT = rf"(?:{Y}|['’-]\d\d|\d\d(?=[,;.)\n]|$))"  # a year after day and month
NEW = r"(?<![\w.,/-])"  # no part of another number
NO = r"(?!\d|[.,/-]\d)"  # nor does one go on
GLUED = r"(?:(?<![\d.,/-])|(?<=[\d.][/-]))"  # as NEW, but behind a word or a first day
FIRST = rf"(?=(?:\s?[-–/]| (?:und|og|and|bis|til))\s?{D}\.\s?\d\d?\.\s?\d\d)"  # before a second day
N = rf"{NEW}(1[0-2]\d|\d{{1,2}})(?!\d)"  # an age
N_ENDS = rf"{N}(?=[,.;)](?!\d)|$|\n| (?:er|og|har|and|is|has|years?|år)\b)"
DOMAIN = r"(?<![\w.@-])(?:[a-z0-9-]{1,60}\.){1,5}(?:com|org|net|edu|gov|info|co\.uk)"
BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
TIME = r"(?:year|yr|month|week|day|wk|mo)s?"
NOT_FOR = "".join(rf"(?<!\b{word} )" for word in ("i", "for", "om", "over", "hver", "siste"))
NO_SPAN = r"(?! (?:siden|etter|før|tidl|med|tilb|fram|senere))"  # years that are no age
NO_DEGREE = r"(?!%| ?(?:degrees|°|times|grader))"
COMES = r"(?=[\s,]+(?:with|w/|who|pt|patient|present|c/o|s/p|pmh))"  # behind 34F
LETTERS = r"[^\W\d_]{1,30}+"  # never taken back: what looks like nothing costs no time
HEAD = rf"[{UPPER}][^\W\d_]{{0,20}}"  # the beginning of a word
CAP = rf"[{UPPER}](?:{LETTERS})?+(?:[-'’]{LETTERS}){{0,3}}+"
TOWN = rf"(?!{M}){CAP}(?:[ -]{CAP}){{0,2}}"
INITIALS = rf"[{UPPER}]\.(?:[ -]?[{UPPER}]\.){{0,3}}"
PERSON = (
    rf"((?:{INITIALS} ?)?{CAP}(?:[ -](?:(?i:{'|'.join(sorted(PARTICLES))}) ){{0,2}}"
    rf"(?:{INITIALS}|{CAP}(?!\w*:)|[{UPPER}]\b)){{0,3}}|{INITIALS})"
)
WORD = rf"{LETTERS}(?:[-'’.]{LETTERS}){{0,3}}+\.?"  # in any case
WORDS = rf"({WORD}(?:,? {WORD}(?!\w*\s?:)){{0,3}})"
RUN = rf"{CAP}\.?-?(?:(?: & |[-/ ]| (?:of|and|for|the|de|del|i|og) )(?!{M}){CAP}\.?-?){{0,5}}"
IS = (
    r"(?i:(?:[ -]?(?:number|nummer|num|no|nr|id|is|er|code|kode|info)\b\.?){0,2}\s?[:#=]*\s*"
    r"(?:is |er )?)"
)
CODE = r"(#?(?:[A-Za-z]{1,6}[-/]?)?\d[\dA-Za-z]{0,30}(?:[-/]\n?[\dA-Za-z]{1,30}){0,5})"
DIAL = r"(\(?\+?\d[\d \xa0()./-]{4,18}\d(?: ?(?:x|ext\.?) ?\d{1,5})?)"
ENHET = rf"(?:(?<=\w)| \w{{0,20}})(?i:{any_of('enhet')})(?:et|en|a)?\b"  # a unit's name ends
DEPARTMENT = rf"\w{{0,20}}(?i:{any_of('department')})\w{{0,30}}+\.?-?"
PART = rf"(?:,? (?:(?:og|for|i|-|–) )?(?:{DEPARTMENT}|(?!{M}){CAP}))*"  # what may follow it
GATE = rf"(?:(?<!a)gt\.?|{any_of('gate')})"
ROAD = r"(?:Str\.|Stra(?:ß|ss)e|Platz|Gasse|Weg|Allee|Ring|Damm)"
UNIT, COMPANY = (rf"(?:{any_of(cues)})(?!\w)" for cues in ("unit", "company"))
WORK = rf"(?:{any_of('place_of_work')})"
TO = r"(?: (?:in|at|to|from|på|i|ved|til|fra|the|our|an?))+:?"
STATE = rf"(?:{any_of('state')})"
FLAT = r"(?i:apt|suite|unit|box|flat|leil)\.? ?(?:\d{1,4}[A-Z]?|H\d{4})\b"
ADDRESS = rf"(?=[^\n]{{0,60}}\d)(?:\d{{1,5}} )?{CAP}[^\n;|]{{2,60}}[\w)]"  # with a number in it


STOP = r"(?i:(?<!doctor)(?<!professor)\.)?"  # of an abbreviation


class Rule(NamedTuple):
    label: str
    score: float
    start: str  # NUMBER, CAPITAL, SIGN, ANYWHERE or lists of cues, after which ``pattern`` stands
    pattern: str
    keep: Callable[[str], int] = len


DATES = (
    Rule(
        "DATE",
        0.97,
        NUMBER,
        rf"(?<!\d[./-]){Y}{SEP}(?:1[0-2]|0?\d){SEP}{D}(?!\d|\.\d)(?:[T ]\d\d:\d\d[\d:Z]*)?",
    ),
    Rule(
        "DATE",
        0.97,
        NUMBER,
        rf"{GLUED}(?!\d\d?\s?-\s?\d\d?/\d{{4}}){D}{SEP}{D}{SEP}['’]?(?:{Y}|\d\d)(?!\d|[./]\d|-(?!{D}[./]\d))",
        day,
    ),
    Rule("DATE", 0.8, NUMBER, rf"(?<![\d.,/-]){D}(?:\.{MM}\.?)?{FIRST}"),
    Rule("DATE", 0.8, NUMBER, rf"{NEW}{MM}(?=\s?[-–]\s?{MM}/{Y}{NO})"),
    Rule("DATE", 0.97, NUMBER, rf"{D}\.?{TH}{GAP}{OF}{M}(?:{GAP}{OF}{SHORT})?(?!\d)", month),
    Rule("DATE", 0.95, "month", rf"\.?\s?{D}{TH}(?:[,.]?\s?{YY})?(?![\d%]|[.,/]\d)", month),
    Rule("DATE", 0.95, "month", rf"\.?{GAP}{OF}{YY}(?!\d)"),
    Rule("DATE", 0.8, NUMBER, rf"(?:{NEW}{MM}\s?[/.-]|(?<=\d-){MM}/)\s?{Y}{NO}"),
    Rule("DATE", 0.8, NUMBER, rf"{NEW}{Y}[/-](?:1[0-2]|0[1-9]){NO}"),
    Rule("DATE", 0.8, "dated", rf":?\s({D}\s?[./]\s?{D}\.?)(?![\d%]|[./]\d|\s?mg)", day),
    Rule("DATE", 0.6, NUMBER, rf"{NEW}0[1-9]/(?:[12]\d|3[01]|0[1-9])(?![\d/%]|\.\d)"),
    Rule("DATE", 0.6, NUMBER, rf"{NEW}(?:[12]\d|3[01]|0[1-9])\.(?:0[1-9]|1[0-2])\.(?!\d)"),
    Rule("DATE", 0.7, "within", rf"[ -]({M})(?!\s?\d)", month),
    Rule("DATE", 0.6, "dated", rf"\W{{0,3}}((?:[012]\d|3[01])(?:0[1-9]|1[0-2])\d\d){NO}"),
    Rule("DATE", 0.9, "born", r"\W{0,3}(\d{6}|\d{8})(?!\d)"),
    Rule("DATE", 0.6, NUMBER, r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"),
    Rule("DATE:YEAR", 0.7, "born", rf"\W{{0,3}}({Y})(?!\d)"),
    Rule("DATE:YEAR", 0.6, "within year", rf"[ -]({Y})(?!\d|[.,]\d|\s?(?:mg|ml|g|kcal|IE|kr)\b)"),
    Rule("DATE:YEAR", 0.6, NUMBER, rf"{NEW}{Y}\s?[-–/]\s?(?:{Y}|\d\d)(?![\d/-])|(?<=\(){Y}(?=\))"),
    Rule("DATE:WEEKDAY", 0.5, "weekday", ""),
)
AGES = (
    Rule("AGE", 0.95, NUMBER, rf"{N}[ \n-]?(?:{TIME}[ -](?:old|of age)|y\.?\s?/?o\b)"),
    Rule("AGE", 0.95, NUMBER, rf"{N}[ -]?(?:år|mnd|måneder|uker|dager) (?:gam[lm]|alder)"),
    Rule(
        "AGE", 0.95, NUMBER, rf"{N}[ -]?(?:års?ig|åring|j[äa]hrig|Jahre alt|(?:meses|años) de edad)"
    ),
    Rule("AGE", 0.6, NUMBER, rf"{NOT_FOR}{N} ?år\b{NO_SPAN}"),
    Rule("AGE", 0.8, NUMBER, rf"(?<!hace )(?<!durante ){N} años(?! (?:de|desp|antes)\b)"),
    Rule("AGE", 0.9, "aged", rf"\W{{0,4}}(?:is |er |på |of )?{N}{NO_DEGREE}"),
    Rule("AGE", 0.8, "his", rf"(?: early| mid-?| late)? {N}(?:['’]?s\b|-?år(?:ene|a)\b)"),
    Rule("AGE", 0.7, NUMBER, rf"{N} ?[MFmf]{COMES}"),
    Rule("AGE", 0.8, NUMBER, rf"{N}-?års?alder(?:en)?"),
    Rule("AGE", 0.6, "was", rf" {N_ENDS}"),
    Rule("AGE", 0.6, "relative", rf"(?: {CAP})? (?:på|of|er|is|var|was|ble|blei|vart) {N_ENDS}"),
    Rule("AGE", 0.9, "teens tens ninety", r"(?:[- ]\w+)??(?=[- ](?i:years?[- ]old))"),
    Rule("AGE", 0.9, "nonagenarian", ""),
)
CONTACTS = (
    Rule("CONTACT:EMAIL", 0.99, ANYWHERE, r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]+(?:\.[\w-]+)+"),
    Rule("CONTACT:URL", 0.97, "url", r"(?:://|\.)[^\s<>\"')\]]*[\w/]"),
    Rule("CONTACT:URL", 0.6, ANYWHERE, DOMAIN + r"\b(?:/\w[^\s)]*)?"),
    Rule("CONTACT:IP", 0.9, NUMBER, rf"(?<![\d.])(?:{BYTE}\.){{3}}{BYTE}(?![\d.])"),
    Rule("CONTACT:IP", 0.9, ANYWHERE, r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){5,7}[0-9a-fA-F]{1,4}\b"),
    Rule("CONTACT:FAX", 0.95, "fax", rf"\W{{0,2}}{IS}{DIAL}", number),
    Rule(PHONE, 0.95, "phone", rf"\W{{0,2}}{IS}(?:phone\W*|tel\W*)?{DIAL}", number),
    Rule(PHONE, 0.9, NUMBER, r"(?<![\d-])(?:1[-. ])?\d{3}[-. ]\d{3}[-. ]\d{4}(?![\d-])"),
    Rule(PHONE, 0.9, SIGN, r"(?:\+?1[-. ]?)?\(\d{3}\) ?\d{3}[-. ]\d{4}(?![\d-])"),
    Rule(PHONE, 0.95, SIGN, r"\+[1-9]\d{0,2}(?:[ ()./-]{0,2}\d){6,12}(?!\d)"),
    Rule(PHONE, 0.95, NUMBER, rf"{NEW}00[1-9]\d{{0,2}}(?:[ ()./-]{{0,2}}\d){{6,12}}(?!\d)"),
    Rule(PHONE, 0.8, NUMBER, rf"{NEW}(?:[2-9]\d(?: \d\d){{3}}|[2-9]\d\d \d\d \d{{3}}){NO}"),
    Rule(PHONE, 0.8, NUMBER, rf"{NEW}0\d{{2,4}}[ -]\d{{3,4}}[ -]?\d{{3,4}}(?!\d)"),
    Rule(PHONE, 0.7, NUMBER, rf"{NEW}0\d{{1,3}}(?:[ -]\d{{2,3}}){{3,4}}{NO}"),
    Rule(PHONE, 0.8, NUMBER, rf"{NEW}\d[\d ]{{6,12}}\d(?=[ -](?i:fax|office|mobile|cell)\b)"),
)
IDS = (
    Rule("ID:SSN", 0.85, NUMBER, r"(?<![\d-])\d{3}-\d\d-\d{4}(?![\d-])"),
    Rule("ID:SSN", 0.95, "ssn", IS + CODE, number),
    Rule("ID:FNR", 0.8, NUMBER, r"\d{6}[ \n-]{0,2}\d{5}(?!\d)"),
    Rule("ID:PNR", 0.75, NUMBER, r"(?:19|20)?\d{6}[-+]\d{4}(?!\d)"),
    Rule("ID:CPR", 0.7, NUMBER, r"\d{6}-\d{4}(?!\d)"),
    Rule("ID:HETU", 0.7, NUMBER, r"(?<!\w)\d{6}[-+A]\d{3}[0-9A-Y](?!\w)"),
    Rule("ID:NHS", 0.7, NUMBER, r"\d{3}[ -]\d{3}[ -]\d{4}(?!\d)"),
    Rule("ID:BSN", 0.5, NUMBER, r"(?<![\d.,])\d{9}(?![\d.,]\d|\d)"),
    Rule("ID:KVNR", 0.6, CAPITAL, r"(?<!\w)[A-Z]\d{9}(?!\w)"),
    Rule("ID:DNI", 0.7, NUMBER, r"(?<!\w)\d{8}-?[A-Z](?!\w)"),
    Rule("ID:DNI", 0.7, CAPITAL, r"(?<!\w)[XYZ]-?\d{7}-?[A-Z](?!\w)"),
    Rule("ID:CARD", 0.8, NUMBER, r"\d{4}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?!\d)"),
    Rule("ID:ACCOUNT", 0.8, CAPITAL, r"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    Rule("ID:MRN", 0.95, "mrn", rf"{IS}{CODE}", number),
    Rule("ID:PLAN", 0.9, "plan", rf"\.?(?: (?:plan|policy))?{IS}{CODE}", long),
    Rule("ID:ACCOUNT", 0.9, "account", rf"\.?{IS}{CODE}", number),
    Rule("ID:LICENCE", 0.9, "licence", rf"\.?{IS}{CODE}", number),
    Rule("ID:DEVICE", 0.9, "device", rf"{IS}{CODE}", long),
    Rule("ID:DEVICE", 0.9, ANYWHERE, r"(?<![\w:])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b"),
    Rule("ID:VEHICLE", 0.8, "vehicle", rf"{IS}([A-Z]{{1,3}} ?\d{{2,6}}|\w{{17}})", number),
    Rule("ID", 0.85, "case", rf"\.?{IS}{CODE}", long),
    Rule(
        "ID",
        0.7,
        CAPITAL,
        r"(?<![\w-])[A-Z]{1,6}(?:-\d{4,}|(?<=[A-Z]{2})\d{5,}|\d{7,})(?:-\w+)*(?!\w)",
    ),
    Rule("ID", 0.7, SIGN, r"#[A-Z]{0,4}-?\d{4,}[\w-]*"),
    Rule("ID", 0.6, NUMBER, r"(?<![.,-])\d{7,}(?![.,]\d|\d|\s?(?:IE|IU|U|copies|kopier|/))"),
)
PLACES = (
    Rule(
        STREET,
        0.95,
        NUMBER,
        rf"\d{{1,5}} (?:[NSEW]\.? )?(?:{CAP}\.? ){{1,4}}(?:{any_of('street')})\b\.?"
        r"(?:,? (?i:apt|suite|unit|ste|#)\.? ?\w+)?",
    ),
    Rule(STREET, 0.7, CAPITAL, rf"(?:{CAP} ){{1,3}}(?:Street|Avenue|Road|Boulevard|Lane)\b"),
    Rule(
        STREET,
        0.9,
        CAPITAL,
        rf"(?:{CAP}[ -]){{0,3}}(?:{HEAD})??{GATE} ?\d{{1,4}}(?: ?[A-Z]| ?[a-d])?\b",
    ),
    Rule(STREET, 0.9, CAPITAL, rf"(?:{HEAD}[ -]){{1,2}}{ROAD} ?\d{{1,4}}(?: ?[A-Z]| ?[a-d])?\b"),
    Rule(STREET, 0.85, "calle", rf"\.? (?:de |del |la )*{RUN}(?:,? (?:nº ?)?\d+)?"),
    Rule(STREET, 0.85, NUMBER, rf"\d{{1,5}} (?:\d{{1,4}} )?(?:{CAP} ){{1,4}}(?:\d{{1,4}} )?{FLAT}"),
    Rule(STREET, 0.8, CAPITAL, rf"(?:{CAP} ){{1,3}}\d{{1,4}} {FLAT}"),
    Rule("LOCATION", 0.85, "address", rf"\s?[:=]\s*({ADDRESS})"),
    Rule(POST, 0.85, NUMBER, rf"(?<![\w.,/])\d{{4,5}} {CAP}(?: {CAP})?", listed),
    Rule(POST, 0.9, CAPITAL, rf"{STATE},? \d{{5}}(?:-\d{{4}})?\b"),
    Rule(POST, 0.7, CAPITAL, r"\b[A-Z]{1,2}\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2}\b"),
    Rule(POST, 0.85, CAPITAL, rf"[AD]-\d{{4,5}} {CAP}"),
    Rule(POST, 0.9, "zip", r"\W{0,3}(?:is )?(\w{2,4}[ -]?\w{2,4})\b", number),
    Rule("LOCATION", 0.9, CAPITAL, rf"{CAP}(?: {CAP}){{0,2}}, (?!MD|PA|MA|MS|DO){STATE}\b"),
    Rule("LOCATION", 0.85, "lives", rf":?\s(?:the )?({TOWN})", unit),
    Rule("LOCATION", 0.75, "home", rf"\s?[:=]\s*({TOWN})", unit),
    Rule("LOCATION", 0.6, "from", rf"(?<![A-Z]) (?:the )?({TOWN})", named),
    Rule(CARE, 0.75, "care", rf"\s?[:=]\s*({RUN}{PART})", named),
    Rule(CARE, 0.9, CAPITAL, rf"{RUN} {UNIT}(?: (?:of|at|in) (?!{M}){CAP}(?: {CAP})*)?", unit),
    Rule(CARE, 0.8, "saint", rf"\.? (?-i:[{UPPER}])[\w-]+(?:['’]s?\b)?"),
    Rule(CARE, 0.8, CAPITAL, rf"{CAP}(?: {CAP}){{0,2}}(?: \w+)? {WORK}\b", listed),
    Rule(CARE, 0.9, CAPITAL, rf"(?:{CAP}-?(?: og)? ){{0,3}}(?:{HEAD})?{ENHET}{PART}", unit),
    Rule(CARE, 0.9, "helse", rf",? (?:i )?(?:{CAP}|{DEPARTMENT}){PART}"),
    Rule(CARE, 0.9, CAPITAL, rf"(?:{CAP} ){{1,3}}(?:DPS|BUP|HF)\b{PART}"),
    Rule(CARE, 0.6, "visited", rf"{TO} (?!Dr|Mr|Ms|Prof)({RUN})", named),
    Rule("ORGANISATION", 0.7, CAPITAL, rf"(?:{CAP},? (?:(?:and|og|&) )?){{1,3}}{COMPANY}"),
    Rule("ORGANISATION", 0.75, CAPITAL, rf"{CAP}(?:, {CAP})? (?:&|and|og) (?:Sons|Sønner|Co)\b\.?"),
    Rule("ORGANISATION", 0.6, "employed", rf":? (?:the )?({RUN})", named),
)
NAMES = (
    Rule("NAME:CLINICIAN", 0.97, "dr", rf"\b{STOP}[ \n]{{0,2}}{PERSON}", person),
    Rule("NAME", 0.97, "mr", rf"\b\.?[ \n]{{1,2}}{PERSON}", person),
    Rule("NAME:CLINICIAN", 0.85, "nurse", rf",?:? {PERSON}", unusual),
    Rule("NAME", 0.7, "dr mr", r"\.? ([a-zæøå]{3,}(?: [a-zæøå]{3,})?)\b", surname),
    Rule("NAME", 0.9, "name", rf"\s?[:=]\s*{WORDS}", person),
    Rule("NAME:PATIENT", 0.85, "patient", rf"\s?[:=]\s*{WORDS}", unusual),
    Rule("NAME:PATIENT", 0.75, "patient", rf"[.,]? {PERSON}", several),
    Rule("NAME", 0.85, "by", rf"[:,]?\s+{PERSON}", unusual),
    Rule("NAME", 0.85, "called", rf"[:,]?\s+{PERSON}", several),
    Rule("NAME:RELATIVE", 0.7, "relative", rf",? {PERSON}", several),
    Rule("NAME", 0.9, CAPITAL, rf"{PERSON},? (?:{any_of('credential')})\b", unusual),
)
RULES = (*DATES, *AGES, *CONTACTS, *IDS, *PLACES, *NAMES)


class Rules:
    """The rules as a detector; ``rules`` may be some of ``RULES``, or these and your own."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self.rules = rules
        self.at: dict[str, list[tuple[int, re.Pattern[str]]]] = {}
        for i, rule in enumerate(rules):
            if rule.start in (NUMBER, CAPITAL, SIGN, ANYWHERE):
                self.at.setdefault(rule.start, []).append((i, re.compile(rule.pattern)))
                continue
            pattern = re.compile(rf"(?i:{any_of(rule.start)})(?![^\W\d_]){rule.pattern}")
            for word in {_TOKEN.findall(cue)[0].casefold() for cue in cues(rule.start)}:
                self.at.setdefault(word, []).append((i, pattern))

    def detect(self, text: str) -> list[Span]:
        found = []
        for i, pattern in self.at.get(ANYWHERE, ()):
            found += [self._span(i, match) for match in pattern.finditer(text)]
        done = [0] * len(self.rules)
        for token in _TOKEN.finditer(text):
            start, first = token.start(), token[0]
            for i, pattern in self._tried(first):
                if start >= done[i] and (match := pattern.match(text, start)):
                    done[i] = match.end()
                    found.append(self._span(i, match))
        return merge(found)

    def _tried(self, first: str) -> Sequence[tuple[int, re.Pattern[str]]]:
        if first.isdigit():
            return self.at.get(NUMBER, ())
        if first in "#+(":
            return self.at.get(SIGN, ())
        cued = self.at.get(first.casefold(), ())
        return [*cued, *self.at.get(CAPITAL, ())] if first[0].isupper() else cued

    def _span(self, i: int, match: re.Match[str]) -> Span:
        rule = self.rules[i]
        start, end = match.span(match.lastindex or 0)
        text = match.string[start : start + rule.keep(match.string[start:end])]
        sure = 0.99 if adds_up(rule.label.partition(":")[2], text) else rule.score
        return Span(start, start + len(text), rule.label, sure)
