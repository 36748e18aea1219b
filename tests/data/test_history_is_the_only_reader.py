"""`Store.history` is where records are read, and ``until`` where the future ends.

By search over the package, and by property over random stores.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import records_of

from medbert.data.batches import Sequences
from medbert.data.counts import count_codes
from medbert.data.store import Store
from medbert.model.encoder import BertEncoder
from medbert.model.heads import pool
from medbert.schema import BIRTH, DAY_US, DAYS_PER_YEAR, NO_TOKEN, STATIC

PACKAGE = Path(__file__).resolve().parents[2] / "medbert"
FILES = sorted(PACKAGE.rglob("*.py"))

# the store itself, and what makes its files
OPENS_SHARDS = {"data/store.py", "data/preparing/finish.py", "data/preparing/gather.py"}
# whole records: of labels and index dates, of cards, of the last time at all, and beside what is
# given to models, to see that it holds no more
READS_THE_FUTURE = {
    "data/tasks/cohorts.py": {"__init__"},  # Timeline
    "data/card/totals.py": None,
    "commands/encoders/cohort_rows.py": {"_whole_records"},
    "commands/lint.py": {"_look"},
    "commands/encoders/trained_on.py": {"_counted_elsewhere", "timed"},
    "commands/audit.py": {"_of_rare_codes"},
    "data/counts.py": {"first_of_cases"},  # of training subjects: how diseases are written
    "commands/pretrain.py": {"_with_a_future"},  # pretraining has no prediction time
}
# the records of pretraining: ``until`` is None where there is no prediction time
PASSES_UNTIL_ON = {"data/batches.py": {"_history"}}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the function it is in."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call):
                yield inside, child
            yield from walk(child, inside)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), "")


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_nobody_else_opens_the_shards(file):
    where, text = file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if where != "data/store.py":
        touched = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "medbert.data.store"
            for alias in node.names
        }
        assert not imported & {"_gather", "_numpy_columns", "_open_shard"}
        if "Store" in imported:
            assert not touched & {"_columns", "_shards", "_first"}
    called = [ast.unparse(call.func) for _, call in calls(file)]
    opened = [name for name in called if "ipc.open" in name or "memory_map" in name]
    assert not opened or where in OPENS_SHARDS


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_whole_records_are_read_by_a_few_only(file):
    where = file.relative_to(PACKAGE).as_posix()
    for function, call in calls(file):
        if name_of(call) != "history":
            continue
        until = next((k.value for k in call.keywords if k.arg == "until"), None)
        if until is None or (isinstance(until, ast.Constant) and until.value is None):
            assert where in READS_THE_FUTURE, f"{where}:{call.lineno} reads whole records"
            allowed = READS_THE_FUTURE[where]
            assert allowed is None or function in allowed, f"{where}:{call.lineno}: {function}"
        elif not isinstance(until, ast.Name | ast.Attribute):
            assert where in PASSES_UNTIL_ON, f"{where}:{call.lineno} may pass until=None"


def test_the_lists_above_name_what_there_is():
    reads = {
        f.relative_to(PACKAGE).as_posix()
        for f in FILES
        for _, c in calls(f)
        if name_of(c) == "history"
    }
    assert set(READS_THE_FUTURE) | set(PASSES_UNTIL_ON) <= reads


# --- by property --------------------------------------------------------------------------------

CODES = ["A", "B", "ICD9CM/250.00", "ICD9CM/428.0", "LAB//1"]


def random_store(make_store, seed: int) -> Store:
    random = np.random.default_rng(seed)
    events, visits = [], []

    def at(day: float) -> str:
        return str(np.datetime64("2010-01-01", "s") + np.timedelta64(int(day * 86_400), "s"))

    for subject in range(1, int(random.integers(4, 9))):
        if random.random() < 0.7:
            events.append((subject, at(-random.integers(5_000, 20_000)), BIRTH))
        if random.random() < 0.7:
            events.append((subject, None, "GENDER//F"))
        for number in range(int(random.integers(0, 4))):
            visit, start = subject * 10 + number, float(random.integers(0, 900)) / 3
            stay = float(random.integers(0, 30))
            known = random.random() < 0.8
            end = at(start + stay) if known else None
            length = stay if known else None
            visits.append((subject, visit, at(start), end, "inpatient", length))
            for _ in range(int(random.integers(0, 5))):
                when = at(start + random.random() * stay)
                events.append((subject, when, str(random.choice(CODES)), None, visit))
        for _ in range(int(random.integers(0, 6))):
            value = float(random.random()) if random.random() < 0.5 else None
            when = at(float(random.integers(0, 1_000)) / 3)
            events.append((subject, when, str(random.choice(CODES)), value, None))
    events.append((99, at(400), "A"))
    return make_store(records_of(events, visits=visits), name=f"store{seed}")


def asked(store: Store, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the store and times, many of them the very moments of events."""
    random = np.random.default_rng([seed, 1])
    times = store.history(np.arange(len(store))).time_T
    moments = np.r_[times[times != STATIC], times[times != STATIC] - 1, [0, store.end + 1]]
    return random.integers(0, len(store), 60), random.choice(moments, 60)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_later_is_in_any_field(make_store, seed):
    store = random_store(make_store, seed)
    rows, until = asked(store, seed)
    cut, whole = store.history(rows, until=until), store.history(rows)
    until_T = np.repeat(until, np.diff(cut.offsets_B1))
    until_V = np.repeat(until, np.diff(cut.visit_offsets_B1))
    assert (cut.time_T <= until_T).all()
    assert (cut.start_V <= until_V).all() and (cut.end_V <= until_V).all()
    for i in range(len(rows)):
        of = slice(whole.offsets_B1[i], whole.offsets_B1[i + 1])
        mine = slice(cut.offsets_B1[i], cut.offsets_B1[i + 1])
        known = whole.time_T[of] <= until[i]
        for field in ("code_T", "token_T", "time_T", "visit_T"):
            assert getattr(cut, field)[mine].tolist() == getattr(whole, field)[of][known].tolist()
        seen = slice(whole.visit_offsets_B1[i], whole.visit_offsets_B1[i + 1])
        begun = whole.start_V[seen] <= until[i]
        ended = whole.end_V[seen][begun] <= until[i]
        stay_V = cut.stay_V[cut.visit_offsets_B1[i] : cut.visit_offsets_B1[i + 1]]
        assert len(stay_V) == begun.sum() and np.isnan(stay_V[~ended]).all()


