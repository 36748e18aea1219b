"""The parameters of the simulator: ``parameters.yaml`` as Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import yaml

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


def _built(hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint``, all the way down; the tests check what it says."""
    inner = get_args(hint)
    if get_origin(hint) is UnionType:
        return _built(inner[0], value)
    if hint is Choice:
        code, weight, title = value.split(maxsplit=2)
        return Choice(code, float(weight), title)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        value = {name: _built(hints[name], item) for name, item in value.items()}
        return hint(**value)  # type: ignore[operator]
    if get_origin(hint) is dict:
        return {name: _built(inner[1], item) for name, item in value.items()}
    if get_origin(hint) is tuple:
        return tuple(_built(inner[0], item) for item in value)
    return float(value) if hint is float else value


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C: ten times as fast
PARAMETERS: Parameters = _built(Parameters, yaml.load(FILE.read_text(encoding="utf-8"), _LOADER))
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
