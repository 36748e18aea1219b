"""A study is one parcel: nothing of single rows leaves it, and both pages tell all of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from medbert.evaluate.benefit import decision_curve
from medbert.evaluate.comparisons import Comparison, over_seeds
from medbert.evaluate.efficiency import COLUMNS, Crossing, LabelMultiple, Labels, efficiency
from medbert.evaluate.intervals import Difference, Interval, Results, summarise
from medbert.evaluate.leaks.findings import CHECKS, finding
from medbert.evaluate.reports import checklist, particulars, sections
from medbert.evaluate.reports.markdown import write_study_markdown
from medbert.evaluate.reports.report import rich_table, write_study_html
from medbert.evaluate.reports.study import Point, Study, Sweep, analyse
from medbert.evaluate.reports.verdict import (
    crossings_said,
    interval,
    labels_said,
    study_verdict,
    sweep_said,
    verdict,
)
from medbert.schema import InputError

REFERENCE, UNTRAINED, LOGISTIC = "pretrained", "untrained", "L2 logistic regression"


def results_of(*, n: int = 600, noise: float = 0.3, seed: int = 0, more: int = 0) -> Results:
    """Two rows a subject; the reference, its other head, others, and the oracle."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n)
    truth = expit(2 * signal - 1)
    spread = {REFERENCE: noise, f"{REFERENCE} (sum)": 0.5, UNTRAINED: 1.5, LOGISTIC: 1.0}
    spread |= {f"model {i}": 1.0 + i / 10 for i in range(more)}
    return summarise(
        (rng.random(n) < truth).astype(int),
        {name: expit(signal + level * rng.normal(size=n) - 1) for name, level in spread.items()},
        np.arange(n) // 2,
        reference=REFERENCE,
        untrained=UNTRAINED,
        oracle=truth,
        seed=0,
        n_bootstrap=30,
    )


@pytest.fixture(scope="module")
def study() -> Study:
    """With every field filled."""
    results = results_of()
    ids = np.arange(600) // 2
    groups = {"sex": np.where(ids % 2, "F", "M"), "site": np.where(ids < 3, "small", "large")}
    lines = [
        (model, size, draw, base + 0.03 * np.log10(size) + 0.001 * draw)
        for model, base in ((REFERENCE, 0.75), (LOGISTIC, 0.65))
        for size in (100, 300, 1000)
        for draw in range(3)
    ]
    curves = efficiency(pd.DataFrame(lines, columns=list(COLUMNS)), seed=0, n=120)
    points = [Point(days, results_of(noise=0.3 + days / 100, seed=days)) for days in (0, 365)]
    risk = results.probabilities[REFERENCE]
    return replace(
        analyse(results, ids, groups=groups, over=LOGISTIC, seed=0, n=30),
        efficiency=curves,
        leads=(curves.lead(REFERENCE, over=LOGISTIC),),
        multiples=(curves.multiple(REFERENCE, over=LOGISTIC, at=300),),
        crossings=(curves.crossing(REFERENCE, over=LOGISTIC),),
        sweeps=(Sweep("prediction gap", "days", tuple(points)),),
        elsewhere={"external store: north": results_of(seed=5)},
        seeds={REFERENCE: over_seeds(results.labels, [risk, risk**1.1], ids, seed=0, n=30)},
        table_one={"train": {"women": "51.3%"}, "held_out": {"women": "<10"}},
        flow=[("in the store", 5000, 0), ("held out", 300, 600)],
        findings=[found for found in [finding("single_feature", 3)] if found],
        timing={"curves": 75.0},
        settings={"encoder": {"layers": 6}},
        notes=["The note of the task."],
        facts={"missing data": "what is not recorded is taken for absent"},
        title="A task",
    )


def test_every_field_is_filled_here_so_that_these_tests_see_all(study: Study) -> None:
    assert all(getattr(study, field.name) for field in fields(study) if field.name != "results")


def test_the_record_is_json_and_holds_no_rows(study: Study) -> None:
    record = study.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {field.name for field in fields(study)} - set(record) == {"results"}
    assert record["models"][0]["auroc"]["value"] == study.results.models[0].auroc.value
    assert record["sweeps"][0]["points"][1]["results"]["rows"] == 600

    def longest(value: Any) -> int:
        if isinstance(value, dict):
            return max(map(longest, value.values()), default=0)
        if isinstance(value, list):
            return max([len(value), *map(longest, value)])
        return 0

    assert longest(record) < 100  # 600 rows, of which none is there; 99 thresholds are


def test_what_was_not_done_is_not_in_the_record() -> None:
    record = Study(results_of()).to_dict()
    assert record["models"] and not {"sweeps", "benefits", "findings", "title"} & set(record)


