"""Opening the ledger on SQLite or PostgreSQL, and its transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from jobs.errors import LabelmillError, LedgerNotReady, Unavailable
from jobs.files import make_private_file, make_private_folder
from jobs.ledger.counters import NOTED, write_counts
from jobs.sqlite import driver

#: How long a SQLite writer waits for another before it gives up. Writers hold the lock for milliseconds.
SQLITE_BUSY_SECONDS: Final = 30

#: How long connecting to PostgreSQL may take before the ledger counts as out of reach.
CONNECT_SECONDS: Final = 5

#: A transaction in which nothing happens for this long is ended by PostgreSQL: its process was stopped, or
#: its machine is gone, and the job's row that it holds locked keeps every other worker from recording.
STANDSTILL_SECONDS: Final = 10

#: What PostgreSQL calls our sessions.
APPLICATION: Final = "labelmill"

#: How long a process that others depend on waits for a lock. While a worker's main loop waits, nobody is
#: killed at the time limit, nothing is acknowledged, nothing is rung for.
BRIEFLY_SECONDS: Final = 2

#: PostgreSQL looks this often whether who waits for a lock in a statement is still there. Left alone it never
#: does: a process that was killed keeps what it has locked until it gets what it waits for.
VANISHED_SECONDS: Final = 1

#: A kept connection that was not used for so long is asked whether it is still there.
PAUSE_SECONDS: Final = 0.25

#: When a kept connection was used last.
_USED: Final = "labelmill_used"

#: The write-ahead log that a connection to SQLite has open, as its inode.
_WAL: Final = "labelmill_wal"

#: What a connection is used for, among its options.
_READONLY: Final = "labelmill_readonly"
_DURABLE: Final = "labelmill_durable"

#: Why PostgreSQL refuses what is asked rightly, by its SQLSTATE. A worker waits until that is mended, as it
#: does for a server that is away.
_REFUSALS: Final = {
    "25006": "it is a replica, or is becoming the primary",  # read_only_sql_transaction
    "42501": "its user lacks a right, see docs/how-to/deploy.md",  # insufficient_privilege
}

#: SQLite never removes a log that a connection has open. A second copy of SQLite in the same process does,
#: because its close drops the locks of the first (https://sqlite.org/howtocorrupt.html).
_WAL_REMOVED: Final = (
    "The ledger's write-ahead log was removed while it was in use, so the last write may be lost. "
    "Do not open the ledger's file with another SQLite in a process that runs Labelmill: see "
    "docs/reference/sql.md."
)

#: The migration this code is written against; `migrations/versions` must end in it, and a test says so.
REVISION: Final = "0011"


class Ledger:
    """One process's door to the ledger. Not to be shared across a fork: each child opens its own."""

    def __init__(self, url: str | URL, *, pooled: bool = True, lock_seconds: float | None = None) -> None:
        """`pooled`: connections are kept open. `lock_seconds`: who finds something locked for so long gives
        up, and gets Unavailable; left out, waits as long as it takes (on SQLite: `SQLITE_BUSY_SECONDS`).
        """
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._create_private_folder()
        self.engine = sa.create_engine(
            self._url,
            connect_args=_sqlite_arguments(lock_seconds) if self.is_sqlite else _postgresql_arguments(),
            poolclass=None if pooled else sa.NullPool,
            **({"module": driver()} if self.is_sqlite else {}),
            **({} if self.is_sqlite or not pooled else {"pool_size": 2}),
        )
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "checkout", partial(_check_wal, self._url))
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "connect", partial(_set_up_postgresql, lock_seconds))
            sa.event.listen(self.engine, "begin", _begin_postgresql)
            sa.event.listen(self.engine, "checkin", _note_use)
            sa.event.listen(self.engine, "checkout", partial(_ping_after_a_pause, self.engine.dialect))

    @classmethod
    def of_a_main_loop(cls, url: str | URL) -> Self:
        """A door for a process that others depend on. It waits for no lock for long, and keeps no connection:
        one that is open at a fork would be shared with the child.
        """
        return cls(url, pooled=False, lock_seconds=BRIEFLY_SECONDS)

    def __repr__(self) -> str:
        return f"Ledger({self.shown_url})"

    @property
    def shown_url(self) -> str:
        """Where it is, without secrets."""
        # Without its options: a key's pass phrase may be among them.
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """One write transaction: committed at the end, rolled back on any exception. What was counted in it
        (`jobs.ledger.counters`) is written last.

        Not `durable`, which SQLite makes no difference of: its COMMIT does not wait for the disk. Everybody
        sees it at once, and it outlives any process of ours; but where PostgreSQL crashes within a second, it
        may not have been. For what can then be done again, without harm.

        Raises Unavailable where the database cannot be reached, is locked for too long or chose this
        transaction as the victim of a deadlock. After Unavailable from the COMMIT itself the outcome is
        unknown: read the ledger before doing anything again.
        """
        with _translated(self._url), self.engine.connect() as connection:
            connection.execution_options(**{NOTED: {}, _DURABLE: durable})
            with connection.begin():
                yield connection
                write_counts(connection)
            if self.is_sqlite and _has_lost_wal(self._url, connection.info):
                raise Unavailable(_WAL_REMOVED)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """To look only; takes no write lock. On SQLite all its statements see one state, on PostgreSQL each
        sees what was committed before it. Raises Unavailable.
        """
        # On PostgreSQL no transaction: that takes two questions more, and what a worker asks most is one.
        alone = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        with _translated(self._url), self.engine.connect() as connection:
            yield connection.execution_options(**{_READONLY: True}, **alone)

    def check(self, *, or_newer: bool = False) -> None:
        """Raises LedgerNotReady unless the ledger's schema is the one this code is written against;
        `or_newer`, for who is running already: migrations only add.
        """
        with self.reading() as connection:
            found = revision(connection)
        if found is None:
            raise LedgerNotReady
        if found != REVISION and not (or_newer and found > REVISION):  # they are numbered: 0001, 0002, ...
            raise LedgerNotReady(
                f"The ledger is at migration {found}, this Labelmill at {REVISION}: "
                "run `labelmill db upgrade` with the newer of the two."
            )

    def close(self) -> None:
        """Gives all connections back."""
        self.engine.dispose()

    def _create_private_folder(self) -> None:
        path = Path(self._url.database or "")
        make_private_folder(path.parent)
        make_private_file(path)


