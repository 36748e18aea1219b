from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from medbert.evaluate.leaks import leakage
from medbert.evaluate.leaks.findings import (
    CHECKS,
    ERROR,
    finding,
    not_checked,
    of_rows,
    refuse,
    rich_table,
)
from medbert.schema import DAY_US, STATIC, InputError

NEVER = np.iinfo(np.int64).max
SPLIT = np.array(["train", "train", "held_out", "held_out"], object)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(5))
def test_aurocs_of_columns_are_those_of_scikit_learn(seed):
    counts = rng(seed).poisson(rng(seed).choice([0.0, 0.1, 1.0, 5.0], 12), (80, 12))
    labels = rng(seed + 99).random(80) < 0.3
    expected = [roc_auc_score(labels, column) for column in counts.T]
    assert leakage.aurocs(sparse.csr_matrix(counts), labels) == pytest.approx(expected, abs=1e-12)


def test_stored_zeros_count_as_zeros():
    matrix = sparse.csr_matrix(np.ones((4, 1)))
    matrix.data[:2] = 0
    assert leakage.aurocs(matrix, np.array([False, False, True, True])).tolist() == [1.0]


def planted(labels: np.ndarray, *, wrong: float) -> sparse.csr_matrix:
    noise = rng().poisson(0.5, (len(labels), 30))
    noise[:, 7] = labels ^ (rng(1).random(len(labels)) < wrong)
    return sparse.csr_matrix(noise)


def test_a_feature_that_tells_the_outcome_is_named_either_way_round():
    labels = rng(3).random(400) < 0.2
    names = [f"CODE/{i}" for i in range(30)]
    for outcome in (labels, ~labels):
        found = leakage.single_feature({"count": (planted(labels, wrong=0.01), names)}, {}, outcome)
        assert found is not None and found.count == 1 and found.severity == ERROR
        assert found.details[0].startswith("CODE/7 (count): AUROC")
    assert (
        leakage.single_feature({"count": (planted(labels, wrong=0.2), names)}, {}, labels) is None
    )


def test_what_few_have_is_no_finding_and_dense_columns_may_have_gaps():
    labels = np.arange(400) < 9
    exact = sparse.csr_matrix(labels[:, None].astype(float))
    assert leakage.single_feature({"count": (exact, ["X"])}, {}, labels) is None
    labels = np.arange(400) < 50
    age = np.where(np.arange(400) % 3 == 0, np.nan, -labels.astype(float))
    found = leakage.single_feature({}, {"age": age}, labels)
    assert found is not None and found.details == ("age: AUROC 0.000",)


CODES = rng(5).integers(1, 2**63, (99, 128)).astype(np.uint64)


def visits(*sets: str, days: list[int], splits: list[str], times: int = 5, of_one: bool = False):
    """Visits of subjects of their own; and again in other weeks, of others with other codes."""
    every = [(k, letters) for k in range(times) for letters in sets]
    code = [CODES[0 if of_one else k, ord(letter)] for k, letters in every for letter in letters]
    return leakage.near_identical_visits(
        np.array(code, np.uint64),
        np.repeat(np.arange(len(every)), [len(letters) for _, letters in every]),
        day_V=np.add.outer(7 * np.arange(times), days).ravel(),
        subject_V=np.arange(len(every)),
        split_V=np.array(splits * times, object),
    )


@pytest.mark.parametrize("other", ["abcdefgh", "hgfedcba", "abcdefghi", "bcdefgh", "abcdefgx"])
def test_visits_that_differ_in_one_code_at_most_are_near_identical(other):
    found = visits("abcdefgh", other, days=[1, 1], splits=["train", "held_out"])
    assert found is not None and found.count == 10
    assert found.by_split == {"train": 5, "held_out": 5}


@pytest.mark.parametrize(
    ("other", "days", "splits"),
    [
        ("abcdefxy", [1, 1], ["train", "held_out"]),  # two codes differ
        ("abcdefgh", [1, 2], ["train", "held_out"]),  # another day
        ("abcdefgh", [1, 1], ["train", "train"]),
    ],
)
def test_visits_that_are_not(other, days, splits):
    assert visits("abcdefgh", other, days=days, splits=splits) is None


def test_a_set_that_many_share_is_a_common_order():
    same = {"days": [1, 1], "splits": ["train", "held_out"]}
    assert visits("abcdefgh", "abcdefgh", **same, of_one=True) is None
    assert visits("abcdefgh", "abcdefgh", **same, times=1) is None  # once may be chance


def test_rare_sets_that_meet_on_one_day_as_often_as_weeks_apart_meet_by_chance():
    """400 sets, each of one subject of each split, on any day of two months; then twenty copies."""
    random, pairs = rng(6), 400
    code = random.integers(1, 2**63, (pairs, 8)).astype(np.uint64).repeat(2, axis=0).ravel()
    day = random.integers(0, 60, 2 * pairs)
    who = {
        "subject_V": np.arange(2 * pairs),
        "split_V": np.array(["train", "held_out"] * pairs, object),
    }
    visit = np.arange(2 * pairs).repeat(8)
    assert (day[::2] == day[1::2]).sum() >= 4
    assert leakage.near_identical_visits(code, visit, day_V=day, **who) is None
    day[1:40:2] = day[:40:2]
    found = leakage.near_identical_visits(code, visit, day_V=day, **who)
    assert found is not None and found.count == 2 * (day[::2] == day[1::2]).sum()


