"""The ledger: whether it answers, is migrated, and can be written."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import wraps
from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from jobs.errors import LedgerFull, LedgerNotReady, Unavailable
from jobs.ledger import Ledger, metrics
from jobs.ledger.clock import CLOCK_SECONDS, clock_error
from jobs.ledger.database import REVISION, is_newer_and_compatible, revision
from jobs.ledger.free_space import prove_room
from jobs.ledger.partitions import partitions_end
from jobs.ledger.sqlite import is_repaired
from jobs.network.certificates import ledger_certificate_end
from jobs.settings import Settings
from labelmill.console.terminal import format_duration
from labelmill.operations.doctor.certificates import check_certificate
from labelmill.operations.doctor.commands import commands_of
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.probes import NoLedgerYet, existing_ledger, redacted_message

_LedgerCheck = Callable[[Settings, Connection], Iterator[Finding]]

#: Partitions that end within this time are reported. `labelmill db upgrade` adds more if half a year is left.
_PARTITIONS_SOON: Final = 8 * 7 * 86_400

#: The second statement covers the tables that later versions add.
_GRANT: Final = (
    "as the tables' owner: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ROLE; "
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO ROLE"
)

#: The fix for each pattern in the database's error message. The first match counts.
_SQLITE_FIXES: Final = (
    (r"not a database|malformed", "restore {file} from its backup"),
    (r"locked", "end the process that locks it: fuser {file}"),
    (r"", "make it a file that you can write: ls -ld {file}"),
)
_POSTGRESQL_FIXES: Final = (
    (r"permission denied", _GRANT),
    (r"certificate.*expired", "renew the certificate of the ledger's server"),
    (
        r"certificate",
        "LABELMILL_LEDGER_URL=postgresql://...?sslmode=verify-full&sslrootcert=FILE, the CA of the server",
    ),
    (r"password|authentication|role", "LABELMILL_LEDGER_URL=postgresql://USER:PASSWORD@HOST/DATABASE"),
    (r"does not exist", "createdb it, or correct LABELMILL_LEDGER_URL; then {upgrade}"),
    (r"", "{start}"),
)


def check_ledger(settings: Settings) -> Iterator[Finding]:
    """Check the database itself. Its jobs are an area of their own."""
    try:
        with existing_ledger(settings) as ledger:
            with ledger.reading() as connection:
                yield _migrated(connection, settings)
                if ledger.is_sqlite:
                    yield _sqlite_version(metrics.sqlite_version(connection))
                else:
                    yield _clock(clock_error(connection))
                    yield from _partitions(partitions_end(connection), commands_of(settings).upgrade)
                    yield from check_certificate(ledger_certificate_end(settings.ledger), "ledger")
            yield _can_be_written(ledger)
    except NoLedgerYet:
        if settings.embedded_ledger:
            yield ok("does not exist yet; the first command creates it")
        else:
            yield problem("LABELMILL_LEDGER_URL names no file", fix=commands_of(settings).upgrade)
    except LedgerFull:
        yield problem("the database's disk is full", fix=_room(settings))
    except (Unavailable, DBAPIError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        reason = redacted_message(cause, settings).removeprefix("The ledger cannot be reached: ")
        yield problem(f"the ledger cannot be used: {reason}", fix=_fix(reason, settings))


def in_ledger(*, if_none: Finding) -> Callable[[_LedgerCheck], Callable[[Settings], Iterator[Finding]]]:
    """Return a decorator that runs a check in one transaction. It yields `if_none` if there is no ledger."""

    def decorate(check: _LedgerCheck) -> Callable[[Settings], Iterator[Finding]]:
        @wraps(check)
        def check_ledger_first(settings: Settings) -> Iterator[Finding]:
            try:
                with existing_ledger(settings) as ledger:
                    ledger.check()
                    with ledger.reading() as connection:
                        yield from check(settings, connection)
            except NoLedgerYet:
                yield if_none
            except (LedgerNotReady, Unavailable, DBAPIError, OSError):
                yield warning("not checked, because the ledger cannot be used", fix="see ledger")

        return check_ledger_first

    return decorate


def _migrated(connection: Connection, settings: Settings) -> Finding:
    found = revision(connection)
    if found == REVISION:
        return ok(f"answers, and is at migration {found}")
    if found and is_newer_and_compatible(connection):
        return ok(f"answers; a newer Labelmill migrated it to {found}, and this one can use it")
    what = f"is at migration {found}, this Labelmill at {REVISION}" if found else "was never migrated"
    if found and found > REVISION:
        return problem(what, fix="upgrade Labelmill on this machine")
    upgrade = commands_of(settings).upgrade
    if settings.embedded_ledger:
        return warning(f"{what}; the next command migrates it", fix=upgrade)
    return problem(what, fix=upgrade)


def _clock(error: float) -> Finding:
    if abs(error) < CLOCK_SECONDS:
        return ok("this machine's clock agrees with the database's")
    where = "ahead of" if error > 0 else "behind"
    return problem(
        f"this machine's clock is {format_duration(abs(error))} {where} the database's",
        fix="set the clocks of both machines by a time server: timedatectl set-ntp true",
    )


def _partitions(end: float | None, upgrade: str) -> Iterator[Finding]:
    if end is None:  # not migrated
        return
    until = f"until {datetime.fromtimestamp(end, UTC):%Y-%m-%d}"
    if end > time.time() + _PARTITIONS_SOON:
        yield ok(f"has partitions for predictions {until}")
    else:
        what = f"has partitions for predictions only {until}: a purge deletes later rows one by one"
        yield warning(what, fix=upgrade)


def _sqlite_version(found: tuple[int, ...]) -> Finding:
    name = f"SQLite {'.'.join(map(str, found))}"
    if is_repaired(found):
        return ok(name)
    return warning(
        f"{name} can, very rarely, damage a database that several processes write",
        fix="pip install pysqlite3 (Linux x86-64, macOS arm64), a newer Python, or PostgreSQL",
    )


def _can_be_written(ledger: Ledger) -> Finding:
    # On SQLite, opening the transaction takes the write lock. PostgreSQL is asked for the privileges.
    with ledger.transaction() as connection:
        read_only, tables = (False, []) if ledger.is_sqlite else metrics.missing_privileges(connection)
        if read_only:
            return problem("is read-only", fix="LABELMILL_LEDGER_URL=the primary's URL")
        if tables:
            return problem(f"its role cannot read and write {', '.join(tables)}", fix=_GRANT)
        prove_room(connection)
    return ok("can be written")


def _room(settings: Settings) -> str:
    if settings.ledger_file is not None:
        return f"free some space: df -h {shlex.quote(str(settings.ledger_file))}"
    return "free some space on the disk of PostgreSQL's data directory"


def _fix(reason: str, settings: Settings) -> str:
    fixes = _POSTGRESQL_FIXES if settings.ledger_file is None else _SQLITE_FIXES
    fix = next(fix for pattern, fix in fixes if re.search(pattern, reason, re.IGNORECASE))
    commands = commands_of(settings)
    file = shlex.quote(str(settings.ledger_file))
    return fix.format(file=file, start=commands.postgresql, upgrade=commands.upgrade)
