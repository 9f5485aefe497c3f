"""What `labelmill doctor` asks the ledger. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import CRASHES_TO_GIVE_UP, IS_CLAIMED, IS_PENDING, chunk_is_in_work
from jobs.ledger.control import JOB_GOES_ON
from jobs.ledger.maintenance import RECONCILE_LOCK
from jobs.schema import ChunkState, JobState, aliases, chunks, db_now, jobs, locks, metadata

_IS_OPEN = sa.or_(IS_PENDING, IS_CLAIMED)

# ---- the database -------------------------------------------------------------------------------------


def now(connection: Connection) -> datetime:
    """The database's clock."""
    return connection.execute(sa.select(db_now())).scalar_one()


def version(connection: Connection) -> tuple[int, ...]:
    """Return the version of the SQLite that opens the ledger (`jobs.sqlite`), or of the PostgreSQL server."""
    if connection.dialect.name == "sqlite":
        text: str = connection.scalar(sa.text("SELECT sqlite_version()")) or ""
        return tuple(map(int, text.split(".")))
    number = int(connection.scalar(sa.text("SELECT current_setting('server_version_num')")) or 0)
    return divmod(number, 10_000)


def is_read_only(connection: Connection) -> bool:
    """Whether PostgreSQL takes no writes here: a standby, or a database that was set so."""
    return bool(connection.scalar(sa.text("SELECT current_setting('transaction_read_only')::bool")))


def tables_without_rights(connection: Connection) -> list[str]:
    """The ledger's tables in which this role of PostgreSQL's may not do all that Labelmill does."""
    rows = connection.scalars(
        sa.text(
            "SELECT tablename FROM pg_tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS need "
            "WHERE schemaname = current_schema() AND tablename = ANY(:names) "
            "AND NOT has_table_privilege(format('%I.%I', schemaname, tablename), need) "
            "GROUP BY tablename ORDER BY tablename"
        ),
        {"names": list(metadata.tables)},
    )
    return list(rows)


def is_encrypted(connection: Connection) -> bool:
    """Whether this connection to PostgreSQL uses TLS."""
    return bool(connection.scalar(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))


def journal_mode(connection: Connection) -> str:
    """SQLite's: `wal`, where all is well."""
    return str(connection.scalar(sa.text("PRAGMA journal_mode")))


def connections(connection: Connection) -> tuple[int, int]:
    """How many connections PostgreSQL has, and how many it takes."""
    row = connection.execute(
        sa.text(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
            "current_setting('max_connections')::int"
        )
    ).one()
    return row[0], row[1]


def old_transactions(connection: Connection, *, seconds: float) -> list[tuple[int, float]]:
    """Who has had a transaction open in this database for longer: process id and seconds, oldest first."""
    rows = connection.execute(
        sa.text(
            "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' "
            "AND pid <> pg_backend_pid() "
            "AND xact_start < clock_timestamp() - make_interval(secs => :seconds) ORDER BY xact_start"
        ),
        {"seconds": seconds},
    )
    return [(pid, age) for pid, age in rows]


# ---- the work -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reconciling:
    """Who reconciled last."""

    holder: str
    #: Seconds since the lock ran out; negative while somebody reconciles.
    over: float


def reconciling(connection: Connection) -> Reconciling | None:
    """None where nobody ever has."""
    row = connection.execute(
        sa.select(locks.c.holder, locks.c.until, db_now()).where(locks.c.name == RECONCILE_LOCK)
    ).one_or_none()
    return None if row is None else Reconciling(row[0], (row[2] - row[1]).total_seconds())


@dataclass(frozen=True, slots=True)
class Work:
    """Where the chunks stand that are to be done now."""

    waiting: int
    #: Seconds since the oldest waiting one was made; None where none waits.
    oldest_waiting: float | None
    #: Under a lease that has not run out.
    under_way: int
    #: Seconds since a chunk of a job that goes on was last finished; None where none ever was.
    last_finished: float | None


