"""Open the ledger on SQLite or PostgreSQL, and run its transactions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from jobs.errors import ASK_THE_DOCTOR, LabelmillError, LedgerFull, LedgerNotReady, Unavailable
from jobs.files import make_private_file, make_private_folder
from jobs.ledger.counters import PENDING_COUNTS, write_counts
from jobs.ledger.sqlite import driver
from jobs.network.certificates import ledger_certificate_end

#: How long a SQLite writer waits for another before it gives up. Writers hold the lock for milliseconds.
SQLITE_BUSY_SECONDS: Final = 30

#: How long connecting to PostgreSQL may take before the ledger counts as unavailable.
CONNECT_SECONDS: Final = 5

#: PostgreSQL ends a transaction that is idle for this long: its process was stopped or its machine is gone,
#: and the job's row that it holds locked keeps every other worker from recording.
STALLED_SESSION_SECONDS: Final = 10

#: The name of our sessions in PostgreSQL.
APPLICATION: Final = "labelmill"

#: How long the main process of a worker waits for a lock. While it waits, it enforces no time limit,
#: acknowledges no message and publishes nothing.
LOCK_TIMEOUT_SECONDS: Final = 2

#: How often PostgreSQL checks that a client waiting for a lock is still connected. By default it never does:
#: a killed process would keep its locks until it gets the one it waits for.
CLIENT_CHECK_SECONDS: Final = 1

#: A pooled connection that was idle for this long is pinged before it is used.
IDLE_SECONDS: Final = 0.25

#: Maximum open connections of a process: the HTTP API has one for each of its threads. Other processes need
#: only one or two.
POOL_SIZE: Final = 26

#: How many values one statement compares a column with. Both databases limit its parameters.
BATCH_VALUES: Final = 500

#: The key under which a pooled connection keeps the time of its last use.
_USED: Final = "labelmill_used"

#: The key under which a SQLite connection keeps the inode of its write-ahead log.
_WAL: Final = "labelmill_wal"

#: The execution options that say how a connection is used.
_READONLY: Final = "labelmill_readonly"
_DURABLE: Final = "labelmill_durable"

#: Why PostgreSQL refuses a correct statement, by SQLSTATE. A worker waits until that is fixed, as it does for
#: a server that cannot be reached.
_REFUSALS: Final = {
    "25006": "it is a replica, or is becoming the primary",  # read_only_sql_transaction
    "42501": "its user lacks a right, see docs/how-to/deploy.md",  # insufficient_privilege
}

#: PostgreSQL's SQLSTATE for a full disk. A refused connection has none, so its message is searched for these
#: words, as SQLite's is.
_DISK_FULL_STATE: Final = "53100"
_DISK_FULL_WORDS: Final = ("disk is full", "No space left on device")

#: The free space that SQLite needs to open a ledger that no process has open, for the index of its log.
_SQLITE_INDEX_BYTES: Final = 32_768

#: SQLite never removes a log that a connection has open. A second copy of SQLite in the same process does,
#: because its close drops the locks of the first (https://sqlite.org/howtocorrupt.html).
_WAL_REMOVED: Final = (
    "The ledger's write-ahead log was removed while it was in use, so the last write may be lost. "
    "Do not open the ledger's file with another SQLite in a process that runs Labelmill: see "
    "docs/reference/sql.md."
)

#: The migration this code is written for. A test checks that `migrations/versions` ends in it.
REVISION: Final = "0001"

#: The REVISION of the oldest code that can use a ledger of this REVISION. Migrating writes it to the ledger,
#: so that an older version knows whether it can use the ledger of a newer one.
COMPATIBLE_SINCE: Final = "0001"

_Value = TypeVar("_Value")


class Ledger:
    """One process's access to the ledger. Do not share it across a fork: each child opens its own."""

    def __init__(self, url: str | URL, *, pooled: bool = True, lock_seconds: float | None = None) -> None:
        """Set up the engine, which connects on first use. On SQLite, also create the file and its folder.

        With `pooled`, connections are kept open. `lock_seconds` is how long to wait for a lock before
        Unavailable is raised; by default as long as it takes, on SQLite `SQLITE_BUSY_SECONDS`.
        """
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": POOL_SIZE} if pooled else {"poolclass": sa.NullPool}
        if self.is_sqlite:
            path = Path(self._url.database or "")
            make_private_folder(path.parent)
            make_private_file(path)
            # isolation_level None: `_begin_sqlite` begins the transactions, so the driver must not.
            arguments = {"timeout": lock_seconds or SQLITE_BUSY_SECONDS, "isolation_level": None}
            options |= {"module": driver(), "connect_args": arguments}
        else:
            options |= {"connect_args": _postgresql_arguments()}
        self.engine = sa.create_engine(self._url, **options)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "checkout", partial(_check_wal, self._url))
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "connect", partial(_set_up_postgresql, lock_seconds))
            sa.event.listen(self.engine, "begin", _begin_postgresql)
            sa.event.listen(self.engine, "checkin", _note_use)
            sa.event.listen(self.engine, "checkout", partial(_ping_if_idle, self.engine.dialect))

    @classmethod
    def for_main_process(cls, url: str | URL) -> Self:
        """Return the ledger for a worker's main process.

        It waits for a lock for at most `LOCK_TIMEOUT_SECONDS`, and keeps no connection: one that is open at a
        fork would be shared with the child.
        """
        return cls(url, pooled=False, lock_seconds=LOCK_TIMEOUT_SECONDS)

    @property
    def shown_url(self) -> str:
        """Return the ledger's URL without secrets."""
        # The options may hold a key's passphrase.
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """Run a write transaction: commit at the end, roll back on any exception.

        What was counted in it (`jobs.ledger.counters`) is written last. With `durable=False`, PostgreSQL's
        COMMIT does not wait for the disk: the changes are visible at once and survive a crash of any of our
        processes, but may be lost if PostgreSQL crashes within a second. Use it for work that can be repeated
        without harm. SQLite ignores it.

        Raises Unavailable if the database cannot be reached, is locked for too long, or chose this
        transaction as the victim of a deadlock, and LedgerFull if its disk is full. If the COMMIT itself
        raises Unavailable, the outcome is unknown: read the ledger before any retry.
        """
        with _translating_errors(self._url), self.engine.connect() as connection:
            connection.execution_options(**{PENDING_COUNTS: {}, _DURABLE: durable})
            with connection.begin():
                yield connection
                write_counts(connection)
            if self.is_sqlite and _has_lost_wal(self._url, connection.info):
                raise Unavailable(_WAL_REMOVED)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a connection that only reads and takes no write lock. Raises Unavailable.

        On SQLite all statements see one state; on PostgreSQL each sees what was committed before it.
        """
        # No transaction on PostgreSQL: BEGIN and the end cost two more round trips, and a worker's most
        # frequent read is one statement.
        isolation = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        with _translating_errors(self._url), self.engine.connect() as connection:
            yield connection.execution_options(**{_READONLY: True}, **isolation)

    def check(self) -> None:
        """Check that this code can use the ledger's schema. Raises LedgerNotReady.

        It must be the schema this code is written for, or a newer one that declares this code compatible.
        """
        with self.reading() as connection:
            found = revision(connection)
            if found is None:
                raise LedgerNotReady
            if found == REVISION or is_newer_and_compatible(connection):
                return
        remedy = (
            "run `labelmill db upgrade`."
            if found < REVISION  # numbered 0001, 0002, ...
            else "use the newer version, or restore a backup of this one's ledger (docs/how-to/upgrade.md)."
        )
        raise LedgerNotReady(f"The ledger is at migration {found}, this Labelmill at {REVISION}: {remedy}")

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def revision(connection: Connection) -> str | None:
    """Return the ledger's migration, or None if it was never migrated."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def is_newer_and_compatible(connection: Connection) -> bool:
    """Return whether a newer version has migrated the ledger, and this code can still use it."""
    query = sa.text("SELECT version_num > :own AND compatible_since <= :own FROM alembic_version")
    return bool(connection.scalar(query, {"own": REVISION}))


