"""The parameters of the simulator: ``parameters.yaml`` as Python, its names and numbers checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import yaml

from medbert.schema import InputError

FILE = Path(__file__).with_name("parameters.yaml")
KINDS = ("outpatient", "emergency", "inpatient", "registration")  # of visits, by number
OUTPATIENT, EMERGENCY, INPATIENT, REGISTRATION = range(4)
ANYONE = "anyone"  # among the causes of rule-outs


@dataclass(frozen=True)
class Choice:
    """A code that a condition can be written as: "code weight title"."""

    code: str
    weight: float
    title: str


@dataclass(frozen=True)
class Follows:
    """A hidden stage, and the years until the overt disease: a minimum and a gamma part."""

    stage: str
    minimum: float
    shape: float
    mean: float


@dataclass(frozen=True)
class Course:
    condition: str
    number: float
    years: float


@dataclass(frozen=True)
class Condition:
    """A disease, symptom or reason for a visit; the head of the YAML explains the words."""

    source: str
    per_1000: tuple[float, ...] = (0.0,) * 10
    women: float = 1.0
    men: float = 1.0
    effects: dict[str, float] = field(default_factory=dict)
    frailty: float = 1.0
    needs: str = ""
    follows: Follows | None = None
    fatality: float = 0.0
    sudden: float = 0.0
    missed: float = 0.05
    visits: float = 0.0
    stays: float = 0.0
    setting: dict[str, float] = field(default_factory=dict)
    days: float = 3.7
    elective: float = 0.1
    course: Course | None = None
    orders: dict[str, float] = field(default_factory=dict)
    icd9: tuple[Choice, ...] = ()
    icd10: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Sign:
    per_year: float
    ramp: float


@dataclass(frozen=True)
class Lab:
    loinc: str
    title: str
    unit: str
    median: float
    spread: float
    men: float = 1.0
    per_decade: float = 1.0
    shifts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Life:
    age_bands: tuple[float, ...]
    oldest: float
    share_male: float
    mortality: Condition
    frailty_spread: float
    care_shape: float
    leaving_per_year: float
    late_entry: float


@dataclass(frozen=True)
class Record:
    icd10_from: date
    listed: dict[str, float]
    uncoded: dict[str, float]
    mistaken: float
    repeated: float
    stay_spread: float
    stay_per_condition: float
    shortest_stay: float
    longest_stay: float
    discharged: dict[str, float]
    died_in_hospital: float
    died_of: tuple[str, ...]
    stage_ramp: float


@dataclass(frozen=True)
class Parameters:
    """The whole YAML, which explains every name."""

    life: Life
    record: Record
    lasting: dict[str, Condition]
    recurrent: dict[str, Condition]
    signs: dict[str, dict[str, Sign]]
    rule_out: dict[str, dict[str, float]]
    labs: dict[str, Lab]
    drugs: dict[str, str]


def parse(text: str) -> Parameters:
    """The parameters in ``text``.

    Raises:
        InputError: a word, number or name that cannot be, and where it stands.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C: ten times as fast
    parameters: Parameters = _typed(Parameters, yaml.load(text, loader), FILE.name)
    for where, names, known in _references(parameters):
        if unknown := sorted(set(names) - set(known)):
            raise InputError(f"{FILE.name}: {where}: not defined, or not above: {unknown}")
    rates = {"mortality": parameters.life.mortality} | parameters.lasting | parameters.recurrent
    for where, condition in rates.items():
        if len(condition.per_1000) != len(parameters.life.age_bands):
            raise InputError(f"{FILE.name}: {where}: per_1000: expected one rate for each age band")
    return parameters


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``, built all the way down."""
    inner = get_args(hint)
    if get_origin(hint) is UnionType:
        return _typed(inner[0], value, where)
    if hint is Choice and (parts := re.fullmatch(r"(\S+) +([\d.]+) +(.+)", str(value))):
        return Choice(parts[1], float(parts[2]), parts[3])
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        needed = {f.name for f in fields(hint) if f.default is f.default_factory is MISSING}
        if wrong := sorted((value.keys() - hints) | (needed - value.keys())):
            raise InputError(f"{where}: unknown or missing {wrong}; it has {', '.join(hints)}")
        return hint(**{k: _typed(hints[k], item, f"{where}: {k}") for k, item in value.items()})
    if get_origin(hint) is dict and isinstance(value, dict):
        return {k: _typed(inner[1], item, f"{where}: {k}") for k, item in value.items()}
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], item, where) for item in value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (str, date) and isinstance(value, hint):
        return value
    raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def _references(parameters: Parameters) -> Iterator[tuple[str, Iterable[str], Iterable[str]]]:
    """Where names of other entries are used, which, and those that may be."""
    lasting, everything = parameters.lasting, parameters.lasting | parameters.recurrent
    outcomes = {name for name, each in lasting.items() if each.follows}
    above: set[str] = set()
    for name, condition in everything.items():
        causes = [part for effect in condition.effects for part in effect.split("+")]
        causes += [condition.needs] if condition.needs else []
        causes += [condition.follows.stage] if condition.follows else []
        yield name, causes, above
        yield name, [condition.course.condition] if condition.course else [], everything
        yield name, condition.setting, KINDS
        yield name, condition.orders, parameters.drugs | parameters.labs
        above |= {name} & lasting.keys()
    for name, lab in parameters.labs.items():
        yield name, lab.shifts, everything
    yield "signs, rule_out", [*parameters.signs, *parameters.rule_out], outcomes
    for name, signs in parameters.signs.items():
        yield f"signs: {name}", signs, everything
    for name, causes_of in parameters.rule_out.items():
        yield f"rule_out: {name}", causes_of, {ANYONE, *lasting}
    yield "listed, uncoded", parameters.record.listed | parameters.record.uncoded, KINDS
    yield "died_of", parameters.record.died_of, everything


PARAMETERS = parse(FILE.read_text(encoding="utf-8"))
LIFE, RECORD = PARAMETERS.life, PARAMETERS.record
LASTING, RECURRENT = PARAMETERS.lasting, PARAMETERS.recurrent
CONDITIONS = LASTING | RECURRENT
NAMES = tuple(CONDITIONS)
INDEX = {name: place for place, name in enumerate(NAMES)}  # lasting conditions come first
OUTCOMES = {name: each.follows for name, each in LASTING.items() if each.follows}
IS_OUTCOME = np.isin(NAMES, [*OUTCOMES])
IS_STAGE = np.isin(NAMES, [follows.stage for follows in OUTCOMES.values()])


def column(name: str) -> np.ndarray:
    """A parameter of every condition, in the order of NAMES."""
    return np.array([getattr(condition, name) for condition in CONDITIONS.values()])


def by_kind(numbers: Mapping[str, float]) -> np.ndarray:
    """Numbers by the name of a kind of visit, in the order of KINDS; 0 where not said."""
    return np.array([numbers.get(kind, 0.0) for kind in KINDS])
