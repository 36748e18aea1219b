"""UCI "Diabetes 130-US hospitals 1999-2008" as downloaded (doi 10.24432/C5230J, CC BY 4.0)."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medbert.data.sources import reading
from medbert.data.sources.columns import pick
from medbert.schema import (
    BOOLEAN_VALUE,
    CODE,
    CODES,
    LABELS,
    NUMERIC_VALUE,
    ORDER,
    PREDICTION_TIME,
    RANK,
    ROW,
    SEX,
    STATED_VISITS,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    Findings,
    InputError,
    Piece,
    Records,
)

ENCOUNTERS, TITLES = "diabetic_data.csv", "ids_mapping.csv"
MISSING = "?"  # "None" is a value: not measured
DEATH_OR_HOSPICE = ("11", "13", "14", "19", "20", "21")  # discharge dispositions

AT_ADMISSION = {
    "admission_type_id": "ADMISSION_TYPE",
    "admission_source_id": "ADMISSION_SOURCE",
    "medical_specialty": "SPECIALTY",
    "payer_code": "PAYER",
    "weight": "WEIGHT",
}
PRIOR_YEAR = {
    "number_outpatient": "PRIOR_OUTPATIENT",
    "number_emergency": "PRIOR_EMERGENCY",
    "number_inpatient": "PRIOR_INPATIENT",
}
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
DRUGS = (
    *("metformin", "repaglinide", "nateglinide", "chlorpropamide", "glimepiride"),
    *("acetohexamide", "glipizide", "glyburide", "tolbutamide", "pioglitazone", "rosiglitazone"),
    *("acarbose", "miglitol", "troglitazone", "tolazamide", "examide", "citoglipton", "insulin"),
    *("glyburide-metformin", "glipizide-metformin", "glimepiride-pioglitazone"),
    *("metformin-rosiglitazone", "metformin-pioglitazone"),
)
AT_DISCHARGE = {
    "A1Cresult": "A1C",
    "max_glu_serum": "MAX_GLU_SERUM",
    "change": "CHANGE",
    "diabetesMed": "DIABETES_MED",
    "discharge_disposition_id": "DISCHARGE_DISPOSITION",
}
COUNTS = {  # lower ends of the bins of what was done during the stay
    "num_lab_procedures": ("N_LAB_PROCEDURES", (0, 20, 40, 60, 80)),
    "num_procedures": ("N_PROCEDURES", (0, 1, 2, 3, 4)),
    "num_medications": ("N_MEDICATIONS", (0, 6, 11, 16, 21, 31)),
    "number_diagnoses": ("N_DIAGNOSES", (0, 4, 7, 9)),
}
_IDS = ("encounter_id", "patient_nbr")
_NUMBERS = ("time_in_hospital", *PRIOR_YEAR, *COUNTS)
COLUMNS = (
    *_IDS,
    *("race", "gender", "age", "readmitted"),
    *_NUMBERS,
    *AT_ADMISSION,
    *DIAGNOSES,
    *DRUGS,
    *AT_DISCHARGE,
)


@dataclass(frozen=True)
class Diabetes130:
    """Inpatient encounters of diabetics: their order is known (by encounter_id), no dates.

    The k-th encounter of a subject, k from 1, is admitted at second 2k of 1970-01-01 and
    discharged at second 2k + 1; these are ordinals, and no gap between them means anything. The
    length of stay is ``time_in_hospital``. ``readmitted`` is an outcome and never an event: it
    gives the labels ``readmission_30d`` and ``readmission_any`` at discharge, but for encounters
    that end in death or hospice. Diagnoses, drugs, results and counts are known at discharge;
    that a result is "None" (not measured) is kept as an event.

    Args:
        path: diabetic_data.csv, a folder that holds it, or the .zip.
    """

    path: str

    def read(self) -> Records:
        part = Encounters(ENCOUNTERS, _place(reading.existing(self.path).absolute()))
        frame, titles = part.load()
        labels = {
            "readmission_30d": _labels(frame, frame["readmitted"] == "<30"),
            "readmission_any": _labels(frame, frame["readmitted"] != "NO"),
        }
        metadata = {"name": "diabetes130", "time": ORDER}
        return Records([part], metadata, codes=_codes(titles), labels=labels)


@dataclass(frozen=True)
class Encounters(reading.FilePart):
    """A `Part`: the one file, small enough to be read whole."""

    def pieces(self, findings: Findings) -> Iterator[Piece]:
        frame, _ = self.load()
        where = f"{self.path.name}: column 'discharge_disposition_id'"
        findings.note("labels_after_death_or_hospice", int((~_asked(frame)).sum()), where)
        yield from (Piece(events) for events in _static(frame, findings))
        yield Piece(_of_encounters(frame), _visits(frame))

    def load(self) -> tuple[pd.DataFrame, str | None]:
        """The encounters, and the text of IDs_mapping.csv where it is beside."""
        if zipfile.is_zipfile(self.path):
            content, titles = _unzip(self.path)
            return _encounters(content, self.path.name), titles
        beside = [path for path in self.path.parent.iterdir() if path.name.lower() == TITLES]
        titles = beside[0].read_text(encoding="utf-8") if beside else None
        return _encounters(self.path, self.path.name), titles


def _place(path: Path) -> Path:
    if path.suffix.lower() == ".zip" and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a whole .zip; it is truncated: download it again")
    inside = sorted(path.glob(f"**/{ENCOUNTERS}")) if path.is_dir() else [path]
    if len(inside) != 1:
        raise InputError(
            f"{path}: {len(inside)} files called {ENCOUNTERS}; give source.path the one to read"
        )
    return inside[0]


def _unzip(path: Path) -> tuple[bytes, str | None]:
    with zipfile.ZipFile(path) as archive:
        names = {PurePath(name).name.lower(): name for name in reversed(archive.namelist())}
        if ENCOUNTERS not in names:
            raise InputError(
                f"{path}: no {ENCOUNTERS} in it; give source.path the .zip of UCI dataset 296"
            )
        try:
            content = archive.read(names[ENCOUNTERS])
            return content, archive.read(names[TITLES]).decode() if TITLES in names else None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InputError(f"{path}: damaged ({error}); download it again") from None


def _encounters(source: Path | bytes, file: str) -> pd.DataFrame:
    """One row per encounter in its subject's order; its file row and its two ordinals added."""
    delimited = reading.Delimited(source, file, missing=(MISSING,))
    cure = "Is it the file of UCI dataset 296, untouched? Download it again"
    picked = pick(delimited.names(), {name: name for name in COLUMNS}, file=file, cure=cure)
    block = reading.whole(delimited, picked, Findings(max_bad_share=0))
    frame = block.table.to_pandas()

    def refuse(reason: str, name: str, bad: pd.Series) -> None:
        rows, where = bad.to_numpy(), block.where(name)
        block.findings.check(reason, rows, where=where, first_row=0, cure=cure)

    for name in (*_IDS, *_NUMBERS):
        number = pd.to_numeric(frame[name], errors="coerce")
        refuse("no_whole_number", name, number.isna() | (number % 1 != 0) | (number < 0))
        frame[name] = number.astype(np.int64)
    refuse("none_of_NO_>30_<30", "readmitted", ~frame["readmitted"].isin(["NO", ">30", "<30"]))
    refuse("there_twice", "encounter_id", frame["encounter_id"].duplicated())
    frame[ROW] = np.arange(len(frame))
    frame = frame.sort_values(["patient_nbr", "encounter_id"], ignore_index=True)
    ordinal = 2 * (frame.groupby("patient_nbr").cumcount().to_numpy() + 1)
    return frame.assign(
        admitted=ordinal.astype("datetime64[s]").astype("datetime64[us]"),
        discharged=(ordinal + 1).astype("datetime64[s]").astype("datetime64[us]"),
    )


