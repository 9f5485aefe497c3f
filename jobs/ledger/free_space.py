"""Room: prove that the database's disk has free space, by writing to it.

A small write proves nothing: it may fit into pages that the database already has.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import LedgerFull

#: More than the largest claim needs: 16,384 rows with names of 40 bytes take 2.5 MB, including the index.
ROOM_BYTES: Final = 4 * 2**20

_ROW_BYTES: Final = 1_000

#: A temporary file in the database's own tablespace. It needs no rights, leaves no trace in any table, and
#: endangers no other session: its rows are not in the write-ahead log.
_WRITE_TEMPORARY: Final = (
    sa.text("SET LOCAL temp_tablespaces = ''"),
    sa.text("SET LOCAL work_mem = '64kB'"),
    sa.text(
        f"WITH filling AS MATERIALIZED (SELECT repeat('x', {_ROW_BYTES}) AS x "  # noqa: S608 -- constants
        f"FROM generate_series(1, {ROOM_BYTES // _ROW_BYTES})) SELECT count(x) FROM filling"
    ),
)


def prove_room(connection: Connection) -> None:
    """Write `ROOM_BYTES` to the database's disk, and remove them. Raises LedgerFull, Unavailable."""
    if connection.dialect.name == "sqlite":
        _write_beside(Path(connection.engine.url.database or ""))
    else:
        for statement in _WRITE_TEMPORARY:
            connection.execute(statement)


def _write_beside(file: Path) -> None:
    # Not in a transaction: SQLite writes nothing to the disk if it is rolled back. Any other error is not
    # about space, and SQLite's next write reports it.
    try:
        with tempfile.TemporaryFile(dir=file.parent) as temporary:
            temporary.write(os.urandom(ROOM_BYTES))  # a disk that compresses cannot make this smaller
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LedgerFull from error
