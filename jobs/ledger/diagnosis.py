"""The queries of `labelmill doctor`. They only read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.schema import ChunkState, aliases, chunks, db_now, jobs, locks, metadata

#: The condition of the index on unfinished jobs, with its exact words: SQLite does not see that others fit.
_JOB_IS_OPEN: Final = sa.text("jobs.state IN ('receiving', 'running')")

#: The name of the lock that the reconciler holds while it works.
_RECONCILE_LOCK: Final = "reconcile"


def now(connection: Connection) -> datetime:
    """Return the time of the database's clock."""
    return connection.execute(sa.select(db_now())).scalar_one()


def sqlite_version(connection: Connection) -> tuple[int, ...]:
    """Return the version of the SQLite library that opened the ledger."""
    text: str = connection.scalar(sa.text("SELECT sqlite_version()")) or ""
    return tuple(map(int, text.split(".")))


def missing_privileges(connection: Connection) -> tuple[bool, list[str]]:
    """Return whether PostgreSQL is read-only here, and the tables that this role cannot read and write."""
    read_only = connection.scalar(sa.text("SELECT current_setting('transaction_read_only')::bool"))
    tables = connection.scalars(
        sa.text(
            "SELECT tablename FROM pg_tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS need "
            "WHERE schemaname = current_schema() AND tablename = ANY(:names) "
            "AND NOT has_table_privilege(format('%I.%I', schemaname, tablename), need) "
            "GROUP BY tablename ORDER BY tablename"
        ),
        {"names": list(metadata.tables)},
    )
    return bool(read_only), list(tables)


@dataclass(frozen=True, slots=True)
class Reconciling:
    """The process that reconciled last."""

    holder: str
    #: Seconds since its lock expired; negative while it holds the lock.
    expired: float


def reconciling(connection: Connection) -> Reconciling | None:
    """Return the process that reconciled last, or None if no worker has ever run."""
    row = connection.execute(
        sa.select(locks.c.holder, locks.c.until, db_now()).where(locks.c.name == _RECONCILE_LOCK)
    ).one_or_none()
    return None if row is None else Reconciling(row[0], _seconds(row[1], row[2]))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has not finished, and its chunks that are not done."""

    id: str
    paused_seconds: float | None  # None if it is not paused
    pending: int
    pending_seconds: float | None  # since the oldest pending chunk was made
    working: int  # claimed, under a lease that has not expired
    lost: int  # claimed, under a lease that expired long ago
    releases: int  # of the chunk that was given back most often
    error: str | None  # how an attempt of such a chunk ended


def open_jobs(connection: Connection, *, lost_seconds: float, many_releases: int) -> list[OpenJob]:
    """Return the unfinished jobs, oldest first.

    A chunk is lost if its lease expired more than `lost_seconds` ago.
    """
    is_pending = chunks.c.state == ChunkState.PENDING
    is_working = sa.and_(chunks.c.state == ChunkState.CLAIMED, chunks.c.lease_until >= db_now())
    is_lost = sa.and_(chunks.c.state == ChunkState.CLAIMED, chunks.c.lease_until < db_now(-lost_seconds))
    is_open_chunk = chunks.c.state.in_([ChunkState.PENDING, ChunkState.CLAIMED])
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            jobs.c.paused_at,
            db_now().label("now"),
            _count(is_pending),
            sa.func.min(sa.case((is_pending, chunks.c.created_at))).label("oldest"),
            _count(is_working),
            _count(is_lost),
            sa.func.coalesce(sa.func.max(chunks.c.releases), 0),
            sa.func.max(sa.case((chunks.c.releases >= many_releases, chunks.c.error))),
        )
        .select_from(jobs.outerjoin(chunks, sa.and_(chunks.c.job_id == jobs.c.id, is_open_chunk)))
        .where(_JOB_IS_OPEN)
        .group_by(jobs.c.id, jobs.c.paused_at)
        .order_by(jobs.c.id)
    )
    return [
        OpenJob(
            job_id,
            paused_at and _seconds(paused_at, now),
            pending,
            oldest and _seconds(oldest, now),
            *rest,
        )
        for job_id, paused_at, now, pending, oldest, *rest in rows
    ]


def seconds_since_last_result(connection: Connection) -> float | None:
    """Return how long ago a chunk of an unfinished job was done, or None if none is."""
    finished, now = connection.execute(
        sa.select(sa.func.max(chunks.c.finished_at), db_now())
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .where(_JOB_IS_OPEN, chunks.c.state == ChunkState.DONE)
    ).one()
    return None if finished is None else _seconds(finished, now)


def models_needed(connection: Connection) -> set[str]:
    """Return the ids of the models that have an alias or that an unfinished job is pinned to."""
    pinned = sa.select(jobs.c.model_id).where(_JOB_IS_OPEN)
    return set(connection.scalars(sa.union(sa.select(aliases.c.model_id), pinned)))


def _count(condition: sa.ColumnElement[bool]) -> sa.Function[int]:
    return sa.func.count(sa.case((condition, 1)))


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()
