"""UCI "Diabetes 130-US hospitals 1999-2008" as downloaded (doi 10.24432/C5230J, CC BY 4.0)."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
import pyarrow as pa

from medbert.data.codes import canonical
from medbert.data.sources import reading
from medbert.data.visits import sort_events
from medbert.schema import (
    BOOLEAN_VALUE,
    CODE,
    CODES,
    LABELS,
    NUMERIC_VALUE,
    ORDER,
    PREDICTION_TIME,
    SEX,
    SUBJECT_ID,
    TIME,
    VISIT_ID,
    VISITS,
    InputError,
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
        file, source, titles = _find(reading.existing(self.path))
        frame = _encounters(reading.Delimited(source, file, missing=(MISSING,)))
        set_aside: dict[str, int] = {}
        events = sort_events(pa.concat_tables([_static(frame, set_aside), *_of_encounters(frame)]))
        metadata = {"name": "diabetes130", "time": ORDER, "set_aside": set_aside}
        labels = {
            "readmission_30d": _labels(frame, frame["readmitted"] == "<30"),
            "readmission_any": _labels(frame, frame["readmitted"] != "NO"),
        }
        set_aside["labels_after_death_or_hospice"] = len(frame) - labels["readmission_any"].num_rows
        return Records(events, _visits(frame), metadata, codes=_codes(titles), labels=labels)


def _find(path: Path) -> tuple[str, Path | bytes, str | None]:
    """The name and place of the encounters, and the text of IDs_mapping.csv where it is beside."""
    if path.is_file() and zipfile.is_zipfile(path):
        return _unzip(path)
    if path.suffix.lower() == ".zip":
        raise InputError(f"{path}: not a whole .zip; it is truncated: download it again")
    if path.is_dir():
        inside = sorted(path.glob(f"**/{ENCOUNTERS}"))
        if len(inside) != 1:
            raise InputError(
                f"{path}: {len(inside)} files called {ENCOUNTERS} in it; give source.path the one "
                "to read"
            )
        path = inside[0]
    beside = [other for other in path.parent.iterdir() if other.name.lower() == TITLES]
    titles = beside[0].read_text(encoding="utf-8") if beside else None
    return str(path), path, titles


def _unzip(path: Path) -> tuple[str, bytes, str | None]:
    with zipfile.ZipFile(path) as archive:
        names = {PurePath(name).name.lower(): name for name in reversed(archive.namelist())}
        if ENCOUNTERS not in names:
            raise InputError(
                f"{path}: no {ENCOUNTERS} in it; give source.path the .zip of UCI dataset 296"
            )
        try:
            content = archive.read(names[ENCOUNTERS])
            titles = archive.read(names[TITLES]).decode() if TITLES in names else None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InputError(f"{path}: damaged ({error}); download it again") from None
    return f"{path}:{names[ENCOUNTERS]}", content, titles


def _encounters(delimited: reading.Delimited) -> pd.DataFrame:
    """One row per encounter in its subject's order; the ordinals of its two times added."""
    file = delimited.file
    wanted = {name: name for name in COLUMNS}
    cure = "Is it the file of UCI dataset 296? Download it again"
    table = delimited.read(reading.pick(delimited.names(), wanted, file=file, cure=cure))
    frame = table.to_pandas()
    for name in (*_IDS, *_NUMBERS):
        number = pd.to_numeric(frame[name], errors="coerce")
        bad = (number.isna() | (number % 1 != 0) | (number < 0)).to_numpy()
        if bad.any():
            raise InputError(
                f"{file}: column {name!r}: {int(bad.sum())} values are no whole numbers "
                f"({reading.rows(bad)}); download the file again"
            )
        frame[name] = number.astype(np.int64)
    foreign = ~frame["readmitted"].isin(["NO", ">30", "<30"]).to_numpy()
    if foreign.any():
        raise InputError(
            f"{file}: column 'readmitted': {int(foreign.sum())} values are none of NO, >30, <30 "
            f"({reading.rows(foreign)}); download the file again"
        )
    twice = frame["encounter_id"].duplicated().to_numpy()
    if twice.any():
        raise InputError(
            f"{file}: column 'encounter_id': {int(twice.sum())} encounters are there twice "
            f"({reading.rows(twice)}); was the file joined to itself? Download it again"
        )
    frame = frame.sort_values(["patient_nbr", "encounter_id"], ignore_index=True)
    ordinal = 2 * (frame.groupby("patient_nbr").cumcount().to_numpy() + 1)
    return frame.assign(
        admitted=ordinal.astype("datetime64[s]").astype("datetime64[us]"),
        discharged=(ordinal + 1).astype("datetime64[s]").astype("datetime64[us]"),
    )