def test_both_pages_show_the_same(study: Study, tmp_path: Path) -> None:
    write_study_html(study, tmp_path / "report.html")
    write_study_markdown(study, tmp_path / "report.md")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "figures"}
    heads = re.findall(r"<h2>([^<]*)</h2>", html)
    assert heads == re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    assert re.findall(r"<h(\d)>", html) == ["1", *"2" * len(heads)]
    linked = re.findall(r"!\[[^\]]{20,}\]\((.*)\)", markdown)
    assert len(linked) == len(set(linked)) == html.count("<img ") == 9
    assert {tmp_path / name for name in linked} == set((tmp_path / "figures").iterdir())
    assert html.count("scope='row'") == len(re.findall(r"^\| ", markdown, re.MULTILINE)) - 2 * (
        html.count("<table>")
    )
    for text in ("The note of the task.", "51.3%", "encoder: layers", "taken for absent"):
        assert text in html and text in markdown.replace("\\", "")
    assert set(re.findall(r"href='#([^']*)'", html)) == set(re.findall(r"id='([^']*)'", html))


def test_a_line_of_a_markdown_table_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    bad = "a | b `c` <img> \n*d*"
    study = Study(results_of(), settings={bad: bad}, title=bad)
    write_study_markdown(study, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert r"\<img\>" in text and not re.search(r"(?<!\\)<img", text)


def test_small_counts_are_hidden_on_the_page(study: Study) -> None:
    told = {part.title: part for part in sections.sections(study, min_count=10)}
    assert [row[2] for row in told["What the linter found"].tables[0].rows] == ["<10 features"]
    rows = {row[0]: row[1:] for row in told["Subgroups"].tables[0].rows}
    assert rows["site: small"] == rows["site: large"] == ["few", "few", "few", "", ""]
    near = replace(study.results, rows=604, positives=study.results.positives + 4)
    sweep = Sweep("gap", "days", (Point(0, study.results), Point(30, near)))
    part = sections.sections(replace(study, sweeps=(sweep,)), min_count=10)
    counts = next(each for each in part if each.title == "Sweep: gap").tables[0].rows[:2]
    assert all(cell.startswith("≈") for row in counts for cell in row[1:])


def test_few_positives_follow_from_nothing_on_the_page(study: Study) -> None:
    few = replace(study, results=replace(study.results, positives=6))
    told = {part.title: part for part in sections.sections(few, min_count=10)}
    rows = {row[0]: row[3] for row in told["Checklist: TRIPOD+AI"].tables[0].rows}
    assert "Net benefit" not in told and rows["15"] == "a probability"
    assert "<10 positives" in told["Results"].said[0]


def test_the_verdict_calls_open_what_the_intervals_leave_open(study: Study) -> None:
    unsure = Labels(3000, 100, math.inf, 100, 3000)
    found = replace(
        study,
        multiples=(LabelMultiple(REFERENCE, LOGISTIC, 300, 0.8, unsure),),
        crossings=(Crossing(REFERENCE, LOGISTIC, unsure, 0.6),),
    )
    said = " ".join(study_verdict(found))
    assert f"spares labels over {LOGISTIC} is open" in said and "10.0 times" not in said
    assert f"overtakes {LOGISTIC} is open" in said
    assert "times)" in " ".join(study_verdict(study))


def test_other_heads_and_too_many_models_are_left_to_the_table() -> None:
    results = results_of(more=6)
    drawn = sections.shown(results)
    assert drawn[0] == REFERENCE and len(drawn) == 6 and f"{REFERENCE} (sum)" not in drawn
    last = replace(results, reference="model 5")
    assert sections.shown(last)[0] == "model 5" and len(sections.shown(last)) == 6


def test_the_verdict_names_rivals_only_and_what_adjustment_takes_away() -> None:
    results = results_of()
    sentences = verdict(results)
    assert f"{REFERENCE} (sum)" not in " ".join(sentences) and LOGISTIC in sentences[1]
    taken = Comparison(REFERENCE, LOGISTIC, Difference(0.1, 0.05, 0.15, 0.02), 0.06, "DeLong")
    assert "no longer sure" in verdict(results, [taken])[-1]
    assert verdict(results, [replace(taken, adjusted_p=0.04)]) == sentences


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (Labels(8400, 5100, 14000, 100, 20000), "8,400 (interval 5,100 to 14,000; 8.4 times)"),
        (Labels(math.inf, math.inf, math.inf, 100, 3000), "more than 3,000 (more than 3.0 times)"),
        (Labels(100, 100, 100, 100, 3000), "at most 100 (at most 0.1 times)"),
    ],
)
def test_label_multiples_in_words(needed: Labels, said: str) -> None:
    (sentence,) = labels_said([LabelMultiple(REFERENCE, LOGISTIC, 1000, 0.8, needed)])
    assert sentence.endswith(f"as good as {LOGISTIC} with {said}.")


def test_a_crossing_that_never_comes_is_said_to_be_none() -> None:
    never = Labels(math.inf, 900, math.inf, 100, 3000)
    (sentence,) = crossings_said([Crossing(REFERENCE, LOGISTIC, never, 0.1)])
    assert "at no size (ahead with 3,000 in 10% of the resamples)" in sentence


