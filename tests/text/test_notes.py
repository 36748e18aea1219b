"""Every format comes back as it went in; what is broken is named by file and line, not quoted."""

from __future__ import annotations

import json
import tracemalloc
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from medbert.schema import InputError, Span
from medbert.text.notes import FORMATS, Note, files, read, spans_found, where, write

TEXT = "Ola Værnes, 47 år,\r\nsett 12.03.2020.\nTlf. \U0001f600 915 00 111"
SPANS = (Span(0, 10, "NAME:PATIENT"), Span(12, 17, "AGE"), Span(25, 35, "DATE"))
NOTES = [
    Note("ward/1", TEXT, "p1", datetime(2020, 3, 12, 8), "discharge", "nb", SPANS),
    Note("ward/2", "", "p1", None, None, None, ()),
    Note("3", 'He said "no"; a,b\tc', "p2", datetime(2021, 1, 1), "note", "en", ()),
]
SECRET = "Quistgaard"  # must never be in a message


@pytest.mark.parametrize("format", ["text", "brat", "jsonl", "csv", "tsv", "parquet"])
def test_what_is_written_is_read_again(tmp_path, format):
    folder = format in ("text", "brat")
    path = tmp_path / ("notes" if folder else f"notes.{format}")
    fields = ("note_id", "text", "patient_id", "time", "kind", "language")
    write(NOTES, path, format="csv" if format == "tsv" else format, fields=fields)
    kept = {"note_id", "text"} | (set() if folder else {*fields})
    kept |= {"spans"} if format in ("brat", "jsonl") else set()
    bare = dict.fromkeys(set(Note._fields) - kept)
    expected = [note._replace(**bare) for note in NOTES]
    assert sorted(read(path)) == sorted(expected)


def test_columns_have_the_names_the_user_gives_them(tmp_path):
    path = tmp_path / "notes.parquet"
    parquet.write_table(pa.table({"ROW": [7], "TEXT": ["a"], "subject_id": [12]}), path)
    columns = {"note_id": "ROW", "text": "TEXT"}
    assert [*read(path, columns=columns)] == [Note("7", "a", "12")]
    with pytest.raises(InputError, match=r"no column note_id or doc_id.*ROW, TEXT"):
        next(read(path))
    write([Note("7", "b")], tmp_path / "out.csv", format="csv", columns=columns)
    assert (tmp_path / "out.csv").read_text() == "ROW,TEXT\n7,b\n"


def test_brat_takes_discontinuous_spans_and_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "n.txt").write_text("Per og Kari Moe\n", newline="")
    lines = ["T1\tNAME 0 3;12 15\tPer Moe", "#1\tAnnotatorNotes T1\tx", "T2\tNAME 7 15\tKari Moe"]
    (tmp_path / "a" / "n.ann").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.txt").write_text("not annotated")
    one, two = read(tmp_path)
    assert one.note_id == "a/n" and one.spans == (
        Span(0, 3, "NAME"),
        Span(7, 15, "NAME"),
        Span(12, 15, "NAME"),
    )
    assert two == Note("b", "not annotated")


def test_conll_gives_spans_over_text_made_of_the_tokens(tmp_path):
    rows = "-DOCSTART- O\n\nOla B-NAME\nMoe I-NAME\nKari B-NAME\n. O\n\n12.3. S-DATE\nOslo I-LOC\n"
    (tmp_path / "x.conll").write_text(rows + "-DOCSTART- O\n\nslutt O\n")
    first, second = read(tmp_path / "x.conll")
    assert first.text == "Ola Moe Kari .\n12.3. Oslo\n" and second.text == "slutt\n"
    found = [(first.text[s.start : s.end], s.label) for s in first.spans]
    assert found == [("Ola Moe", "NAME"), ("Kari", "NAME"), ("12.3.", "DATE"), ("Oslo", "LOC")]
    assert first.note_id != second.note_id


