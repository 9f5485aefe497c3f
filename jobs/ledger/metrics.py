"""Metrics: the backlog, what was done, and what the checks of `labelmill doctor` need. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.jobs.control import JOB_IS_UNFINISHED
from jobs.ledger.jobs.queries import OLDEST_PENDING_AT
from jobs.ledger.locks import RECONCILE_LOCK
from jobs.schema import (
    CHUNK_IS_IN_WORK,
    CHUNK_IS_PENDING,
    UNFINISHED,
    ChunkState,
    aliases,
    chunks,
    db_now,
    jobs,
    locks,
    metadata,
    training_runs,
)

# ---- the backlog ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backlog:
    """The work that is not done yet. Shadows count like other jobs."""

    #: Unfinished jobs that are not paused, by state.
    jobs: dict[str, int]
    paused_jobs: int
    #: Waiting for a worker; of jobs that are not paused. The images include those under an expired lease.
    pending_images: int
    pending_chunks: int
    #: Of paused jobs, without what workers have claimed.
    held_images: int
    held_chunks: int
    #: Under a lease that has not expired; stopped jobs count too.
    claimed_images: int
    claimed_chunks: int
    #: Seconds since the oldest pending chunk was created; 0 if none is pending.
    oldest_pending_seconds: float


def backlog(connection: Connection) -> Backlog:
    """Return the backlog."""
    # One statement: chunks that finish between two statements would make the remaining number negative.
    claimed = (
        sa.select(chunks.c.job_id, sa.func.sum(chunks.c.images).label("images"))
        .where(CHUNK_IS_IN_WORK)
        .group_by(chunks.c.job_id)
        .cte("claimed")
    )
    paused = jobs.c.paused_at.is_not(None).label("paused")
    claimed_images = sa.func.coalesce(claimed.c.images, 0)
    rows = connection.execute(
        sa.select(
            jobs.c.state,
            paused,
            sa.func.count().label("jobs"),
            sa.func.sum(jobs.c.total - jobs.c.succeeded - jobs.c.failed - claimed_images).label("images"),
        )
        .select_from(jobs.outerjoin(claimed, claimed.c.job_id == jobs.c.id))
        .where(JOB_IS_UNFINISHED)
        .group_by(jobs.c.state, paused)
    ).all()
    active = [row for row in rows if not row.paused]
    held = [row for row in rows if row.paused]
    in_work = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(chunks.c.images), 0)).where(CHUNK_IS_IN_WORK)
    ).one()
    paused_jobs = sa.select(jobs.c.id).where(JOB_IS_UNFINISHED, jobs.c.paused_at.is_not(None))
    return Backlog(
        jobs={state: sum(row.jobs for row in active if row.state == state) for state in UNFINISHED},
        paused_jobs=sum(row.jobs for row in held),
        pending_images=sum(int(row.images) for row in active),
        pending_chunks=_count_chunks(connection, CHUNK_IS_PENDING),
        held_images=sum(int(row.images) for row in held),
        held_chunks=_count_chunks(
            connection, chunks.c.state == ChunkState.HELD, chunks.c.job_id.in_(paused_jobs)
        ),
        claimed_images=int(in_work[1]),
        claimed_chunks=int(in_work[0]),
        oldest_pending_seconds=_oldest_pending_seconds(connection),
    )


def _count_chunks(connection: Connection, *which: sa.ColumnElement[bool] | sa.TextClause) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(chunks).where(*which)) or 0


def _oldest_pending_seconds(connection: Connection) -> float:
    # Without shadows: they have the lowest priority and may wait long.
    of_each = (
        sa.select(OLDEST_PENDING_AT.label("created_at"))
        .select_from(jobs)
        .where(JOB_IS_UNFINISHED, jobs.c.shadow_of.is_(None))
        .subquery()
    )
    return _seconds_since(connection, sa.select(sa.func.min(of_each.c.created_at))) or 0.0


def count_by_day(connection: Connection, days: Sequence[date]) -> dict[tuple[str, date], int]:
    """Return how many images have an outcome, by project and by the day (UTC) on which their job was created.

    Only jobs of these days are read, and none of their images.
    """
    found: dict[tuple[str, date], int] = {}
    for day in days:
        begin = datetime.combine(day, time(), UTC)
        images = sa.func.sum(jobs.c.succeeded + jobs.c.failed)
        query = sa.select(jobs.c.project, images).group_by(jobs.c.project)
        query = query.where(jobs.c.created_at >= begin, jobs.c.created_at < begin + timedelta(days=1))
        found |= {(project, day): int(count) for project, count in connection.execute(query)}
    return found


def last_run_seconds(connection: Connection) -> dict[str, float]:
    """Return the seconds since the latest training run of each dataset ended; nothing if none has ended."""
    query = sa.select(training_runs.c.dataset, sa.func.max(training_runs.c.finished_at), db_now()).where(
        training_runs.c.finished_at.is_not(None)
    )
    rows = connection.execute(query.group_by(training_runs.c.dataset).order_by(training_runs.c.dataset))
    return {dataset: max(0.0, _seconds(ended, now)) for dataset, ended, now in rows}


def latest_requests(connection: Connection) -> dict[str, datetime]:
    """Return when the latest training run of each dataset was requested, or its slot, if that is later.

    A slot is a time of beat's clock, which can be ahead of the database's.
    """
    runs = training_runs.c
    query = sa.select(runs.dataset, sa.func.max(runs.requested_at), sa.func.max(runs.slot))
    rows = connection.execute(query.group_by(runs.dataset))
    return {dataset: max(filter(None, times)) for dataset, *times in rows if any(times)}


# ---- checks for `labelmill doctor` ----------------------------------------------------------------


def sqlite_version(connection: Connection) -> tuple[int, ...]:
    """Return the version of the SQLite library that opened the ledger."""
    text: str = connection.scalar(sa.text("SELECT sqlite_version()")) or ""
    return tuple(map(int, text.split(".")))


def missing_privileges(connection: Connection) -> tuple[bool, list[str]]:
    """Return whether PostgreSQL is read-only here, and the tables that this role lacks a privilege on."""
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
class ReconcilerLock:
    """The process that reconciled last."""

    holder: str
    #: Seconds since its lock expired; negative while it holds the lock.
    expired_seconds: float


def reconciler_lock(connection: Connection) -> ReconcilerLock | None:
    """Return the process that reconciled last, or None if no worker has ever run."""
    row = connection.execute(
        sa.select(locks.c.holder, locks.c.until, db_now()).where(locks.c.name == RECONCILE_LOCK)
    ).one_or_none()
    return None if row is None else ReconcilerLock(row[0], _seconds(row[1], row[2]))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """An unfinished job that is not paused, and its chunks that are not done."""

    id: str
    pending: int
    pending_seconds: float | None  # since the oldest pending chunk was created
    working: int  # claimed, under a lease that has not expired
    lost: int  # claimed, under a lease that expired long ago
    releases: int  # of the chunk with the most releases
    error: str | None  # how an attempt ended, of a chunk with many releases


def open_jobs(connection: Connection, *, lost_seconds: float, many_releases: int) -> list[OpenJob]:
    """Return the unfinished jobs that are not paused, oldest first.

    A chunk is lost if its lease expired more than `lost_seconds` ago.
    """
    is_pending = chunks.c.state == ChunkState.PENDING
    is_working = sa.and_(chunks.c.state == ChunkState.CLAIMED, chunks.c.lease_until >= db_now())
    is_expired = sa.and_(chunks.c.state == ChunkState.CLAIMED, chunks.c.lease_until < db_now(-lost_seconds))
    is_open_chunk = chunks.c.state.in_([ChunkState.PENDING, ChunkState.CLAIMED])
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            db_now().label("now"),
            _count(is_pending),
            sa.func.min(sa.case((is_pending, chunks.c.created_at))).label("oldest"),
            _count(is_working),
            _count(is_expired),
            sa.func.coalesce(sa.func.max(chunks.c.releases), 0),
            sa.func.max(sa.case((chunks.c.releases >= many_releases, chunks.c.error))),
        )
        .select_from(jobs.outerjoin(chunks, sa.and_(chunks.c.job_id == jobs.c.id, is_open_chunk)))
        .where(JOB_IS_UNFINISHED, jobs.c.paused_at.is_(None))
        .group_by(jobs.c.id)
        .order_by(jobs.c.id)
    )
    return [
        OpenJob(job_id, pending, oldest and _seconds(oldest, now), *rest)
        for job_id, now, pending, oldest, *rest in rows
    ]


def seconds_since_last_result(connection: Connection) -> float | None:
    """Return the seconds since a chunk of an unfinished job was done, or None if none is."""
    return _seconds_since(
        connection,
        sa.select(sa.func.max(chunks.c.finished_at))
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .where(JOB_IS_UNFINISHED, chunks.c.state == ChunkState.DONE),
    )


def models_needed(connection: Connection) -> set[str]:
    """Return the ids of the models that have an alias or that an unfinished job is pinned to."""
    pinned = sa.select(jobs.c.model_id).where(JOB_IS_UNFINISHED)
    return set(connection.scalars(sa.union(sa.select(aliases.c.model_id), pinned)))


def _count(condition: sa.ColumnElement[bool]) -> sa.Function[int]:
    return sa.func.count(sa.case((condition, 1)))


def _seconds_since(connection: Connection, query: sa.Select[Any]) -> float | None:
    """Return the seconds since the time that the query returns, or None if it returns none."""
    since, now = connection.execute(query.add_columns(db_now())).one()
    return None if since is None else max(0.0, (now - since).total_seconds())


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()
