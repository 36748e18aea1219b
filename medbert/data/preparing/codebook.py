"""The codes of a dataset: those of all parts, resolved, spelled, recoded, as one list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbert.data import titles as icd_titles
from medbert.data.codes import canonical, is_diagnosis, parents_of
from medbert.data.preparing import Settings, gather
from medbert.data.preparing.recode import Recoded, recode
from medbert.schema import BIRTH, CODE, DEATH, PARENTS, SEX, InputError, Records, Resolved


@dataclass(frozen=True)
class Codebook:
    """The codes of a dataset, in order; what is known of them and how they came about."""

    names: list[str]
    titles: dict[str, str]
    parents: dict[str, list[str]]
    recoding: dict[str, dict[str, int]]  # outcome -> codes, events


def agree(records: Records, work: Path, settings: Settings) -> Codebook:
    """One list of codes for all parts; ``work/codes.npz`` says what their own numbers mean in it.

    A source's codes are resolved by the source, then spelled canonically, then recoded.
    """
    folders = [work / "parts" / str(i) for i in range(len(records.parts))]
    local, counts = zip(*map(gather.spoken, folders), strict=True)
    spoken = sorted({code for codes in local for code in codes})
    if not spoken:
        raise InputError("the source has no events; check source.path and the column names")
    resolved = Resolved([*spoken]) if records.resolve is None else records.resolve(spoken)
    spelled: list[str | None] = canonical(resolved.codes).to_pylist()
    stated = records.codes is not None and PARENTS in records.codes.column_names
    parents = parents_of(records.codes) if stated else {}
    known = sorted({code for code in spelled if code})
    wanted, gem = settings.use_parents, settings.icd9_to_icd10
    recoded = recode(known, parents=parents, use_parents=wanted, gem=gem)
    meant = dict(zip(known, recoded.codes, strict=True))
    names = sorted({*recoded.codes, BIRTH})
    number = {code: i for i, code in enumerate(names)}
    target = {s: number[meant[c]] if c else -1 for s, c in zip(spoken, spelled, strict=True)}
    diagnoses = {meant[code] for code in canonical([*resolved.diagnoses]).to_pylist() if code}
    numbers = [np.array([target[code] for code in own], np.int32) for own in local]
    facts: dict[str, Any] = {
        "is_diagnosis": is_diagnosis(names) | np.array([name in diagnoses for name in names]),
        "in_no_visit": np.array([name.startswith((BIRTH, DEATH)) for name in names]),
        "sexes": np.array([name.startswith(f"{SEX}//") for name in names]),
        "birth": np.array(number[BIRTH]),
        **{f"local{i}": mapping for i, mapping in enumerate(numbers)},
    }
    np.savez(work / "codes.npz", **facts)
    titles = _titles(records, resolved)
    if settings.look_up_titles:
        titles = icd_titles.look_up(names) | titles
    events = dict.fromkeys(spoken, 0)
    for own, n in zip(local, counts, strict=True):
        for code, count in zip(own, n, strict=True):
            events[code] += count
    return Codebook(names, titles, parents, _recoding(resolved, spelled, known, recoded, events))


def _titles(records: Records, resolved: Resolved) -> dict[str, str]:
    """Titles by canonical code, the first of several spellings; resolved ones go before."""
    said = list(resolved.titles.items())
    if records.codes is not None:
        columns = (records.codes[name].to_pylist() for name in (CODE, "description"))
        said += zip(*columns, strict=True)
    codes = canonical([code for code, _ in said]).to_pylist()
    pairs = zip(reversed(codes), (title for _, title in reversed(said)), strict=True)
    return {code: title for code, title in pairs if code and title}


def _recoding(
    resolved: Resolved,
    spelled: list[str | None],
    known: list[str],
    recoded: Recoded,
    events: dict[str, int],
) -> dict[str, dict[str, int]]:
    """How many codes and events had each outcome."""
    outcome = dict(zip(known, recoded.outcome, strict=True))
    recoding: dict[str, dict[str, int]] = {}
    for count, named, final in zip(events.values(), resolved.codes, spelled, strict=True):
        said = [outcome[final]] if final else ["no_code"]
        said += ["respelled"] if final and named != final else []
        for what in said:
            told = recoding.setdefault(what, {"codes": 0, "events": 0})
            told["codes"] += 1
            told["events"] += count
    return recoding
