"""Does the audit of text models see what it should?

    python benchmarks/audit_text.py BASE NOTES OUT [EPOCHS [RATE]]

NOTES (any format) become a corpus, half of its patients in train, with made-up people planted in
it. The model in BASE goes on over it as it is, and over what ``medbert deidentify`` makes of the
same documents; both are audited with the thresholds that ``medbert audit text`` has. OUT keeps what
is done.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import medbert
from medbert.text.notes import read

TRAINING = {
    "gate_override": "an audit with made-up people",
    "length": 128,
    "batch_rows": 4,
    "looks": 1,
    "judged": 20,
}


def de_identified(corpus: Path, notes: Path, out: Path) -> Path:
    """The same documents as ``medbert deidentify`` writes them; canaries are told as before."""
    medbert.deidentify(in_=corpus / "documents.parquet", out=notes)
    texts = {note.note_id: note.text for note in read(next(notes.glob("*.parquet")))}
    table = pq.read_table(corpus / "documents.parquet")
    at = table.schema.get_field_index("text")
    column = [texts[name] for name in table["note_id"].to_pylist()]
    out.mkdir()
    for name in ("manifest.json", "canaries.json"):
        shutil.copy(corpus / name, out / name)
    field = table.schema.field(at)
    pq.write_table(
        table.set_column(at, field, pa.array(column, field.type)), out / "documents.parquet"
    )
    return out


def main() -> None:
    base, notes, out = map(Path, sys.argv[1:4])
    epochs, rate = (*sys.argv[4:6], *("4", "2e-3")[len(sys.argv) - 4 :])
    own = {
        "trainer": {"accelerator": "cpu", "max_epochs": int(epochs)},
        "optimizer": {"lr": float(rate)},
    }
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out.mkdir(parents=True, exist_ok=True)
    corpus, planted, clean = out / "corpus", out / "planted", out / "clean"
    if not corpus.is_dir():
        medbert.corpus(in_=notes, fractions=[0.5, 0.05, 0.45], out=corpus)
    if not planted.is_dir():
        medbert.corpus_plant(corpus=corpus, out=planted)
    if not clean.is_dir():
        de_identified(planted, out / "notes", clean)
    for name, trained_on in (("as it is", planted), ("de-identified", clean)):
        model = out / name.replace(" ", "_")
        if not model.is_dir():
            medbert.adapt(corpus=trained_on, base=base, out=model, **own, **TRAINING)
        audit = out / f"audit_of_{model.name}"
        if not audit.is_dir():
            medbert.audit_text(
                corpus=planted, model=model, base=base, characters=600, device="cpu", out=audit
            )
        found = json.loads((audit / "audit.json").read_text(encoding="utf-8"))
        sys.stdout.write(f"{name}: {found['verdict']}\n")
        for one in found["findings"]:
            sys.stdout.write(f"  {one['check']}: {one['verdict']}; {one['says']}\n")


if __name__ == "__main__":
    main()