def test_twins_are_in_other_splits_and_have_enough_to_be_told_by():
    keys = np.array([7, 8, 7, 7, 9, 9], np.uint64)
    split = np.array(["train", "train", "held_out", "train", "train", "train"], object)
    enough = np.ones(6, bool)
    assert leakage.twins(keys, enough, split).tolist() == [True, False, True, True, False, False]
    enough[2] = False
    assert not leakage.twins(keys, enough, split).any()


def test_rows_twice_labels_that_contradict_and_subjects_in_two_splits():
    subject, time = np.array([1, 1, 2, 2, 3]), np.array([5, 5, 6, 6, 7])
    split = np.array(["train", "train", "train", "train", "tuning"], object)
    labels = np.array([True, True, True, False, False])
    torn, twice, both = leakage.rows_of_subjects(subject, time, labels, split)
    assert torn is None and twice is not None and both is not None
    assert (twice.count, both.count) == (2, 2)
    split[1] = "held_out"
    torn, twice, _ = leakage.rows_of_subjects(subject, time, labels, split)
    assert torn is not None and torn.count == 1 and twice is not None


def test_prediction_times_lie_within_life_and_records():
    time = np.array([0, 0, 100, 10]) * DAY_US
    birth = np.array([5 * DAY_US, STATIC, STATIC, STATIC])
    death = np.array([NEVER, NEVER, NEVER, 8 * DAY_US])
    found = leakage.time_order(time, SPLIT, birth=birth, death=death, end=50 * DAY_US)
    assert found is not None and found.count == 3 and len(found.details) == 3
    unknown = np.full(4, STATIC), np.full(4, NEVER)
    ok = leakage.time_order(time, SPLIT, birth=unknown[0], death=unknown[1], end=100 * DAY_US)
    assert ok is None


def clustered(random: np.random.Generator, risk: dict[str, float]):
    subject = np.repeat(np.arange(600), random.integers(1, 6, 600))
    split_S = random.choice([*risk], 600, p=[0.6, 0.4])
    risk_S = np.array([risk[s] for s in split_S]) * random.choice([0.2, 1.8], 600)
    return random.random(len(subject)) < risk_S[subject], subject, split_S[subject]


def test_the_test_of_prevalence_keeps_its_level_and_finds_a_difference():
    random, level = rng(2), []
    for _ in range(400):
        same = clustered(random, {"train": 0.2, "held_out": 0.2})
        level.append(leakage.prevalence_differs(*same, alpha=0.05) is not None)
    assert 0.03 < np.mean(level) < 0.08
    found = leakage.prevalence_differs(*clustered(random, {"train": 0.2, "held_out": 0.4}))
    assert found is not None and any(text.startswith("train: ") for text in found.details)


def test_one_class_in_a_split_does_not_stop_the_test_of_prevalence():
    labels = np.repeat([True, False], 50)
    split = np.repeat(np.array(["train", "held_out"], object), 50)
    assert leakage.prevalence_differs(labels, np.arange(100), split) is not None


def test_small_counts_are_withheld_with_all_that_would_tell_them():
    split = np.array(["train"] * 30 + ["held_out"] * 3, object)
    found = of_rows("codes_after_index", np.ones(33, bool), split)
    assert found is not None and found.by_split == {"train": 30, "held_out": 3}
    told = found.to_dict(min_count=10)
    assert told["count"] == 33 and told["by_split"] == {"train": None, "held_out": None}
    few = of_rows("codes_after_index", split == "held_out", split)
    assert few is not None and few.to_dict(min_count=10)["count"] is None


def test_errors_stop_unless_they_are_allowed_by_name():
    stops, tells = finding("single_feature", 2), finding("near_identical_visits", 2)
    assert stops is not None and tells is not None
    unknown = not_checked("duplicate_subjects", "no dates", cure="none")
    refuse([tells, unknown], allow=[], where="lint.json")
    refuse([stops], allow=["single_feature"], where="lint.json")
    with pytest.raises(InputError, match=r"single_feature: .*allow=\[single_feature\]"):
        refuse([stops, tells], allow=["duplicate_subjects"], where="lint.json")
    with pytest.raises(InputError, match="'nonsense' is no finding"):
        refuse([], allow=["nonsense"], where="lint.json")
    assert rich_table([unknown, stops], min_count=10).row_count == 2


def test_nothing_counted_is_no_finding():
    assert all(finding(name, 0) is None for name in CHECKS)
    assert of_rows("time_order", np.zeros(4, bool), SPLIT) is None
