"""The ledger: whether it answers, is migrated, takes writes, and what it stands on."""

from __future__ import annotations

import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError

from jobs.errors import LabelmillError, LedgerNotReady, Unavailable
from jobs.ledger import Ledger, diagnosis
from jobs.ledger.database import REVISION, revision
from jobs.settings import Settings
from jobs.sqlite import is_repaired
from labelmill.doctor.configuration import is_elsewhere
from labelmill.doctor.disk import check_space, network_file_system
from labelmill.doctor.findings import Area, Finding
from labelmill.doctor.home import SEE_HOME, can_be_used
from labelmill.looking import NoLedgerYet, ledger_as_it_is, words_of

_area = Area("ledger")

#: The oldest PostgreSQL that still gets repairs: 14 had its last in November 2026.
_POSTGRESQL_REPAIRED: Final = (15,)

#: What a role needs that is not the tables' owner.
_GRANT: Final = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ROLE"

#: Beat's schedule and TLS go by the hosts' clocks. Leases do not.
_CLOCK_SECONDS: Final = 5.0

#: A transaction that is open for so long keeps PostgreSQL from clearing away what was changed since.
_OLD_TRANSACTION_SECONDS: Final = 600.0

#: Of PostgreSQL's connections: from here on the next worker may find none.
_FULL_SHARE: Final = 0.9


#: What helps where the ledger is the trouble, and another area's checks need it.
SEE_LEDGER: Final = "what is said of the ledger"


class NotLookedAt(LabelmillError):
    """The ledger cannot be used, so what is in it was not looked at."""


@contextmanager
def look_into_ledger(settings: Settings) -> Iterator[Connection]:
    """For what is in the ledger, read in one transaction.

    Raises NoLedgerYet where there is none, NotLookedAt where it is not to be had or not this Labelmill's.
    """
    try:
        with ledger_as_it_is(settings) as ledger:
            ledger.check()
            with ledger.reading() as connection:
                yield connection
    except (LedgerNotReady, Unavailable, DBAPIError, OSError) as error:
        raise NotLookedAt from error


def check_ledger(settings: Settings) -> Iterator[Finding]:
    """The database and what it stands on; the jobs in it are another area's."""
    try:
        with ledger_as_it_is(settings) as ledger:
            yield from _ledger(ledger, settings)
    except NoLedgerYet:
        yield _not_there(settings)
    except Unavailable as error:
        yield _away(settings, words_of(error, settings).removeprefix("The ledger cannot be reached: "))
    except (DBAPIError, OSError) as error:
        reason = words_of(error.orig if isinstance(error, DBAPIError) and error.orig else error, settings)
        yield _away(settings, reason)


def _not_there(settings: Settings) -> Finding:
    if settings.embedded_ledger:
        if not can_be_used(settings.home):
            return _area.problem("there is none, and none can be made in the state folder", fix=SEE_HOME)
        return _area.ok("there is none yet; the first command makes it")
    return _area.problem("LABELMILL_LEDGER_URL names a file that is not there", fix="labelmill db upgrade")


def _away(settings: Settings, reason: str) -> Finding:
    what = f"the ledger cannot be used: {reason}"
    lowered = reason.lower()
    if make_url(settings.ledger).get_backend_name() == "sqlite":
        if "not a database" in lowered or "malformed" in lowered:
            return _area.problem(what, fix="put the file back from its backup: docs/operations.md, Backup")
        if "locked" in lowered:
            return _area.problem(what, fix=f"end who holds it: fuser {_quoted(_file(settings))}")
        return _area.problem(
            what, fix=f"ls -ld {_quoted(_file(settings))}: it has to be a file that you may write"
        )
    if "permission denied" in lowered:
        fix = f"on the server, as the owner of the tables: {_GRANT}"
    elif "password" in lowered or "authentication" in lowered or "role" in lowered:
        fix = "LABELMILL_LEDGER_URL=postgresql://USER:PASSWORD@HOST/DATABASE as the server knows them"
    elif "does not exist" in lowered:
        fix = "createdb it, or name another one in LABELMILL_LEDGER_URL; then labelmill db upgrade"
    else:
        fix = "start PostgreSQL where LABELMILL_LEDGER_URL says, or say where it is: `pg_isready -d URL`"
    return _area.problem(what, fix=fix)


def _ledger(ledger: Ledger, settings: Settings) -> Iterator[Finding]:
    began = time.perf_counter()
    with ledger.reading() as connection:
        connection.execute(sa.text("SELECT 1"))
        yield _area.ok(f"answers within {(time.perf_counter() - began) * 1000:.1f} ms")
        yield _migrated(revision(connection), settings)
    yield _takes_writes(ledger, settings)
    with ledger.reading() as connection:
        if ledger.is_sqlite:
            yield _sqlite_version(diagnosis.version(connection))
            yield _journal(diagnosis.journal_mode(connection))
            yield from _file_and_disk(_file(settings))
        else:
            yield _postgresql_version(diagnosis.version(connection))
            yield _clock(diagnosis.now(connection))
            yield _protection(settings, encrypted=diagnosis.is_encrypted(connection))
            yield _connections(*diagnosis.connections(connection))
            yield _old_transactions(diagnosis.old_transactions(connection, seconds=_OLD_TRANSACTION_SECONDS))


