"""Test how the ledger opens its database, and how it handles locks, lost connections and damaged files."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger, database
from jobs.ledger.sqlite import driver
from jobs.schema import db_now, locks
from tests.postgresql import PostgresqlServer
from tests.programs import run_python
from worker.backoff import retry

#: Another process that writes a row; SQLite takes it for the last one to close the file.
WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("INSERT INTO locks VALUES ('theirs', 'them', '2026-01-01 00:00:00.000')")
connection.commit()
connection.close()
"""

#: Another process that prints the names of the locks.
READER = """
import sqlite3, sys
for (name,) in sqlite3.connect(sys.argv[1]).execute("SELECT name FROM locks"):
    print(name)
"""


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_door_in_a_process_leaves_the_first_its_locks(ledger: Ledger, ledger_url: str) -> None:
    # given a ledger with an idle open connection
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="ours", holder="us", until=db_now()))

    # when the same process opens and closes the file again, and another process writes and exits
    with contextlib.closing(Ledger(ledger_url)) as second, second.reading() as connection:
        connection.execute(sa.select(locks)).all()
    path = ledger_url.removeprefix("sqlite:///")
    run_python(WRITER, path)

    # then the ledger sees that row, and others see what it writes
    with ledger.transaction() as connection:
        assert set(connection.scalars(sa.select(locks.c.name))) == {"ours", "theirs"}
        connection.execute(locks.insert().values(name="ours too", holder="us", until=db_now()))
    with contextlib.closing(driver().connect(path)) as other:
        assert other.execute("SELECT count(*) FROM locks").fetchone() == (3,)


two_sqlites = pytest.mark.skipif(driver() is sqlite3, reason="Python's own SQLite opens the ledger as well")


@two_sqlites
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_sqlite_in_a_process_takes_nothing_from_the_ledger(ledger: Ledger, ledger_url: str) -> None:
    # given a ledger with an open connection
    path = ledger_url.removeprefix("sqlite:///")
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="first", holder="us", until=db_now()))

    # when the same process reads the file through Python's own SQLite, which removes the WAL on closing
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM locks").fetchone() == (1,)
    assert not Path(f"{path}-wal").exists()

    # then other processes see what the ledger writes afterwards
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="second", holder="us", until=db_now()))
    assert names_of_locks(path) == ["first", "second"]


@two_sqlites
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_sqlite_during_a_transaction_is_noticed(ledger: Ledger, ledger_url: str) -> None:
    # given an open transaction
    path = ledger_url.removeprefix("sqlite:///")
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(Unavailable, match=r"docs/reference/sql\.md"))
        connection = stack.enter_context(ledger.transaction())
        connection.execute(locks.insert().values(name="unsure", holder="us", until=db_now()))

        # when the same process opens and closes the file through Python's own SQLite
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("SELECT count(*) FROM locks").fetchone()

    # then its outcome is unknown, as after any Unavailable from a COMMIT, and the next write is kept
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="kept", holder="us", until=db_now()))
    assert "kept" in names_of_locks(path)


def names_of_locks(path: str) -> list[str]:
    """Return the names that another process reads."""
    return run_python(READER, path).stdout.split()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_ledger_whose_connections_are_all_in_use_is_unavailable(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.engine.pool, "_timeout", 0.1)

    def use_all() -> None:
        with contextlib.ExitStack() as opened:
            for _ in range(50):
                opened.enter_context(ledger.reading())

    with pytest.raises(Unavailable, match="in use"):
        use_all()


def test_a_value_of_a_wrong_type_is_not_an_unavailable_ledger(ledger: Ledger) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="parameter"), ledger.reading() as connection:
        connection.exec_driver_sql("SELECT ?", (object(),))


