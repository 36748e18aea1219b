"""``medbert embed notes``: one vector per note, for patients whose coded events are there too."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from medbert.commands.notes.corpus_rows import splits_given
from medbert.commands.notes.parts import parts, withheld
from medbert.commands.output.artefacts import artefact, write_json
from medbert.commands.output.progress import follow
from medbert.data.sources.columns import identifiers
from medbert.schema import CODE, EVENTS, NUMERIC_VALUE, SUBJECT_ID, TIME, TRAIN, InputError
from medbert.text.encoders.vectors import NoteEncoder
from medbert.text.notes import Note, read

log = logging.getLogger(__name__)

_MOST = 100_000  # vectors that clusters are made of
_TEXT_FIELDS = ("note_id", "kind", "site", "language")
_EVENTS = pa.schema([EVENTS.field(name) for name in (SUBJECT_ID, TIME, CODE, NUMERIC_VALUE)]).set(
    1, EVENTS.field(TIME).with_nullable(False)
)


@withheld
def embed_notes(
    *,
    in_: str,
    format: str,
    columns: Mapping[str, str | None],
    encoding: str,
    patient_pattern: str | None,
    encoder_dir: str,
    max_tokens: int | None,
    batch_tokens: int,
    n_codes: int,
    splits: str | None,
    device: str,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
) -> Path:
    """Writes ``out/embeddings.parquet`` and returns ``out``.

    Columns: subject_id (as ``prepare`` makes it of the patient id), time, note_id, kind, site,
    language, pieces (of the tokenizer), embedding (D float32, the mean over all pieces); rows in
    the order of the notes, those of no patient left out.

    With ``n_codes``, also ``out/events.parquet``: MEDS events ``NOTE//kind//cluster`` at the time
    of each note, the cluster by k-means of the vectors (of the train split alone where ``splits``
    is given). Put beside the files in ``data/`` of a MEDS folder, they are codes of the structured
    model like any other; ``history(until=...)`` cuts them off by their time, which therefore must
    be that of signing. As features instead: join on subject_id, and take what is before the
    prediction time.
    """
    model = NoteEncoder(
        encoder_dir, max_tokens=max_tokens, batch_tokens=batch_tokens, device=device
    )
    source = partial(read, in_, format=format, columns=columns, encoding=encoding)
    n_parts, counts = sum(1 for _ in parts(source())), Counter[str]()
    vector = pa.list_(pa.float32(), model.hidden)
    schema = pa.schema(
        [
            pa.field(SUBJECT_ID, pa.int64(), nullable=False),
            pa.field(TIME, pa.timestamp("us")),
            *(pa.field(name, pa.string()) for name in _TEXT_FIELDS),
            pa.field("pieces", pa.int64()),
            pa.field("embedding", vector),
        ]
    )
    with artefact(out, overwrite=overwrite, settings=settings) as folder:
        file = folder / "embeddings.parquet"
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            read_parts = parts(source(patient_pattern=patient_pattern))
            for some in follow(read_parts, "embedding", n_parts, unit="notes", size=len):
                notes = [note for note in some if note.patient_id]
                counts.update(notes=len(notes), of_no_patient=len(some) - len(notes))
                if notes:
                    writer.write_table(_table(notes, model, schema))
        if not counts["notes"]:
            raise InputError(f"{in_}: no note has a patient; say columns.patient_id=")
        if n_codes:
            counts["events"] = _events(folder, n_codes, splits, seed)
            if undated := counts["notes"] - counts["events"]:
                log.warning("%s notes have no time, and make no event", f"{undated:,}")
        told = {**counts, "hidden": model.hidden, "encoder_dir": encoder_dir}
        write_json(folder / "summary.json", told)
    log.info("made %s: %s notes; open %s", out, f"{counts['notes']:,}", Path(out) / file.name)
    return Path(out)


def _table(notes: list[Note], model: NoteEncoder, schema: pa.Schema) -> pa.Table:
    vectors_ND, pieces_N = model.encode([note.text for note in notes])
    whose = identifiers(pa.chunked_array([[note.patient_id for note in notes]]))
    made = {
        SUBJECT_ID: whose,
        TIME: pa.array([note.time for note in notes], pa.timestamp("us")),
        **{name: pa.array([getattr(n, name) for n in notes], pa.string()) for name in _TEXT_FIELDS},
        "pieces": pa.array(pieces_N),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_ND.ravel()), type=schema.field("embedding").type
        ),
    }
    return pa.table(made, schema=schema)


def _events(folder: Path, codes: int, splits: str | None, seed: int) -> int:
    """Returns how many; notes without a time make none."""
    from sklearn.cluster import MiniBatchKMeans

    trained, chance = None, np.random.default_rng(seed)
    if splits is not None:
        table = splits_given(splits)
        trained = table.filter(pc.equal(table["split"], TRAIN))[SUBJECT_ID]
    clusters = MiniBatchKMeans(codes, random_state=seed, n_init=1, batch_size=1024)
    with parquet.ParquetFile(folder / "embeddings.parquet") as file:
        share = _MOST / max(file.metadata.num_rows, 1)
        each = (_vectors(table, trained) for table in _tables(file))
        sample = np.concatenate([some[chance.random(len(some)) < share] for some in each])
    if len(sample) < codes:
        raise InputError(f"n_codes={codes}: there are {len(sample)} notes to make them of")
    clusters.fit(sample)
    n = 0
    with (
        parquet.ParquetFile(folder / "embeddings.parquet") as file,
        parquet.ParquetWriter(folder / "events.parquet", _EVENTS) as writer,
    ):
        for table in _tables(file):
            numbers = clusters.predict(_vectors(table, None))
            kinds = table["kind"].fill_null("unknown").to_pylist()
            made = {
                SUBJECT_ID: table[SUBJECT_ID],
                TIME: table[TIME],
                CODE: [f"NOTE//{k}//{i:03}" for k, i in zip(kinds, numbers, strict=True)],
                NUMERIC_VALUE: pa.nulls(len(table), pa.float32()),
            }
            dated = pa.table(made).filter(table[TIME].is_valid())
            writer.write_table(dated.cast(_EVENTS))
            n += len(dated)
    return n


def _tables(file: parquet.ParquetFile) -> Iterator[pa.Table]:
    return map(file.read_row_group, range(file.num_row_groups))


def _vectors(table: pa.Table, subjects: pa.ChunkedArray | None) -> np.ndarray:
    if subjects is not None:
        table = table.filter(pc.is_in(table[SUBJECT_ID], subjects.combine_chunks()))
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)
