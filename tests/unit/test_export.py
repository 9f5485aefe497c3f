"""Predictions as CSV, JSON lines, Parquet and a table keep every character, in constant memory."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from jobs.errors import ErrorCode
from jobs.ledger.jobs.outcomes import COLUMN_NAMES, Prediction, as_json
from labelmill.commands import predictions as command
from producer import export
from producer.export import Format, spreadsheet_text, write_csv, write_jsonl, write_parquet, write_table
from tests.memory import peak_of
from tests.outcomes import best

MODEL = "0123456789abcdef"

AWKWARD = [
    *("a b.png", "two\nlines.png", "both\r\n.png", "tab\t.png", "back\\slash.png"),
    *('quo"ted".png', "'single'.png", "comma,semi;colon.png", "=1+1", "手書き/七.png", "🖋️.png", "", " "),
    *("carriage\rreturn.png", "\x1b[31mred.png", "\u2028line.png", "x" * 10_000),
]


def labelled(index: int, name: str, label: str = "7", confidence: float = 0.9375) -> Prediction:
    return Prediction(index, name, label, confidence, None, None, MODEL)


def failed(index: int, name: str, detail: str | None = None) -> Prediction:
    return Prediction(index, name, None, None, ErrorCode.CORRUPT, detail, MODEL)


ROWS = [
    *(labelled(index, name) for index, name in enumerate(AWKWARD)),
    *(failed(index, name, name) for index, name in enumerate(AWKWARD, len(AWKWARD))),
    failed(2**40, "far.png"),
]


def text_of(write, rows) -> str:
    out = io.StringIO(newline="")
    assert write(iter(rows), out) == len(rows)
    return out.getvalue()


def parquet_of(rows):
    out = io.BytesIO()
    assert write_parquet(iter(rows), out) == len(rows)
    return pq.ParquetFile(io.BytesIO(out.getvalue()))


# ---- CSV ----------------------------------------------------------------------------------------------


def test_csv_gives_back_every_character():
    # When predictions are written and read again
    header, *rows = csv.reader(io.StringIO(text_of(write_csv, ROWS), newline=""))

    # Then they are the same, and missing values are empty
    assert header == list(COLUMN_NAMES)
    assert rows == [["" if each is None else str(each) for each in as_json(row).values()] for row in ROWS]


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\x1b[31mred",
    "\uff1d1",
    "a;=1",
    "a=1",
    "7",
]


def test_csv_for_a_spreadsheet_has_no_formula_and_no_control_character():
    # Given texts that a spreadsheet would calculate, as names, labels and details
    rows = [labelled(index, text, label=text) for index, text in enumerate(FORMULAS)]
    rows += [failed(len(rows), "a.png", "=1")]

    # When they are written for one, then it shows them. Texts are quoted, so that a semicolon ends no cell
    text = text_of(partial(write_csv, escape=spreadsheet_text), rows)
    _, *found = csv.reader(io.StringIO(text, newline=""))
    shown = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "\\t=1", "\\r=1", "\\n=1", "\\x1b[31mred", "'\uff1d1"]
    shown += ["a;=1", "a=1", "7"]
    assert [(name, label) for _, name, label, *_ in found] == [(each, each) for each in shown] + [
        ("a.png", "")
    ]
    assert found[-1][5] == "'=1"
    assert '"a;=1"' in text


# ---- JSON lines ---------------------------------------------------------------------------------------


def test_jsonl_gives_back_every_character():
    lines = text_of(write_jsonl, ROWS).removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == [as_json(row) for row in ROWS]


def test_a_json_object_has_every_column_and_null_for_what_is_not_there():
    [line] = text_of(write_jsonl, [failed(3, "a.png")]).splitlines()
    assert json.loads(line) == {
        "index": 3,
        "name": "a.png",
        "label": None,
        "confidence": None,
        "error": "corrupt",
        "detail": None,
        "model": MODEL,
        "alternatives": None,
    }


# ---- Parquet ------------------------------------------------------------------------------------------


def test_parquet_gives_back_every_character():
    table = parquet_of(ROWS).read()
    assert table.to_pylist() == [as_json(row) for row in ROWS]
    assert str(table.schema.field("confidence").type) == "float"


def test_parquet_is_written_in_pages(monkeypatch):
    monkeypatch.setattr(export, "PAGE_ROWS", 10)
    file = parquet_of([labelled(index, "a.png") for index in range(25)])
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10, 10, 5]
    assert file.read().column("index").to_pylist() == list(range(25))
    # and without rows there are columns
    assert parquet_of([]).schema_arrow.names == list(COLUMN_NAMES)


def test_without_pyarrow_the_file_that_was_named_is_left_as_it_is(monkeypatch, tmp_path, capsys):
    # Given an earlier export, and an environment without pyarrow
    output = tmp_path / "job.parquet"
    output.write_bytes(b"what was exported before")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    # When predictions are exported to the same file
    client = SimpleNamespace(job_id=str, status=lambda _job: None, predictions=lambda *_, **__: iter(ROWS))
    monkeypatch.setattr(command, "open_client", lambda: nullcontext(client))
    with pytest.raises(SystemExit) as end:
        command.predictions(
            "a job", None, None, form=Format.PARQUET, limit=None, output=str(output), force=True
        )

    # Then the error says what is missing, and the file is unchanged
    assert end.value.code == 2
    assert "Parquet needs pyarrow" in " ".join(capsys.readouterr().err.split())
    assert output.read_bytes() == b"what was exported before"


# ---- the table ----------------------------------------------------------------------------------------


def test_the_table_is_aligned():
    rows = [labelled(0, "a.png"), labelled(10, "longer.png", "cat", 1.0), failed(200, "b", "cut off")]
    assert text_of(write_table, rows).splitlines() == [
        "   index  name        label         confidence",
        "       0  a.png       7             0.9375",
        "      10  longer.png  cat           1.0000",
        "     200  b           -             corrupt: cut off",
    ]
    # A very long name does not move the labels of the others
    *_, short, long = text_of(write_table, [*rows, labelled(201, "x" * 500)]).splitlines()
    assert short == f"     200  {'b':<60}  -             corrupt: cut off"
    assert long == f"     201  {'x' * 500}  7             0.9375"


def test_the_table_has_one_header_whatever_its_pages(monkeypatch):
    monkeypatch.setattr(export, "PAGE_ROWS", 10)
    lines = text_of(write_table, [labelled(index, "a.png") for index in range(25)]).splitlines()
    assert len(lines) == 26
    assert sum("confidence" in line for line in lines) == 1


@pytest.mark.parametrize(
    "name", ["\x1b[31mred.png", "carriage\rreturn.png", "\x07bell.png", "two\nlines.png"], ids=ascii
)
def test_the_table_sends_nothing_to_the_terminal_that_it_would_obey(name):
    text = text_of(write_table, [labelled(0, name), failed(1, "a.png", name)])
    assert [character for character in text if ord(character) < 32] == ["\n"] * 3


# ---- alternatives -------------------------------------------------------------------------------------

WITH_MORE = [
    replace(labelled(0, "a.png", 's,e"ven', 0.5), alternatives=best('s,e"ven', "1\n", "été")),
    replace(labelled(1, "b.png", confidence=0.5), alternatives=best("7")),
    failed(2, "c.png"),
]


def test_alternatives_are_json_in_csv_and_lists_elsewhere():
    expected = [row.alternatives for row in WITH_MORE]
    written = csv.DictReader(io.StringIO(text_of(write_csv, WITH_MORE), newline=""))
    assert [json.loads(row["alternatives"] or "null") for row in written] == expected
    lines = text_of(write_jsonl, WITH_MORE).splitlines()
    assert [json.loads(line)["alternatives"] for line in lines] == expected
    assert parquet_of(WITH_MORE).read().column("alternatives").to_pylist() == expected


def test_the_table_shows_the_classes_after_the_label():
    assert text_of(write_table, WITH_MORE).splitlines() == [
        "   index  name   label         confidence  alternatives",
        '       0  a.png  s,e"ven       0.5000      1\\n 0.2500, été 0.1250',
        "       1  b.png  7             0.5000",
        "       2  c.png  -             corrupt",
    ]


# ---- any number of rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_table, write_parquet])
def test_any_number_of_rows_takes_the_same_memory(write, monkeypatch):
    # Given many pages of rows
    monkeypatch.setattr(export, "PAGE_ROWS", 500)

    class Nowhere(io.RawIOBase):
        """A file that discards everything."""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            return len(data)

    def rows() -> Iterator[Prediction]:
        for index in range(20_000):
            yield labelled(index, f"{index:0300}.png")

    # When they are written
    write(iter([labelled(0, "warm up")]), Nowhere())

    # Then only a page was in memory: the names alone would take 6 MB
    assert peak_of(lambda: write(rows(), Nowhere())) < 2_000_000
