"""Records: what the visits of a life write, in the order of MEDS."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy import ndarray
from numpy.random import Generator

from medbert.data.synthetic.conditions import (
    CONDITIONS,
    EMERGENCY,
    INDEX,
    INPATIENT,
    IS_OUTCOME,
    IS_STAGE,
    KINDS,
    LASTING,
    NAMES,
    OUTPATIENT,
    PARAMETERS,
    RECORD,
    REGISTRATION,
    by_kind,
    column,
)
from medbert.data.synthetic.lives import DAY_MIN, YEAR_MIN, Lives, joined, timestamps
from medbert.data.synthetic.visits import Pairs, Visits
from medbert.schema import BIRTH, DEATH, EVENTS, RANK, SEX, VISITS

ADMISSION, DISCHARGE = "HOSPITAL_ADMISSION//", "HOSPITAL_DISCHARGE//"
CHOICES = {  # by era
    "ICD9CM": [condition.icd9 for condition in CONDITIONS.values()],
    "ICD10CM": [condition.icd10 for condition in CONDITIONS.values()],
}
LABS = PARAMETERS.labs
ORDERS = [condition.orders for condition in CONDITIONS.values()]
CONFUSABLE = np.flatnonzero(  # lasting, of both sexes, no outcome
    (np.arange(len(NAMES)) < len(LASTING))
    & (np.minimum(column("women"), column("men")) > 0.05)
    & ~(IS_OUTCOME | IS_STAGE)
)
ICD10_FROM = np.datetime64(RECORD.icd10_from, "m").astype(np.int64)


def _titles() -> dict[str, str]:
    titles = {
        f"{SEX}//F": "Female",
        f"{SEX}//M": "Male",
        BIRTH: "Birth",
        DEATH: "Death",
        "VISIT//OUTPATIENT": "Outpatient visit",
        "VISIT//EMERGENCY": "Emergency visit",
        f"{ADMISSION}EMERGENCY": "Unplanned admission",
        f"{ADMISSION}ELECTIVE": "Planned admission",
    }
    for to in (*RECORD.discharged, "DIED"):
        titles[f"{DISCHARGE}{to}"] = f"Discharged: {to.lower()}"
    for system, choices in CHOICES.items():
        titles |= {f"{system}/{each.code}": each.title for some in choices for each in some}
    titles |= {f"ATC/{code}": drug.capitalize() for drug, code in PARAMETERS.drugs.items()}
    return titles | {f"LOINC/{lab.loinc}": f"{lab.title} [{lab.unit}]" for lab in LABS.values()}


def _choices() -> tuple[ndarray, ndarray]:
    """(era, condition, i): the i-th code, and the uniform number up to which it is chosen."""
    most = max(len(some) for choices in CHOICES.values() for some in choices)
    codes = np.zeros((len(CHOICES), len(NAMES), most), np.int64)
    shares = np.ones(codes.shape)
    for era, (system, choices) in enumerate(CHOICES.items()):
        for condition, some in enumerate(choices):
            weights = [each.weight for each in some]
            codes[era, condition, : len(some)] = [PLACE[f"{system}/{each.code}"] for each in some]
            shares[era, condition, : len(some)] = np.cumsum(weights) / np.sum(weights)
    return codes, shares


def _orderable(name: str) -> int:
    lab = LABS.get(name)
    return PLACE[f"LOINC/{lab.loinc}" if lab else f"ATC/{PARAMETERS.drugs[name]}"]


TITLES = _titles()
PLACE = {code: place for place, code in enumerate(TITLES)}
CHOICE_CODE, CHOICE_SHARE = _choices()
ORDER_STARTS = np.cumsum([0, *map(len, ORDERS)])
ORDER_CODE = np.array([_orderable(name) for some in ORDERS for name in some])
ORDER_CHANCE = np.array([chance for some in ORDERS for chance in some.values()])


class Rows(NamedTuple):
    """Events in the making, arrays or one value for all."""

    who: Any
    minute: Any
    rank: Any  # orders what happens in one minute
    code: Any
    value: Any = np.nan
    visit: Any = -1  # none


def event_table(
    rng: Generator,
    lives: Lives,
    pairs: Pairs,
    visits: Visits,
    *,
    first_subject: int,
    first_visit: int,
) -> pa.Table:
    """EVENTS (no rank) of all visits and lives; ids count from the first ones given."""
    everyone, born = np.arange(len(lives.birth)), lives.birth * DAY_MIN
    dead = np.flatnonzero(lives.death <= lives.leave)
    sex = np.where(lives.male, PLACE[f"{SEX}//M"], PLACE[f"{SEX}//F"])
    visit, what, code = _diagnoses(rng, lives, pairs, visits)
    parts = [
        *_visit_rows(rng, lives, visits),
        Rows(visits.who[visit], visits.end[visit], 3, code, visit=visit),
        _orders(rng, lives, visits, visit, what),
        Rows(everyone, born - 1, 0, sex),  # static rows come first
        Rows(everyone, born, 0, PLACE[BIRTH]),
        Rows(dead, lives.minutes(dead, lives.death[dead]), 5, PLACE[DEATH]),
    ]
    rows = Rows(*joined(parts))
    rows = _sorted(rows, again=np.flatnonzero(rng.random(len(rows.who)) < RECORD.repeated))
    columns = [
        pa.array(rows.who + first_subject),
        timestamps(rows.minute, missing=rows.minute < born[rows.who]),
        pa.array(list(TITLES)).take(pa.array(rows.code)),
        pa.array(rows.value.astype(np.float32), mask=np.isnan(rows.value)),
        pa.nulls(len(rows.who), EVENTS.field("text_value").type),
        pa.array(rows.visit + first_visit, mask=rows.visit < 0),
    ]
    return pa.table(columns, schema=EVENTS.remove(EVENTS.get_field_index(RANK)))


def visit_table(visits: Visits, *, first_subject: int, first_visit: int) -> pa.Table:
    """VISITS; how long an emergency visit lasts is not recorded."""
    kind = np.where(visits.kind == REGISTRATION, OUTPATIENT, visits.kind)
    days = ((visits.end - visits.start) / DAY_MIN).astype(np.float32)
    columns = [
        pa.array(visits.who + first_subject),
        pa.array(np.arange(len(kind)) + first_visit),
        timestamps(visits.start),
        timestamps(visits.end),
        pa.array(KINDS).take(pa.array(kind)),
        pa.array(days, mask=kind == EMERGENCY),
    ]
    return pa.table(columns, schema=VISITS)


def _diagnoses(
    rng: Generator, lives: Lives, pairs: Pairs, visits: Visits
) -> tuple[ndarray, ndarray, ndarray]:
    """What visits write: the visit, the condition and the code; known at the end of a stay."""
    uncoded = rng.random(len(visits.who)) < by_kind(RECORD.uncoded)[visits.kind]
    coded = np.flatnonzero(~uncoded | visits.firm)
    starts = np.cumsum([0, *np.bincount(pairs.who, minlength=len(lives.birth))])
    listed = by_kind(RECORD.listed)[visits.kind[coded]]
    owner, pair = _ragged(starts, visits.who[coded])
    sure = (visits.kind[coded][owner] == REGISTRATION) & IS_OUTCOME[pairs.what[pair]]
    chosen = sure | (rng.random(len(owner), dtype=np.float32) < listed[owner])
    visit, pair = coded[owner[chosen]], pair[chosen]
    began = lives.minutes(pairs.who, pairs.onset)
    there = (began[pair] <= visits.end[visit]) & (pairs.what[pair] != visits.why[visit])
    wrong = coded[rng.random(len(coded)) < RECORD.mistaken]
    mistaken = rng.choice(CONFUSABLE, len(wrong))
    visit = np.concatenate([coded, visit[there], wrong])
    what = np.concatenate([visits.why[coded], pairs.what[pair[there]], mistaken])
    era = (visits.end[visit] >= ICD10_FROM).astype(np.int64)
    choice = (rng.random(len(what))[:, None] > CHOICE_SHARE[era, what]).sum(1)
    return visit, what, CHOICE_CODE[era, what, choice]


def _orders(rng: Generator, lives: Lives, visits: Visits, visit: ndarray, what: ndarray) -> Rows:
    """Drugs and labs of the conditions written, each code once a visit."""
    owner, item = _ragged(ORDER_STARTS, what)
    chosen = rng.random(len(owner)) < ORDER_CHANCE[item]
    key = ORDER_CODE[item[chosen]] * len(visits.who) + visit[owner[chosen]]
    code, visit = np.divmod(np.unique(key), max(len(visits.who), 1))
    stay = visits.end[visit] - visits.start[visit]
    minute = visits.start[visit] + (rng.random(len(visit)) * stay).astype(np.int64)
    value = np.full(len(visit), np.nan)
    own = rng.standard_normal((len(LABS), len(lives.birth)))
    for number, lab in enumerate(LABS.values()):
        place = PLACE[f"LOINC/{lab.loinc}"]
        part = slice(*np.searchsorted(code, [place, place + 1]))
        who = visits.who[visit[part]]
        age = (minute[part] - lives.birth[who] * DAY_MIN) / YEAR_MIN
        noise = (own[number, who] + rng.standard_normal(len(who))) * np.sqrt(0.5)
        level = lab.median * np.exp(lab.spread * noise) * np.where(lives.male[who], lab.men, 1.0)
        level *= lab.per_decade ** np.maximum((age - 50) / 10, 0)
        for cause, ratio in lab.shifts.items():
            level *= ratio ** _present(lives, cause, who, age, visits.why[visit[part]])
        value[part] = np.round(level, max(0, 1 - int(np.floor(np.log10(lab.median)))))
    return Rows(visits.who[visit], minute, 2, code, value=value, visit=visit)


def _present(lives: Lives, cause: str, who: ndarray, age: ndarray, why: ndarray) -> ndarray:
    """How far a cause is there: 0 or 1, and in between while a hidden stage deepens."""
    place = INDEX[cause]
    if cause not in LASTING:
        return (why == place).astype(float)
    since = age - lives.onset[place, who]
    deep = np.clip(since / RECORD.stage_ramp, 0, 1)
    return deep if IS_STAGE[place] else (since >= 0).astype(float)


def _visit_rows(rng: Generator, lives: Lives, visits: Visits) -> list[Rows]:
    stays = np.flatnonzero(visits.kind == INPATIENT)
    outpatient, emergency = PLACE["VISIT//OUTPATIENT"], PLACE["VISIT//EMERGENCY"]
    opened = np.where(visits.kind == EMERGENCY, emergency, outpatient)
    planned = rng.random(len(stays)) < column("elective")[visits.why[stays]]
    elective, unplanned = PLACE[f"{ADMISSION}ELECTIVE"], PLACE[f"{ADMISSION}EMERGENCY"]
    opened[stays] = np.where(planned, elective, unplanned)
    closing = [PLACE[f"{DISCHARGE}{to}"] for to in RECORD.discharged]
    closed = rng.choice(closing, len(stays), p=list(RECORD.discharged.values()))
    who, end = visits.who[stays], visits.end[stays]
    died = end == lives.minutes(who, lives.death[who])
    closed = np.where(died, PLACE[f"{DISCHARGE}DIED"], closed)
    return [
        Rows(visits.who, visits.start, 1, opened, visit=np.arange(len(visits.who))),
        Rows(who, end, 4, closed, visit=stays),
    ]


def _ragged(starts: ndarray, rows: ndarray) -> tuple[ndarray, ndarray]:
    """Items ``starts[r]:starts[r + 1]`` of each r in rows: the place in rows, and the item."""
    sizes = starts[rows + 1] - starts[rows]
    owner = np.repeat(np.arange(len(rows)), sizes)
    shift = starts[rows] - (np.cumsum(sizes) - sizes)
    return owner, np.arange(len(owner)) + shift[owner]


def _sorted(rows: Rows, *, again: ndarray) -> Rows:
    """By subject, time, rank and code; rows of a visit named in ``again`` are there twice."""
    again = again[rows.visit[again] >= 0]
    source = np.append(np.arange(len(rows.who)), again)
    who, minute, rank, code = (values[source] for values in rows[:4])
    key = ((who << 30 | (minute - minute.min())) << 3 | rank) << 12 | code
    source = source[np.argsort(key, kind="stable")]
    return Rows(*(values[source] for values in rows))
