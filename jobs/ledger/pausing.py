"""A job's pause: its waiting chunks are held, so that no message, claim or reconciler meets them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import JOB_GOES_ON, chunk_is_due, crash_if_vanished
from jobs.ledger.gathering import of_a_small_job
from jobs.schema import ChunkState, chunks, db_now, jobs


def pause_job(connection: Connection, job_id: str) -> bool:
    """Holds up a job that has not finished; chunks that are being worked on still bring in their outcomes.
    False where it had finished. Pausing twice is pausing once.
    """
    paused = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, JOB_GOES_ON)
        .values(paused_at=sa.func.coalesce(jobs.c.paused_at, db_now()))
    )
    if paused.rowcount != 1:
        return False
    _hold(connection, chunks.c.job_id == job_id, chunks.c.state == ChunkState.PENDING)
    return True


def resume_job(connection: Connection, job_id: str, *, limit: int) -> list[tuple[str, bool]] | None:
    """Lets a paused job go on; gives back the first `limit` of its waiting chunks, to be rung for: by id, and
    whether it goes ahead of others. None where it is not paused.
    """
    resumed = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.paused_at.is_not(None), JOB_GOES_ON)
        .values(paused_at=None)
    )
    if resumed.rowcount != 1:
        return None
    connection.execute(
        chunks.update()
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.HELD)
        .values(state=ChunkState.PENDING, ring_after=None)
    )
    waiting = (
        sa.select(chunks.c.id, of_a_small_job().label("ahead"))
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.PENDING, chunks.c.ring_after.is_(None))
        .order_by(chunks.c.first_index)
        .limit(limit)
    )
    return [(row.id, bool(row.ahead)) for row in connection.execute(waiting)]


def hold_leftover_chunks(connection: Connection) -> None:
    """Holds what a paused job left: chunks that somebody was at when it was paused, and gave up since."""
    # Mostly there is none; and which jobs are paused is asked for first, because PostgreSQL cannot tell that
    # none of all that waits is theirs.
    paused = connection.scalars(sa.select(jobs.c.id).where(jobs.c.paused_at.is_not(None), JOB_GOES_ON)).all()
    if not paused:
        return
    left = connection.scalars(
        sa.select(chunks.c.job_id).where(chunks.c.job_id.in_(paused), chunk_is_due()).distinct()
    ).all()
    if not left:
        return
    # The jobs' rows are locked first: a job that is resumed at this moment must find all that is held, and of
    # one that ends at this moment nothing may be held for ever.
    job_ids = connection.scalars(
        sa.select(jobs.c.id)
        .where(jobs.c.id.in_(left), jobs.c.paused_at.is_not(None), JOB_GOES_ON)
        .with_for_update(skip_locked=True)
    ).all()
    if job_ids:
        _hold(connection, chunks.c.job_id.in_(job_ids), chunk_is_due())


def _hold(connection: Connection, *which: sa.ColumnElement[bool]) -> None:
    # Whoever holds a job's row must not wait for a chunk's: a worker that finishes locks them the other way
    # round. A chunk that is locked at this moment is somebody's.
    waiting = sa.select(chunks.c.id).where(*which).with_for_update(skip_locked=True)
    connection.execute(
        chunks.update()
        .where(chunks.c.id.in_(waiting))
        .values(state=ChunkState.HELD, lease_until=None, **crash_if_vanished())
    )
