"""The backlog: what waits and what is in work, in all jobs together, as `labelmill metrics` shows it.

How many images a job still has is in its row's counters, so that they need not be added up over all chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import IS_PENDING, chunk_is_in_work
from jobs.ledger.control import JOB_GOES_ON
from jobs.schema import UNFINISHED, ChunkState, chunks, db_now, jobs, training_runs


@dataclass(frozen=True, slots=True)
class Backlog:
    """What there is to do. Shadows count like other jobs."""

    #: Unfinished jobs by state; paused ones are apart.
    jobs: dict[str, int]
    paused_jobs: int
    #: Waiting for a worker, or having lost theirs; of jobs that are not paused.
    pending_images: int
    pending_chunks: int
    #: Of paused jobs, without what is being worked on.
    held_images: int
    held_chunks: int
    #: Under a lease that has not run out, of stopped jobs as well.
    claimed_images: int
    claimed_chunks: int
    #: Seconds since the oldest pending chunk was made; 0 where none waits.
    oldest_pending_seconds: float


def backlog(connection: Connection) -> Backlog:
    """Return where the work stands."""
    # One statement: between two of them chunks would be finished, and what is left would be negative.
    claimed = (
        sa.select(
            chunks.c.job_id,
            sa.func.count().label("chunks"),
            sa.func.sum(chunks.c.images).label("images"),
        )
        .where(chunk_is_in_work())
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
        .where(JOB_GOES_ON)
        .group_by(jobs.c.state, paused)
    ).all()
    going_on = [row for row in rows if not row.paused]
    held = [row for row in rows if row.paused]
    in_work = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(chunks.c.images), 0)).where(
            chunk_is_in_work()
        )
    ).one()
    paused_jobs = sa.select(jobs.c.id).where(JOB_GOES_ON, jobs.c.paused_at.is_not(None))
    return Backlog(
        jobs={state: sum(row.jobs for row in going_on if row.state == state) for state in UNFINISHED},
        paused_jobs=sum(row.jobs for row in held),
        pending_images=sum(int(row.images) for row in going_on),
        pending_chunks=_count(connection, IS_PENDING),
        held_images=sum(int(row.images) for row in held),
        held_chunks=_count(connection, chunks.c.state == ChunkState.HELD, chunks.c.job_id.in_(paused_jobs)),
        claimed_images=int(in_work[1]),
        claimed_chunks=int(in_work[0]),
        oldest_pending_seconds=_oldest_pending_seconds(connection),
    )


def _count(connection: Connection, *which: sa.ColumnElement[bool] | sa.TextClause) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(chunks).where(*which)) or 0


def _oldest_pending_seconds(connection: Connection) -> float:
    # By job: an index has each job's first pending chunk, which is its oldest.
    first = (
        sa.select(chunks.c.created_at)
        .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.PENDING)
        .order_by(chunks.c.first_index)
        .limit(1)
        .scalar_subquery()
    )
    of_each = sa.select(first.label("created_at")).where(JOB_GOES_ON).subquery()
    oldest, now = connection.execute(sa.select(sa.func.min(of_each.c.created_at), db_now())).one()
    return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())


def last_run_seconds(connection: Connection) -> float | None:
    """Return the seconds since a training run ended last; None if none has ended."""
    finished, now = connection.execute(
        sa.select(sa.func.max(training_runs.c.finished_at), db_now().label("now"))
    ).one()
    return None if finished is None else max(0.0, (now - finished).total_seconds())
