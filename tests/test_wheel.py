"""A command runs from the built wheel, outside the checkout: conf/ travels inside."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_command_runs_from_the_installed_wheel(tmp_path):
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", str(ROOT)]
    build += ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "medbert" / "data_synthetic" / "meds" / "metadata" / "dataset.json").is_file()
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import medbert;"
        f"assert medbert.__file__.startswith({str(site)!r}), medbert.__file__;"
        "from medbert.commands.main import main; main()"
    )
    words = ["synthesize", "n_subjects=50", "out=events"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "events" / "data").is_dir()
