"""Choose the SQLite that opens an embedded ledger: Python's own, or the package `pysqlite3`.

Before version 3.51.3, SQLite can damage a WAL database if two connections checkpoint it while a third writes
(https://sqlite.org/wal.html#walresetbug). Most Pythons are built with such a version; the wheels of
`pysqlite3` bring a newer one.

Everything that opens a ledger's file must use `driver()`. Two copies of SQLite in one process do not see each
other's locks: if one closes the file, the other's locks on it are lost.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from types import ModuleType
from typing import Final

_REPAIRED: Final = (3, 51, 3)
#: Older release lines that got the fix too.
_REPAIRED_LINES: Final = ((3, 44, 6), (3, 50, 7))


def is_repaired(version: tuple[int, ...]) -> bool:
    """Return whether this version of SQLite is free of the WAL-reset bug."""
    return version >= _REPAIRED or any(
        line <= version and line[:2] == version[:2] for line in _REPAIRED_LINES
    )


@cache
def driver() -> ModuleType:
    """Return the DB-API module that opens SQLite ledgers in this process.

    It is Python's own if its SQLite is repaired, otherwise `pysqlite3`. If that is not installed, as on
    platforms without a wheel, it is Python's own anyway, and `labelmill doctor` warns.
    """
    if is_repaired(sqlite3.sqlite_version_info):
        return sqlite3
    try:
        import pysqlite3
    except ImportError:
        return sqlite3
    # The package reports the SQLite that it uses. After `import tensorflow` that is the one in TensorFlow's
    # libraries, which has the bug, too.
    if not is_repaired(pysqlite3.sqlite_version_info):
        return sqlite3
    # Register an adapter for None: the search for one, for each None, takes longer than the row's INSERT.
    pysqlite3.register_adapter(type(None), lambda none: none)
    module: ModuleType = pysqlite3
    return module
