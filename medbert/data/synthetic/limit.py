"""What a record can tell at most: the risk for who knows all of the state but the hidden stage.

Between what is known of a subject and an outcome stands its hidden stage, and only signs, values
and the conditions that need it betray that it has begun. When it began is averaged over its
distribution given these (Bayes' rule, on a grid). All else in the latent state is known: onsets,
frailty and care that no record tells so well; but whether a condition is one that needs the stage,
or another that has the same codes, only its values and complications tell.

Beside the legend of ``schema``: N rows; E events of their records; G times of the stage to begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy import ndarray
from scipy import sparse

from medbert.data.store import History
from medbert.data.synthetic.conditions import (
    CONDITIONS,
    LASTING,
    PARAMETERS,
    RECORD,
    Follows,
    Lab,
    Sign,
)
from medbert.data.synthetic.truth import State, before_stage, lasts, risk_of, within_stage
from medbert.schema import STATIC

BLOCK = 2_000  # rows at a time, for memory
EDGES = np.concatenate([[0.0], np.geomspace(0.02, 60, 200)])  # years before the row
BEGAN_G, WIDTH_G = (EDGES[1:] + EDGES[:-1]) / 2, np.diff(EDGES)
CODED = 1 - RECORD.uncoded["outpatient"]


class _Events(NamedTuple):
    """Of one condition or test: whose row, at what age, in which visit, with which value; by row.

    ``value_E``: of a symptom its own rate; of a test the logarithm of the value, in units of its
    spread, from what is usual without the stage.
    """

    row_E: ndarray
    age_E: ndarray
    visit_E: ndarray
    value_E: ndarray

    def of(self, first: int, last: int) -> _Events:
        part = slice(*np.searchsorted(self.row_E, [first, last]))
        row_E, *others = (each[part] for each in self)
        return _Events(row_E - first, *others)


def record_risk(
    truth: pa.Table,
    *,
    subject_id: ndarray,
    prediction_time: ndarray,
    history: History,
    codes: Sequence[str],
    outcome: str,
    gap_days: float,
    window_days: float,
) -> ndarray:
    """As ``true_risk``, but of the hidden stage only the ``history`` of each row is known.

    Signs are Poisson events: a symptom's own rate, and from the beginning of the stage on a rate
    that grows. Values are lognormal, half of their variance the subject's own. So nothing that
    reads the records until then ranks better, but for few signs that are lost where visits overlap,
    drugs that one of two conditions with the same codes gets more often, and the rates that
    ``true_risk`` holds.

    Args:
        history: of the rows, until ``prediction_time``; ``codes``: what its ``code_T`` are.

    Raises:
        InputError: as ``true_risk``.
    """

    def hidden(state: State, stage: Follows, end_N: ndarray, gap: float, window: float) -> ndarray:
        need, like = _needs(stage)
        swap = (need, like) if like else None
        state = state.blurred({like: need} if like else {})
        events = partial(_events, state, history, codes)
        signs = PARAMETERS.signs[outcome]
        seen = {name: _symptom(events(_codes_of(name)), state, name) for name in signs}
        labs = [lab for lab in PARAMETERS.labs.values() if {stage.stage, need} & lab.shifts.keys()]
        taken = [_test(events, state, lab, {stage.stage, need}) for lab in labs]
        new_N = state.hazard(LASTING[stage.stage])
        risk_N = np.zeros(len(new_N))
        for first in range(0, len(new_N), BLOCK):
            last = min(first + BLOCK, len(new_N))
            part = state.at(np.arange(first, last))
            log_NG = np.zeros((last - first, len(BEGAN_G)))
            for name, sign in signs.items():
                log_NG += _told_by_sign(part, seen[name].of(first, last), sign)
            swapped_NG = log_NG.copy()
            for lab, values in zip(labs, taken, strict=True):
                some = values.of(first, last)
                told_NG = _told_by_values(part, some, lab, stage)
                log_NG += told_NG
                swapped_NG += _told_by_values(part, some, lab, stage, swap) if swap else told_NG
            had_NG, not_N = _began(part, stage)
            other_NG, need_NG, none_N = _told_by_need(part, need, like)
            most_NG = np.maximum(np.maximum(log_NG, swapped_NG), 0)  # so that nothing overflows
            most_N1 = most_NG.max(1, keepdims=True)
            had_NG *= np.exp(log_NG - most_N1) * other_NG + np.exp(swapped_NG - most_N1) * need_NG
            not_N = not_N * none_N * np.exp(-most_N1[:, 0])
            end = end_N[first:last]
            within_NG = _within(stage, end, gap, window)
            before_N = before_stage(stage, new_N[first:last], end, gap, window)
            total_N = had_NG.sum(1) + not_N
            risk_N[first:last] = ((had_NG * within_NG).sum(1) + not_N * before_N) / total_N
        return risk_N

    return risk_of(
        truth, subject_id, prediction_time, outcome, gap_days, window_days, hidden=hidden
    )


def _began(state: State, stage: Follows) -> tuple[ndarray, ndarray]:
    """Before any sign: chances that the stage began at each time and the outcome is not there yet,
    (N, G), and that it has not begun, (N,)."""
    age_NG = state.age[:, None] - BEGAN_G
    rate_NG = state.hazard(LASTING[stage.stage], np.maximum(age_NG, 0)) * WIDTH_G * (age_NG > 0)
    until_NG = np.cumsum(rate_NG[:, ::-1], axis=1)[:, ::-1]  # from birth to the end of the piece
    return rate_NG * np.exp(-until_NG) * lasts(stage, BEGAN_G), np.exp(-until_NG[:, 0])


def _within(stage: Follows, end_N: ndarray, gap: float, window: float) -> ndarray:
    each = [
        within_stage(stage, np.full_like(end_N, began), end_N, gap, window) for began in BEGAN_G
    ]
    return np.stack(each, axis=1)


def _codes_of(name: str) -> list[str]:
    condition = CONDITIONS[name]
    both = {"ICD9CM": condition.icd9, "ICD10CM": condition.icd10}
    return [f"{system}/{choice.code}" for system, some in both.items() for choice in some]


def _events(state: State, history: History, codes: Sequence[str], wanted: list[str]) -> _Events:
    found = np.isin(history.code_T, np.flatnonzero(np.isin(codes, wanted)))
    place = np.flatnonzero(found & (history.time_T != STATIC))
    row_E = np.searchsorted(history.offsets_B1, place, side="right") - 1
    age_E = state.at(row_E).years(history.time_T[place].view("datetime64[us]"))
    return _Events(row_E, age_E, history.visit_T[place], history.value_T[place])


def _symptom(events: _Events, state: State, name: str) -> _Events:
    """Visits for a symptom, each once."""
    once = np.unique(np.stack([events.row_E, events.age_E]), axis=1, return_index=True)[1]
    row_E, age_E, visit_E, _ = (each[once] for each in events)
    whose = state.at(row_E)
    return _Events(row_E, age_E, visit_E, whose.hazard(CONDITIONS[name], age_E) * whose.care**0.5)


def _needs(stage: Follows) -> tuple[str, str]:
    """The condition that needs a stage, and another that has all of its codes; empty: none."""
    for need, condition in LASTING.items():
        if condition.needs == stage.stage:
            codes = set(_codes_of(need))
            others = [name for name in LASTING if name != need and codes <= {*_codes_of(name)}]
            return need, "".join(others[:1])
    return "", ""


def _test(
    events: Callable[[list[str]], _Events], state: State, lab: Lab, unknown: set[str]
) -> _Events:
    """Values of a test, as far as they are not usual for who is there and what the visit is for."""
    row_E, age_E, visit_E, value_E = events([f"LOINC/{lab.loinc}"])
    whose = state.at(row_E)
    usual_E = np.log(lab.median) + np.log(lab.men) * whose.male
    usual_E += np.log(lab.per_decade) * np.maximum((age_E - 50) / 10, 0)
    for cause, ratio in lab.shifts.items():
        if cause in LASTING:
            there_E = (whose.onset(cause) <= age_E) & (cause not in unknown)
        else:
            reason = events(_codes_of(cause))
            there_E = np.isin(row_E + 1j * visit_E, reason.row_E + 1j * reason.visit_E)
        usual_E += np.log(ratio) * there_E
    z_E = (np.log(np.maximum(value_E, 1e-3)) - usual_E) / lab.spread
    known = ~np.isnan(z_E)
    return _Events(row_E[known], age_E[known], visit_E[known], z_E[known])


def _told_by_sign(state: State, events: _Events, sign: Sign) -> ndarray:
    """(N, G) logarithm of how much likelier the visits for a symptom are with the stage."""

    def shown(years: ndarray) -> ndarray:  # the sum of what is shown by then
        years = np.maximum(years, 0)
        return np.where(years < sign.ramp, years**2 / (2 * sign.ramp), years - sign.ramp / 2)

    unseen_NG = shown(BEGAN_G - (state.age - state.entry)[:, None])
    log_NG = CODED * sign.per_year * (unseen_NG - shown(BEGAN_G))
    deep_EG = _since(state, events) / sign.ramp
    more_EG = sign.per_year * np.clip(deep_EG, 0, 1) / events.value_E[:, None]
    return log_NG + _summed(events, np.log1p(more_EG), len(state.age))


def _told_by_values(
    state: State, events: _Events, lab: Lab, stage: Follows, swap: tuple[str, str] | None = None
) -> ndarray:
    """(N, G) logarithm of how much likelier the values of a test are with the stage; ``swap``: and
    with a condition in place of another one.

    The m values of a subject have variance 1 and correlate by a half.
    """
    z_E = events.value_E
    deep_EG = np.clip(_since(state, events) / RECORD.stage_ramp, 0, 1)
    shift_EG = deep_EG * np.log(lab.shifts.get(stage.stage, 1))
    if swap:
        there_E = state.onset(swap[1])[events.row_E] <= events.age_E
        new, old = (lab.shifts.get(name, 1) for name in swap)
        shift_EG += np.log(new / old) * there_E[:, None]
    shift_EG /= lab.spread
    n = len(state.age)
    z_N1, m_N1 = (_summed(events, each[:, None], n) for each in (z_E, np.ones_like(z_E)))
    squares_NG = _summed(events, (2 * z_E[:, None] - shift_EG) * shift_EG, n)
    shift_NG = _summed(events, shift_EG, n)
    return squares_NG - (2 * z_N1 - shift_NG) * shift_NG / (m_N1 + 1)


def _told_by_need(state: State, need: str, like: str) -> tuple[ndarray, ndarray, ndarray]:
    """Likelihoods of a condition to have come when it did, if ever, given when the stage began: as
    the one that looks like it (N, G), as the one that needs the stage (N, G), and before the stage
    (N,). The rate of the latter is held at that of the row's age.
    """
    if not need:
        one_NG = np.ones((len(state.age), len(BEGAN_G)))
        return one_NG, 0 * one_NG, one_NG[:, 0]
    rate_N1 = state.hazard(LASTING[need])[:, None]
    since_N1 = state.since(like or need)[:, None]
    waited_NG = np.where(since_N1 >= 0, BEGAN_G - since_N1, BEGAN_G)
    unmet_NG = np.exp(-rate_N1 * np.maximum(waited_NG, 0))
    usual_N = state.hazard(LASTING[like], state.onset(like)) if like else np.zeros(len(rate_N1))
    none_N = np.where(since_N1[:, 0] >= 0, usual_N, 1.0)
    need_NG = rate_N1 * unmet_NG * ((since_N1 >= 0) & (waited_NG >= 0))
    for name, condition in LASTING.items():
        if like and condition.needs == like:  # what need does not bring, and does the other one
            missed_N = np.exp(state.hazard(condition) * np.maximum(since_N1[:, 0], 0))
            need_NG *= np.where(state.since(name) >= 0, 0.0, missed_N)[:, None]
    return none_N[:, None] * unmet_NG, need_NG, none_N


def _since(state: State, events: _Events) -> ndarray:
    """(E, G) years from the beginning of the stage to an event."""
    return events.age_E[:, None] - (state.age[events.row_E][:, None] - BEGAN_G)


def _summed(events: _Events, value_EX: ndarray, n: int) -> ndarray:
    """(N, X), over the events of each row."""
    number = len(events.row_E)
    whose = sparse.csr_matrix((np.ones(number), (events.row_E, np.arange(number))), (n, number))
    return whose @ value_EX
