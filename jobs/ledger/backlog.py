"""What waits and what is being worked on, in all jobs together: what `labelmill metrics` asks for.

Each statement costs as much as there are unfinished jobs and claimed chunks, not as much as there is to do or
was done: how much a job still has is told by the counters in its row, and what lies waiting is that less what
is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import CHUNK_IS_OPEN, JOB_GOES_ON, chunk_is_in_work
from jobs.schema import UNFINISHED, ChunkState, chunks, db_now, jobs, training_runs


@dataclass(frozen=True, slots=True)
class Backlog:
    """What there is to do."""

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
    """Where the work stands."""
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
    claimed_chunks = sa.func.coalesce(claimed.c.chunks, 0)
    rows = connection.execute(
        sa.select(
            jobs.c.state,
            paused,
            sa.func.count().label("jobs"),
            sa.func.sum(jobs.c.total - jobs.c.succeeded - jobs.c.failed - claimed_images).label("images"),
            sa.func.sum(jobs.c.chunks - jobs.c.chunks_done - claimed_chunks).label("chunks"),
        )
        .select_from(jobs.outerjoin(claimed, claimed.c.job_id == jobs.c.id))
        .where(JOB_GOES_ON)
        .group_by(jobs.c.state, paused)
    ).all()
    going_on = [row for row in rows if not row.paused]
    held = [row for row in rows if row.paused]
    at_work = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(chunks.c.images), 0)).where(
            chunk_is_in_work()
        )
    ).one()
    return Backlog(
        jobs={state: sum(row.jobs for row in going_on if row.state == state) for state in UNFINISHED},
        paused_jobs=sum(row.jobs for row in held),
        pending_images=sum(int(row.images) for row in going_on),
        pending_chunks=sum(int(row.chunks) for row in going_on),
        held_images=sum(int(row.images) for row in held),
        held_chunks=sum(int(row.chunks) for row in held),
        claimed_images=int(at_work[1]),
        claimed_chunks=int(at_work[0]),
        oldest_pending_seconds=_oldest_pending_seconds(connection),
    )


def _oldest_pending_seconds(connection: Connection) -> float:
    # The first entry of the index on open chunks.
    row = connection.execute(
        sa.select(chunks.c.created_at, db_now().label("now"))
        .where(CHUNK_IS_OPEN, chunks.c.state == ChunkState.PENDING)
        .order_by(chunks.c.created_at)
        .limit(1)
    ).one_or_none()
    return 0.0 if row is None else max(0.0, (row.now - row.created_at).total_seconds())


def last_run_seconds(connection: Connection) -> float | None:
    """Seconds since the latest end of a training run; None where none has ended."""
    finished, now = connection.execute(
        sa.select(sa.func.max(training_runs.c.finished_at), db_now().label("now"))
    ).one()
    return None if finished is None else max(0.0, (now - finished).total_seconds())
