from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from medbert.data.codes import ancestors
from medbert.data.vocabulary import Block, Rule, Vocabulary, fit
from medbert.schema import NO_TOKEN, SPECIAL_TOKENS, UNK, InputError

CODES = ["ICD10CM/I50.9", "ICD10CM/E11.9", "MEDS_BIRTH", "ATC/A10BA02", "RARE"]


def never() -> Iterator[Block]:
    raise AssertionError("events are not needed")


def fitted(min_subjects: int = 5) -> Vocabulary:
    return fit(
        CODES,
        counts=np.array([50, 90, 100, 10, 4]),
        n_subjects=np.array([20, 30, 100, 5, 4]),
        titles={"ICD10CM/I50.9": "Heart failure"},
        parents={},
        rule=Rule(min_subjects=min_subjects, include=[], exclude=["^MEDS_BIRTH"]),
        scan=never,
    )


class Events(NamedTuple):
    """Events by subject, and how ``fit`` gets them: in blocks of so many subjects."""

    codes: list[str]
    subject_T: np.ndarray
    code_T: np.ndarray
    value_T: np.ndarray
    parents: dict[str, list[str]]

    def scan(self, per_block: int = 7) -> Iterator[Block]:
        for first in range(0, int(self.subject_T.max()) + 1, per_block):
            here = (self.subject_T >= first) & (self.subject_T < first + per_block)
            yield Block(self.subject_T[here] - first, self.code_T[here], self.value_T[here])

    def fit(self, *, per_block: int = 7, **rule) -> Vocabulary:
        n = len(self.codes)
        pairs = np.unique(self.subject_T * n + self.code_T)
        return fit(
            self.codes,
            counts=np.bincount(self.code_T, minlength=n),
            n_subjects=np.bincount(pairs % n, minlength=n),
            titles={code: f"The {code}" for code in self.codes},
            parents=self.parents,
            rule=Rule(**{"min_subjects": 5, "include": [], "exclude": ["^ICD10CM/Z"], **rule}),
            scan=lambda: self.scan(per_block),
        )

    def tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return vocabulary.tokens(self.codes, self.parents).of(self.code_T, self.value_T)


def random_events(seed: int) -> Events:
    """Frequent and rare codes of several levels, some with values, some of them many times."""
    rng = np.random.default_rng(seed)
    icd = [
        f"ICD10CM/{c}{i}.{j}{k}" for c in "EIZ" for i in (10, 11) for j in range(5) for k in "0129"
    ]
    icd += ["ICD10CM/E10", "ICD10CM/E11.2", "ICD10CM/I10.4"]
    labs = [f"LAB//{i}//{unit}" for i in range(6) for unit in ("mg", "mol", "%")] + ["LAB//0"]
    local = [f"LOCAL{i}" for i in range(12)]
    codes = sorted({*icd, *labs, *local})
    parents = {f"LOCAL{i}": [f"GROUP{i % 3}", f"ICD10CM/I1{i % 2}.4"] for i in range(12)}
    parents |= {"GROUP0": ["GROUP1"], "GROUP1": ["GROUP0"]}  # a loop
    n = 900
    code_T = np.minimum(rng.pareto(0.6, n) * 2, len(codes) - 1).astype(np.int32)
    code_T = rng.permutation(len(codes)).astype(np.int32)[code_T]
    values = rng.choice([rng.integers(0, 5, n), rng.normal(50, 20, n), np.full(n, 7.0)])
    with_value = np.array([code.startswith("LAB") for code in codes])[code_T]
    value_T = np.where(with_value & (rng.random(n) < 0.9), values, np.nan).astype(np.float32)
    return Events(codes, np.sort(rng.integers(0, 60, n)), code_T, value_T, parents)


RULES = [{"roll_up": True}, {"value_bins": 4}, {"roll_up": True, "value_bins": 6}]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_token_is_used_by_enough_subjects_and_counted_exactly(seed, rule):
    events = random_events(seed)
    vocabulary = events.fit(**rule)
    token_T = events.tokens(vocabulary)
    for token in range(len(SPECIAL_TOKENS), len(vocabulary)):
        here = token_T == token
        assert vocabulary.counts[token] == here.sum()
        own = [events.codes[code] == vocabulary.codes[token] for code in events.code_T]
        by_own_code = len(np.unique(events.subject_T[here & own]))
        by_all = len(np.unique(events.subject_T[here]))
        assert vocabulary.n_subjects[token] == (by_own_code if by_own_code >= 5 else by_all) >= 5
    assert vocabulary.counts[UNK] == (token_T == UNK).sum()
    assert vocabulary.counts.sum() == (token_T != NO_TOKEN).sum()


