"""The page says what the numbers say, to anyone, and gives nobody away."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from medbert.evaluate import figures
from medbert.evaluate.intervals import Results, summarise
from medbert.evaluate.reports.report import rich_table, write_study_html
from medbert.evaluate.reports.study import Study
from medbert.evaluate.reports.verdict import verdict

REFERENCE, UNTRAINED, OTHER = (
    "Med-BERT, pretrained",
    "Med-BERT, untrained",
    "L2 logistic regression",
)


def results_of(
    *, noise: tuple[float, float, float], n: int = 1500, other: str = OTHER, oracle: bool = False
) -> Results:
    """Three models, the noisier the worse: pretrained, untrained, another."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=n)
    labels = (rng.random(n) < expit(1.5 * signal - 1)).astype(int)
    made = [expit(signal + level * rng.normal(size=n) - 1) for level in noise]
    return summarise(
        labels,
        dict(zip((REFERENCE, UNTRAINED, other), made, strict=True)),
        np.arange(n),
        reference=REFERENCE,
        untrained=UNTRAINED,
        oracle=expit(1.5 * signal - 1) if oracle else None,
        seed=0,
        n_bootstrap=50,
    )


def page_of(results: Results, folder: Path, **arguments: Any) -> str:
    write_study_html(Study(results, **{"title": "Report", **arguments}), folder / "report.html")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("noise", "pretraining", "comparison", "advice"),
    [
        ((0.1, 1.5, 1.5), ": a gain.", f"better than {OTHER}", None),
        ((0.5, 0.52, 0.5), "no difference", f"not distinguishable from {OTHER}", "no reason to"),
        ((1.5, 0.1, 0.1), ": a loss.", f"worse than {OTHER}", f"prefer {OTHER}"),
    ],
    ids=["win", "tie", "loss"],
)
def test_verdict_follows_the_interval(
    noise: tuple[float, float, float], pretraining: str, comparison: str, advice: str | None
) -> None:
    results = results_of(noise=noise)
    sentences = verdict(results)
    assert "Pretraining changed AUROC by" in sentences[0] and pretraining in sentences[0]
    assert comparison in sentences[1]
    assert (advice in sentences[2]) if advice else len(sentences) == 2
    gain = results.models[1].gain
    assert gain is not None
    assert f"{abs(100 * gain.value):.1f} points (95% CI" in sentences[0]


def test_without_a_baseline_the_verdict_claims_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    models = {"only": rng.random(60)}
    results = summarise(labels, models, np.arange(60), reference="only", seed=0, n_bootstrap=20)
    assert verdict(results) == [
        "No other baseline was evaluated, so nothing is known of its worth."
    ]


def test_page_holds_the_numbers_and_loads_nothing(tmp_path: Path) -> None:
    results = results_of(noise=(0.2, 1.0, 0.5), oracle=True)
    page = page_of(
        results,
        tmp_path,
        flow=[("in the store", 52_000, 60_000), ("held out", 1500, 1500)],
        settings={"task": "dhf", "encoder": {"layers": 6}},
        notes=["One data set only."],
    )
    for model in results.models:
        assert f"{model.auroc.value:.3f}" in page
        assert model.name in page
    for text in (f"{results.positives:,} positives", "52,000", "50,500", "encoder: layers"):
        assert text in page
    for text in ("One data set only.", "What this does not show", "upper bound", "DeLong"):
        assert text in page
    assert page.count("<img ") == len(re.findall(r" alt='[^']{20,}'", page)) == 5
    assert not re.search(r"https?://", page)
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert all(src.startswith("data:image/svg+xml") for src in re.findall(r"src='([^']*)", page))


def test_pictures_load_nothing_and_are_the_same_each_time() -> None:
    results = results_of(noise=(0.2, 1.0, 0.5))
    first, second = (
        figures.svg(figures.roc(results.labels, models=results.probabilities)) for _ in range(2)
    )
    assert first == second
    loaded = re.findall(rb"(?:href|src)=\"([^\"]*)\"|url\(([^)]*)\)", first)
    assert all(target.startswith(b"#") for pair in loaded for target in pair if target)


def test_everything_inserted_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script> & $x^$ \"q\""
    results = results_of(noise=(0.2, 1.0, 0.5), other=bad)
    arguments = {"title": bad, "flow": [(bad, 100, 100)], "settings": {bad: bad}, "notes": [bad]}
    page = page_of(results, tmp_path, **arguments)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
    rich_table(results)


def test_small_counts_are_hidden(tmp_path: Path) -> None:
    flow = [("store", 2037, 2037), ("kept", 2033, 2033), ("rare", 7, 7), ("none", 0, 0)]
    page = page_of(results_of(noise=(0.2, 1.0, 0.5)), tmp_path, flow=flow)
    cells = re.findall(
        r"<td>([^<]*)</td>", page.split("id='who-was-counted'")[1].split("</section>")[0]
    )
    assert "≈ 2,040" in cells and "≈ 2,030" in cells
    assert cells.count("&lt;10") == 4
    assert not {"2,037", "2,033", "2,026", "7", "4"} & set(cells)


def test_few_positives_hide_the_count_and_the_curves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(4), np.zeros(196)].astype(int)
    models = {"a": rng.random(200), "b": rng.random(200)}
    results = summarise(labels, models, np.arange(200), reference="a", seed=0, n_bootstrap=50)
    page = page_of(results, tmp_path)
    assert "&lt;10 positives (prevalence &lt;5.0%" in page
    assert page.count("<img ") == 1 and "Curves are left out" in page
    assert "4 positives" not in page
    assert "fewer than 100 rows" in page
    flipped = summarise(1 - labels, models, np.arange(200), reference="a", seed=0, n_bootstrap=50)
    assert "&gt;190 positives" in page_of(flipped, tmp_path)


def test_terminal_table_names_every_model() -> None:
    from rich.console import Console

    results = results_of(noise=(0.2, 1.0, 0.5), other="[red]odd[/red]", oracle=True)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(rich_table(results))
    text = console.export_text()
    for model in results.models:
        assert model.name in text
        assert f"{model.auroc.value:.3f}" in text


@pytest.mark.parametrize(
    "draw",
    [figures.roc, figures.precision_recall, figures.calibration],
    ids=["roc", "precision_recall", "calibration"],
)
def test_figures_draw_one_distinct_line_per_model(draw: Callable[..., Any]) -> None:
    results = results_of(noise=(0.2, 1.0, 0.5))
    axes = draw(results.labels, models=results.probabilities)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == list(results.probabilities)
    handles, _ = axes.get_legend_handles_labels()
    lines = [handle if hasattr(handle, "get_color") else handle.lines[0] for handle in handles]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3


def test_roc_curve_encloses_the_auroc() -> None:
    results = results_of(noise=(0.2, 1.0, 0.5))
    axes = figures.roc(results.labels, models={"a": results.probabilities[REFERENCE]})
    x, y = axes.get_lines()[1].get_data()
    assert np.trapezoid(y, x) == pytest.approx(results.models[0].auroc.value, abs=0.002)


def test_importing_figures_does_not_import_matplotlib() -> None:
    import subprocess
    import sys

    code = "import sys, medbert.evaluate.reports.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