def work(connection: Connection) -> Work:
    """Of the jobs that are neither paused nor finished."""
    waiting, oldest = connection.execute(
        sa.select(sa.func.count(), sa.func.min(chunks.c.created_at)).where(IS_PENDING)
    ).one()
    under_way = connection.scalar(sa.select(sa.func.count()).where(chunk_is_in_work()))
    finished = connection.scalar(
        sa.select(sa.func.max(chunks.c.finished_at))
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .where(JOB_GOES_ON, chunks.c.state == ChunkState.DONE)
    )
    moment = now(connection)
    return Work(
        waiting=waiting,
        oldest_waiting=None if oldest is None else (moment - oldest).total_seconds(),
        under_way=under_way or 0,
        last_finished=None if finished is None else (moment - finished).total_seconds(),
    )


def lost_chunks(connection: Connection, *, seconds: float) -> dict[str, int]:
    """Chunks whose lease ran out longer ago, and whom nobody took since: how many by job."""
    return _by_job(
        connection,
        IS_CLAIMED,
        chunks.c.lease_until < db_now(-seconds),
    )


def crashing_chunks(connection: Connection) -> dict[str, int]:
    """Chunks that are not done yet and crashed before: how many by job."""
    return _by_job(connection, _IS_OPEN, chunks.c.crashes > 0)


@dataclass(frozen=True, slots=True)
class Returning:
    """A chunk that comes back again and again, and not by its own fault."""

    job_id: str
    releases: int
    error: str | None


def returning_chunks(connection: Connection, *, releases: int) -> list[Returning]:
    """Chunks that are not done yet and were given back so often, the worst of each job."""
    rows = connection.execute(
        sa.select(chunks.c.job_id, chunks.c.releases, chunks.c.error)
        .where(_IS_OPEN, chunks.c.releases >= releases)
        .order_by(chunks.c.releases)
    )
    return list({row.job_id: Returning(row.job_id, row.releases, row.error) for row in rows}.values())


def given_up_images(connection: Connection, *, seconds: float) -> dict[str, int]:
    """Images that crashed all alone until they were given up, lately: how many by job."""
    return _by_job(
        connection,
        chunks.c.state == ChunkState.DONE,
        chunks.c.images == 1,
        chunks.c.crashes >= CRASHES_TO_GIVE_UP,
        chunks.c.finished_at > db_now(-seconds),
        # An image that was given up is counted as failed: jobs without one need no look at their chunks.
        chunks.c.job_id.in_(sa.select(jobs.c.id).where(jobs.c.failed > 0)),
    )


def paused_jobs(connection: Connection, *, seconds: float) -> list[str]:
    """Jobs that were paused longer ago and not resumed."""
    return list(
        connection.scalars(
            sa.select(jobs.c.id).where(JOB_GOES_ON, jobs.c.paused_at < db_now(-seconds)).order_by(jobs.c.id)
        )
    )


def silent_jobs(connection: Connection, *, seconds: float) -> list[str]:
    """Jobs that are being received, and whose producer gave no sign of life for so long."""
    return list(
        connection.scalars(
            sa.select(jobs.c.id)
            .where(JOB_GOES_ON, jobs.c.state == JobState.RECEIVING, jobs.c.touched_at < db_now(-seconds))
            .order_by(jobs.c.id)
        )
    )


def models_needed(connection: Connection) -> set[str]:
    """Models that have an alias, or that a job which goes on is pinned to."""
    pinned = sa.select(jobs.c.model_id).where(JOB_GOES_ON)
    return set(connection.scalars(sa.union(sa.select(aliases.c.model_id), pinned)))


def _by_job(connection: Connection, *which: sa.ColumnElement[bool] | sa.TextClause) -> dict[str, int]:
    rows = connection.execute(
        sa.select(chunks.c.job_id, sa.func.count())
        .where(*which)
        .group_by(chunks.c.job_id)
        .order_by(chunks.c.job_id)
    )
    return dict(tuple(row) for row in rows)