def _static(frame: pd.DataFrame, findings: Findings) -> Iterator[pa.Table]:
    """Sex and race of each subject, as the first encounter that states them has it."""
    sex = frame["gender"].map({"Female": "F", "Male": "M"})
    for prefix, values in ((SEX, sex), ("RACE", frame["race"])):
        said = frame[["patient_nbr"]].assign(code=f"{prefix}//" + values).dropna()
        first = said.drop_duplicates("patient_nbr")
        others = len(said.drop_duplicates()) - len(first)
        findings.note(f"other_{prefix.lower()}_of_a_subject", others, ENCOUNTERS)
        codes = pa.array(first["code"], pa.string())
        yield pa.table({SUBJECT_ID: first["patient_nbr"], CODE: codes})


def _of_encounters(frame: pd.DataFrame) -> pa.Table:
    """The events of all stays; those of a moment are in the order of the columns below."""
    band = frame["age"].str.extract(r"(\d+)-(\d+)").astype(float)
    said: list[tuple[str, pd.Series, Any]] = [
        ("admitted", "AGE//" + frame["age"], band.mean(axis=1))
    ]
    for column, prefix in AT_ADMISSION.items():
        said.append(("admitted", f"{prefix}//" + frame[column], None))
    for column, prefix in PRIOR_YEAR.items():
        said.append(("admitted", _binned(frame[column], prefix, (0, 1, 2, 3)), frame[column]))
    for column in DIAGNOSES:  # by priority
        said.append(("discharged", "ICD9CM/" + frame[column].str.strip(), None))
    for column, prefix in ({drug: f"DRUG//{drug}" for drug in DRUGS} | AT_DISCHARGE).items():
        stated = frame[column].where(frame[column] != "No")
        said.append(("discharged", f"{prefix}//" + stated, None))
    for column, (prefix, lower_ends) in COUNTS.items():
        said.append(("discharged", _binned(frame[column], prefix, lower_ends), frame[column]))
    return pa.concat_tables(
        _events(frame, moment, codes, values, rank=rank)
        for rank, (moment, codes, values) in enumerate(said)
    )