def test_i2b2_xml_gives_category_and_type(tmp_path):
    tag = '<NAME id="P0" start="4" end="11" text="Ola Moe" TYPE="PATIENT" comment=""/>'
    xml = f"<deIdi2b2><TEXT><![CDATA[Mr. Ola\nMoe & co]]></TEXT><TAGS>{tag}</TAGS></deIdi2b2>"
    (tmp_path / "220-01.xml").write_text(xml)
    (note,) = read(tmp_path, patient_pattern=r"^(\d+)-")
    expected = Note("220-01", "Mr. Ola\nMoe & co", "220", spans=(Span(4, 11, "NAME:PATIENT"),))
    assert note == expected


def test_found_spans_are_read_with_or_without_texts(tmp_path):
    line = {"note_id": "a", "spans": [{"start": 0, "end": 3, "label": "NAME", "score": 0.5}]}
    (tmp_path / "spans.jsonl").write_text(json.dumps(line) + "\n")
    expected = [("a", (Span(0, 3, "NAME", 0.5),))]
    assert [*spans_found(tmp_path)] == expected == [*spans_found(tmp_path / "spans.jsonl")]
    write(NOTES, tmp_path / "brat", format="brat")
    assert dict(spans_found(tmp_path / "brat"))["ward/1"] == SPANS


XML = "<deIdi2b2><TEXT>{secret}</TEXT><TAGS>{tag}</TAGS></deIdi2b2>"
BROKEN = {
    "latin-1 text": ("n.txt", f"sykehus\n{SECRET} på".encode("latin-1"), r"n\.txt:2: not utf-8"),
    "cut JSON": ("n.jsonl", f'{{"note_id": 1, "text": "{SECRET}', r"n\.jsonl:1: .*cut off"),
    "list": ("n.jsonl", f'["{SECRET}"]', r"n\.jsonl:1: not a JSON object"),
    "key": ("n.jsonl", f'{{"note_id": 1, "body": "{SECRET}"}}', r"no column text.*columns\.text"),
    "null": ("n.jsonl", f'{{"note_id": "{SECRET}", "text": null}}', r":1: no text"),
    "half": ("n.jsonl", f'{{"note_id": 1, "text": "{SECRET} \\ud800"}}', r"half a character"),
    "time": (
        "n.jsonl",
        f'{{"note_id": 1, "text": "x", "time": "{SECRET}"}}',
        r":1: the time.*ISO 8601",
    ),
    "outside": (
        "n.jsonl",
        f'\n{{"note_id": 1, "text": "{SECRET}", "spans": [[4, 40, "NAME"]]}}',
        r"n\.jsonl:2, span 1: 4-40 is not within the 10 characters",
    ),
    "words": (
        "n.jsonl",
        f'{{"note_id": 1, "text": "{SECRET}", "spans": [["{SECRET}", 1, "NAME"]]}}',
        r":1: span 1 needs the numbers",
    ),
    "other text": (
        "n.jsonl",
        f'{{"note_id": 1, "text": "x {SECRET}", "spans":'
        f' [{{"start": 0, "end": 10, "label": "NAME", "text": "{SECRET}"}}]}}',
        r"does not hold what was marked",
    ),
    "quote": ("n.csv", f'note_id,text\n1,a\n2,"{SECRET}\n3,b\n', r"n\.csv:3: a quote"),
    "columns": ("n.csv", f"note_id,text\n1,{SECRET},b\n", r"n\.csv:2: 3 columns.*double quotes"),
    "latin-1 csv": ("n.csv", f"note_id,text\n1,{SECRET} å\n".encode("latin-1"), r"n\.csv:2: not"),
    "parquet": ("n.parquet", f"PAR1{SECRET}", r"n\.parquet: no whole Parquet"),
    "xml": ("n.xml", f"<deIdi2b2><TEXT>{SECRET}", r"n\.xml:1: no well-formed XML"),
    "xml entity": ("n.xml", XML.format(secret=f"&{SECRET};", tag=""), r"n\.xml:1: no well-formed"),
    "xml tag": (
        "n.xml",
        XML.format(secret=SECRET, tag=f'<NAME start="0" end="3" text="{SECRET}" TYPE="X"/>'),
        r"n\.xml: <TAGS>, span 1: 0-3 does not hold",
    ),
    "conll": ("n.conll", f"a O\n{SECRET} {SECRET}\n", r"n\.conll:2: not a token and a tag"),
    "ann alone": ("n.ann", f"T1\tNAME 0 3\t{SECRET}\n", r"n\.ann: its text n\.txt is not beside"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_and_never_quoted(tmp_path, case):
    file, content, message = BROKEN[case]
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        [*read(tmp_path / file)]
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error) or error.__suppress_context__
        error = error.__cause__
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (f"T1\tNAME 0 10\t{SECRET}", r"n\.ann:1: 0-10 does not hold what was marked"),
        (f"T1\tNAME 2 99\t{SECRET}", r"n\.ann:1: 2-99 is not within"),
        (f"T1 NAME 2 {SECRET}", r"n\.ann:1: not as in"),
    ],
)
def test_brat_marks_must_fit_their_text(tmp_path, mark, message):
    (tmp_path / "n.txt").write_text(f"é {SECRET}")
    (tmp_path / "n.ann").write_text(mark + "\n")
    with pytest.raises(InputError, match=message) as caught:
        [*read(tmp_path)]
    assert SECRET not in str(caught.value)