def without_the_future(store: Store, rows: np.ndarray, until: np.ndarray) -> list[tuple]:
    """What each row has by then, counted by hand from its whole record."""
    told = []
    for row, time in zip(rows, until, strict=True):
        whole = store.history(np.array([row]))
        known = (whole.time_T <= time) & (whole.token_T != NO_TOKEN)
        told.append((whole.token_T[known], whole.time_T[known], whole.birth_B[0]))
    return told


@pytest.mark.parametrize("seed", range(8))
def test_sequences_and_counts_hold_what_was_known_and_no_more(make_store, seed):
    store = random_store(make_store, seed)
    rows, until = asked(store, seed)
    batch = Sequences(store, rows, until=until, max_tokens=512)[np.arange(len(rows))]
    counts = count_codes(store, rows, until=until, window_days=[None, 30])
    n_codes = len(store.vocabulary) - 4
    for i, (tokens, times, birth) in enumerate(without_the_future(store, rows, until)):
        mine = slice(int(batch.offsets_B1[i]), int(batch.offsets_B1[i + 1]))
        assert batch.tokens_T[mine].tolist() == tokens.tolist()
        ages = batch.age_T[mine].numpy()
        if birth != STATIC:
            assert not (ages * DAY_US > until[i] - birth + DAY_US).any()
            assert counts.age[i] == pytest.approx((until[i] - birth) / DAY_US / DAYS_PER_YEAR)
        whole, recent = counts.codes[i, :n_codes], counts.codes[i, n_codes:]
        assert whole.sum() == (tokens >= 4).sum()
        since = times > until[i] - 30 * DAY_US
        assert recent.sum() == ((tokens >= 4) & since).sum()


def with_another_future(store: Store, until: np.ndarray) -> Store:
    """The same store, but all that comes after ``until`` (one time per subject) is changed."""
    changed, first = [], 0
    for events, visits, birth in store._columns:
        n, event_T, visit_V = len(birth), events.columns, visits.columns
        late_T = event_T["time_T"] > events.each(until[first : first + n])
        late_V = visit_V["end_V"] > visits.each(until[first : first + n])
        new_T = {"code_T": (event_T["code_T"] + 1) % len(store.codes), "value_T": 7.0}
        new_V = {"stay_V": 99.0, "end_V": visit_V["end_V"] + DAY_US}

        def replaced(ragged, late, new):
            columns = {
                name: np.where(late, new.get(name, old), old).astype(old.dtype)
                for name, old in ragged.columns.items()
            }
            return ragged._replace(columns=columns)

        changed.append((replaced(events, late_T, new_T), replaced(visits, late_V, new_V), birth))
        first += n
    other = Store(store.folder)
    other.__dict__["_columns"] = changed
    return other


@pytest.mark.parametrize("seed", range(5))
def test_what_an_encoder_says_of_a_row_does_not_change_with_its_future(make_store, seed):
    store = random_store(make_store, seed)
    _, times = asked(store, seed)
    rows, until = np.arange(len(store)), times[: len(store)]
    other = with_another_future(store, until)
    torch.manual_seed(0)
    encoder = BertEncoder(
        vocabulary_size=len(store.vocabulary),
        layers=1,
        heads=2,
        hidden=8,
        feed_forward=8,
        dropout=0.0,
        attention_dropout=0.0,
        positions=64,
        visits=32,
    ).eval()

    def embedded(records: Store, time: np.ndarray | None) -> torch.Tensor:
        batch = Sequences(records, rows, until=time, max_tokens=64)[rows]
        with torch.no_grad():
            return pool(encoder(batch), batch, "mean")

    assert torch.equal(embedded(store, until), embedded(other, until))
    assert not torch.equal(embedded(store, None), embedded(other, None))  # there was a future
    for window in (None, 30):
        mine, its = (
            count_codes(s, rows, until=until, window_days=[window]) for s in (store, other)
        )
        assert (mine.codes != its.codes).nnz == 0
        assert np.array_equal(mine.age, its.age, equal_nan=True)
