"""Opening the ledger: what one door in a process must not do to another one."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.schema import db_now, locks

#: Another process that writes a row, and is the last to close the file for all that it can see.
WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("INSERT INTO locks VALUES ('theirs', 'them', '2026-01-01 00:00:00.000')")
connection.commit()
connection.close()
"""


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_door_in_a_process_leaves_the_first_its_locks(ledger: Ledger, ledger_url: str) -> None:
    # given a ledger with an open connection, as it keeps one between two transactions
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="ours", holder="us", until=db_now()))

    # when the same process opens and closes it a second time, and another process writes and is done
    with contextlib.closing(Ledger(ledger_url)) as second, second.reading() as connection:
        connection.execute(sa.select(locks)).all()
    path = ledger_url.removeprefix("sqlite:///")
    subprocess.run([sys.executable, "-c", WRITER, path], check=True)

    # then the first sees what was written, and what it writes can be seen
    with ledger.transaction() as connection:
        assert set(connection.scalars(sa.select(locks.c.name))) == {"ours", "theirs"}
        connection.execute(locks.insert().values(name="ours too", holder="us", until=db_now()))
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM locks").fetchone() == (3,)
