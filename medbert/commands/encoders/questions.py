"""What an encoder that foretells codes is asked: which of them, after what gap, within how long."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from medbert.data.batches import Sequences, loader
from medbert.data.codes import matches
from medbert.data.counts import first_of_cases
from medbert.data.store import Store
from medbert.data.tasks.outcomes import CodeAtNextVisit, CodeWithin
from medbert.model.hazards import Firsts, foretell
from medbert.schema import ORDER, SPECIAL_TOKENS, InputError
from medbert.train.score import place, score


class Question(NamedTuple):
    """Does one of the ``tokens`` come for the first time in (gap, gap + window] days (visits, where
    the store has no dates) from now? Of those that come, ``firsts`` are the first of their case."""

    tokens: torch.Tensor
    gap: float
    window: float
    firsts: Firsts


def of_outcome(outcome: Any, records: Store) -> Question | None:
    """What a task asks; None where it is not whether a code comes for the first time."""
    if isinstance(outcome, CodeAtNextVisit) and records.time == ORDER:
        gap, window = 0.0, 1.0
    elif (
        isinstance(outcome, CodeWithin)
        and outcome.min_value is outcome.max_value is outcome.washout_days is None
    ):
        gap, window = outcome.gap_days, outcome.window_days
    else:
        return None
    tokens = _tokens(outcome.codes, records)
    if not len(tokens):
        return None
    return Question(tokens, gap, window, _firsts(records, *tokens.tolist()))


def of_words(
    query: str | Sequence[str], records: Store, *, gap: str | float, horizon: str | float
) -> Question:
    """``query``: codes, each with all below it; days as a number or as "365d".

    Raises InputError for a code that no training subject has, and for what is no length of time.
    """
    patterns = [query] if isinstance(query, str) else list(query)
    tokens = _tokens(patterns, records)
    if not len(tokens):
        raise InputError(
            f"query={query}: no token of {records.folder}/vocabulary.parquet is such a code; codes "
            "are written as in ICD10CM/I50, or as a regular expression that starts with ^"
        )
    days = _days("gap", gap), _days("horizon", horizon)
    question = Question(tokens, *days, _firsts(records, *tokens.tolist()))
    if not (question.window > 0 and question.gap >= 0):  # nor may they be no numbers
        raise InputError(f"gap={gap} horizon={horizon}: the gap is 0 or more, the horizon above 0")
    return question


def foretelling(model: Any, what: str) -> None:
    """InputError, for ``what`` was wanted of it, if the encoder foretells no codes."""
    if getattr(model, "hazards", None) is None:
        raise InputError(
            f"{what}: this encoder does not foretell codes; make one with `medbert pretrain "
            "encoder=causal objective=time_to_event`"
        )


def told(head: Callable[..., Any], model: Any, question: Question | None) -> dict[str, Any]:
    """The arguments ``tokens``, ``gap`` and ``window`` of a head that starts from an answer; none
    for other heads. Raises InputError if the task asks no question or the encoder has no answer.
    """
    if not set(Question._fields) <= set(inspect.signature(head).parameters):
        return {}
    foretelling(model, "head=answer")
    if question is None:
        raise InputError(
            "head=answer: this task does not ask whether a code, one that training subjects have, "
            "comes for the first time; take head=sum, or such a task (task=dhf)"
        )
    return {**question._asdict(), "tokens": question.tokens.tolist()}


def answered(records: Store, rows: np.ndarray, until: np.ndarray, question: Question) -> np.ndarray:
    """Rows that have had one of the codes, so that it cannot come for the first time."""
    history = records.history(rows, until=until)
    had = np.flatnonzero(np.isin(history.token_T, question.tokens.numpy()))
    mask = np.zeros(len(rows), bool)
    mask[np.searchsorted(history.offsets_B1, had, side="right") - 1] = True
    return mask


def ask(
    records: Store,
    rows: np.ndarray,
    until: np.ndarray,
    model: Any,
    question: Question,
    *,
    max_tokens: int,
    batch_tokens: int,
) -> np.ndarray:
    """The log-odds of yes, (N,)."""
    device = place()
    model.to(device).eval()
    data = Sequences(records, rows, until=until, max_tokens=max_tokens)
    told = partial(foretell, model, **question._asdict())
    return score(told, loader(data, budget=batch_tokens), device=device).double().numpy()


def _tokens(patterns: Sequence[str], records: Store) -> torch.Tensor:
    found = matches(records.vocabulary.codes, list(patterns))
    found[: len(SPECIAL_TOKENS)] = False
    return torch.from_numpy(np.flatnonzero(found))


@lru_cache(maxsize=8)  # a benchmark asks the same question many times
def _firsts(records: Store, *tokens: int) -> Firsts:
    return first_of_cases(records, np.array(tokens))


def _days(name: str, value: str | float) -> float:
    try:
        return float(str(value).removesuffix("d"))
    except ValueError as error:
        raise InputError(f"{name}={value}: expected days, such as 365 or 365d") from error