@pytest.mark.parametrize("seed", range(12))
def test_no_code_stays_unknown_that_a_code_above_could_have_taken(seed):
    events = random_events(seed)
    token_T = events.tokens(events.fit(roll_up=True))
    above: dict[str, set[int]] = {}
    unknown = token_T == UNK
    for subject, code in zip(events.subject_T[unknown], events.code_T[unknown], strict=True):
        for name in (events.codes[code], *ancestors(events.codes[code], events.parents)):
            above.setdefault(name, set()).add(subject)
    assert all(len(subjects) < 5 for subjects in above.values())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_vocabulary_does_not_depend_on_how_events_are_cut_into_blocks(rule):
    events = random_events(3)
    one, other = (events.fit(per_block=n, **rule) for n in (1, 1000))
    assert one.codes == other.codes and one.sha256 == other.sha256
    assert one.counts.tolist() == other.counts.tolist()


def small(codes: list[str], rows: list[tuple], **parents: list[str]) -> Events:
    """Events from (subjects, code, values or None)."""
    found = [
        (subject, codes.index(code), np.nan if values is None else values[i % len(values)])
        for subjects, code, values in rows
        for i, subject in enumerate(subjects)
    ]
    subject_T, code_T, value_T = zip(*sorted(found), strict=True)
    return Events(
        codes,
        np.array(subject_T),
        np.array(code_T, np.int32),
        np.array(value_T, np.float32),
        parents,
    )


def test_rare_codes_roll_up_to_the_nearest_code_that_enough_subjects_share():
    codes = ["ICD10CM/E11.21", "ICD10CM/E11.22", "ICD10CM/E11.9", "ICD10CM/E11", "ICD10CM/I10"]
    rows = [(range(0, 3), codes[0], None), (range(2, 5), codes[1], None)]
    rows += [(range(5, 9), codes[2], None), (range(8, 10), codes[3], None), ([1], codes[4], None)]
    events = small(codes, rows)
    vocabulary = events.fit(roll_up=True)
    assert vocabulary.codes[4:] == ("ICD10CM/E11", "ICD10CM/E11.2")
    assert vocabulary.n_subjects[4:].tolist() == [5, 5]  # of 6 events each
    assert vocabulary.counts.tolist() == [0, 1, 0, 0, 6, 6]
    assert vocabulary.encode(codes).tolist() == [5, 5, 4, 4, UNK]
    assert vocabulary.encode(["ICD10CM/E11.29", "ICD10CM/E11.65"]).tolist() == [5, 4]


def test_without_roll_up_they_are_unknown():
    codes = ["ICD10CM/E11", "ICD10CM/E11.2"]
    events = small(codes, [(range(6), codes[0], None), (range(2), codes[1], None)])
    assert events.fit().encode(codes).tolist() == [4, UNK]
    assert events.fit(roll_up=True).encode(codes).tolist() == [4, 4]


def test_a_stated_parent_takes_what_is_rare():
    events = small(["A", "B"], [(range(3), "A", None), (range(3, 6), "B", None)], A=["C"], B=["C"])
    vocabulary = events.fit(roll_up=True)
    assert vocabulary.codes[4:] == ("C",) and vocabulary.n_subjects[4] == 6


def test_values_fall_into_bins_of_enough_subjects():
    events = small(
        ["LAB//1", "LAB//2"],
        [
            (range(40), "LAB//1", [1, 2, 3, 4]),
            (range(9), "LAB//1", None),
            (range(9), "LAB//2", [5]),
        ],
    )
    vocabulary = events.fit(value_bins=4)
    assert vocabulary.codes[4:] == tuple(
        ["LAB//1"] + [f"LAB//1//Q{i}" for i in range(1, 5)] + ["LAB//2"]
    )
    assert vocabulary.counts[4:].tolist() == [9, 10, 10, 10, 10, 9]
    assert vocabulary.titles[5:9] == (
        "The LAB//1, below 2",
        "The LAB//1, 2 to 3",
        "The LAB//1, 3 to 4",
        "The LAB//1, 4 or more",
    )
    tokens = vocabulary.tokens(["LAB//2", "LAB//1", "LAB//3"], {})
    values = np.array([-np.inf, 1.99, 2, 3.5, 99, np.nan, 5, 5], np.float32)
    found = tokens.of(np.array([1, 1, 1, 1, 1, 1, 0, 2]), values)
    assert found.tolist() == [5, 5, 6, 7, 8, 4, 9, UNK]


def test_bins_of_too_few_subjects_are_merged_with_their_neighbours():
    values = [1] * 20 + [2, 2, 3, 3] + [4] * 20
    events = small(["LAB//1"], [(range(44), "LAB//1", values)])
    vocabulary = events.fit(value_bins=30)
    assert vocabulary.codes[4:] == ("LAB//1//Q1", "LAB//1//Q2")
    assert vocabulary.low[5] == 2 and vocabulary.n_subjects[4:].tolist() == [20, 24]
    # one subject with many values is one subject
    events = small(["LAB//1"], [(range(9), "LAB//1", [1])] + 20 * [([0], "LAB//1", [2])])
    assert events.fit(value_bins=2).codes[4:] == ("LAB//1",)


def test_a_code_of_one_value_or_few_subjects_has_no_bins():
    events = small(["A", "B"], [(range(9), "A", [7]), (range(7), "B", range(7))])
    assert events.fit(value_bins=3).codes[4:] == ("A", "B")


