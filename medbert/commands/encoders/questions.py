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
from medbert.schema import DATES, DAY_US, ORDER, SPECIAL_TOKENS, Batch, InputError
from medbert.train.score import place, score, scored


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
    data: Sequences,
    model: Any,
    question: Question,
    *,
    batch_tokens: int,
    device: torch.device | None = None,
) -> np.ndarray:
    """The log-odds of yes, (N,). What is asked of one subject at several times is read once, in its
    longest record: an encoder that foretells looks back only."""
    device = device or place()
    model.to(device).eval()
    told: Any = partial(foretell, model, **question._asdict())
    until: Any = data.until
    lives = _lives(data)

    def together(batch: Batch) -> torch.Tensor:
        some = [lives[life] for life in batch.rows_B.tolist()]
        row_N, number = np.concatenate(some), [len(of_one) for of_one in some]
        before = (np.repeat(until[[of_one[-1] for of_one in some]], number) - until[row_N]) / DAY_US
        length_N, before_N = (torch.from_numpy(x).to(device) for x in (data.lengths[row_N], before))
        owner_N = torch.arange(len(some)).repeat_interleave(torch.tensor(number)).to(device)
        place_N = batch.offsets_B1[owner_N] + length_N - 1
        end_N = torch.as_tensor(batch.end_B)[owner_N] - before_N.to(batch.age_T.dtype)
        # before its first date a record does not say that it will have dates
        unknown_N = batch.age_T[place_N].isnan()
        return told(batch, asked=(place_N, end_N)).masked_fill(unknown_N, torch.nan)

    found = np.full(len(data), np.nan)
    if lives:
        batches = loader(data.at(np.array([of_one[-1] for of_one in lives])), budget=batch_tokens)
        for life_B, said_N in scored(together, batches, device=device):
            found[np.concatenate([lives[life] for life in life_B.tolist()])] = said_N.double().cpu()
    rest = np.flatnonzero(np.isnan(found))
    if len(rest):
        batches = loader(data.at(rest), budget=batch_tokens)
        found[rest] = score(told, batches, device=device).double()
    return found


def _lives(data: Sequences) -> list[np.ndarray]:
    """Of each subject the places of its rows that have room for all, by time; none where a record
    is more than the beginning of a later one."""
    if data.store.time != DATES or data.store.window_days is not None or data.until is None:
        return []
    whole = np.flatnonzero((data.lengths > 0) & (data.lengths < data.max_tokens))
    whole = whole[np.lexsort((data.until[whole], data.rows[whole]))]
    begun = np.flatnonzero(np.diff(data.rows[whole])) + 1
    return np.split(whole, begun) if len(whole) else []


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
