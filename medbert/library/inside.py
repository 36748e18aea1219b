"""Looking inside: what a model makes of one history."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medbert.commands.encoders.cohort_rows import Scoring
from medbert.commands.encoders.questions import answered, foretelling, of_words
from medbert.data.batches import Sequences
from medbert.data.codes import is_diagnosis
from medbert.data.store import History
from medbert.evaluate.figures import shown
from medbert.evaluate.figures.attribution import Lane, bars, timeline
from medbert.library.attention import Attention, attended, when
from medbert.library.code_table import TITLE, Model, encoder_of, titles
from medbert.library.estimators import MedBertClassifier
from medbert.model.hazards import foretell
from medbert.model.heads import FrozenLogistic
from medbert.schema import (
    CODE,
    DATES,
    NO_TOKEN,
    PREDICTION_TIME,
    PROBABILITY,
    SPECIAL_TOKENS,
    STATIC,
    SUBJECT_ID,
    TIME,
    Batch,
    InputError,
)
from medbert.train.score import on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

ATTRIBUTION = "attribution"
_ENOUGH = 0.02  # of what is to be explained; a larger rest is worth a warning
_TOKENS = 8_192  # at once
_SPECIALS = len(SPECIAL_TOKENS)
_DIAGNOSES, _OTHER = "Diagnoses", "Other codes"
_KINDS = {
    **dict.fromkeys(("ATC", "RXNORM", "NDC", "MEDICATION", "DRUG"), "Drugs"),
    **dict.fromkeys(("LOINC", "LAB", "MEASUREMENT"), "Measurements"),
}


class Inside:
    """A model and a history: where it looks, what moved its prediction, how its risk went on.

    All that is shown is of one person: patient data, which must not leave. No id is in it.

    Args:
        model: an `Encoder`, or a fitted `MedBertClassifier`.
        row: of a cohort: ``cohort.iloc[0]``, a frame of one row, or a dict of subject_id and
            prediction_time. What comes after that time does not exist.
        store, query, horizon, gap: what an Encoder is asked, see ``Encoder.predict`` (for
            ``attention``, only where); a classifier has its own.

    ``events``: what the model reads, in its order: time (a visit, where there are no dates), code,
    title.
    """

    def __init__(
        self,
        model: Model,
        row: Any,
        *,
        store: str | Path | None = None,
        query: str | Sequence[str] = (),
        horizon: str | float = 365,
        gap: str | float = 0,
    ) -> None:
        self.model: Any = model
        self._own = isinstance(model, MedBertClassifier)
        if self._own == (store is not None) or (self._own and query):
            raise InputError("store, query: an Encoder needs them; a classifier has its own")
        if isinstance(row, pd.Series | Mapping):
            row = pd.DataFrame([dict(row)])
        where: Any = getattr(model, "store", store)
        device = getattr(model, "device", "auto")
        frame, self._asked = encoder_of(model)._scoring(row, where, None, _TOKENS, device)
        if len(frame) != 1:
            raise InputError(f"row: these are {len(frame)}; give one, cohort.iloc[0]")
        patterns = [query] if isinstance(query, str) else [*query]
        self._question: dict[str, Any] = {"query": patterns, "horizon": horizon, "gap": gap}
        self._batch, self.events = _read(self._asked)

    def attention(self) -> Attention:
        """By layer and head. It tells where a head looks, not why a risk is high: for that see
        ``attributions``."""
        return Attention(attended(self._asked.model, self._batch), self.events)

    def attributions(self, *, steps: int = 32) -> pd.DataFrame:
        """How much each event moved the log-odds of the prediction: integrated gradients on the
        embeddings of the codes (Sundararajan et al. 2017, arXiv 1703.01365).

        The baseline is the mean embedding of the codes of the training records: every event stays
        where it is, as do age and sex, but its code says what an average one says.

        Columns time, code, title, attribution. In ``attrs``: ``log_odds``; ``baseline``, those
        there; and ``rest``, by which the sum of the attributions misses their difference (more
        ``steps`` make it smaller).
        """
        try:
            from captum.attr import IntegratedGradients
        except ImportError as error:
            cure = "pip install 'medbert[inside]'"
            raise InputError(f"attributions need one more package ({error}): {cure}") from error
        model, logits, length = self._asked.model, self._logits, len(self.events)
        tables = [model.codes, *getattr(model, "linear", [])]
        tables += [] if getattr(model, "ever", None) is None else [model.ever]

        def of_codes(codes_SLD: Tensor) -> Tensor:
            """The log-odds (S,) if the codes had these embeddings, of all tables side by side."""
            parts = codes_SLD.flatten(0, 1).split([table.embedding_dim for table in tables], dim=1)
            hooks = [
                table.register_forward_hook(lambda *_, part=part: part)
                for table, part in zip(tables, parts, strict=True)
            ]
            try:
                return logits(_repeated(self._batch, len(codes_SLD)))
            finally:
                for hook in hooks:
                    hook.remove()

        count_C = torch.from_numpy(self._asked.records.vocabulary.counts[_SPECIALS:] + 1.0)
        table_CD = torch.cat([table.weight.detach() for table in tables], dim=1)
        share_C = (count_C / count_C.sum()).to(table_CD)
        end_1LD = table_CD[self._batch.tokens_T][None]
        start_1LD = (share_C @ table_CD[_SPECIALS:]).expand_as(end_1LD)
        with torch.backends.cudnn.flags(enabled=False):  # its GRUs know no way back but in training
            moved_1LD = IntegratedGradients(of_codes).attribute(
                end_1LD, start_1LD, n_steps=steps, internal_batch_size=max(1, _TOKENS // length)
            )
        with torch.inference_mode():
            before, after = of_codes(torch.cat([start_1LD, end_1LD])).double().tolist()
        moved_L = moved_1LD[0].detach().double().sum(1).cpu().numpy()
        rest = after - before - float(moved_L.sum())
        if abs(rest) > _ENOUGH * max(1.0, abs(after - before)):
            said = "attributions miss %.2g of %.2g in log-odds; say steps=%d"
            log.warning(said, rest, after - before, 4 * steps)
        found = self.events.assign(**{ATTRIBUTION: moved_L})
        found.attrs = {"log_odds": after, "baseline": before, "rest": rest}
        return found

    def plot_attributions(
        self, *, most: int = 20, by_code: bool = False, steps: int = 32, ax: Axes | None = None
    ) -> Axes:
        """The ``most`` events that moved it most, the latest on top; with ``by_code`` the codes,
        all events of each added up, the strongest on top."""
        found = self.attributions(steps=steps)
        risk = 1 / (1 + np.exp(-found.attrs["log_odds"]))
        found["name"] = found[TIME].map(when) + "  " + found[TITLE]
        if by_code:
            both = {"name": (TITLE, _counted), ATTRIBUTION: (ATTRIBUTION, "sum")}
            found = found.groupby(CODE, as_index=False).agg(**both)
        found = found.loc[found[ATTRIBUTION].abs().nlargest(most).index]
        found = found if by_code else found.sort_index(ascending=False)
        with shown():
            axes = bars([*found["name"]], found[ATTRIBUTION].to_numpy(), axes=ax)
        axes.set_xlabel("Change of the log-odds")
        axes.set_title(f"{self._label()}: {risk:.1%}", loc="right", fontsize=10)
        return axes

    def plot_timeline(self, *, ax: Axes | None = None) -> Axes:
        """Visits and the first time of each code; above them the risk, each time from what was
        known at the end of a visit. It ends when a code of the query comes (dotted).

        Names of rare codes find room first.
        """
        records, (rows, until, _) = self._asked.records, self._asked.cohort
        history, dates = records.history(rows, until=until), records.time == DATES
        start_V = history.start_V
        end_V = np.where(history.end_V == STATIC, start_V, history.end_V)
        time_N = np.unique(np.r_[end_V[end_V != STATIC], until])

        def spot(us: np.ndarray) -> np.ndarray:  # where there are no dates: which visit it is
            visit = np.searchsorted(start_V, us, side="right")
            return us.view("datetime64[us]") if dates else visit

        lanes = []
        for kind in dict.fromkeys(history.kind_V):
            mine = (history.kind_V == kind) & (start_V != STATIC)
            lanes.append(Lane(f"Visits: {kind}", spot(start_V[mine]), spot(end_V[mine])))
        for kind, some in self._firsts(history).groupby("kind"):
            at = spot(some[TIME].to_numpy())
            lanes.append(Lane(str(kind), at, at, [*some[TITLE]]))
        risk = self._risk(time_N)
        with shown():
            axes = timeline(spot(time_N), risk=risk, lanes=lanes, axes=ax)
        axes.set_title(self._label(), loc="left", fontsize=10)
        axes.set_xlabel("" if dates else "Visit")
        return axes

    def _firsts(self, history: History) -> pd.DataFrame:
        """When each code came first (microseconds), its title and its kind; the rarest first."""
        words = self._asked.records.vocabulary
        dated = (history.token_T >= _SPECIALS) & (history.time_T != STATIC)
        token, place = np.unique(history.token_T[dated], return_index=True)
        order = np.argsort(words.n_subjects[token], kind="stable")
        codes, time = words.decode(token[order].tolist()), history.time_T[dated][place[order]]
        other = [_KINDS.get(code.partition("/")[0].upper(), _OTHER) for code in codes]
        kind = np.where(is_diagnosis(codes), _DIAGNOSES, other)
        return pd.DataFrame({TIME: time, TITLE: titles(codes, words), "kind": kind})

    def _risk(self, time_N: np.ndarray) -> np.ndarray:
        """At each of these times (microseconds), from what was known then."""
        (row,) = self._asked.cohort.rows
        cohort = pd.DataFrame({PREDICTION_TIME: time_N.view("datetime64[us]")})
        cohort[SUBJECT_ID] = self._asked.records.subject_ids[row]
        if self._own:
            return self.model.predict_proba(cohort)[:, 1]
        found = self.model.predict(cohort, store=self._asked.records, **self._question)
        return found[PROBABILITY].to_numpy(np.float64)

    def _label(self) -> str:
        if self._own:
            return f"Probability of {self.model.classes_[1]}"
        records = self._asked.records
        query = self._question["query"]
        named = dict.fromkeys(titles(query, records.vocabulary))
        names = [name for name in named if name not in query] or query
        unit = "days" if records.time == DATES else "visits"
        after = "gap {gap}, horizon {horizon} ".format(**self._question)
        return f"Risk of {', '.join(names)} ({after}{unit})"

    @cached_property
    def _logits(self) -> Callable[[Batch], Tensor]:
        """What is explained: the log-odds of each subject of a batch, with a gradient."""
        records, network, (rows, until, _) = self._asked[:3]
        if not self._own:
            foretelling(network, "query")
            question = of_words(records=records, **self._question)
            if answered(records, rows, until, question).any():
                raise InputError("query: the subject has had it by then; give an earlier time")
            return partial(foretell, network, **question._asdict())
        head = self.model.head_.to(self._asked.device)
        if not isinstance(head, FrozenLogistic):
            return partial(head.logits, network)
        features = inspect.unwrap(FrozenLogistic.features)  # which by itself keeps no gradient
        return lambda batch: head.output(features(head, network, batch)).squeeze(-1)


def _read(asked: Scoring) -> tuple[Batch, pd.DataFrame]:
    """What the model reads, and its events. Raises InputError if there is nothing to read."""
    (rows, until, _), records = asked.cohort, asked.records
    data = Sequences(records, rows, until=until, max_tokens=asked.max_tokens)
    batch, history = data[np.zeros(1, np.int64)], records.history(rows, until=until)
    length = len(batch.tokens_T)
    if not length:
        raise InputError("row: no code of this subject is known at that time; give a later one")
    place_T = np.flatnonzero(history.token_T != NO_TOKEN)
    statics = min(length, int((history.time_T[place_T] == STATIC).sum()))
    # of a long history, static codes (which come first) and the latest others are read
    place_T = np.r_[place_T[:statics], place_T[len(place_T) - length + statics :]]
    time_T, codes = history.time_T[place_T], records.vocabulary.decode(batch.tokens_T.tolist())
    times = time_T.view("datetime64[us]") if records.time == DATES else history.visit_T[place_T]
    events = {TIME: times, CODE: codes, TITLE: titles(codes, records.vocabulary)}
    return on(batch, asked.device), pd.DataFrame(events)


def _repeated(batch: Batch, times: int) -> Batch:
    """A batch of one subject, so many times over."""
    names = ("tokens_T", "visit_T", "age_T", "rows_B", "sex_B", "end_B")
    ends = torch.arange(times + 1, device=batch.offsets_B1.device) * len(batch.tokens_T)
    return Batch(**{name: getattr(batch, name).repeat(times) for name in names}, offsets_B1=ends)


def _counted(titles: pd.Series) -> str:
    return titles.iloc[0] + (f" ({len(titles)}×)" if len(titles) > 1 else "")