def test_a_main_loop_waits_for_no_lock_for_long(
    ledger: Ledger, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a locked row, which on SQLite locks the whole file
    monkeypatch.setattr("jobs.ledger.database.LOCK_TIMEOUT_SECONDS", 0.2)
    with ledger.transaction() as connection:
        connection.execute(locks.insert().values(name="theirs", holder="them", until=db_now()))
    with contextlib.closing(Ledger.for_main_process(ledger_url)) as loop, ledger.transaction() as connection:
        connection.execute(locks.update().values(holder="them, still"))

        # when a main loop needs it as well, then it gets an error soon
        with pytest.raises(Unavailable, match="lock"), loop.transaction() as waiting:
            waiting.execute(locks.update().values(holder="us"))

    # and gets the row once it is unlocked
    with contextlib.closing(Ledger.for_main_process(ledger_url)) as loop, loop.transaction() as connection:
        connection.execute(locks.update().values(holder="us"))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_vanishes_while_it_waits_keeps_nothing_locked(ledger: Ledger, ledger_url: str) -> None:
    # given a locked row, and a process that has locked another row and waits for the first
    with ledger.transaction() as connection:
        for name in ("first", "second"):
            connection.execute(locks.insert().values(name=name, holder="nobody", until=db_now()))
    vanishing = Ledger(ledger_url).engine.raw_connection()
    with ledger.transaction() as connection:
        connection.execute(locks.update().where(locks.c.name == "first").values(holder="us"))
        driver = vanishing.driver_connection
        assert driver is not None
        driver.execute("UPDATE locks SET holder = 'it' WHERE name = 'second'")
        driver.pgconn.send_query(b"UPDATE locks SET holder = 'it' WHERE name = 'first'")
        driver.pgconn.flush()

        # when that process dies without closing its session properly
        vanishing.invalidate()

        # then its row is unlocked while the first is still locked
        with contextlib.closing(Ledger(ledger_url, lock_seconds=15)) as other, other.transaction() as theirs:
            theirs.execute(locks.update().where(locks.c.name == "second").values(holder="them"))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_of_two_who_wait_for_each_other_one_is_told_and_has_its_turn_when_it_tries_again(
    ledger: Ledger, ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given two transactions that write the same two rows in opposite orders
    with ledger.transaction() as connection:
        for name in ("first", "second"):
            connection.execute(locks.insert().values(name=name, holder="nobody", until=db_now()))
    met = threading.Barrier(2, timeout=30)

    def write(who: str, *names: str) -> None:
        tries = 0

        def once() -> None:
            nonlocal tries
            tries += 1
            with own.transaction() as connection:
                for name in names:
                    connection.execute(locks.update().where(locks.c.name == name).values(holder=who))
                    if tries == 1 and name == names[0]:
                        met.wait()

        with contextlib.closing(Ledger(ledger_url, lock_seconds=30)) as own:
            # The pause lets the other one finish: an immediate retry could deadlock again.
            retry(once, [1.0, 2.0, 4.0, 8.0])

    # when each has locked one row and waits for the other
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(write, "anna", "first", "second"),
            pool.submit(write, "bert", "second", "first"),
        ]
        for one in both:
            one.result(60)

    # then one got Unavailable, and after a retry each has written both rows
    retries = [message for message in caplog.messages if message.startswith("retrying in")]
    assert retries
    assert all("deadlock detected" in message for message in retries)
    with ledger.reading() as connection:
        holders = set(connection.scalars(sa.select(locks.c.holder)))
    assert holders in ({"anna"}, {"bert"})


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", ["no database", "cut short"])
def test_a_file_that_is_no_database_is_told_with_its_path_and_what_helps(
    ledger_url: str, damage: str
) -> None:
    # given a ledger file that was overwritten or truncated
    path = Path(ledger_url.removeprefix("sqlite:///"))
    for beside in path.parent.glob(f"{path.name}-*"):
        beside.unlink()
    data = path.read_bytes()
    path.write_bytes(b"not a database" * 1000 if damage == "no database" else data[: len(data) // 2])

    # when it is opened, then the error names the file and the remedy
    def look(ledger: Ledger) -> None:
        ledger.check()
        with ledger.reading() as connection:
            connection.execute(sa.select(locks)).all()

    with contextlib.closing(Ledger(ledger_url)) as ledger, pytest.raises(Unavailable) as told:
        look(ledger)
    assert str(path) in str(told.value)
    assert "Restore the file from its backup" in str(told.value)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("made_so_by", "why"),
    [
        ("SET TRANSACTION READ ONLY", "cannot execute INSERT in a read-only transaction: it is a replica"),
        ("SET LOCAL ROLE pg_monitor", "permission denied for table locks: its user lacks a right"),
    ],
)
def test_a_ledger_that_takes_no_writes_is_out_of_reach_and_no_mistake_of_ours(
    ledger: Ledger, made_so_by: str, why: str
) -> None:
    def write() -> None:
        with ledger.transaction() as connection:
            connection.exec_driver_sql(made_so_by)
            connection.execute(locks.insert().values(name="ours", holder="us", until=db_now()))

    with pytest.raises(Unavailable, match=why):
        write()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_what_is_asked_often_is_prepared_once(ledger: Ledger) -> None:
    """Without prepared statements, each query costs half a millisecond more."""
    # given a query that is sent again and again
    for _ in range(20):
        with ledger.reading() as connection:
            connection.execute(sa.select(locks).where(locks.c.name == "nobody's")).all()

    # then the server has prepared it
    with ledger.reading() as connection:
        prepared = connection.scalars(sa.text("SELECT statement FROM pg_prepared_statements")).all()
    assert any("FROM locks" in statement for statement in prepared)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_kept_connection_that_died_in_a_pause_is_replaced_and_nobody_hears_of_it(
    ledger: Ledger, postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        with ledger.reading() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        postgresql_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")

    def look() -> int | None:
        with ledger.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(locks))

    # given a connection that died while it was idle, then it is replaced
    die()
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.0)
    assert look() == 0

    # and one that died just after it was used causes one error
    die()
    monkeypatch.setattr(database, "IDLE_SECONDS", 60.0)
    with pytest.raises(Unavailable):
        look()
    assert look() == 0


@pytest.mark.fast
def test_only_a_transaction_that_may_be_lost_does_not_wait_for_the_disk(ledger: Ledger) -> None:
    """An accepted job and recorded results must survive a crash of PostgreSQL."""
    if ledger.is_sqlite:
        asked, always, sometimes = "PRAGMA synchronous", 2, 2  # FULL
    else:
        asked, always, sometimes = "SHOW synchronous_commit", "on", "off"
    for durable, expected in ((True, always), (False, sometimes), (True, always)):
        # the same connection each time
        with ledger.transaction(durable=durable) as connection:
            assert connection.exec_driver_sql(asked).scalar() == expected
            connection.execute(locks.insert().values(name=new_id(), holder="us", until=db_now()))
    with ledger.reading() as connection:
        assert connection.exec_driver_sql(asked).scalar() == always
        assert connection.scalar(sa.select(sa.func.count()).select_from(locks)) == 3
