"""The job of ``medbert prepare`` in other tools, for ``prepare.py``: as an expert would write it.

Drop exact repeats, count events and subjects of each code, keep codes of MIN_SUBJECTS, encode, sort
by subject and time, write one row per subject with the lists ``time`` and ``token``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MIN_SUBJECTS, UNK, FIRST_CODE = 5, 1, 4  # as rule=all has it
Made = tuple[list[str], list[Path]]  # the codes from FIRST_CODE on, and the files of sequences


def run_pandas(folder: Path, out: Path) -> Made:
    """As most people write it, but for the lists, which are made as medbert makes them."""
    import pandas as pd

    events = pd.read_parquet(folder / "data").drop_duplicates()
    counts = events.groupby("code")["subject_id"].agg(["size", "nunique"])
    kept = counts[counts["nunique"] >= MIN_SUBJECTS].sort_values("size", ascending=False)
    tokens = {code: FIRST_CODE + i for i, code in enumerate(kept.index)}
    events["token"] = events["code"].map(tokens).fillna(UNK).astype("int32")
    return list(tokens), [_write_lists(events.sort_values(["subject_id", "time"]), out)]


def run_categorical(folder: Path, out: Path) -> Made:
    import pandas as pd
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "data", read_dictionary=["code"], use_threads=False)
    events = table.unify_dictionaries().to_pandas(self_destruct=True)
    del table
    events = events.drop_duplicates()
    counts = events.groupby("code", observed=False)["subject_id"].agg(["size", "nunique"])
    kept = counts[counts["nunique"] >= MIN_SUBJECTS].sort_values("size", ascending=False)
    tokens = pd.Series(range(FIRST_CODE, FIRST_CODE + len(kept)), kept.index.astype(str))
    encoded = tokens.reindex(events["code"].cat.categories).fillna(UNK).to_numpy("int32")
    events["token"] = encoded[events.pop("code").cat.codes]
    return list(tokens.index), [_write_lists(events.sort_values(["subject_id", "time"]), out)]


def _write_lists(events: Any, out: Path) -> Path:
    import numpy as np
    import pyarrow as pa

    subject = events["subject_id"].to_numpy()
    first = np.flatnonzero(np.diff(subject, prepend=subject[0] - 1))
    offsets = pa.array(np.append(first, len(subject)), pa.int32())
    columns = {"subject_id": pa.array(subject[first])}
    for name in ("time", "token"):
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(events[name].to_numpy()))
    table = pa.table(columns)
    with pa.ipc.new_file(str(out / "lists.arrow"), table.schema) as writer:
        writer.write_table(table)
    return out / "lists.arrow"


def run_polars(folder: Path, out: Path, *, by_file: bool = False) -> Made:
    """The fastest of ten ways tried; sinks to disk at every step took twice as long.

    ``by_file`` uses that MEDS keeps a subject in one file: one file at a time, twice over.
    """
    import polars as pl

    files = sorted((folder / "data").glob("*.parquet"))
    counts, held, made = [], [], []
    for k, group in enumerate([[file] for file in files] if by_file else [files]):
        read = pl.scan_parquet(group).with_columns(pl.col("code").cast(pl.Categorical))
        events = read.unique().collect(engine="streaming").sort("subject_id", "time")
        of_code = [pl.len().alias("events"), pl.col("subject_id").n_unique().alias("subjects")]
        counts.append(events.group_by("code").agg(of_code))
        if by_file:
            events.write_ipc(out / f"{k}.events")
        held.append(pl.scan_ipc(out / f"{k}.events") if by_file else events.lazy())
    kept = pl.concat(counts).group_by("code").sum().filter(pl.col("subjects") >= MIN_SUBJECTS)
    tokens = kept.sort("events", descending=True).select("code").with_row_index("token", FIRST_CODE)
    for k, lazy in enumerate(held):
        joined = lazy.join(tokens.lazy(), on="code", how="left", maintain_order="left")
        token = pl.col("token").fill_null(UNK).cast(pl.Int32)
        lists = joined.group_by("subject_id", maintain_order=True).agg("time", token)
        made.append(out / f"{k}.arrow")
        lists.sink_ipc(made[-1])
    return tokens["code"].to_list(), made


def run_duckdb(folder: Path, out: Path) -> Made:
    """Sorting before ``list`` is faster than ``list(... ORDER BY ...)`` for each subject."""
    import duckdb

    base = duckdb.connect(str(out / "base.duckdb"))
    base.execute(f"SET threads = 1; SET memory_limit = '2GB'; SET temp_directory = '{out}/spill'")
    base.execute(f"""
        CREATE TABLE events AS SELECT DISTINCT subject_id, time, code
        FROM read_parquet('{folder}/data/*.parquet')""")
    base.execute(f"""
        CREATE TABLE tokens AS SELECT code, ({FIRST_CODE - 1} + row_number() OVER
        (ORDER BY count(*) DESC, code))::INTEGER AS token FROM events GROUP BY code
        HAVING count(DISTINCT subject_id) >= {MIN_SUBJECTS}""")
    base.execute(f"""
        COPY (SELECT subject_id, list(time) AS time, list(token) AS token FROM
        (SELECT subject_id, time, coalesce(token, {UNK}) AS token FROM events
        LEFT JOIN tokens USING (code) ORDER BY subject_id, time)
        GROUP BY subject_id) TO '{out}/lists.parquet' (COMPRESSION zstd)""")
    codes = base.execute("SELECT code FROM tokens ORDER BY token").fetchall()
    return [code for (code,) in codes], [out / "lists.parquet"]