def batched(values: Sequence[_Value]) -> Iterator[Sequence[_Value]]:
    """Yield the values in batches that fit into one statement."""
    for start in range(0, len(values), BATCH_VALUES):
        yield values[start : start + BATCH_VALUES]


def insert_into(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that supports ON CONFLICT, which SQLAlchemy has once for each database."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


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
    import psycopg  # only the extra `postgres` brings it

    # Outside a transaction: a rollback would undo the SET.
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = {STALLED_SESSION_SECONDS * 1000}")
    if lock_seconds is not None:
        connection.execute(f"SET lock_timeout = {lock_seconds * 1000:.0f}")
    with suppress(psycopg.Error):  # before PostgreSQL 14, or not supported by the server's system
        connection.execute(f"SET client_connection_check_interval = {CLIENT_CHECK_SECONDS * 1000}")
    connection.autocommit = False


def _check_wal(url: URL, _connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Replace a pooled connection whose write-ahead log was removed: what it writes would be lost."""
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
    # A transaction that begins by reading and then writes fails at once if another writer was faster; one
    # that begins with the write lock waits its turn.
    readonly = connection.get_execution_options().get(_READONLY, False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def _ping_if_idle(dialect: sa.Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Ping a connection that was idle, and replace it if it is dead.

    SQLAlchemy's own `pool_pre_ping` pings before every use, which takes as long as a worker's most frequent
    query.
    """
    used = record.info.get(_USED)
    if used is None or time.monotonic() - used < IDLE_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _begin_postgresql(connection: Connection) -> None:
    if not connection.get_execution_options().get(_DURABLE, True):
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")


@contextmanager
def _translating_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        translated = _translated_error(error, url)
        if translated is None:
            raise
        raise translated from error
    except PoolTimeoutError as error:
        raise Unavailable(
            "The ledger cannot be reached: all connections to it are in use. Try again."
        ) from error


def as_unavailable(error: BaseException, *, is_full: bool = False) -> Unavailable:
    """Return the error to raise if a driver's error means that the database cannot work now."""
    reason = str(error).strip().splitlines()[0]
    is_full |= getattr(error, "sqlstate", None) == _DISK_FULL_STATE
    if is_full or any(words in reason for words in _DISK_FULL_WORDS):
        return LedgerFull(
            f"The ledger's disk is full ({reason}): free some space. Workers then go on by themselves."
        )
    return Unavailable(f"The ledger cannot be reached: {reason}", note=ASK_THE_DOCTOR)


def _translated_error(error: DBAPIError, url: URL) -> LabelmillError | None:
    """Return the error to raise in place of this one, or None if the statement itself is wrong."""
    reason = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
    if (refusal := _REFUSALS.get(getattr(error.orig, "sqlstate", ""))) is not None:
        return Unavailable(f"The ledger refuses writes: {reason}: {refusal}")
    if "no such table" in reason or type(error.orig).__name__ == "UndefinedTable":
        return LedgerNotReady()
    is_sqlite = url.get_backend_name() == "sqlite"
    # pysqlite3 raises InterfaceError for a parameter of a wrong type.
    if isinstance(error, OperationalError) or (isinstance(error, InterfaceError) and not is_sqlite):
        # SQLite says no more than this if it has no room to open the file.
        is_full = reason == "disk I/O error" and (
            shutil.disk_usage(Path(str(url.database)).parent).free < _SQLITE_INDEX_BYTES
        )
        if "certificate verify failed" in reason:  # libpq does not say why
            end = ledger_certificate_end(url)
            if end is not None and end < datetime.now(UTC):
                return Unavailable(
                    f"The ledger cannot be reached: {reason}: it has expired on {end:%Y-%m-%d}. Renew it."
                )
        return as_unavailable(error.orig or error, is_full=is_full)
    # Exactly this class, not a subclass: the file is not a database, or has damaged pages.
    if is_sqlite and type(error.orig) is driver().DatabaseError:
        return Unavailable(
            f"The ledger cannot be reached: {error.orig}: {url.database}.\nRestore the file from its "
            "backup (docs/how-to/back-up.md), or set LABELMILL_LEDGER_URL to another one."
        )
    return (
        Unavailable("The connection to the ledger broke: try again.")
        if error.connection_invalidated
        else None
    )
