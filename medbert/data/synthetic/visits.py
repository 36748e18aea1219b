"""Visits: the reasons to be seen that a life gives, and those of them that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from medbert.data.synthetic.conditions import (
    ANYONE,
    CONDITIONS,
    INDEX,
    INPATIENT,
    IS_OUTCOME,
    IS_STAGE,
    LASTING,
    OUTCOMES,
    OUTPATIENT,
    PARAMETERS,
    RECORD,
    RECURRENT,
    REGISTRATION,
    by_kind,
    column,
)
from medbert.data.synthetic.lives import DAY_MIN, Lives, began, clock, factor, joined

HAS_SETTING = np.array([bool(condition.setting) for condition in CONDITIONS.values()])
SETTING = np.array([by_kind(each.setting or {"outpatient": 1}) for each in CONDITIONS.values()])
SETTING = np.cumsum(SETTING, axis=1) / SETTING.sum(axis=1, keepdims=True)


class Pairs(NamedTuple):
    """Conditions that the record can know, by subject."""

    who: ndarray
    what: ndarray
    onset: ndarray


class Calls(NamedTuple):
    """Reasons to be seen: who, for what condition, at which age, in which kind of visit."""

    who: ndarray
    why: ndarray | int
    age: ndarray
    kind: ndarray | int


class Visits(NamedTuple):
    """By subject and start; none begins inside, or runs into, another unless it is firm."""

    who: ndarray
    why: ndarray  # the condition that is coded first
    kind: ndarray
    start: ndarray  # minutes
    end: ndarray
    firm: ndarray  # kept in any case: an outcome's first record, registration, the last stay


def known(rng: Generator, lives: Lives) -> Pairs:
    """All that is there while the subject is observed, less what is missed."""
    present = (lives.onset < lives.stop) & ~IS_STAGE[: len(LASTING), None]
    who, what = np.nonzero(present.T)
    seen = rng.random(len(who)) >= column("missed")[what]
    who, what = who[seen], what[seen]
    return Pairs(who, what, lives.onset[what, who])


def kept_visits(rng: Generator, lives: Lives, pairs: Pairs) -> Visits:
    """A visit for each call, in office hours if it can wait, and none that is in another's way."""
    usual = [*_lasting(rng, lives, pairs), *_recurrent(rng, lives), *_signs(rng, lives)]
    who, why, age, kind = joined([*usual, *_firm(rng, lives)])
    firm = np.arange(len(who)) >= sum(len(each.who) for each in usual)
    start = lives.minutes(who, age)
    office = (kind == REGISTRATION) | ~firm & (kind == OUTPATIENT)
    firm |= kind == REGISTRATION
    hour = start % DAY_MIN
    start = np.where(office, start - hour + 8 * 60 + hour * 9 // 24, start)
    length = np.zeros(len(who), np.int64)
    stays = np.flatnonzero(kind == INPATIENT)
    length[stays] = _lengths(rng, lives, pairs, who[stays], why[stays])
    everyone = np.arange(len(lives.birth))
    entry, stop = (lives.minutes(everyone, age)[who] for age in (lives.entry, lives.stop))
    end = np.where(firm, start, start + length)
    start = np.where(firm, np.maximum(start - length, entry), start)
    died = (end > stop) & (lives.death <= lives.leave)[who] & (kind == INPATIENT)
    end = np.where(died, stop, end)
    keep = (start >= entry) & (start <= stop) & (end <= stop)
    return _apart(Visits(*(values[keep] for values in (who, why, kind, start, end, firm))))


def _lengths(rng: Generator, lives: Lives, pairs: Pairs, who: ndarray, why: ndarray) -> ndarray:
    """Minutes of stays: the condition's mean, longer in the frail and with each other condition."""
    others = np.bincount(pairs.who, minlength=len(lives.birth))[who]
    mean = column("days")[why] * lives.frailty[who] ** 0.5
    mean *= 1 + RECORD.stay_per_condition * others
    spread = RECORD.stay_spread
    days = mean * np.exp(spread * rng.standard_normal(len(who)) - spread**2 / 2)
    days = np.clip(days, RECORD.shortest_stay, RECORD.longest_stay)
    return np.rint(days * DAY_MIN).astype(np.int64)


def _apart(visits: Visits) -> Visits:
    """Visits by subject and start, without those that begin inside, or run into, another."""
    order = np.lexsort((~visits.firm, visits.start, visits.who))
    visits = Visits(*(values[order] for values in visits))
    who, start, end, firm = visits.who, visits.start, visits.end, visits.firm
    origin = start.min(initial=0)
    place = who * (end.max(initial=0) - origin + 1) - origin  # one time line of all subjects
    busy_until = np.append(-1, np.maximum.accumulate(place + end)[:-1])
    inside = place + start < busy_until
    same = np.append(who[1:] == who[:-1], False)
    runs_into = same & np.append(firm[1:] & (end[:-1] > start[1:]), False)
    keep = firm | ~(inside | runs_into)
    return Visits(*(values[keep] for values in visits))


def _in_setting(rng: Generator, who: ndarray, why: ndarray | int, age: ndarray) -> Calls:
    """Calls in the settings of their conditions."""
    shares = SETTING[np.broadcast_to(why, len(who))]
    return Calls(who, why, age, (rng.random(len(who))[:, None] > shares).sum(1))


def _scatter(
    rng: Generator, rate: ndarray | float, start: ndarray, stop: ndarray
) -> tuple[ndarray, ndarray]:
    """Events at a constant rate between two ages: the row of each, and its age."""
    years = np.maximum(stop - start, 0)
    row = np.repeat(np.arange(len(years)), rng.poisson(rate * years))
    return row, start[row] + rng.random(len(row)) * years[row]


def _lasting(rng: Generator, lives: Lives, pairs: Pairs) -> Iterator[Calls]:
    who, what = pairs.who, pairs.what
    entry, stop = lives.entry[who], lives.stop[who]
    habits = (("visits", lives.care, OUTPATIENT), ("stays", lives.frailty, INPATIENT))
    for name, habit, kind in habits:
        rate = column(name)[what] * habit[who]
        row, age = _scatter(rng, rate, np.maximum(pairs.onset, entry), stop)
        yield Calls(who[row], what[row], age, kind)
    new = (pairs.onset > entry) & HAS_SETTING[what] & ~IS_OUTCOME[what]
    yield _in_setting(rng, who[new], what[new], pairs.onset[new])
    old = np.unique(who[pairs.onset <= entry])
    yield Calls(old, INDEX["check_up"], lives.entry[old], REGISTRATION)


def _recurrent(rng: Generator, lives: Lives) -> Iterator[Calls]:
    for name, condition in RECURRENT.items():
        ratio = factor(condition, lives.male, lives.frailty) * lives.care**0.5
        hazards = clock(condition, lives.onset, ratio, lives.entry, lives.stop)
        reach = hazards.total[-1]
        who = np.repeat(np.arange(len(reach)), rng.poisson(reach))
        age = hazards.when(who, rng.random(len(who)) * reach[who])
        if name == "newborn":
            who = np.flatnonzero(lives.entry == 0)
            age = np.zeros(len(who))
        yield _in_setting(rng, who, INDEX[name], age)
        if course := condition.course:
            row = np.repeat(np.arange(len(who)), rng.poisson(course.number, len(who)))
            later = age[row] + course.years * rng.random(len(row))
            yield Calls(who[row], INDEX[course.condition], later, OUTPATIENT)


def _signs(rng: Generator, lives: Lives) -> Iterator[Calls]:
    for outcome, signs in PARAMETERS.signs.items():
        stage = lives.onset[INDEX[OUTCOMES[outcome].stage]]
        who = np.flatnonzero(stage < lives.stop)
        start = np.maximum(stage, lives.entry)[who]
        stop = np.minimum(lives.onset[INDEX[outcome]], lives.stop)[who]
        for name, sign in signs.items():
            row, age = _scatter(rng, sign.per_year, start, stop)
            shown = rng.random(len(row)) < (age - stage[who[row]]) / sign.ramp
            yield _in_setting(rng, who[row[shown]], INDEX[name], age[shown])


def _firm(rng: Generator, lives: Lives) -> Iterator[Calls]:
    """The first record of each outcome, its rule-outs before, and stays that end in death."""
    for name in OUTCOMES:
        overt = lives.onset[INDEX[name]]
        who = np.flatnonzero((overt > lives.entry) & (overt < lives.stop))
        yield _in_setting(rng, who, INDEX[name], overt[who])
        for cause, rate in PARAMETERS.rule_out[name].items():
            start = lives.entry
            if cause != ANYONE:
                start = np.maximum(start, began(lives.onset, cause))
            row, age = _scatter(rng, rate, start, np.minimum(overt, lives.stop))
            yield Calls(row, INDEX[name], age, rng.integers(0, INPATIENT, len(row)))
    last = (lives.death <= lives.leave) & (rng.random(len(lives.death)) < RECORD.died_in_hospital)
    who = np.flatnonzero(last)
    causes = np.array([INDEX[name] for name in RECORD.died_of])
    yield Calls(who, rng.choice(causes, len(who)), lives.death[who], INPATIENT)