def test_an_event_without_value_is_unknown_where_few_subjects_have_such():
    events = small(["A"], [(range(40), "A", [1, 2]), (range(4), "A", None)])
    vocabulary = events.fit(value_bins=2)
    assert vocabulary.codes[4:] == ("A//Q1", "A//Q2") and vocabulary.counts[UNK] == 4
    assert vocabulary.knows(["A", "B"]).tolist() == [True, False]
    assert vocabulary.tokens(["A"], {}).of(np.zeros(2, int), np.array([2, np.nan])).tolist() == [
        5,
        1,
    ]


def test_neither_the_least_nor_the_greatest_value_is_stored():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 20, 500).astype(np.float32)
    vocabulary = small(["A"], [(range(500), "A", values)]).fit(value_bins=10)
    edges = np.concatenate([vocabulary.low, vocabulary.high])
    edges = edges[~np.isnan(edges)]
    assert len(vocabulary) == 14 and np.isnan(vocabulary.low[4]) and np.isnan(vocabulary.high[13])
    assert values.min() < edges.min() and edges.max() < values.max()
    assert (np.abs(vocabulary.counts[4:] - 50) <= 8).all()  # edges have three digits


def test_a_name_that_is_taken_is_not_given_to_a_bin():
    events = small(["A", "A//Q2"], [(range(40), "A", [1, 2]), (range(40), "A//Q2", [1, 2])])
    assert events.fit(value_bins=2).codes[4:] == ("A", "A//Q2//Q1", "A//Q2//Q2")


def test_bins_of_a_code_that_is_no_input_are_none():
    vocabulary = small(["A"], [(range(40), "A", [1, 2])]).fit(value_bins=2)
    left_out = Vocabulary(
        **{**vars_of(vocabulary), "rule": Rule(min_subjects=5, include=[], exclude=["A"])}
    )
    assert left_out.tokens(["A"], {}).of(np.zeros(1, int), np.ones(1)).tolist() == [NO_TOKEN]


def vars_of(vocabulary: Vocabulary) -> dict:
    return {name: value for name, value in vars(vocabulary).items() if not name.startswith("_")}


@pytest.mark.parametrize("number", [-1, 1, 31])
def test_a_number_of_bins_that_makes_no_sense_is_refused(number):
    with pytest.raises(InputError, match=f"value_bins={number}"):
        Rule(min_subjects=5, include=[], exclude=[], value_bins=number)


def test_special_tokens_are_distinct_and_first_then_codes_by_frequency():
    vocabulary = fitted()
    assert vocabulary.codes[:4] == SPECIAL_TOKENS and len(set(vocabulary.codes)) == len(vocabulary)
    assert vocabulary.codes[4:] == ("ICD10CM/E11.9", "ICD10CM/I50.9", "ATC/A10BA02")


def test_codes_of_few_subjects_become_unknown_and_excluded_ones_no_input():
    vocabulary = fitted()
    tokens = vocabulary.encode(["RARE", "NEVER SEEN", "MEDS_BIRTH", "ICD10CM/I50.9"])
    assert tokens.tolist() == [UNK, UNK, NO_TOKEN, 5]
    assert vocabulary.counts[UNK] == 4


def test_encode_decode_round_trips():
    vocabulary = fitted()
    words = list(vocabulary.codes[4:])
    assert vocabulary.decode(vocabulary.encode(words).tolist()) == words


@pytest.mark.parametrize("rule", [{}, *RULES], ids=str)
def test_saving_keeps_everything(tmp_path, rule):
    events = random_events(1)
    vocabulary = events.fit(**rule)
    vocabulary.save(tmp_path / "vocabulary.parquet")
    again = Vocabulary.load(tmp_path)
    assert again.codes == vocabulary.codes and again.rule == vocabulary.rule
    assert again.titles == vocabulary.titles and again.sha256 == vocabulary.sha256
    assert events.tokens(again).tolist() == events.tokens(vocabulary).tolist()
    names = pq.read_table(tmp_path / "vocabulary.parquet").column_names
    assert names == ["token", "code", "count", "n_subjects", "title", "low", "high"]


def test_identity_depends_on_codes_bins_and_on_what_is_left_out():
    assert fitted(5).sha256 != fitted(6).sha256
    near = small(["A"], [(range(40), "A", [1, 2])]).fit(value_bins=2)
    far = small(["A"], [(range(40), "A", [1, 3])]).fit(value_bins=2)
    assert near.codes == far.codes and near.sha256 != far.sha256


def test_nothing_left_is_refused_with_the_cure():
    with pytest.raises(InputError, match=r"lower rule.min_subjects"):
        fitted(min_subjects=1000)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocabulary.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a vocabulary of this medbert"):
        Vocabulary.load(tmp_path)


def test_a_vocabulary_of_an_older_version_is_refused(tmp_path):
    fitted().save(tmp_path / "vocabulary.parquet")
    table = pq.read_table(tmp_path / "vocabulary.parquet").drop_columns(["low", "high"])
    pq.write_table(table, tmp_path / "vocabulary.parquet")
    with pytest.raises(InputError, match="make it again"):
        Vocabulary.load(tmp_path)
