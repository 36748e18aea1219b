"""Med-BERT's pickled lists: three layouts, their dictionary, and pickles that want to run code."""

import os
import pickle
from datetime import datetime

import numpy as np
import pytest
from conftest import SHARED
from drained import SECRET, drain, refused

from medbert.data.sources.medbert_pickles import MedBertPickles
from medbert.data.sources.medbert_tsv import MedBertTable
from medbert.schema import LABELS, SUBJECT_SPLITS

TYPES = {"empty_pad": 0, "ICD9_150": 1, "ICD10_C50": 2, "ICD9_240.1": 3}
PRETRAINING = [
    [7, [0, 12], [3, 0], [1, 2, 3], [1, 1, 2]],
    [8, [2], [0], [3], [1]],
]
LABELLED = [[7, 1, [1, 2, 3], [1, 1, 2]], [8, 0, [3], [1]]]
NESTED = [[7, 1, [[[3], [3]], [[0], [1, 2]]]], [8, 0, [[[0], [3]]]]]  # the newest visit first


def lists(folder, *contents, name="x.bencs.train", types=TYPES, protocol=4):
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        with (folder / name).open("ab") as file:
            file.write(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    if types is not None:
        packed = types if isinstance(types, bytes) else pickle.dumps(types, protocol)
        (folder / "x.types").write_bytes(packed)
    return str(folder / name)


def histories(events):
    """Subject -> visit -> codes in their order."""
    found = {}
    for e in sorted(events, key=lambda e: (e["time"], e["rank"])):
        visits = found.setdefault(e["subject_id"], {})
        visits.setdefault(e["visit_id"], []).append(e["code"])
    return found


WANTED = {
    7: {1: ["ICD9_150", "ICD10_C50"], 2: ["ICD9_240.1"]},
    8: {1: ["ICD9_240.1"]},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_for_pretraining(tmp_path, protocol):
    source = MedBertPickles(lists(tmp_path, PRETRAINING, protocol=protocol))
    events, visits, names, found = drain(source)
    assert histories(events) == WANTED
    said = ("subject_id", "visit_id", "start", "end", "kind", "length_of_stay", "row")
    second = [datetime(1970, 1, 1, 0, 0, k) for k in range(6)]
    assert [tuple(v[name] for name in said) for v in visits] == [
        (7, 1, second[2], second[3], "unknown", 0.0, 0),
        (7, 2, second[4], second[5], "inpatient", 12.0, 0),
        (8, 1, second[2], second[3], "inpatient", 2.0, 1),
    ]
    assert [e["time"] for e in events] == [second[3], second[3], second[5], second[3]]
    assert (names, found) == ([], {})
    records = source.read()
    assert records.metadata["time"] == "order" and records.one_file_each
    assert not records.own_visit_ids
    assert records.labels == {} and records.splits is None


@pytest.mark.parametrize("content", [LABELLED, NESTED])
def test_lists_for_fine_tuning_carry_labels(tmp_path, content):
    source = MedBertPickles(lists(tmp_path, content))
    events, visits, *_ = drain(source)
    assert histories(events) == WANTED and visits == []  # no length of stay, nothing to state
    labels = source.read().labels["label"]
    assert labels.schema == LABELS
    assert [tuple(row.values()) for row in labels.to_pylist()] == [
        (7, datetime(1970, 1, 1, 0, 0, 5), True),
        (8, datetime(1970, 1, 1, 0, 0, 3), False),
    ]
    last = {e["subject_id"]: e["time"] for e in sorted(events, key=lambda e: e["time"])}
    assert [last[row["subject_id"]] for row in labels.to_pylist()] == list(
        labels["prediction_time"].to_pylist()
    )


def test_nested_visits_that_run_forwards(tmp_path):
    source = MedBertPickles(lists(tmp_path, NESTED), newest_first=False)
    assert histories(drain(source)[0])[7] == {1: ["ICD9_240.1"], 2: ["ICD9_150", "ICD10_C50"]}


def test_labels_that_are_none(tmp_path):
    rows = [*LABELLED, [9, None, [1], [1]], [10, 0.7, [1], [1]], [11, [1, 30], [1], [1]]]
    records = MedBertPickles(lists(tmp_path, rows)).read()
    assert len(records.labels["label"]) == 2
    assert records.metadata["patients_without_a_label_of_0_or_1"] == 3


def test_splits_are_those_of_the_files(tmp_path):
    for number, ending in enumerate(("train", "valid", "test")):
        rows = [[10 * number + k, [0], [0], [1], [1]] for k in range(2)]
        lists(tmp_path, rows, name=f"x.bencs.{ending}")
        lists(tmp_path, [[[[0, 0, ["a"], [1]]]]], name=f"x.ptencs.{ending}")
    for place in (tmp_path, tmp_path / "x.bencs"):
        records = MedBertPickles(str(place)).read()
        assert [part.name for part in records.parts] == [
            *("x.bencs.test", "x.bencs.train", "x.bencs.valid")
        ]
        assert records.splits.schema == SUBJECT_SPLITS
        splits = {row["subject_id"]: row["split"] for row in records.splits.to_pylist()}
        assert [splits[i] for i in (0, 1, 10, 21)] == ["train", "train", "tuning", "held_out"]
    lists(tmp_path, LABELLED, name="x.combined.train")
    refused(MedBertPickles(str(tmp_path)), "x.bencs, x.combined", "source.path")


def test_a_file_of_several_pickles(tmp_path):
    place = lists(tmp_path, PRETRAINING[:1], [], PRETRAINING[1:])
    events, visits, *_ = drain(MedBertPickles(place))
    assert histories(events) == WANTED and [v["row"] for v in visits] == [0, 0, 1]
    refused(MedBertPickles(lists(tmp_path, b"\x80\x04]")), "x.bencs.train", "pickle 4", "truncated")


def test_python_2_and_words_as_ids(tmp_path):
    types = b"(dp0\nS'empty_pad'\np1\nI0\nsS'ICD9_150'\np2\nI1\nsS'\xc5X'\np3\nI2\ns."
    record = b"(lp0\n(lp1\nS'p-\xe5'\np2\naI1\na(lp3\nI1\naI2\naa(lp4\nI1\naI1\naaa."
    events, _, names, _ = drain(MedBertPickles(lists(tmp_path, record, types=types)))
    assert [e["code"] for e in events] == ["ICD9_150", "ÅX"]
    assert names == [{"subject_id": events[0]["subject_id"], "name": "p-å"}]


def test_dirt_is_left_out_and_found(tmp_path):
    rows = [
        [None, [0], [0], [1], [1]],
        [1, [-2, None, 5], [0, 0, 0], [0, 1, 99], [1, 2, 3]],
        [1, [9], [0], [2], [1]],
        [2, [], [], [], []],
    ]
    events, visits, _, found = drain(MedBertPickles(lists(tmp_path, rows)))
    assert histories(events) == {1: {2: ["ICD9_150"]}}
    assert [(v["subject_id"], v["visit_id"], v["length_of_stay"]) for v in visits] == [(1, 3, 5.0)]
    assert {reason: (each["count"], each["first"]) for reason, each in found.items()} == {
        "no_subject": (1, "x.bencs.train: column 'patient id': row 1"),
        "patient_twice_in_a_pickle": (1, "x.bencs.train: column 'patient id': row 3"),
        "patients_with_codes_not_in_types": (1, "x.bencs.train: codes: row 2"),
        "patients_with_a_negative_length_of_stay": (
            *(1, "x.bencs.train: column 'patient id': row 2"),
        ),
    }
    assert drain(MedBertPickles(lists(tmp_path / "none", [])))[:3] == ([], [], [])


@pytest.mark.parametrize(
    "record",
    [
        [SECRET, [0], [0], [1, 2], [1]],  # a code without its visit
        [SECRET, [0], [0], [1], [2]],  # a visit that does not exist
        [SECRET, [0], [0], [1], [0]],
        [SECRET, [0, 0], [0], [1, 1], [2, 1]],
        [SECRET, ["0"], [0], [1], [1]],
        [SECRET, 1, [1.5], [1]],
        [SECRET, 1, [2**70], [1]],
        [SECRET, 1, [[1, 2], 3]],
        [SECRET, 1],
        [[[0, 0, ["ICD9_150"], [1]]]],  # a .ptencs
        {"id": SECRET},
        "text",
    ],
)
def test_what_is_no_patient(tmp_path, record):
    place = lists(tmp_path, [PRETRAINING[1]], [PRETRAINING[0], record])
    refused(MedBertPickles(place), "x.bencs.train", "row 3", "[id, label, codes")


def test_what_is_refused(tmp_path):
    refused(MedBertPickles(str(tmp_path / "nowhere" / "x")), "nowhere", "source.path")
    refused(MedBertPickles(lists(tmp_path / "a", LABELLED, types=None)), "0 files", "source.types")
    refused(MedBertPickles(lists(tmp_path / "b", TYPES)), "x.bencs.train", "dict", "source.types")
    refused(MedBertPickles(lists(tmp_path / "c", LABELLED, types=[1])), "x.types", "dictionary")
    twice = {"a": 1, "b": 1}
    refused(MedBertPickles(lists(tmp_path / "d", LABELLED, types=twice)), "x.types", "one number")
    other, many = {"a": 50}, [[k, 1, [1], [1]] for k in range(2000)]
    refused(
        MedBertPickles(lists(tmp_path / "e", many, types=other)),
        *("x.bencs.train", "row 1", "codes", "x.types", "source.types"),
    )


@pytest.mark.parametrize("keep", [1, 5, 20, 40])
def test_a_truncated_pickle(tmp_path, keep):
    place = lists(tmp_path, pickle.dumps(PRETRAINING, 4)[:keep])
    refused(MedBertPickles(place), "x.bencs.train", "truncated", "again")
    place = lists(tmp_path / "t", PRETRAINING, types=pickle.dumps(TYPES, 2)[:keep])
    refused(MedBertPickles(place), "x.types", "truncated")


class Hostile:
    """A pickle of this makes a folder when it is opened by a plain unpickler."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def attacks(mark):
    command, expression = f"mkdir {mark}", f"__import__('os').mkdir({str(mark)!r})"
    system, evaluated = Hostile(os.system, command), Hostile(eval, expression)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(system, protocol)
        yield pickle.dumps([PRETRAINING[0], [8, [2], [0], [3], [{"a": (1, system)}]]], protocol)
        yield pickle.dumps({"ICD9_150": evaluated}, protocol)
    yield b"cbuiltins\neval\n(S" + repr(expression).encode() + b"\ntR."
    yield b"(S" + repr(command).encode() + b"\nios\nsystem\n."  # INST
    yield b"(cos\nsystem\nS" + repr(command).encode() + b"\no."  # OBJ
    yield b"c__builtin__\neval\n(S" + repr(expression).encode() + b"\ntR."  # Python 2's name


def test_a_hostile_pickle_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    pickle.loads(next(attacks(mark)))  # it would
    mark.rmdir()
    for number, attack in enumerate(attacks(mark)):
        folder = tmp_path / str(number)
        source = MedBertPickles(lists(folder, attack))
        refused(source, "x.bencs.train", "may run code")
        source = MedBertPickles(lists(folder / "types", PRETRAINING, types=attack))
        refused(source, "x.types", "may run code")
        assert not mark.exists()


def test_what_only_a_call_can_make_is_refused(tmp_path):
    persistent = b"\x80\x02U\x01aQ."
    extension = b"\x80\x02\x82\x01."
    for number, content in enumerate((persistent, extension, b"not a pickle", b"\x80\xff.")):
        source = MedBertPickles(lists(tmp_path / f"p{number}", content))
        refused(source, "x.bencs.train", "damaged")
    for number, value in enumerate((np.int64(1), np.array([1]), datetime(2020, 1, 1), 1j)):
        place = lists(tmp_path / str(number), [[value, [0], [0], [1], [1]]])
        refused(MedBertPickles(place), "x.bencs.train", "asks for", ".tolist()")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not on this machine")
def test_the_list_made_of_med_berts_example_says_what_the_example_says(tmp_path):
    """The list is made here as Med-BERT's script makes it of the same file."""
    example = str(SHARED / "medbert_example" / "data_file.tsv")
    rows, stays, *_ = drain(MedBertTable(example))
    types, content = {"empty_pad": 0}, []
    for subject in (1, 2):
        days = {
            v["visit_id"]: int(v["length_of_stay"]) for v in stays if v["subject_id"] == subject
        }
        mine = [e for e in rows if e["subject_id"] == subject]
        mine.sort(key=lambda e: (e["time"], e["rank"]))
        numbers = [types.setdefault(e["code"], len(types)) for e in mine]
        visits = [1 + sorted(days).index(e["visit_id"]) for e in mine]
        content.append([subject, [days[k] for k in sorted(days)], [0] * len(days), numbers, visits])
    events, visits, *_ = drain(MedBertPickles(lists(tmp_path, content, types=types)))
    for subject, history in histories(rows).items():
        assert list(histories(events)[subject].values()) == list(history.values())
    lengths = {(v["subject_id"], v["visit_id"]): v["length_of_stay"] for v in visits}
    assert lengths == {(1, 1): 0, (1, 2): 2, (2, 1): 0, (2, 2): 0, (2, 3): 12}