def _events(
    frame: pd.DataFrame, moment: str, codes: pd.Series, values: pd.Series | None, *, rank: int
) -> pa.Table:
    there = codes.notna()
    kept = frame[there]
    number = pd.Series(np.nan, kept.index) if values is None else values[there]
    columns = {
        SUBJECT_ID: kept["patient_nbr"],
        TIME: kept[moment],
        CODE: pa.array(codes[there], pa.string()),
        NUMERIC_VALUE: pa.array(number.astype(np.float32), from_pandas=True),
        VISIT_ID: kept["encounter_id"],
        RANK: pa.array([rank] * len(kept), pa.int16()),
    }
    return pa.table(columns)


def _binned(counts: pd.Series, prefix: str, lower_ends: tuple[int, ...]) -> pd.Series:
    """``PREFIX//0``, ``PREFIX//6-10``, ``PREFIX//31+``: the bin each count falls in."""
    names = [
        str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in zip(lower_ends, lower_ends[1:], strict=False)
    ]
    labels = np.array([f"{prefix}//{name}" for name in (*names, f"{lower_ends[-1]}+")])
    places = np.searchsorted(lower_ends, counts.to_numpy(), side="right") - 1
    return pd.Series(labels[places], index=counts.index)


def _visits(frame: pd.DataFrame) -> pa.Table:
    columns = {
        SUBJECT_ID: frame["patient_nbr"],
        VISIT_ID: frame["encounter_id"],
        "start": frame["admitted"],
        "end": frame["discharged"],
        "kind": ["inpatient"] * len(frame),
        "length_of_stay": frame["time_in_hospital"].astype(np.float32),
        ROW: frame[ROW],
    }
    return pa.table(columns, schema=STATED_VISITS)


def _asked(frame: pd.DataFrame) -> pd.Series:
    """Who can be readmitted."""
    return ~frame["discharge_disposition_id"].isin(DEATH_OR_HOSPICE)


def _labels(frame: pd.DataFrame, outcome: pd.Series) -> pa.Table:
    asked = _asked(frame)
    columns = {
        SUBJECT_ID: frame["patient_nbr"][asked],
        PREDICTION_TIME: frame["discharged"][asked],
        BOOLEAN_VALUE: outcome[asked].astype(bool),
    }
    return pa.table(columns, schema=LABELS)


def _codes(titles: str | None) -> pa.Table | None:
    """CODES with the titles of IDs_mapping.csv: three tables one below the other."""
    if titles is None:
        return None
    prefix, found = None, {}
    for line in csv.reader(io.StringIO(titles)):
        name, title = (*line, "", "")[:2]
        if name.endswith("_id"):
            prefix = (AT_ADMISSION | AT_DISCHARGE).get(name)
        elif prefix and name and title.strip() not in ("", "NULL"):
            found[f"{prefix}//{name}"] = title.strip(" .")
    return pa.table([list(found), list(found.values()), [None] * len(found)], schema=CODES)