def _static(frame: pd.DataFrame, set_aside: dict[str, int]) -> pa.Table:
    """Sex and race of each subject, as the first encounter that states them has it."""
    parts = []
    sex = frame["gender"].map({"Female": "F", "Male": "M"})
    for prefix, values in ((SEX, sex), ("RACE", frame["race"])):
        said = frame[["patient_nbr"]].assign(code=f"{prefix}//" + values).dropna()
        first = said.drop_duplicates("patient_nbr")
        if others := len(said.drop_duplicates()) - len(first):
            set_aside[f"other_{prefix.lower()}_of_a_subject"] = others
        columns = {SUBJECT_ID: pa.array(first["patient_nbr"]), CODE: pa.array(first["code"])}
        parts.append(reading.as_events(columns))
    return pa.concat_tables(parts)


def _of_encounters(frame: pd.DataFrame) -> list[pa.Table]:
    """The events of all stays, a table per column, in their order within a moment."""
    band = frame["age"].str.extract(r"(\d+)-(\d+)").astype(float)
    tables = [_events(frame, "admitted", "AGE//" + frame["age"], band.mean(axis=1))]
    for column, prefix in AT_ADMISSION.items():
        tables.append(_events(frame, "admitted", f"{prefix}//" + frame[column]))
    for column, prefix in PRIOR_YEAR.items():
        codes = _binned(frame[column], prefix, (0, 1, 2, 3))
        tables.append(_events(frame, "admitted", codes, frame[column]))
    for column in DIAGNOSES:
        tables.append(_events(frame, "discharged", "ICD9CM/" + frame[column]))
    for drug in DRUGS:
        given = frame[drug].where(frame[drug] != "No")
        tables.append(_events(frame, "discharged", f"DRUG//{drug}//" + given))
    for column, prefix in AT_DISCHARGE.items():
        stated = frame[column].where(frame[column] != "No")
        tables.append(_events(frame, "discharged", f"{prefix}//" + stated))
    for column, (prefix, lower_ends) in COUNTS.items():
        codes = _binned(frame[column], prefix, lower_ends)
        tables.append(_events(frame, "discharged", codes, frame[column]))
    return tables


def _events(
    frame: pd.DataFrame, moment: str, codes: pd.Series, values: pd.Series | None = None
) -> pa.Table:
    there = codes.notna()
    kept = frame[there]
    columns = {
        SUBJECT_ID: pa.array(kept["patient_nbr"]),
        TIME: pa.array(kept[moment]),
        CODE: canonical(pa.array(codes[there], pa.string())),
        VISIT_ID: pa.array(kept["encounter_id"]),
    }
    if values is not None:
        columns[NUMERIC_VALUE] = pa.array(values[there].astype(np.float32), from_pandas=True)
    return reading.as_events(columns)


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
    }
    return pa.table(columns, schema=VISITS)


def _labels(frame: pd.DataFrame, outcome: pd.Series) -> pa.Table:
    asked = ~frame["discharge_disposition_id"].isin(DEATH_OR_HOSPICE)
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
    return pa.table([list(found), list(found.values())], schema=CODES)
