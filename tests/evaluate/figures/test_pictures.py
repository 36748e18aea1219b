"""Pictures show what they were given, and nothing of what is hidden."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medbert.evaluate.benefit import decision_curve
from medbert.evaluate.efficiency import efficiency
from medbert.evaluate.figures import svg
from medbert.evaluate.figures.pictures import (
    decision_curves,
    label_efficiency,
    subgroup_forest,
    sweep,
)
from medbert.evaluate.intervals import ORACLE_NAME, Interval, summarise
from medbert.evaluate.reports.study import Point, Sweep
from medbert.evaluate.subgroups import Subgroup


def test_decision_curves_end_where_nobody_gains() -> None:
    labels = np.arange(400) % 5 == 0
    risk = np.clip(0.15 + 0.3 * labels, 0, 1)
    axes = decision_curves(decision_curve(labels, {"cost $ and $": risk}))
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "treat none",
        "treat all",
        r"cost \$ and \$",
    }
    assert max(line.get_xdata()[-1] for line in axes.lines[1:]) < 50
    assert svg(axes) == svg(axes)


def test_hidden_subgroups_have_no_numbers() -> None:
    known = Interval(0.7, 0.6, 0.8)
    cells = [
        Subgroup("sex", "F", 120, 120, 30, known, known),
        Subgroup("sex", "M", None, None, None, Interval(), Interval()),
    ]
    axes = subgroup_forest(cells, whole=known)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["sex", "F  (30 of 120)", "M  (few)"]
    assert svg(axes)


def test_label_efficiency_shows_every_draw() -> None:
    lines = [
        (model, size, draw, 0.6 + 0.01 * draw + size / 10_000)
        for model in ("pretrained", "untrained")
        for size in (100, 1000)
        for draw in range(5)
    ]
    table = pd.DataFrame(lines, columns=["model", "labels", "draw", "auroc"])
    axes = label_efficiency(efficiency(table, seed=0, n=20))
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [10, 10]
    assert axes.get_xscale() == "log" and svg(axes)


def test_a_sweep_draws_the_models_asked_for_and_the_oracle_in_their_own_styles() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4 == 0
    models = {name: rng.random(200) for name in ("first", "second", "third")}
    results = summarise(
        labels,
        models,
        np.arange(200),
        reference="first",
        oracle=labels * 0.5,
        seed=0,
        n_bootstrap=9,
    )
    found = Sweep("observation window", "days", (Point(90, results), Point(None, results)))
    axes = sweep(found, shown=["third", "first"])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "third",
        "first",
        ORACLE_NAME,
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["90", "whole"]
    assert axes.get_lines()[0].get_ydata()[0] == results.models[2].auroc.value
    styles = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(styles) == 3