def test_what_cannot_be_told_apart_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        next(read(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no notes in a known format"):
        next(read(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("note_id,text\n1,y\n")
    with pytest.raises(InputError, match=r"csv and text.*format="):
        next(read(tmp_path))
    assert [n.text for n in read(tmp_path, format="text")] == ["x"]
    with pytest.raises(InputError, match=r"columns\.body"):
        next(read(tmp_path, format="csv", columns={"body": "x"}))


def test_files_come_in_the_order_of_their_paths_and_hidden_ones_and_links_do_not(tmp_path):
    names = ("b.txt", "a-1.txt", "a/c.txt", "a/d/e.TXT", "a.b.txt", "a/x.md", "f.txt/g.txt", "n")
    for name in (*names, ".h/i.txt", "a/._c.txt"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "a")
    expected = sorted(tmp_path / "in" / name for name in names if name.lower().endswith(".txt"))
    assert [*files(tmp_path / "in", "text")] == expected
    (tmp_path / "none").mkdir()
    for format, (ending, *_) in FORMATS.items():
        with pytest.raises(InputError, match=rf"none: no \{ending}.* file in it"):
            next(files(tmp_path / "none", format))


def test_a_note_is_found_in_its_file_by_its_number(tmp_path):
    for name in ("a", "b"):
        write(NOTES, tmp_path / f"{name}.jsonl", format="jsonl")
    assert where(3, tmp_path) == f"{tmp_path / 'a.jsonl'}, note 3"
    assert where(5, tmp_path, patient_pattern="x") == f"{tmp_path / 'b.jsonl'}, note 2"


def test_note_ids_cannot_leave_the_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be the name of a file"):
        write([Note("../../x", "y")], tmp_path / "out", format="text")
    assert not (tmp_path.parent / "x.txt").exists()


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_number_of_notes(tmp_path, format):
    text, n = "word " * 10_000, 300
    path = tmp_path / ("notes" if format == "text" else f"notes.{format}")
    write((Note(str(i), text + str(i)) for i in range(n)), path, format=format)
    tracemalloc.start()
    assert sum(len(note.text) for note in read(path)) > n * len(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * len(text) / (2 if format == "parquet" else 4)


def test_a_parquet_file_in_one_group_is_read_piece_by_piece(tmp_path):
    texts = [f"{i:04} " * 400 for i in range(6000)]
    table = pa.table({"note_id": range(6000), "text": texts})
    parquet.write_table(table, tmp_path / "n.parquet", compression="none", use_dictionary=False)
    held, before = [], pa.total_allocated_bytes()
    for note, text in zip(read(tmp_path / "n.parquet"), texts, strict=True):
        assert note.text == text
        held.append(pa.total_allocated_bytes() - before)
    assert max(held) < sum(map(len, texts)) / 2  # pages of about 2 MB


def test_one_very_long_note(tmp_path):
    text = "word " * 100_000
    write([Note("1", text)], Path(tmp_path / "n.jsonl"), format="jsonl")
    assert next(read(tmp_path / "n.jsonl")).text == text
