"""Files: a simulation as a MEDS folder, or as one flat table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from medbert.data.synthetic.lives import CHUNK
from medbert.data.synthetic.records import ADMISSION, DISCHARGE, TITLES
from medbert.data.synthetic.simulation import Simulation
from medbert.schema import SUBJECT_ID, VISIT_ID


def write(simulation: Simulation, folder: Path) -> None:
    """A MEDS 0.4 dataset with our visit_id column, and the truth beside it, under ``folder``."""
    events, codes, metadata = simulation.events, simulation.codes, simulation.metadata
    for name in ("data", "metadata", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    subjects = events[SUBJECT_ID].to_numpy()
    edges = np.searchsorted(subjects, np.arange(1, simulation.truth.num_rows + CHUNK + 1, CHUNK))
    for shard, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        _parquet(events.slice(first, last - first), folder / "data" / f"{shard}.parquet")
    _parquet(codes, folder / "metadata" / "codes.parquet")
    dataset = {
        "dataset_name": metadata["name"],
        "etl_name": "medbert synthesize",
        "meds_version": "0.4.1",
        "other_extension_columns": [VISIT_ID],
        "simulation": {name: metadata[name] for name in ("seed", "n_subjects", "start", "end")},
    }
    text = json.dumps(dataset, indent=2) + "\n"
    (folder / "metadata" / "dataset.json").write_text(text, encoding="utf-8")
    _parquet(simulation.truth, folder / "truth" / "truth.parquet")


def write_flat(simulation: Simulation, path: Path) -> None:
    """One row per coded event of a visit, as hospital exports are; gzipped if named ``.gz``."""
    events, visits, truth = simulation.events, simulation.visits, simulation.truth
    marks = ("VISIT//", ADMISSION, DISCHARGE)
    plain = pa.array([code for code in TITLES if not code.startswith(marks)])
    events = events.filter(pc.and_(pc.is_valid(events[VISIT_ID]), pc.is_in(events["code"], plain)))
    visit = visits.take(pc.subtract(events[VISIT_ID], 1))
    subject = truth.take(pc.subtract(events[SUBJECT_ID], 1))
    observed = pc.less_equal(subject["death"], subject["exit"])
    seconds, day = pa.timestamp("s"), pa.date32()
    flat = {
        "patient": events[SUBJECT_ID],
        "admitted": visit["start"].cast(seconds),
        "discharged": visit["end"].cast(seconds),
        "encounter": events[VISIT_ID],
        "kind": visit["kind"],
        "event_time": events["time"].cast(seconds),
        "code": events["code"],
        "value": events["numeric_value"],
        "sex": subject["sex"],
        "birth_date": subject["birth"].cast(day, safe=False),
        "death_date": pc.if_else(observed, subject["death"].cast(day, safe=False), None),
    }
    options = pa_csv.WriteOptions(quoting_style="needed")
    compression = "gzip" if path.suffix == ".gz" else None
    with pa.output_stream(path, compression=compression) as stream:
        pa_csv.write_csv(pa.table(flat), stream, options)


def _parquet(content: pa.Table, path: Path) -> None:
    pq.write_table(content, path, compression="zstd")
