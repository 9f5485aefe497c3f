"""A job that has finished, and whatever is still at it: nobody may come back once it counts as settled."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.claims import chunk_is_in_work, drop_chunks
from jobs.schema import FINISHED, ChunkState, chunks, jobs

#: Of a chunk: open, or held until its job is resumed.
_MAY_BRING_OUTCOMES: Final = chunks.c.state.in_([ChunkState.PENDING, ChunkState.HELD, ChunkState.CLAIMED])


def settle_job(connection: Connection, job_id: str) -> bool:
    """Drops the chunks of a finished job that nobody is at: a worker that was given up and comes back then
    finds its chunk gone. False where the job has not finished, or a worker still has a chunk of it.

    After True the job's outcomes do not change any more.
    """
    finished = sa.exists().where(jobs.c.id == chunks.c.job_id, jobs.c.state.in_(FINISHED))
    # Locked in one order, so that two who settle the same job do not wait for each other. This waits for a
    # claim that is not committed yet, and then sees it.
    nobodys = (
        sa.select(chunks.c.id)
        .where(chunks.c.job_id == job_id, _MAY_BRING_OUTCOMES, ~chunk_is_in_work(), finished)
        .order_by(chunks.c.id)
        .with_for_update()
    )
    ids = list(connection.scalars(nobodys))
    if ids:
        drop_chunks(connection, ids)
    left = sa.exists().where(chunks.c.job_id == jobs.c.id, _MAY_BRING_OUTCOMES)
    settled = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED), ~left)
    return connection.scalar(settled) is not None


def still_at_work(job_id: str) -> Conflict:
    """The error of whoever needs a settled job, and found a worker at it."""
    return Conflict(f"A worker still has images of job {job_id}: try again in a minute.")


def could_be_settled(connection: Connection, job_id: str) -> bool:
    """Whether the job has finished and no worker has a chunk of it. Changes nothing."""
    at_work = sa.exists().where(chunks.c.job_id == jobs.c.id, chunk_is_in_work())
    query = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED), ~at_work)
    return connection.scalar(query) is not None
