"""Every verb makes one folder: the old one stays until the new one is whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medbert.schema import InputError

log = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_VERSIONS = ("medbert", "torch", "pytorch-lightning", "numpy", "pandas", "pyarrow", "scikit-learn")


def first_process() -> bool:
    """Whether this process writes, where several (of Lightning, torchrun or srun) work together."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(rank) or 0) for rank in ranks)


@contextmanager
def artefact(
    out: str | Path,
    *,
    overwrite: bool,
    settings: Mapping[str, Any],
    free: Collection[str] | None = None,
    writes: bool = True,
) -> Iterator[Path]:
    """Yields a working folder beside ``out`` that becomes ``out`` when the block ends well.

    A finished ``out`` is refused unless ``overwrite``. When the block fails, nothing is left,
    except that with ``free`` work is kept and taken up by the next run with the same ``settings``
    (those that ``free`` names may differ). The folder also receives ``settings.json`` and
    ``environment.json``. A process that does not ``write`` refuses what the others would.
    """
    out = Path(out)
    work, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    if writes and old.exists() and not out.exists():
        old.rename(out)  # killed between the two renames below
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise InputError(f"{out}: exists; say overwrite=true to replace it, or name another out=")
    if work.exists():
        _take_up(work, settings, free)
    if not writes:
        yield work
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / _SETTINGS, settings)
        write_json(work / "environment.json", _environment())
        yield work
        if out.exists():
            out.rename(old)
        work.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if free is None or isinstance(error, InputError):
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            kept = f"{work} keeps what was done: repeat the command"
            kept = "nothing was changed" if free is None else kept
            reason = os.strerror(error.errno)
            raise InputError(f"{error.filename or out}: {reason}; {kept}") from error
        raise


def _take_up(work: Path, settings: Mapping[str, Any], free: Collection[str] | None) -> None:
    if free is None:
        shutil.rmtree(work)
        return
    if not (work / _SETTINGS).is_file():
        return  # killed, or seen by another process, before anything was begun
    begun = read_json(work / _SETTINGS)
    fixed = (begun.keys() | settings.keys()) - {"overwrite", *free}
    if differing := sorted(key for key in fixed if begun.get(key) != settings.get(key)):
        raise InputError(
            f"{work}: unfinished work with other settings ({', '.join(differing)}); "
            "repeat the same command to finish it, or delete the folder"
        )


def _environment() -> dict[str, Any]:
    found = {"python": platform.python_version(), "system": platform.system()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes through a temporary file, so that a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    part.replace(path)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the content of files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_json(path: Path, *, missing: Any = None) -> Any:
    """InputError where the file is damaged, or is not there and nothing stands for it."""
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; is {path.parent} the folder a verb made?") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); run the verb that made it again") from error
