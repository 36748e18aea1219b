from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from medbert.data.vocabulary import Rule, Vocabulary, fit
from medbert.schema import NO_TOKEN, SPECIAL_TOKENS, UNK, InputError

CODES = ["ICD10CM/I50.9", "ICD10CM/E11.9", "MEDS_BIRTH", "ATC/A10BA02", "RARE"]


def fitted(min_subjects: int = 5) -> Vocabulary:
    return fit(
        CODES,
        counts=np.array([50, 90, 100, 10, 4]),
        n_subjects=np.array([20, 30, 100, 5, 4]),
        titles={"ICD10CM/I50.9": "Heart failure"},
        rule=Rule(min_subjects=min_subjects, include=[], exclude=["^MEDS_BIRTH"]),
    )


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


def test_saving_keeps_everything(tmp_path):
    vocabulary = fitted()
    vocabulary.save(tmp_path / "vocabulary.parquet")
    again = Vocabulary.load(tmp_path)
    assert again.codes == vocabulary.codes and again.rule == vocabulary.rule
    assert again.titles == vocabulary.titles and again.sha256 == vocabulary.sha256
    assert pq.read_table(tmp_path / "vocabulary.parquet").column_names[:2] == ["token", "code"]


def test_identity_depends_on_codes_and_on_what_is_left_out():
    assert fitted(5).sha256 != fitted(6).sha256


def test_nothing_left_is_refused_with_the_cure():
    with pytest.raises(InputError, match=r"lower rule.min_subjects"):
        fitted(min_subjects=1000)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocabulary.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a medbert vocabulary"):
        Vocabulary.load(tmp_path)
