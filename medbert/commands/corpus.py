"""``medbert corpus``: notes to a corpus: cleaned, counted, split (``text/corpus/documents.py``)."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from medbert.commands.notes.corpus_rows import Kept, of_the_time, splits_of
from medbert.commands.notes.parts import processes, withheld
from medbert.commands.output.artefacts import artefact, read_json, write_json
from medbert.commands.output.progress import follow
from medbert.schema import SPLITS, InputError
from medbert.text.corpus.cleaning import CLEANED, Rules, clean_file, sort_into
from medbert.text.corpus.documents import DOCUMENTS
from medbert.text.corpus.exchange import FOLDER, Away, shared, signed
from medbert.text.notes import read
from medbert.text.redaction.shift import read_key

log = logging.getLogger(__name__)

_FILE_BYTES = 48 << 20  # of notes that are cleaned together
_MOST_FILES = 256
_IDENTIFY = ("missing", "all", "none")
_FREE = ("workers",)  # of unfinished work
_NOT_TOLD = ("out", "overwrite", "workers", "key")  # in the manifest


@withheld
def corpus(
    *,
    in_: str | Sequence[str],
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    patient_pattern: str | None,
    site: str | None,
    identify: str,
    languages: Sequence[str] | None,
    min_words: int,
    near: float | None,
    quotas: Mapping[str, Mapping[str, float]],
    most_words: float | None,
    fractions: Sequence[float],
    splits: str | None,
    held_out_from: str | None,
    key: str | None,
    without: str | None,
    seed: int,
    workers: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes the corpus ``out`` and returns its manifest.

    Raises InputError: a note cannot be read (which one), or a setting does not fit the notes.
    """
    _check(identify, fractions, quotas)
    secret = read_key(key) if key else b""
    away = Away.read(without, secret)
    sources = [in_] if isinstance(in_, str) else [*in_]
    given = partial(read, format=format, columns=columns, encoding=encoding)
    notes = (n for path in sources for n in given(path, patient_pattern=patient_pattern))
    sizes = [size for path in sources for size in _sizes(Path(path), Path(out))]
    begun = {**settings, "files": sizes}
    with artefact(out, overwrite=overwrite, settings=begun, free=_FREE) as folder:
        files = _sorted(folder / "work" / "sorted", notes, sum(n for _, n, _ in sizes))
        rules = Rules(site, identify, min_words, secret)
        cleaned = _cleaned(folder / "work" / "cleaned", files, rules, workers)
        table = (keep := Kept(cleaned)).table
        if languages:
            keep.only(pc.is_in(table["language"], pa.array([*languages])), "other languages")
        if away:
            keep.only(~away.of(table["sha256"].to_pylist()), "at another site")
        splits_N = splits_of(table, fractions, seed, splits)
        keep.only(of_the_time(table, splits_N, held_out_from), "outside its split's time")
        copies_N = keep.near_copies(near)
        keep.sample(quotas, most_words, seed)
        _write(folder / "documents.parquet", keep, splits_N, copies_N)
        manifest = {
            **_counted(table.filter(pa.array(keep.mask_N)), splits_N[keep.mask_N]),
            "dropped": dict(keep.left_out),
            "notes": read_json(folder / "work" / "sorted" / "notes.json"),
            "settings": {k: v for k, v in settings.items() if k not in _NOT_TOLD},
        }
        write_json(folder / "manifest.json", manifest)
        if key:
            _send(folder / FOLDER, manifest, keep, secret)
    shutil.rmtree(Path(out) / "work")
    _say(manifest, out)
    return manifest


def _say(manifest: dict[str, Any], out: str) -> None:
    log.info(
        "%s: %s documents of %s patients, %s words (%s notes read); next: medbert corpus gate "
        "corpus=%s gold=... found=...",
        out,
        *(f"{manifest[what]:,}" for what in ("documents", "patients", "words")),
        f"{manifest['notes']['notes']:,}",
        out,
    )


