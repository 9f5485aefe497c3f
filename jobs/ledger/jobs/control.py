"""Control: stop, pause, resume and settle jobs. Each takes effect between two claims.

Lock order: a worker locks its chunk first and the job's row last. So a statement here that holds a job's row
skips locked chunks instead of waiting for them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.counters import CounterName, count
from jobs.ledger.jobs.claims import job_was_stopped, next_of
from jobs.ledger.webhook_outbox import report_ended_jobs
from jobs.schema import (
    CHUNK_IS_IN_WORK,
    CHUNK_IS_PENDING,
    FINISHED,
    UNFINISHED,
    ChunkState,
    JobState,
    chunks,
    db_now,
    jobs,
    projects,
)

#: The condition of the index on unfinished jobs. A job that ended while it was paused keeps its `paused_at`.
JOB_IS_UNFINISHED: Final = sa.text("jobs.state IN ('receiving', 'running')")

_Condition = sa.ColumnElement[bool] | sa.TextClause

#: The condition for a chunk that is neither done nor dropped.
_HAS_NOT_ENDED: Final = chunks.c.state.in_([ChunkState.PENDING, ChunkState.HELD, ChunkState.CLAIMED])


def end_job(connection: Connection, job_id: str, state: JobState, *, error: str | None = None) -> bool:
    """Stop a job that has not finished, as `failed` or `cancelled`. Return False if it had finished.

    Its waiting chunks are dropped and its shadows cancelled. Results stay, and a chunk that a worker has
    claimed may still add its own.
    """
    ended = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
        .values(state=state, error=error, finished_at=db_now())
    )
    if ended.rowcount != 1:
        return False
    count(connection, {(CounterName.JOBS, state): 1})
    report_ended_jobs(connection, [job_id])
    drop_waiting_work(connection, job_id)
    return True


def drop_waiting_work(connection: Connection, job_id: str) -> None:
    """Drop the waiting chunks of a job that ended, and cancel its shadows. The caller holds the job's row."""
    waiting = chunks.c.state.in_([ChunkState.PENDING, ChunkState.HELD])
    _drop(connection, chunks.c.job_id == job_id, waiting)
    for shadow_id in shadows_of(connection, job_id):
        end_job(connection, shadow_id, JobState.CANCELLED)


def shadows_of(connection: Connection, job_id: str) -> list[str]:
    """Return the ids of the job's shadows (`jobs.ledger.jobs.shadows`)."""
    return list(connection.scalars(sa.select(jobs.c.id).where(jobs.c.shadow_of == job_id)))


def pause_job(connection: Connection, job_id: str) -> bool:
    """Pause a job that has not finished. Return False if it had finished. Pausing again changes nothing.

    Its waiting chunks are held; a chunk that a worker has claimed still brings its results.
    """
    paused = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, JOB_IS_UNFINISHED)
        .values(paused_at=sa.func.coalesce(jobs.c.paused_at, db_now()))
    )
    if paused.rowcount != 1:
        return False
    _hold(connection, chunks.c.job_id == job_id, chunks.c.state == ChunkState.PENDING)
    return True


def resume_job(connection: Connection, job_id: str, *, limit: int) -> int | None:
    """Resume a paused job. Return how many of its chunks are pending, or None if it is not paused.

    The count stops at `limit`.
    """
    resumed = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.paused_at.is_not(None), JOB_IS_UNFINISHED)
        .values(paused_at=None)
    )
    if resumed.rowcount != 1:
        return None
    connection.execute(
        chunks.update()
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.HELD)
        .values(state=ChunkState.PENDING, not_before=None)
    )
    due = sa.select(chunks.c.id).where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.PENDING)
    return connection.scalar(sa.select(sa.func.count()).select_from(due.limit(limit).subquery())) or 0


