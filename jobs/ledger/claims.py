"""How a worker takes a chunk and gives it back: a lease with a fencing token.

Whoever claims a chunk writes a fresh token into it. Every later statement about the chunk carries the token
and touches nothing where it is no longer the one in the row, so a worker that was declared dead and comes
back cannot do harm. `jobs.ledger.outcomes` ends a claim with results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs

#: A chunk that was claimed this often and never finished has killed its workers: its images are quarantined
#: without being looked at again.
MAX_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one chunk until its lease runs out."""

    chunk_id: str
    token: str
    job_id: str
    model_id: str
    first_index: int
    images: int
    payload: str
    payload_sha256: str
    attempts: int

    @property
    def exhausted(self) -> bool:
        """Whether the chunk has used up its attempts."""
        return self.attempts > MAX_ATTEMPTS


def claim_chunk(connection: Connection, chunk_id: str, *, lease_seconds: float, owner: str) -> Claim | None:
    """Takes the chunk if it is pending or its lease ran out; None where there is nothing to do.

    The attempt is counted, and committed by the caller, before a byte of the payload is looked at: a chunk
    that kills its worker has then been counted.
    """
    token = new_id()
    taken = connection.execute(
        chunks.update()
        .where(
            chunks.c.id == chunk_id,
            chunk_is_due(),
            ~job_was_stopped(),
        )
        .values(
            state=ChunkState.CLAIMED,
            token=token,
            owner=owner,
            attempts=chunks.c.attempts + 1,
            lease_until=db_now(lease_seconds),
        )
        .returning(
            chunks.c.job_id,
            chunks.c.first_index,
            chunks.c.images,
            chunks.c.payload,
            chunks.c.payload_sha256,
            chunks.c.attempts,
        )
    ).one_or_none()
    if taken is None:
        return None
    job = connection.execute(
        sa.select(jobs.c.model_id, jobs.c.started_at).where(jobs.c.id == taken.job_id)
    ).one()
    if job.started_at is None:
        connection.execute(
            jobs.update()
            .where(jobs.c.id == taken.job_id, jobs.c.started_at.is_(None))
            .values(started_at=db_now())
        )
    return Claim(
        chunk_id=chunk_id,
        token=token,
        job_id=taken.job_id,
        model_id=job.model_id,
        first_index=taken.first_index,
        images=taken.images,
        payload=taken.payload,
        payload_sha256=taken.payload_sha256,
        attempts=taken.attempts,
    )


def renew_lease(connection: Connection, claim: Claim, *, lease_seconds: float) -> None:
    """A fresh lease for a chunk that takes long. Raises LeaseLost where somebody else has it."""
    renewed = connection.execute(
        chunks.update().where(*_mine(claim)).values(lease_until=db_now(lease_seconds))
    )
    if renewed.rowcount != 1:
        raise LeaseLost


def release_chunk(connection: Connection, claim: Claim, *, error: str, burn_attempt: bool) -> None:
    """Gives the chunk back unfinished: pending, or dropped where its job was stopped meanwhile. Nothing
    happens where somebody else has it by now.

    A service that is down is not the chunk's fault: without `burn_attempt` the attempt does not count.
    """
    connection.execute(
        chunks.update()
        .where(*_mine(claim))
        .values(
            state=sa.case((job_was_stopped(), ChunkState.DROPPED), else_=ChunkState.PENDING),
            finished_at=sa.case((job_was_stopped(), db_now()), else_=None),
            lease_until=None,
            error=error,
            attempts=chunks.c.attempts if burn_attempt else chunks.c.attempts - 1,
        )
    )


def expire_claim(connection: Connection, chunk_id: str, *, owner: str) -> None:
    """Ends the lease of a claim whose process is known to be dead, so that nobody waits for it to run out.
    The attempt stays counted.
    """
    connection.execute(
        chunks.update()
        .where(chunks.c.id == chunk_id, chunks.c.state == ChunkState.CLAIMED, chunks.c.owner == owner)
        .values(lease_until=db_now(-1.0))
    )


def finish_chunk(connection: Connection, claim: Claim) -> None:
    """Marks the chunk done: the fence. Raises LeaseLost, and the caller's transaction must roll back."""
    finished = connection.execute(
        chunks.update()
        .where(*_mine(claim))
        .values(state=ChunkState.DONE, lease_until=None, error=None, finished_at=db_now())
    )
    if finished.rowcount != 1:
        raise LeaseLost


def end_job(
    connection: Connection,
    job_id: str,
    state: JobState,
    *only_if: sa.ColumnElement[bool],
    error: str | None = None,
) -> bool:
    """Stops a job that has not finished: `failed` or `cancelled`. Its waiting chunks are dropped, outcomes
    stay, and a chunk that is being worked on may still bring its own in. False where it had finished.
    """
    ended = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.RECEIVING, JobState.RUNNING]), *only_if)
        .values(state=state, error=error, finished_at=db_now())
    )
    if ended.rowcount != 1:
        return False
    # Whoever holds the job's row must not wait for a chunk's: a worker that finishes locks them the other
    # way round. A chunk that is locked at this moment is somebody's; what it leaves, the reconciler drops.
    waiting = (
        sa.select(chunks.c.id)
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.PENDING)
        .with_for_update(skip_locked=True)
    )
    connection.execute(
        chunks.update().where(chunks.c.id.in_(waiting)).values(state=ChunkState.DROPPED, finished_at=db_now())
    )
    return True


def chunk_is_due() -> sa.ColumnElement[bool]:
    """Waits for a worker, or has lost the one it had."""
    return sa.and_(
        # The first half is the condition of the partial index on open chunks.
        chunks.c.state.in_([ChunkState.PENDING, ChunkState.CLAIMED]),
        sa.or_(chunks.c.state == ChunkState.PENDING, chunks.c.lease_until < db_now()),
    )


def job_was_stopped() -> sa.ColumnElement[bool]:
    """Of a chunk: its job failed or was cancelled."""
    stopped = jobs.c.state.in_([JobState.FAILED, JobState.CANCELLED])
    return sa.exists().where(jobs.c.id == chunks.c.job_id, stopped).correlate(chunks)


def _mine(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        chunks.c.id == claim.chunk_id,
        chunks.c.token == claim.token,
        chunks.c.state == ChunkState.CLAIMED,
    )