def _check(
    identify: str, fractions: Sequence[float], quotas: Mapping[str, Mapping[str, float]]
) -> None:
    if identify not in _IDENTIFY:
        raise InputError(f"identify={identify}: choose one of {', '.join(_IDENTIFY)}")
    if len(fractions) != len(SPLITS) or abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise InputError(f"fractions={[*fractions]}: three that add up to 1: {', '.join(SPLITS)}")
    if unknown := sorted(quotas.keys() - {"site", "kind", "language", "year"}):
        raise InputError(f"quotas.{unknown[0]}: of site, kind, language or year")


def _sizes(path: Path, out: Path) -> list[list[Any]]:
    """What unfinished work must find as it was."""
    if out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"out={out}: is in {path}, and would be read as notes")
    if not path.exists():
        raise InputError(f"in={path}: there is no such file or folder")
    files = sorted(f for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
    return [[f.as_posix(), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _sorted(folder: Path, notes: Iterable[Any], n_bytes: int) -> list[Path]:
    if not (folder / "notes.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        n_files = min(_MOST_FILES, 1 + n_bytes // _FILE_BYTES)
        done = sort_into(folder, notes, n_files=n_files)
        for n in iter(lambda: sum(islice(done, 20_000)), 0):
            log.info("read %s notes more", f"{n:,}")
    return sorted(folder.glob("*.jsonl"))


def _cleaned(folder: Path, files: list[Path], rules: Rules, workers: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{file.stem}.parquet" for file in files]
    todo = [(a, b) for a, b in zip(files, made, strict=True) if not b.exists()]
    with processes(workers, None) as submit:
        jobs = [submit(clean_file, *pair, rules) for pair in todo]
        for _ in follow((result() for result in jobs), "cleaning", len(todo), unit="notes"):
            pass
    return made


def _write(file: Path, keep: Kept, splits_N: NDArray[np.str_], copies_N: NDArray[np.int64]) -> None:
    at = 0
    with parquet.ParquetWriter(file, DOCUMENTS, compression="zstd") as writer:
        for source in keep.cleaned:
            with parquet.ParquetFile(source) as part:
                for batch in part.iter_batches(1024):
                    here = slice(at, at + len(batch))
                    at += len(batch)
                    columns = {name: batch[name] for name in CLEANED.names if name != "words"}
                    columns |= {"split": pa.array(splits_N[here])}
                    columns |= {"copies": pa.array(copies_N[here], pa.int32())}
                    table = pa.table(columns).select(DOCUMENTS.names)
                    kept = table.filter(pa.array(keep.mask_N[here]))
                    if len(kept):
                        writer.write_table(kept.cast(DOCUMENTS))


def _send(folder: Path, manifest: dict[str, Any], keep: Kept, secret: bytes) -> None:
    """What other sites may have."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "manifest.json", shared(manifest, secret))
    kept = np.flatnonzero(keep.mask_N)
    sent = signed(keep.table.take(kept), keep.signatures()[kept], secret)
    parquet.write_table(sent, folder / "signatures.parquet")


def _counted(table: pa.Table, splits_N: NDArray[np.str_]) -> dict[str, Any]:
    table = table.append_column("split", pa.array(splits_N, pa.string()))
    digest = hashlib.sha256()
    for chunk in table["sha256"].to_pylist():
        digest.update(chunk.encode())

    def by(names: Collection[str], *more: tuple[str, str]) -> list[dict[str, Any]]:
        counts = table.group_by([*names]).aggregate([("words", "sum"), ("note_id", "count"), *more])
        renamed = {"words_sum": "words", "note_id_count": "documents"}
        renamed["whose_count_distinct"] = "patients"
        names_now = [renamed.get(name, name) for name in counts.column_names]
        sorting = [(name, "ascending") for name in names]
        return counts.rename_columns(names_now).sort_by(sorting).to_pylist()

    split = by(["split"], ("whose", "count_distinct"))
    return {
        "documents": len(table),
        "words": pc.sum(table["words"]).as_py() or 0,
        "patients": pc.count_distinct(table["whose"]).as_py(),
        "splits": {row.pop("split"): row for row in split},
        "groups": by(["site", "kind", "language", "year"]),
        "sha256": digest.hexdigest(),
    }
