"""Tables for people: no line is wider than the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len, chop_cells, set_cell_size

from labelmill.console.terminal import print_data, print_json
from producer.export import printable

_GAP: Final = "  "

#: Without a terminal, a table is as wide as its contents.
_PIPED_WIDTH: Final = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the text of its cells, and how it shrinks on a narrow terminal."""

    heading: str
    text: Callable[[Any], str]  # of a row's item
    right: bool = False  # for numbers
    leave_out: int = 0  # the column with the highest number is left out first; 0: never
    #: Longer texts may be cut to this many characters; in the last column they are wrapped.
    min_width: int | None = None


def print_table(columns: Sequence[Column], items: Iterable[Any]) -> None:
    """Print a table that fits the terminal. Control characters in it are written out."""
    print_data("\n".join(table_lines(columns, items, terminal_width())))


def print_rows(
    columns: Sequence[Column],
    items: Iterable[Any],
    *,
    as_json: bool,
    row: Callable[[Any], Any] = lambda item: item,
) -> None:
    """Print a table, or with `as_json` a JSON list of what `row` returns for each item."""
    if as_json:
        print_json(list(map(row, items)))
    else:
        print_table(columns, items)


def terminal_width() -> int:
    """Return the width of the terminal, or a very large one without a terminal."""
    return shutil.get_terminal_size((_PIPED_WIDTH, 24)).columns


def field_lines(*fields: tuple[str, str]) -> list[str]:
    """Return a line for each name and value."""
    return [f"{name:<16}{value}" for name, value in fields]


def table_lines(columns: Sequence[Column], items: Iterable[Any], width: int) -> list[str]:
    """Return the headings and the items, in lines of at most `width` characters.

    An item takes several lines if its last column does not fit.
    """
    table = [
        [column.heading for column in columns],
        *([printable(column.text(item)) for column in columns] for item in items),
    ]
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    least = [min(each, column.min_width or each) for column, each in zip(columns, widths, strict=True)]

    shown = list(range(len(columns)))
    while (spare := width - sum(least[place] + len(_GAP) for place in shown) + len(_GAP)) < 0:
        place = max(shown, key=lambda place: columns[place].leave_out)
        if not columns[place].leave_out:
            break
        shown.remove(place)
    for place in shown:
        more = min(widths[place] - least[place], max(spare, 0))
        widths[place], spare = least[place] + more, spare - more

    lines = []
    last = shown[-1]
    for cells in table:
        for number, part in enumerate(_wrapped(cells[last], widths[last])):
            row = [*(cells if number == 0 else [""] * len(cells))[:last], part]
            fitted = [_fit(row[place], widths[place], right=columns[place].right) for place in shown]
            line = _GAP.join(fitted).rstrip()
            lines.append(line if cell_len(line) <= width else set_cell_size(line, width))
    return lines


def short_time(moment: datetime | None) -> str:
    """Return a point in time to the minute, in UTC as the ledger has it; a dash if there is none."""
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "-"


def _wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines of at most `width` characters, broken at spaces if there are any."""
    lines = []
    while cell_len(text) > width and (first := chop_cells(text, width)[0]):
        end = first.rfind(" ") if text[len(first)] != " " else len(first)
        if end <= 0:
            end = len(first)
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, text]


def _fit(text: str, width: int, *, right: bool) -> str:
    missing = width - cell_len(text)
    if missing < 0:
        return set_cell_size(text, width - 3) + "..."
    return " " * missing + text if right else text + " " * missing
