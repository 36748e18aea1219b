"""What the numbers say, in words, and how numbers are written.

Gains are named only where the interval says so; a baseline that is as good, or better, is too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medbert.evaluate.comparisons import Comparison
from medbert.evaluate.efficiency import Crossing, LabelMultiple, Labels
from medbert.evaluate.intervals import (
    ORACLE,
    ORACLE_NAME,
    REFERENCE,
    UNTRAINED,
    Difference,
    Interval,
    ModelResult,
    Results,
)
from medbert.evaluate.reports.study import Study, Sweep

TIE = "not distinguishable from"
PRETRAINING = {
    "better than": "a gain",
    "worse than": "a loss",
    TIE: "no difference that these data can show",
}
ALONE = "No other baseline was evaluated, so nothing is known of its worth."


def verdict(results: Results, comparisons: Sequence[Comparison] = ()) -> list[str]:
    """The reference beside every other model, in sentences.

    ``comparisons``: which differences do not hold after adjustment is said. Other heads of an
    encoder are not rivals: they are left to the table.
    """
    reference, ci = results.reference, f"{100 * results.level:.0f}% CI"
    adjusted = adjusted_p(results, comparisons)
    found: dict[str, dict[str, str]] = {"better than": {}, "worse than": {}, TIE: {}}
    sentences, unsure = [], []
    for model in results.models:
        gain = model.gain
        if gain is None or model.role == ORACLE or is_other_head(results, model.name):
            continue
        outcome = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else TIE
        if outcome != TIE and adjusted.get(model.name, 0.0) > 1 - results.level:
            unsure.append(model.name)
        bounds = f"{points(gain.low)} to {points(gain.high)}"
        if model.role == UNTRAINED:
            sentences.append(
                f"Pretraining changed AUROC by {points(gain.value)} points ({ci} {bounds}) over "
                f"the same encoder untrained: {PRETRAINING[outcome]}."
            )
            continue
        found[outcome][model.name] = f"{model.name} ({points(gain.value)} points, {ci} {bounds})"
    compared = [f"{key} {joined([*said.values()])}" for key, said in found.items() if said]
    if not compared:
        return [*sentences, ALONE]
    holm = f"After adjustment for {len(adjusted)} comparisons (Holm), the difference from "
    last = [f"{holm}{joined(unsure)} is no longer sure."] if unsure else []
    sentences.append(f"{reference} is {'; '.join(compared)}.")
    if better := [*found["worse than"]]:
        sentences.append(f"On these data, prefer {joined(better)}.")
    elif alike := [*found[TIE]]:
        sentences.append(
            f"These data give no reason to prefer {reference} to {joined(alike)}; that is not "
            "proof that they are equal: the interval says how far apart they may be."
        )
    return [*sentences, *last]


def study_verdict(study: Study) -> list[str]:
    """``verdict``, and in a sentence each: labels, crossings, sweeps, other times and places."""
    reference = study.results.reference
    here = next(model for model in study.results.models if model.role == REFERENCE)
    return [
        *verdict(study.results, study.comparisons),
        *_sure(study),
        *(sentence for sweep in study.sweeps for sentence in sweep_said(sweep)),
        *(
            f"AUROC of {model.name}, {place}: {spoken(model.auroc)}; here: {spoken(here.auroc)}."
            for place, results in study.elsewhere.items()
            for model in results.models
            if model.name == reference
        ),
    ]


def _sure(study: Study) -> list[str]:
    """Of labels and crossings only what the intervals decide; what is open is named."""
    reference, said = study.results.reference, []
    mine = [multiple for multiple in study.multiples if multiple.model == reference]
    middle = sorted(multiple.at for multiple in mine)[(len(mine) - 1) // 2] if mine else 0
    spared = {m: m.multiple[1] > 1 or m.multiple[2] < 1 for m in mine if m.at == middle}
    said += labels_said([multiple for multiple, sure in spared.items() if sure])
    if unsure := [multiple.over for multiple, sure in spared.items() if not sure]:
        said.append(
            f"Whether {reference}, with {middle:,} labelled subjects, spares labels over "
            f"{joined(unsure)} is open: the intervals include that it does not."
        )
    ahead = {
        each: math.isfinite(each.labels.high) or math.isinf(each.labels.low)
        for each in study.crossings
        if each.model == reference
    }
    said += crossings_said([crossing for crossing, sure in ahead.items() if sure])
    if unsure := [crossing.over for crossing, sure in ahead.items() if not sure]:
        said.append(f"Whether and where {reference} overtakes {joined(unsure)} is open.")
    return said


def labels_said(found: Sequence[LabelMultiple]) -> list[str]:
    """A sentence for each model and number of labels."""
    sentences = []
    for model, at in dict.fromkeys((each.model, each.at) for each in found):
        parts = []
        for each in (each for each in found if (each.model, each.at) == (model, at)):
            needed, times = each.needed, f"{each.multiple[0]:.1f} times"
            if math.isinf(needed.value):
                times = f"more than {needed.largest / at:.1f} times"
            elif needed.value <= needed.smallest:
                times = f"at most {needed.smallest / at:.1f} times"
            parts.append(f"{each.over} with {_labels(needed, times)}")
        sentences.append(
            f"With {at:,} labelled subjects, {model} is as good as {'; '.join(parts)}."
        )
    return sentences


def crossings_said(found: Sequence[Crossing]) -> list[str]:
    """A sentence for each model."""
    sentences = []
    for model in dict.fromkeys(each.model for each in found):
        parts = []
        for each in (each for each in found if each.model == model):
            share = f"ahead with {each.labels.largest:,} in {each.share:.0%} of the resamples"
            never = math.isinf(each.labels.value)
            said = share if never else _labels(each.labels, share)
            parts.append(f"{each.over} {f'at no size ({said})' if never else f'from {said} on'}")
        sentences.append(f"By labelled subjects, {model} is ahead of {'; of '.join(parts)}.")
    return sentences


def _labels(found: Labels, more: str) -> str:
    """With its interval, unless both ends are at one end of the sizes tried."""
    said = str(found).rstrip(")")
    return f"{said.partition(' (')[0]} ({more})" if found.low == found.high else f"{said}; {more})"


def sweep_said(sweep: Sweep) -> list[str]:
    """From the first point to the last; rows differ, so this is no paired difference."""
    if len(sweep.points) < 2:
        return []
    ends = [sweep.points[0], sweep.points[-1]]
    reference = ends[0].results.reference
    first, last = (next(m.auroc for m in end.results.models if m.name == reference) for end in ends)
    fall = (
        "it falls, as it must where what is recorded shortly before the outcome tells of it"
        if last.high < first.low and "gap" in sweep.name
        else "the intervals do not overlap"
        if last.high < first.low or last.low > first.high
        else "the intervals overlap"
    )
    names = [setting(sweep, end.value) for end in ends]
    return [
        f"{capital(sweep.name)}: from {names[0]} to {names[1]}, the AUROC of {reference} goes from "
        f"{spoken(first)} to {spoken(last)}; {fall}."
    ]


def adjusted_p(results: Results, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """By the model that the reference was compared with."""
    return {c.minus: c.adjusted_p for c in comparisons if c.model == results.reference}


def is_other_head(results: Results, name: str) -> bool:
    """Whether ``name`` is "ENCODER (HEAD)", a second line of an encoder that has one."""
    return any(name.startswith(f"{model.name} (") for model in results.models)


def setting(sweep: Sweep, value: float | None) -> str:
    return "whole history" if value is None else f"{value:g} {sweep.unit}"


# --- numbers ------------------------------------------------------------------------------------


def size(results: Results, min_count: int) -> str:
    rows, positives = results.rows, results.positives
    number, share = f"{positives:,}", f"{results.prevalence:.1%}"
    if positives < min_count:
        number, share = f"<{min_count}", f"<{min(1, min_count / rows):.1%}"
    elif rows - positives < min_count:
        number, share = f">{rows - min_count:,}", f">{1 - min_count / rows:.1%}"
    subjects = count(results.subjects, min_count)
    return (
        f"{count(rows, min_count)} rows of {subjects} subjects, {number} positives "
        f"(prevalence {share}, the AUPRC of chance)"
    )


def method(results: Results, adjusted: int = 0) -> str:
    """Small print for a table of results; ``adjusted``: over how many comparisons p was."""
    dropped = f" ({results.dropped:,} more held one class only)" if results.dropped else ""
    share = " Share of the oracle: of the way from AUROC 0.5 to that of the oracle."
    share = share if ORACLE_NAME in results.probabilities else ""
    over = f"; adjusted p by Holm's method over {adjusted} comparisons"
    return (
        f"In brackets: {100 * results.level:.0f}% intervals by bootstrap over subjects, "
        f"{results.resamples:,} resamples{dropped}. Gains: AUROC of {results.reference} minus that "
        f"of the line's model, in hundredths, on the same rows; intervals and two-sided p by "
        f"{results.method}, "
        f"not adjusted for the number of comparisons{over if adjusted else ''}.{share}"
    )


def count(number: int, min_count: int, *, rounded: bool = False) -> str:
    if 0 < number < min_count:
        return f"<{min_count}"
    return f"≈ {round(number / min_count) * min_count:,}" if rounded and number else f"{number:,}"


def interval(found: Interval | None, *, digits: int = 3, scale: float = 1) -> str:
    """Value and bounds, on two lines."""
    if found is None or math.isnan(found.value):
        return "–" if found is None else "not estimable"
    value, low, high = (
        "?" if math.isnan(number) else _plain(scale * number, digits)
        for number in (found.value, found.low, found.high)
    )
    return f"{value}\n({low} to {high})"


def _plain(number: float, digits: int) -> str:
    form = f"z.{digits}f" if abs(number) < 1e6 else ".1e"
    return f"{number:{form}}".replace("-", "−")


def spoken(found: Interval) -> str:
    return interval(found).replace("\n", " ")


def gained(gain: Difference | Interval | None) -> str:
    if gain is None:
        return "–"
    return f"{points(gain.value)}\n({points(gain.low)} to {points(gain.high)})"


def points(difference: float) -> str:
    """AUROC points (hundredths) with their sign."""
    if math.isnan(difference):
        return "?"
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def p_value(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def cells(
    results: Results, model: ModelResult, adjusted: Mapping[str, float] | None = None
) -> dict[str, str]:
    """How well a model tells apart: column name -> text of its line."""
    gain, share = model.gain, model.share_of_oracle
    line = {
        "Model": model.name,
        "AUROC": interval(model.auroc),
        f"Gain of\n{results.reference}\n(AUROC points)": gained(gain),
        "p": p_value(gain.p) if gain else "–",
    }
    if adjusted:
        line["p,\nadjusted"] = p_value(adjusted.get(model.name, math.nan))
    line["AUPRC"] = interval(model.auprc)
    return line if share is None else line | {"Share of\nthe oracle": f"{share:.0%}"}


def joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
