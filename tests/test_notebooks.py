"""Every notebook runs from top to bottom, is stored without output, and says what it does."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebook_runs_anywhere(file, cache, tmp_path, monkeypatch):
    """From another folder: a notebook needs medbert, and no checkout around it."""
    monkeypatch.setenv("MEDBERT_CACHE", str(cache))
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    told = [o["text"] for o in outputs if o.get("name") == "stderr"]
    assert not told, "warnings that a reader would stumble on"
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    source = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert pictures == source.count("plot(") + source.count("plot_") + source.count("Image(")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebook_is_stored_without_output_and_defines_nothing(file):
    cells = [c for c in json.loads(file.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    source = "".join(line for cell in cells for line in cell["source"])
    assert "def " not in source and "class " not in source and "lambda" not in source