def _migrated(found: str | None, settings: Settings) -> Finding:
    if found == REVISION:
        return _area.ok(f"is at migration {found}")
    what = f"is at migration {found}, this Labelmill at {REVISION}" if found else "was never migrated"
    if found and found > REVISION:
        return _area.problem(f"{what}: it is newer", fix="upgrade Labelmill here, as elsewhere")
    if settings.embedded_ledger:
        return _area.warning(f"{what}; the next command migrates it", fix="labelmill db upgrade")
    return _area.problem(what, fix="labelmill db upgrade")


def _takes_writes(ledger: Ledger, settings: Settings) -> Finding:
    # On SQLite a transaction that begins takes the write lock; on PostgreSQL the server says.
    try:
        with ledger.transaction() as connection:
            read_only = not ledger.is_sqlite and diagnosis.is_read_only(connection)
            forbidden = [] if ledger.is_sqlite else diagnosis.tables_without_rights(connection)
    except Unavailable as error:
        return _away(settings, words_of(error, settings).removeprefix("The ledger cannot be reached: "))
    if read_only:
        return _area.problem("takes no writes: it is read-only", fix="LABELMILL_LEDGER_URL=the primary's URL")
    if forbidden:
        return _area.problem(
            f"its role may not read and write all of {', '.join(forbidden)}",
            fix=f"on the server, as the owner of the tables: {_GRANT}",
        )
    return _area.ok("takes writes")


def _sqlite_version(found: tuple[int, ...]) -> Finding:
    name = f"SQLite {'.'.join(map(str, found))}"
    if is_repaired(found):
        return _area.ok(name)
    return _area.warning(
        f"{name} can, very rarely, damage a database in WAL mode that several processes write",
        fix="pip install pysqlite3, which brings a newer one (for Linux on x86-64 and macOS on arm64); or a "
        "Python built with SQLite 3.51.3 or newer (3.50.7 and 3.44.6 are sound too), or PostgreSQL as "
        "LABELMILL_LEDGER_URL; until then back the ledger up",
    )


def _journal(mode: str) -> Finding:
    if mode == "wal":
        return _area.ok("journal mode is WAL")
    return _area.problem(
        f"journal mode is {mode}: whoever looks and whoever writes stand in each other's way",
        fix="a ledger on a local disk: LABELMILL_HOME or LABELMILL_LEDGER_URL",
    )


def _file_and_disk(path: Path) -> Iterator[Finding]:
    kind = network_file_system(path)
    if kind:
        yield _area.warning(
            f"is on a network file system ({kind}), where SQLite's locks may not hold",
            fix="a local disk, LABELMILL_HOME or LABELMILL_LEDGER_URL; for several machines PostgreSQL",
        )
    else:
        yield _area.ok("is on a local disk")
    open_files = [
        file
        for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm"))
        if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077
    ]
    if open_files:
        yield _area.warning(
            f"others may look into {', '.join(file.name for file in open_files)}",
            fix=f"chmod 600 {_quoted(path)}*",
        )
    else:
        yield _area.ok("nobody else may look into its files")
    yield check_space(_area, path.parent)


def _postgresql_version(found: tuple[int, ...]) -> Finding:
    name = f"PostgreSQL {'.'.join(map(str, found))}"
    if found >= _POSTGRESQL_REPAIRED:
        return _area.ok(name)
    oldest = _POSTGRESQL_REPAIRED[0]
    return _area.warning(
        f"{name} gets no repairs any more", fix=f"upgrade the server to PostgreSQL {oldest} or newer"
    )


def _clock(theirs: datetime) -> Finding:
    apart = (theirs - datetime.now(UTC)).total_seconds()
    what = f"its clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} this machine's"
    if abs(apart) < _CLOCK_SECONDS:
        return _area.ok(f"{what}; leases go by its own")
    return _area.warning(
        f"{what}; leases go by its own, schedules and certificates by this one's",
        fix="set both by NTP: timedatectl set-ntp true",
    )


def _protection(settings: Settings, *, encrypted: bool) -> Finding:
    if encrypted:
        return _area.ok("is reached by TLS")
    if not is_elsewhere(make_url(settings.ledger).host):
        return _area.ok("is on this machine")
    return _area.warning(
        "is reached over a network without TLS",
        fix="LABELMILL_LEDGER_URL=postgresql://...?sslmode=verify-full",
    )


def _connections(there_are: int, limit: int) -> Finding:
    what = f"{there_are} of {limit} connections are taken"
    if there_are < _FULL_SHARE * limit:
        return _area.ok(what)
    return _area.warning(
        f"{what}: the next worker may get none",
        fix=f"on the server: ALTER SYSTEM SET max_connections = {2 * limit}, then restart it",
    )


def _old_transactions(found: list[tuple[int, float]]) -> Finding:
    if not found:
        return _area.ok("no transaction has been open for long")
    pid, seconds = found[0]
    return _area.warning(
        f"{len(found)} transactions are open for long, process {pid}'s for {seconds / 60:.0f} minutes: "
        "they keep the server from clearing away old rows, and migrations from their locks",
        fix=f"on the server: SELECT pg_terminate_backend({pid})",
    )


def _file(settings: Settings) -> Path:
    return Path(make_url(settings.ledger).database or "")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