def revision(connection: Connection) -> str | None:
    """The migration that the ledger is at; None where it was never migrated."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def insert_into(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT with ON CONFLICT, which both databases have and SQLAlchemy has once for each."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _sqlite_arguments(lock_seconds: float | None) -> dict[str, Any]:
    # isolation_level None: the driver must not begin transactions by itself, `_begin_sqlite` does.
    return {"timeout": lock_seconds or SQLITE_BUSY_SECONDS, "isolation_level": None}


def _postgresql_arguments() -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": APPLICATION,
        # A connection whose peer vanished must be noticed well before a lease runs out.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: an accepted job survives a power cut, not only a crash of the process.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _set_up_postgresql(lock_seconds: float | None, connection: Any, _record: Any) -> None:
    import psycopg  # only where the ledger is on PostgreSQL

    # Outside of a transaction: a SET is taken back with the one it stands in.
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = {STANDSTILL_SECONDS * 1000}")
    if lock_seconds is not None:
        connection.execute(f"SET lock_timeout = {lock_seconds * 1000:.0f}")
    with suppress(psycopg.Error):  # a server from before 14, or on a system that cannot tell
        connection.execute(f"SET client_connection_check_interval = {VANISHED_SECONDS * 1000}")
    connection.autocommit = False


def _check_wal(url: URL, _connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Replace a kept connection whose write-ahead log was removed: what it writes there would be lost."""
    if _has_lost_wal(url, record.info):
        raise InvalidatePoolError


def _has_lost_wal(url: URL, info: MutableMapping[Any, Any]) -> bool:
    try:
        found = Path(f"{url.database}-wal").stat().st_ino
    except OSError:
        found = None
    if info.get(_WAL) is None:  # on first use; a new file gets its log with the first write
        info[_WAL] = found
    return bool(found != info[_WAL])


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that starts as a reader and then writes fails at once when another writer was faster;
    # one that starts as a writer waits its turn.
    readonly = connection.get_execution_options().get(_READONLY, False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def _ping_after_a_pause(
    dialect: sa.Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any
) -> None:
    """Has another connection opened where a kept one has died since. SQLAlchemy's own question, before each
    use, takes as long as what a worker asks most.
    """
    used = record.info.get(_USED)
    if used is None or time.monotonic() - used < PAUSE_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _begin_postgresql(connection: Connection) -> None:
    if not connection.get_execution_options().get(_DURABLE, True):
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        ours = _in_our_words(error, url)
        if ours is None:
            raise
        raise ours from error


def _in_our_words(error: DBAPIError, url: URL) -> LabelmillError | None:
    """What it comes to, for who has asked the ledger; None where it is a mistake in what was asked."""
    reason = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
    if (refusal := _REFUSALS.get(getattr(error.orig, "sqlstate", ""))) is not None:
        return Unavailable(f"The ledger takes no writes: {reason}: {refusal}")
    if "no such table" in reason or type(error.orig).__name__ == "UndefinedTable":
        return LedgerNotReady()
    is_sqlite = url.get_backend_name() == "sqlite"
    # pysqlite3 calls a parameter of a wrong type an InterfaceError.
    if isinstance(error, OperationalError) or (isinstance(error, InterfaceError) and not is_sqlite):
        return Unavailable(f"The ledger cannot be reached: {reason}")
    # No subclass: that is what SQLite says of a file that is no database, or one with broken pages.
    if is_sqlite and type(error.orig) is driver().DatabaseError:
        return Unavailable(
            f"The ledger cannot be reached: {error.orig}: {url.database}.\nPut it back from its backup "
            "(docs/how-to/back-up.md), or name another one in LABELMILL_LEDGER_URL."
        )
    return Unavailable("The connection to the ledger broke.") if error.connection_invalidated else None