def drop_leftover_chunks(connection: Connection) -> None:
    """Drop chunks of stopped jobs that a worker had claimed then, and has released since.

    Checks only the next due chunk of each project; those further back are dropped when they come next.
    """
    first = sa.select(next_of(projects.c.name, 1).scalar_subquery()).select_from(projects)
    ids = connection.scalars(sa.select(chunks.c.id).where(chunks.c.id.in_(first), job_was_stopped())).all()
    if ids:  # usually there is none
        _drop(connection, chunks.c.id.in_(ids), CHUNK_IS_PENDING)


def hold_leftover_chunks(connection: Connection) -> None:
    """Hold chunks of paused jobs that a worker had claimed then, and has released since."""
    # Usually no job is paused, so ask that first: PostgreSQL cannot tell that no pending chunk belongs to
    # one.
    paused = connection.scalars(
        sa.select(jobs.c.id).where(jobs.c.paused_at.is_not(None), JOB_IS_UNFINISHED)
    ).all()
    if not paused:
        return
    left = connection.scalars(
        sa.select(chunks.c.job_id)
        .where(chunks.c.job_id.in_(paused), chunks.c.state == ChunkState.PENDING)
        .distinct()
    ).all()
    if not left:
        return
    # Lock the jobs' rows first: a job that is being resumed must find all its held chunks, and a job that is
    # ending must not leave chunks held for ever.
    job_ids = connection.scalars(
        sa.select(jobs.c.id)
        .where(jobs.c.id.in_(left), jobs.c.paused_at.is_not(None), JOB_IS_UNFINISHED)
        .with_for_update(skip_locked=True)
    ).all()
    if job_ids:
        _hold(connection, chunks.c.job_id.in_(job_ids), chunks.c.state == ChunkState.PENDING)


def settle_job(connection: Connection, job_id: str) -> bool:
    """Drop the chunks of a finished job that no worker has. Return whether the job is settled.

    A job is settled if it has finished and no worker has a chunk of it. Its results do not change any more: a
    worker that comes back finds its chunk dropped.
    """
    finished = sa.exists().where(jobs.c.id == chunks.c.job_id, jobs.c.state.in_(FINISHED))
    # Lock in one order, so that two sessions that settle the same job do not deadlock. This waits for a claim
    # that is not committed yet, and then sees it.
    unclaimed = (
        sa.select(chunks.c.id)
        .where(chunks.c.job_id == job_id, _HAS_NOT_ENDED, ~CHUNK_IS_IN_WORK, finished)
        .order_by(chunks.c.id)
        .with_for_update()
    )
    ids = list(connection.scalars(unclaimed))
    if ids:
        _drop(connection, chunks.c.id.in_(ids))
    left = sa.exists().where(chunks.c.job_id == jobs.c.id, _HAS_NOT_ENDED)
    settled = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED), ~left)
    return connection.scalar(settled) is not None


def could_be_settled(connection: Connection, job_id: str) -> bool:
    """Return whether the job has finished and no worker has a chunk of it. Changes nothing."""
    at_work = sa.exists().where(chunks.c.job_id == jobs.c.id, CHUNK_IS_IN_WORK)
    query = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED), ~at_work)
    return connection.scalar(query) is not None


def still_claimed(job_id: str) -> Conflict:
    """Return the error to raise if a job must be settled but a worker still has a chunk of it."""
    return Conflict(f"A worker still has images of job {job_id}: try again in a minute.")


def _hold(connection: Connection, *which: _Condition) -> None:
    connection.execute(_update_unlocked(*which).values(state=ChunkState.HELD))


def _drop(connection: Connection, *which: _Condition) -> None:
    dropped = {"state": ChunkState.DROPPED, "finished_at": db_now(), "lease_until": None}
    connection.execute(_update_unlocked(*which).values(dropped))


def _update_unlocked(*which: _Condition) -> sa.Update:
    """Return an UPDATE of the chunks that no other session has locked."""
    unlocked = sa.select(chunks.c.id).where(*which).with_for_update(skip_locked=True)
    return chunks.update().where(chunks.c.id.in_(unlocked))
