"""Match names with a glob in the database, in time that is linear in the length of the name.

SQLite has the operator GLOB, and PostgreSQL compiles a regular expression into an automaton. Neither holds
Python's interpreter, and neither tries every combination of the stars, as Python's `re` does.
"""

from __future__ import annotations

import re
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: A star, one character, a set, or a character that stands for itself. A set that begins with `]` has it as a
#: member; a bracket that is never closed stands for itself.
_PARTS: Final = re.compile(
    r"(?P<star>\*+)|\?|\[(?P<negation>[!^]?+)(?P<members>\][^]]*|[^]]+)\]|(?P<character>.)", re.DOTALL
)


def matches_glob(connection: Connection, column: sa.ColumnElement[Any], glob: str) -> sa.ColumnElement[bool]:
    """Return the condition that a whole name matches a shell glob.

    `*` is any text, `/` included; `?` is one character; `[...]` is one of these, `[!...]` none of these.
    """
    if connection.dialect.name == "sqlite":
        return column.bool_op("GLOB")(_PARTS.sub(_to_sqlite, glob))
    # (?s): a dot is any character, newlines included. \A, \Z: the whole name; $ would allow a last newline.
    return column.regexp_match(rf"(?s)\A{_PARTS.sub(_to_regex, glob)}\Z")


def _to_sqlite(part: re.Match[str]) -> str:
    if part["members"]:
        return f"[{'^' if part['negation'] else ''}{part['members']}]"
    return "[[]" if part["character"] == "[" else part[0]


def _to_regex(part: re.Match[str]) -> str:
    if part["members"]:
        # As SQLite reads a set: a first `]` begins no range, and one that runs backwards is its first member.
        found = re.findall(r"\A\]|(?:.-.)|.", part["members"], re.DOTALL)
        items = (_range(each[0], each[-1]) for each in found)
        return f"[{'^' if part['negation'] else ''}{''.join(items)}]"
    if part["character"]:
        return re.escape(part[0])
    return ".*" if part["star"] else "."


def _range(low: str, high: str) -> str:
    return f"{re.escape(low)}-{re.escape(high)}" if low < high else re.escape(low)
