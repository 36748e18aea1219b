"""What a source says, row by row; what it refuses; and what became of it in a store."""

import pickle

import numpy as np
import pytest

from medbert.schema import Findings, InputError

SECRET = 987654321  # a subject id that no message may show


def drain(source, *, max_bad_share=1.0):
    """The rows of all events, of all stated visits and of all names, and what was found."""
    findings, rows = Findings(max_bad_share), ([], [], [])
    for part in source.read().parts:
        for piece in pickle.loads(pickle.dumps(part)).pieces(findings):
            for found, table in zip(rows, piece, strict=True):
                found.extend(table.to_pylist() if table else [])
    return *rows, findings.to_dict()


def refused(source, *words, secrets=(SECRET,), max_bad_share=0.01):
    """The message of the InputError that reading raises; it names all the words."""
    with pytest.raises(InputError) as error:
        drain(source, max_bad_share=max_bad_share)
    said = str(error.value)
    assert [word for word in words if word not in said] == [], said
    assert not [secret for secret in secrets if str(secret) in said], said
    return said


def pairs(rows, *names):
    return [tuple(row.get(name) for name in names) for row in rows]


def known(store, until=None):
    """(subject, code, time) of all events in a store, or of those known by the ISO time."""
    cut = until and np.full(len(store), np.datetime64(until, "us").astype(np.int64))
    history = store.history(np.arange(len(store)), until=cut)
    subjects = np.repeat(store.subject_ids, np.diff(history.offsets_B1)).tolist()
    times = history.time_T.view("datetime64[us]").tolist()
    codes = [store.codes[code] for code in history.code_T]
    return list(zip(subjects, codes, times, strict=True))


def stays(store):
    """(subject, kind, start, end, days) of all visits in a store."""
    history = store.history(np.arange(len(store)))
    subjects = np.repeat(store.subject_ids, np.diff(history.visit_offsets_B1)).tolist()
    times = [t.view("datetime64[us]").tolist() for t in (history.start_V, history.end_V)]
    days = [None if np.isnan(stay) else round(float(stay), 3) for stay in history.stay_V]
    return list(zip(subjects, history.kind_V, *times, days, strict=True))
