"""Tables fit into terminals of several widths."""

from __future__ import annotations

import json
from operator import itemgetter

import pytest
from rich.cells import cell_len

from labelmill.console.tables import Column, table_lines
from labelmill.console.terminal import json_text

COLUMNS = (
    Column("id", itemgetter(0)),
    Column("count", itemgetter(1), right=True),
    Column("when", itemgetter(2), leave_out=1),
    Column("where", itemgetter(3), leave_out=2),
    Column("name", itemgetter(4), min_width=6),
)
ROWS = [("a1", "7", "noon", "here", "a name of some length"), ("b22", "1,000", "midnight", "there", "x")]


def test_a_wide_terminal_shows_everything_in_columns():
    assert table_lines(COLUMNS, ROWS, 80) == [
        "id   count  when      where  name",
        "a1       7  noon      here   a name of some length",
        "b22  1,000  midnight  there  x",
    ]


def test_in_a_narrow_terminal_the_last_column_is_wrapped_and_others_left_out():
    assert table_lines(COLUMNS, ROWS, 40) == [
        "id   count  when      where  name",
        "a1       7  noon      here   a name of",
        "                             some length",
        "b22  1,000  midnight  there  x",
    ]
    # then as few columns as possible are left out, the highest number first
    assert table_lines(COLUMNS, ROWS, 33)[1:3] == [
        "a1       7  noon      a name of",
        " " * 22 + "some length",
    ]
    assert table_lines(COLUMNS, ROWS, 24)[1:3] == ["a1       7  a name of", " " * 12 + "some length"]
    # and if that is not enough, lines are cut at the edge
    assert table_lines(COLUMNS, ROWS, 8)[1] == "a1      "


def test_other_columns_are_cut_and_a_long_word_is_broken():
    columns = (Column("first", itemgetter(0), min_width=6), Column("last", itemgetter(1), min_width=6))
    assert table_lines(columns, [("a long text", "photos/2026.jpg")], 14) == [
        "first   last",
        "a l...  photos",
        "        /2026.",
        "        jpg",
    ]


@pytest.mark.parametrize("width", [8, 20, 40, 80])
def test_no_line_is_wider_than_the_terminal_whatever_the_names(width):
    rows = [("1", "2", "3", "4", name) for name in ("\u4e03" * 30, "e\u0301" * 30, "\x1b[1A" * 30, "")]
    lines = table_lines(COLUMNS, rows, width)
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in "".join(lines)


def test_without_a_row_there_are_headings():
    assert table_lines(COLUMNS, [], 80) == ["id  count  when  where  name"]


def test_in_json_a_matrix_has_a_line_for_each_row():
    value = {"confusion": [[90, 1], [0, None]], "recall": [0.98, -1e-7], "names": ["1", "[\n 1\n]"]}
    text = json_text(value)
    assert json.loads(text) == value
    assert "    [90, 1],\n    [0, null]\n" in text
    assert '"recall": [0.98, -1e-07],' in text
