"""The sentences of a dataset card: what was done with what was found, and what to change."""

from __future__ import annotations

import operator
from typing import Any

from medbert.schema import DATES, HELD_OUT, TRAIN

LEFT_OUT = "rows left out"
_REASONS = {  # what was done, and with what
    LEFT_OUT: ["no_code", "no_subject", "no_time", "unknown_admission", "unknown_icd_version"],
    "events left out, other dates taken as missing": ["not_a_date"],
    "value taken as missing": ["not_a_number"],
    "read as UTC": ["times_with_a_zone_read_as_utc"],
    "taken as outside any named visit": ["no_visit_id"],
    "a visit of its own for each subject": ["visit_ids_of_several_subjects"],
    "kind taken as unknown": ["unknown_visit_kind", "visits_of_unknown_kind"],
    "length of stay taken as unknown": [
        "visits_of_several_dates",
        "patients_with_a_negative_length_of_stay",
    ],
    "end and length of stay taken as unknown": ["discharge_before_admission"],
    "visits left out": ["visits_outside_life"],
    "events left out": ["events_before_birth", "events_after_age_120"],
    "birth taken as unknown": ["no_birth", "born_after_visit", "age_over_120", "conflicting_birth"],
    "aged 91 in the year that is stated": ["age_over_89_published_as_91"],
    "sex taken as unknown": ["conflicting_sex"],
    "the first one kept": ["other_gender_of_a_subject", "other_race_of_a_subject"],
    "all but the first left out": ["patient_twice_in_a_pickle"],
    "these codes left out": ["patients_with_codes_not_in_types"],
    "no label": ["patients_without_a_label_of_0_or_1", "labels_after_death_or_hospice"],
    "kept once": ["duplicate_events_dropped"],
    "known from the end of the stay on": ["diagnoses_moved_to_discharge"],
    "events left out: the code means nothing": ["recoding_no_code"],
    "written in the usual way": ["recoding_respelled"],
    "replaced by the code above (use_parents)": ["recoding_parent"],
    "ICD-9 replaced by its ICD-10 code": ["recoding_gem"],
    "ICD-9 replaced by what its ICD-10 codes have in common": ["recoding_gem_category"],
    "stays ICD-9: its ICD-10 codes have nothing in common": ["recoding_gem_ambiguous"],
    "stays ICD-9: no ICD-10 code is named": ["recoding_gem_no_map"],
}
DONE = {reason: done for done, reasons in _REASONS.items() for reason in reasons}
# these are counted not as findings but elsewhere in dataset.json
CHANGED = (
    "duplicate_events_dropped",
    "diagnoses_moved_to_discharge",
    "patients_without_a_label_of_0_or_1",
)

# When a fact calls for a sentence, and the sentence; the most important first. A fact that is
# withheld calls for none.
RULES = {
    "codes_per_subject > 1": "{subjects:,} subjects and {codes:,} codes: raise rule.min_subjects "
    "or set rule.roll_up=true, or begin from an encoder of a larger site.",
    "subjects_of_smallest_split < 100": "Splits of few subjects: {few}. What is measured on them "
    "is mostly chance; change fractions=, or give splits= of your own.",
    "without_dates > 0": "The records have an order but no dates: no ages, no windows of time; use "
    "tasks that need none, such as task=dhf_next.",
    "share_unknown > 0.05": "{share_unknown:.1%} of the events are of no known code (most in "
    "{worst}): set rule.roll_up=true or lower rule.min_subjects; with the vocabulary of another "
    "site, run `medbert vocabulary extend`.",
    "share_unknown_held_out_beyond_train > 0.05": "{unseen:.1%} of the held-out events are of no "
    "known code, and {seen:.1%} of the training events: the splits differ in kind (site, "
    "period?); check splits=.",
    "share_longer > 0.2": "{share_longer:.0%} of the subjects have more than {max_tokens} codes "
    "and lose the earliest: raise max_tokens of pretrain and finetune, or take in fewer kinds of "
    "code (rule=diagnoses, rule.exclude).",
    "share_empty > 0.05": "{share_empty:.0%} of the subjects have no code that is an input: check "
    "rule.include and rule.exclude.",
    "stays < 1": "No visit is a hospital stay: the prolonged-stay objective has nothing to learn; "
    "pretrain with objective=masked_code.",
    "share_stays_of_unknown_length > 0.5": "{share_stays_of_unknown_length:.0%} of the stays are "
    "of unknown length: the prolonged-stay objective has little to learn; pretrain with "
    "objective=masked_code, or name the column of discharge (source.columns.visit_end).",
    "share_stays_prolonged < 0.01": "{share_stays_prolonged:.1%} of the stays are longer than "
    "{prolonged_days} days: the prolonged-stay objective has little to learn; pretrain with "
    "objective=masked_code.",
    "share_two_visits < 0.5": "{share_two_visits:.0%} of the subjects have two visits or more: few "
    "histories to predict from. Where the records do not name visits, visit.by=day or gap makes "
    "them of events.",
    "share_dated_but_birth_unknown > 0.5": "{share_birth_unknown:.0%} of the subjects have no date "
    "of birth: ages are unknown to models and to the age + sex baseline; give "
    "source.columns.birth where the records have it.",
    "code_systems_that_come_or_go > 0": "{moves}: the same thing has other codes before and after, "
    "or none, and is learned twice; map ICD-9 diagnoses to ICD-10 (icd9_to_icd10=, a file of "
    "CMS), or check that the export is complete and that splits= do not divide by period.",
    "share_repeated > 0.05": "{share_repeated:.0%} of the events were repeats of others: a file "
    "may have been read twice (check source.path), or rows differ in columns that are not read.",
    "share_visits_of_several_dates > 0.01": "{share_visits_of_several_dates:.1%} of the visits "
    "have several dates of admission or discharge: their visit ids may not be unique; check the "
    "column of source.columns.visit_id.",
    "share_of_the_commonest_finding > 0.01": "Found often: {often}. Look at some of these rows "
    "before you trust the rest; dataset.json of the store says where the first of each is "
    "(source=).",
}
_COMPARE = {">": operator.gt, "<": operator.lt}
# findings, by their beginnings, that are no dirt or have a rule of their own
_EXPECTED = (*CHANGED, "visits_of_several", "times_with", "recoding_re", "recoding_p", "recoding_g")
_BEGINS, _LASTS = 0.001, 0.05  # share of a year's events that is none, and one that is something