def test_a_fall_over_gaps_is_said_only_where_intervals_part() -> None:
    near, far = results_of(), results_of(noise=5)
    assert (
        "it falls"
        in sweep_said(Sweep("prediction gap", "days", (Point(0, near), Point(9, far))))[0]
    )
    assert (
        "overlap"
        in sweep_said(Sweep("prediction gap", "days", (Point(0, near), Point(9, near))))[0]
    )
    assert sweep_said(Sweep("prediction gap", "days", (Point(0, near),))) == []


def test_the_checklist_has_27_items_and_invents_nothing(study: Study) -> None:
    numbers = [number for number, *_ in checklist.items()]
    assert len(set(numbers)) == len(numbers) == 52
    assert sorted({int(re.sub(r"\D", "", number)) for number in numbers}) == list(range(1, 28))
    full = {row[0]: row[3] for row in checklist.checklist(study)}
    bare = {row[0]: row[3] for row in checklist.checklist(Study(study.results))}
    assert full["11"] == study.facts["missing data"] and bare["11"] == checklist.AUTHORS
    assert full["17"] == full["18a"] == checklist.AUTHORS
    titles = {part.title for part in sections.sections(study, min_count=10)}
    named = {full[item].split(":")[0] for item in ("7", "16", "20a", "20b", "21")}
    assert named <= titles


def test_limits_follow_from_what_was_done(study: Study) -> None:
    def limits(one: Study) -> str:
        parts = sections.sections(one, min_count=10)
        return " ".join(next(p for p in parts if p.kind == "limits").points)

    full, bare = limits(study), limits(Study(study.results))
    assert "other hospitals" in bare and "other hospitals" not in full
    assert "later years" in full and "own table" in full and "own table" not in bare
    assert "No subgroups" in bare and "fair to them" in full


def test_a_clean_lint_is_told_and_one_that_never_ran_is_not(study: Study) -> None:
    def part(one: Study) -> list[Any]:
        found = sections.sections(one, min_count=10)
        return [each for each in found if each.title == "What the linter found"]

    (clean,) = part(Study(study.results, findings=[]))
    assert all(name.replace("_", " ") in clean.said[0] for name in CHECKS)
    assert part(Study(study.results)) == []


def test_a_bare_study_is_a_short_page() -> None:
    titles = [part.title for part in sections.sections(Study(results_of()), min_count=10)]
    assert titles == [
        "Verdict",
        "Results",
        "Pictures of the results",
        "What this does not show",
        "Checklist: TRIPOD+AI",
    ]


def test_nothing_is_neither_negative_nor_a_number_of_rows(study: Study) -> None:
    assert interval(Interval(-0.0001, -0.2, 0.1), digits=1) == "0.0\n(−0.2 to 0.1)"
    assert particulars.flow_rows(study.flow, 10)[0] == ["in the store", "5,000", "0", "–"]


def test_the_terminal_shows_adjusted_p_where_there_are_some(study: Study) -> None:
    heads = [
        [str(column.header) for column in rich_table(study.results, found).columns]
        for found in ((), study.comparisons)
    ]
    assert "p" in heads[0] and "p" not in heads[1] and "p,\nadjusted" in heads[1]


def test_a_notebook_shows_the_report_and_each_picture_of_it(study: Study) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    html = study._repr_html_()
    assert html.startswith("<iframe") and "Verdict" in html
    assert pyplot.get_fignums() == before, "a page leaves no figure behind"
    drawn = {p.name for part in sections.sections(study, min_count=10) for p in part.pictures}
    named = {sweep.name.replace(" ", "_"): sweep.name for sweep in study.sweeps}
    assert "calibration" in drawn and "net_benefit" in drawn and "subgroups" in drawn
    for name in drawn:
        axes = study.plot(named.get(name, name))
        assert pyplot.gcf() is axes.figure, "pyplot shows it"
        pyplot.close(axes.figure)
    mine = pyplot.figure().subplots()
    assert study.plot("roc", ax=mine) is mine and mine.lines
    pyplot.close(mine.figure)
    with pytest.raises(InputError, match=r"picture=map: choose one of auroc, roc, "):
        study.plot("map")
    assert list(study.table()["model"]) == [model.name for model in study.results.models]


def test_a_model_has_its_colour_in_every_picture_wherever_the_reference_stands() -> None:
    rng = np.random.default_rng(0)
    models = {name: rng.random(200) for name in [*map(str, range(7)), REFERENCE]}
    labels = rng.random(200) < models["0"]
    results = summarise(labels, models, np.arange(200), reference=REFERENCE, seed=0, n_bootstrap=5)
    found = Study(results, decision=decision_curve(labels, models))
    seen = [
        {line.get_label(): line.get_color() for line in found.plot(name).lines}
        for name in ("roc", "net_benefit")
    ]
    assert seen[0][REFERENCE] == seen[1][REFERENCE] and seen[0]["0"] == seen[1]["0"]
