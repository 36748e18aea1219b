"""The report of a study as a list of sections, for any page to render.

Made to be passed on: counts under ``min_count`` are hidden, and no single row is shown but as part
of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from medbert.evaluate import figures
from medbert.evaluate.efficiency import Efficiency
from medbert.evaluate.figures import pictures
from medbert.evaluate.intervals import ORACLE, ORACLE_NAME, REFERENCE, Interval, Results
from medbert.evaluate.reports import checklist, particulars, verdict
from medbert.evaluate.reports.page import Picture, Section, Table
from medbert.evaluate.reports.study import Study, Sweep


def sections(study: Study, *, min_count: int) -> list[Section]:
    """All that have something to show, in order."""
    results = study.results
    curves = min(results.positives, results.rows - results.positives) >= min_count
    if not curves:  # a curve through few rows is a list of them, and thresholds tell prevalence
        study = replace(study, decision=None, benefits=())
    leaks, clean = particulars.finding_rows(study, min_count)
    one = study.table_one
    lines = dict.fromkeys(name for column in one.values() for name in column)
    one_rows = [[name, *(column.get(name, "–") for column in one.values())] for name in lines]
    everything = [
        Section("Verdict", kind="verdict", said=verdict.study_verdict(study)),
        _results(study, min_count),
        _curves(study, curves, min_count),
        *([_benefit(study)] if study.benefits else []),
        *([_subgroups(study)] if study.subgroups else []),
        *([_labels(study, study.efficiency)] if study.efficiency else []),
        *(_sweep(study, sweep, min_count) for sweep in study.sweeps),
        *([_elsewhere(study, min_count)] if study.elsewhere else []),
        _seeds(study),
        Section("What this does not show", kind="limits", points=particulars.limits(study)),
        _table(
            "Who was counted",
            ["Step", "Subjects", "Left out", "Rows"],
            particulars.flow_rows(study.flow, min_count),
        ),
        _table("Table 1", ["", *one], one_rows),
        _table(
            "What the linter found",
            ["Finding", "Severity", "Count", "What it means", "What to do"],
            leaks,
            kind="words",
            said=clean,
        ),
        _table(
            "Time taken", ["What", "Seconds"], [[k, f"{v:,.1f}"] for k, v in study.timing.items()]
        ),
        _table("Settings", ["Setting", "Value"], particulars.flat(study.settings), kind="words"),
        _table(
            "Checklist: TRIPOD+AI",
            checklist.HEAD,
            checklist.checklist(study),
            kind="words",
            said=["Items of Collins 2024 (BMJ 385:e078378), in short words of our own."],
        ),
    ]
    return [section for section in everything if section]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], **more: Any) -> Section:
    return Section(title, tables=[Table(head, rows)] if rows else [], **more)


def shown(results: Results) -> list[str]:
    """The models that are drawn: no other heads, and no more than there are colours."""
    names = [name for name in results.probabilities if name != ORACLE_NAME]
    rivals = [name for name in names if not verdict.is_other_head(results, name)]
    drawn = rivals[: len(figures.COLOURS)]
    if results.reference not in drawn:
        drawn = [results.reference, *drawn[:-1]]
    return drawn


def _left(study: Study, among: Sequence[str]) -> str:
    """The end of a caption: who is not drawn."""
    left = [name for name in among if name not in (*shown(study.results), ORACLE_NAME)]
    return f" Not drawn: {verdict.joined(left)}." if left else ""


# --- results ------------------------------------------------------------------------------------


def _results(study: Study, min_count: int) -> Section:
    results, adjusted = study.results, verdict.adjusted_p(study.results, study.comparisons)
    ranks = [verdict.cells(results, model, adjusted) for model in results.models]
    risks = [
        {
            "Model": model.name,
            "Brier": verdict.interval(model.brier),
            "Slope\n(ideal 1)": verdict.interval(model.calibration_slope, digits=2),
            "Intercept\n(ideal 0)": verdict.interval(model.calibration_intercept, digits=2),
            "Observed /\nexpected": verdict.interval(model.observed_expected, digits=2),
            "ICI\n(ideal 0)": verdict.interval(model.ici),
        }
        for model in results.models
    ]
    roles = [model.role for model in results.models]
    tables = [
        Table([*lines[0]], [[*line.values()] for line in lines], caption, roles)
        for lines, caption in ((ranks, "Telling apart"), (risks, "Calibration"))
    ]
    said, small = [verdict.size(results, min_count) + "."], [verdict.method(results, len(adjusted))]
    return Section("Results", said=said, tables=tables, small=small)


def _curves(study: Study, curves: bool, min_count: int) -> Section:
    results = study.results
    auroc = {model.name: model.auroc for model in results.models}
    told = "; ".join(f"{name} {verdict.spoken(auroc[name])}" for name in auroc)
    axes = figures.forest(auroc, coloured=shown(results))
    grey = " Grey: in no other picture." if _left(study, [*results.probabilities]) else ""
    drawn = [Picture("auroc", f"AUROC with intervals.{grey}", f"AUROC: {told}.", axes)]
    if not curves:
        omitted = f"Curves are left out: one class has fewer than {min_count} rows."
        return Section("Pictures of the results", pictures=drawn, small=[omitted])
    drawn += [
        Picture(name, caption, alt, draw())
        for name, caption, alt, draw in pictures.gallery(results, shown(results), min_count)
    ]
    return Section("Pictures of the results", pictures=drawn)


def _benefit(study: Study) -> Section:
    drawn = []
    if study.decision is not None:
        wanted = [name for name in shown(study.results) if name in study.decision.models]
        caption = "Net benefit of acting on a predicted risk at or above the threshold."
        caption += _left(study, [*study.decision.models])
        alt = f"Decision curves of {', '.join(wanted)}, treat all and treat none."
        axes = pictures.decision_curves(study.decision, shown=wanted)
        drawn.append(Picture("net_benefit", caption, alt, axes))
    found = {(each.model, each.threshold): each for each in study.benefits}
    thresholds, reference = sorted({threshold for _, threshold in found}), study.results.reference
    mine = [found[reference, threshold] for threshold in thresholds]
    rival = {each.model for each in study.benefits if each.over_reference is None}
    rows: dict[str, list[Interval | None]] = {
        name: [found[name, threshold].benefit for threshold in thresholds]
        for name in shown(study.results)
    }
    rows[f"{reference}\nminus treat all"] = [each.over_all for each in mine]
    if len(rival) == 1 and reference not in rival:
        rows[f"{reference}\nminus {rival.pop()}"] = [each.over_reference for each in mine]
    per_1000 = partial(verdict.interval, digits=1, scale=1000)
    said = [[name, *map(per_1000, row)] for name, row in rows.items()]
    head = ["At a threshold of", *(f"{threshold:.1%}" for threshold in thresholds)]
    small = "Per 1,000 rows: true positives, less false ones at the odds of the threshold."
    return _table("Net benefit", head, said, pictures=drawn, small=[f"{small} Treat none: 0."])


def _subgroups(study: Study) -> Section:
    here = next(model for model in study.results.models if model.role == REFERENCE)
    rows = []
    for cell in study.subgroups:
        counts = (cell.rows, cell.subjects, cell.positives)
        sizes = ["few" if n is None else f"{n:,}" for n in counts]
        found = [verdict.interval(cell.auroc), verdict.interval(cell.observed_expected, digits=2)]
        found = ["", ""] if cell.hidden else found
        rows.append([f"{cell.variable}: {cell.category}", *sizes, *found])
    head = ["Subgroup", "Rows", "Subjects", "Positives", "AUROC", "Observed /\nexpected"]
    caption = f"AUROC of {here.name} by subgroup. Grey: all rows."
    drawn = []
    if not all(cell.hidden for cell in study.subgroups):
        axes = pictures.subgroup_forest(study.subgroups, whole=here.auroc)
        alt = f"{caption} The numbers are in the table."
        drawn = [Picture("subgroups", caption, alt, axes)]
    small = "Each interval is of one subgroup: that two overlap is no test of their difference."
    return Section("Subgroups", tables=[Table(head, rows)], pictures=drawn, small=[small])


# --- labels, sweeps, other places ---------------------------------------------------------------


def _labels(study: Study, found: Efficiency) -> Section:
    first = [name for name in shown(study.results) if name in found.curves]
    drawn = first or list(found.curves)[: len(figures.COLOURS)]
    sizes = sorted({int(size) for curve in found.curves.values() for size in curve.sizes})
    rows = []
    for name, curve in found.curves.items():
        means = map(Interval, curve.mean, curve.low, curve.high)
        at = dict(zip(map(int, curve.sizes), means, strict=True))
        rows.append([name, *(verdict.interval(at.get(size)) for size in sizes)])
    named = [f"{size:,}" for size in sizes]
    ahead = [
        [f"minus {lead.over}", *map(verdict.gained, [*map(lead.by_size.get, sizes), lead.whole])]
        for lead in study.leads
    ]
    limit = next((m.auroc.value for m in study.results.models if m.role == ORACLE), None)
    axes = pictures.label_efficiency(
        replace(found, curves={name: found.curves[name] for name in drawn}), limit=limit
    )
    caption = "AUROC by labelled subjects: mean over draws, its interval, each draw a dot."
    caption += _left(study, [*found.curves])
    alt = f"Label-efficiency curves of {', '.join(drawn)}; the means are in the table."
    draws = max(len(each) for curve in found.curves.values() for each in curve.points)
    return Section(
        "Label efficiency",
        said=[*verdict.labels_said(study.multiples), *verdict.crossings_said(study.crossings)],
        tables=[
            Table(["Model", *named], rows),
            Table([study.results.reference, *named, "All sizes"], ahead, "AUROC points, paired"),
        ][: 1 + bool(ahead)],
        pictures=[Picture("label_efficiency", caption, alt, axes)],
        small=[
            f"AUROC, mean over draws (up to {draws}) of nested subsets of the training subjects, "
            f"with {100 * found.level:.0f}% intervals over draws and held-out subjects."
        ],
    )


def _sweep(study: Study, sweep: Sweep, min_count: int) -> Section:
    drawn = shown(study.results)
    caption = f"AUROC by {sweep.name}, with intervals."
    caption += _left(study, [model.name for model in sweep.points[0].results.models])
    alt = f"AUROC of {', '.join(drawn)} by {sweep.name}; the numbers are in the table."
    name, axes = sweep.name.replace(" ", "_"), pictures.sweep(sweep, shown=drawn)
    settings = {verdict.setting(sweep, point.value): point.results for point in sweep.points}
    return Section(
        f"Sweep: {sweep.name}",
        said=verdict.sweep_said(sweep),
        tables=[_beside(settings, "auroc", min_count)],
        pictures=[Picture(name, caption, alt, axes)],
        small=["AUROC. For each setting, every model was trained anew on the rows that it leaves."],
    )


def _elsewhere(study: Study, min_count: int) -> Section:
    places = {"here, held out": study.results, **study.elsewhere}
    return Section(
        "Other times and places",
        tables=[
            _beside(places, "auroc", min_count, caption="AUROC"),
            _beside(places, "observed_expected", min_count, caption="Observed / expected"),
        ],
    )


def _beside(
    places: Mapping[str, Results], metric: str, min_count: int, *, caption: str = ""
) -> Table:
    """One column of results per place, with its counts, rounded where they differ by few."""
    numbers = np.array([[r.rows, r.positives, r.rows - r.positives] for r in places.values()])
    apart = np.abs(numbers[:, None] - numbers[None])
    few = bool((((apart > 0) & (apart < min_count)) | (numbers < min_count)[:, None]).any())
    rows = [
        [what, *(verdict.count(int(n), min_count, rounded=few) for n in numbers[:, place])]
        for place, what in enumerate(("Rows", "Positive rows"))
    ]
    compared = [*places.values()][1:] or places.values()  # the first may have more models
    names = dict.fromkeys(model.name for r in compared for model in r.models)
    written = partial(verdict.interval, digits=3 if metric == "auroc" else 2)
    by_place = [{model.name: getattr(model, metric) for model in r.models} for r in places.values()]
    rows += [[name, *(written(of.get(name)) for of in by_place)] for name in names]
    return Table(["", *places], rows, caption)


def _seeds(study: Study) -> Section:
    rows = [
        [
            name,
            str(len(spread.values)),
            f"{spread.sd:.4f}",
            f"{spread.low:.3f} to {spread.high:.3f}".replace("-", "−"),
            verdict.interval(spread.sampling),
            verdict.interval(spread.total),
        ]
        for name, spread in study.seeds.items()
    ]
    head = ["AUROC of", "Seeds", "SD over\nseeds", "Least to\nmost", "Mean, other\nsubjects"]
    head.append("Mean, other\nsubjects and seeds")
    small = "A difference is by seeds of the reference; its last interval counts those of both."
    return _table("Seeds, apart from sampling", head, rows, small=[small])