def advice(card: dict[str, Any]) -> list[dict[str, str]]:
    """What the rules have to say of the facts that the card shows: ``rule`` and ``says``."""
    known = {**card, **card["facts"], **_more_facts(card)}
    told = []
    for rule, sentence in RULES.items():
        fact, sign, limit = rule.split()
        if known[fact] is not None and _COMPARE[sign](known[fact], float(limit)):
            told.append({"rule": rule.replace("_", " "), "says": sentence.format(**known)})
    return told


def _more_facts(card: dict[str, Any]) -> dict[str, Any]:
    """Facts that only the rules want, and words for their sentences."""
    facts, splits = card["facts"], {row["split"]: row for row in card["splits"]}
    found = {row["reason"]: row["count"] or 0 for row in card["findings"]}
    dirt = {why: n for why, n in found.items() if not why.startswith(_EXPECTED)}
    events, visits = facts["events"] or 0, facts["visits"] or 0
    dated = True if card["time"] == DATES else None
    repeated = found.get("duplicate_events_dropped", 0)
    unseen, seen = (splits[name]["share_unknown"] or 0 for name in (HELD_OUT, TRAIN))
    unknown = [row for row in card["systems"] if row.get("share_unknown")]
    unknown.sort(key=lambda row: -row["share_unknown"] * row["events"])
    moves = _moves(card["calendar"]) if card["calendar"] else []
    small = {s: row["subjects"] or 0 for s, row in splits.items() if (row["subjects"] or 0) < 100}
    return {
        "codes_per_subject": facts["codes"] / facts["subjects"] if facts["subjects"] else None,
        "subjects_of_smallest_split": min(row["subjects"] or 0 for row in splits.values()),
        "few": ", ".join(f"{split} ({n or 'few or none'})" for split, n in small.items()),
        "without_dates": int(dated is None),
        "worst": ", ".join(f"{r['system']} {r['share_unknown']:.0%}" for r in unknown[:3]),
        "share_unknown_held_out_beyond_train": unseen - seen,
        "unseen": unseen,
        "seen": seen,
        "share_dated_but_birth_unknown": dated and facts["share_birth_unknown"],
        "code_systems_that_come_or_go": len(moves),
        "moves": ", ".join(moves),
        "share_repeated": repeated / max(1, repeated + events),
        "share_visits_of_several_dates": found.get("visits_of_several_dates", 0) / max(1, visits),
        "share_of_the_commonest_finding": max(dirt.values(), default=0) / max(1, events),
        "often": ", ".join(
            f"{why.replace('_', ' ')} ({n:,})" for why, n in dirt.items() if n > 0.01 * events
        ),
    }


def _moves(calendar: dict[str, Any]) -> list[str]:
    """Code systems that come or go in the years that the card shows."""
    years, moves = calendar["years"], []
    for system, counts in calendar["systems"].items() if len(years) > 1 else ():
        shares = [(n or 0) / all_ for n, all_ in zip(counts, calendar["events"], strict=True)]
        used = [year for year, share in zip(years, shares, strict=True) if share > _LASTS]
        if used and shares[0] <= _BEGINS:
            moves.append(f"{system} begins in {used[0]}")
        if used and shares[-1] <= _BEGINS:
            moves.append(f"{system} ends in {used[-1]}")
    return moves
