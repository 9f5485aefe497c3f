"""How a worker takes a chunk and gives it back: a lease with a fencing token.

Whoever claims a chunk writes a fresh token into it. Every later statement about the chunk carries the token
and touches nothing where it is no longer the one in the row, so a worker that was declared dead and comes
back cannot do harm. `jobs.ledger.outcomes` ends a claim with results, `jobs.ledger.isolation` one of a chunk
that keeps crashing. Small chunks are claimed many at a time, under one token (`jobs.ledger.gathering`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode, JobStopped, LeaseLost
from jobs.ids import new_id
from jobs.ledger.counters import AttemptEnd, CounterName, count
from jobs.schema import STOPPED, UNFINISHED, ChunkState, JobState, chunks, db_now, jobs

#: A chunk that was given back is rung for again after this many seconds, twice as many the next time, and so
#: on: what is out of reach must not be asked for ten times a second by everybody.
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0

#: The condition of the index on open chunks, to the letter: with parameters in the place of the states,
#: SQLite does not see that the index will do, and reads all chunks there are.
CHUNK_IS_OPEN: Final = sa.text("chunks.state IN ('pending', 'claimed')")

#: And that of the index on unfinished jobs. One that ended while it was paused keeps its `paused_at`.
JOB_GOES_ON: Final = sa.text("jobs.state IN ('receiving', 'running')")

#: How an attempt ended whose lease ran out while nobody renewed it.
VANISHED: Final = "its worker vanished without a word"


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
    payload_digest: str
    payload_offset: int
    attempts: int
    #: Attempts before this one that ended in a death, a time-out or an error of the program.
    crashes: int
    #: What an image becomes that crashed alone; None where nothing has crashed yet.
    crash_code: ErrorCode | None
    #: How the latest attempt ended that did not finish.
    error: str | None
    #: The trace that the job belongs to, if to any (`jobs.traces`).
    traceparent: str | None = None


def claim_chunk(
    connection: Connection, chunk_id: str, *, lease_seconds: float, owner: str, token: str | None = None
) -> Claim | None:
    """Takes the chunk if it is pending or its lease ran out; None where there is nothing to do.

    The attempt is counted, and committed by the caller, before a byte of the payload is looked at: a chunk
    that kills its worker has then been counted. A lease that ran out without a word counts as a crash.
    `token`: a fresh id of the caller's, who can then ask by `withdraw_claim` whether a commit went through.
    """
    token = token or new_id()
    taken = _take(connection, chunk_id, ChunkState.PENDING, lease_seconds, owner, token)
    if taken is None:
        # Asked for apart: afterwards the row does not tell any more whether a lease had run out.
        taken = _take(connection, chunk_id, ChunkState.CLAIMED, lease_seconds, owner, token)
        if taken is None:
            return None
        _count_end(connection, AttemptEnd.EXPIRED)
    job = connection.execute(_JOB_OF_CHUNK, {"of_job": taken.job_id}).one()
    if job.started_at is None:
        connection.execute(
            jobs.update()
            .where(jobs.c.id == taken.job_id, jobs.c.started_at.is_(None))
            .values(started_at=db_now())
        )
    return claim_of(taken, model_id=job.model_id, traceparent=job.traceparent)


def claim_of(taken: sa.Row[Any], *, model_id: str, traceparent: str | None) -> Claim:
    """The claim on a chunk whose row, as it is now, holds its token."""
    return Claim(
        chunk_id=taken.id,
        token=taken.token,
        job_id=taken.job_id,
        model_id=model_id,
        first_index=taken.first_index,
        images=taken.images,
        payload=taken.payload,
        payload_digest=taken.payload_sha256,
        payload_offset=taken.payload_offset,
        attempts=taken.attempts,
        crashes=taken.crashes,
        crash_code=ErrorCode(taken.crash_code) if taken.crash_code else None,
        error=taken.error,
        traceparent=traceparent,
    )


def _take(
    connection: Connection, chunk_id: str, state: ChunkState, lease_seconds: float, owner: str, token: str
) -> sa.Row[Any] | None:
    """Claims the chunk if it is due and in this state."""
    return connection.execute(
        _TAKE,
        {
            "of_chunk": chunk_id,
            "was": state,
            "by_owner": owner,
            "by_token": token,
            "for_seconds": lease_seconds,
        },
    ).one_or_none()


def renew_leases(connection: Connection, claims: Sequence[Claim], *, lease_seconds: float) -> None:
    """A fresh lease for chunks that take long, claimed under one token. Raises LeaseLost where none of them
    is the caller's any more, JobStopped where no job of theirs needs them.
    """
    job_state = sa.select(jobs.c.state).where(jobs.c.id == chunks.c.job_id).scalar_subquery()
    states = connection.scalars(
        chunks.update().where(ours(claims)).values(lease_until=db_now(lease_seconds)).returning(job_state)
    ).all()
    if not states:
        raise LeaseLost
    if all(state in STOPPED for state in states):
        raise JobStopped


def release_chunk(connection: Connection, claim: Claim, *, error: str) -> None:
    """Gives the chunk back unfinished, and not by its fault: a service is out of reach, or this worker was
    told to stop. Nothing happens where somebody else has it by now.
    """
    _give_back(
        connection,
        AttemptEnd.RELEASED,
        ours([claim]),
        error=error,
        releases=chunks.c.releases + 1,
        ring_after=db_now(min(RETRY_SECONDS * 2 ** min(claim.attempts - 1, 10), MAX_RETRY_SECONDS)),
    )


def put_back(connection: Connection, claims: Sequence[Claim]) -> None:
    """Gives back what was claimed along with others and never begun: to be taken at once, by anybody. Nothing
    happens to those that somebody else has by now.
    """
    _give_back(
        connection,
        AttemptEnd.RELEASED,
        ours(claims),
        error="those before it took long",
        releases=chunks.c.releases + 1,
        ring_after=None,
    )


def crash_chunk(connection: Connection, claim: Claim, *, code: ErrorCode, error: str) -> None:
    """Gives the chunk back after an error or a time-out that one of its images may have caused. Nothing
    happens where somebody else has it by now.
    """
    _give_back(
        connection,
        AttemptEnd.CRASHED,
        ours([claim]),
        error=error,
        crashes=chunks.c.crashes + 1,
        crash_code=code,
        ring_after=None,
    )


def bury_claim(connection: Connection, chunk_id: str, *, owner: str, code: ErrorCode, error: str) -> None:
    """Gives the chunk back, and all that were claimed with it, in the name of a process that is known to be
    dead, so that nobody waits for the lease to run out. Nothing happens where the claim is somebody else's.
    """
    named = chunks.alias()
    token = sa.select(named.c.token).where(named.c.id == chunk_id, named.c.owner == owner).scalar_subquery()
    _give_back(
        connection,
        AttemptEnd.CRASHED,
        *_claimed_under(token),
        error=error,
        crashes=chunks.c.crashes + 1,
        crash_code=code,
        ring_after=None,
    )


def withdraw_claim(connection: Connection, token: str, *, keep: str | None = None) -> None:
    """Gives back all that was claimed under this token, if anything was, but for the chunk that is to be
    kept: of the claim's COMMIT nobody knows whether it went through.
    """
    _give_back(
        connection,
        AttemptEnd.RELEASED,
        *_claimed_under(token),
        *(() if keep is None else (chunks.c.id != keep,)),
        error="the ledger was away when it was claimed",
        releases=chunks.c.releases + 1,
        ring_after=None,
    )


def finish_chunks(
    connection: Connection, claims: Sequence[Claim], state: ChunkState = ChunkState.DONE
) -> dict[str, int]:
    """Marks chunks that were claimed under one token done, or split: the fence. Gives back the ids of those
    that were the caller's, and how many images each has by now; nothing may be written about others. Raises
    LeaseLost where none was, and the caller's transaction must roll back.
    """
    ids, token = _named_by(claims)
    rows = connection.execute(_FINISH, {"of_chunks": ids, "by_token": token, "as_state": state}).all()
    finished = {row.id: row.images for row in rows}
    if not finished:
        raise LeaseLost
    _count_end(connection, AttemptEnd.DONE if state == ChunkState.DONE else AttemptEnd.SPLIT, len(finished))
    return finished


def were_finished(connection: Connection, claims: Sequence[Claim]) -> bool:
    """Whether any of the chunks was finished by these very claims, and with it all that were theirs: the
    answer after a COMMIT that broke off.
    """
    ids, token = _named_by(claims)
    finished = sa.select(chunks.c.id).where(
        chunks.c.id.in_(ids),
        chunks.c.token == token,
        chunks.c.state.in_([ChunkState.DONE, ChunkState.SPLIT]),
    )
    return connection.scalar(finished.limit(1)) is not None


def end_job(connection: Connection, job_id: str, state: JobState, *, error: str | None = None) -> bool:
    """Stops a job that has not finished: `failed` or `cancelled`. Its waiting chunks are dropped, outcomes
    stay, and a chunk that is being worked on may still bring its own in. False where it had finished.
    """
    ended = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
        .values(state=state, error=error, finished_at=db_now())
    )
    if ended.rowcount != 1:
        return False
    count(connection, {(CounterName.JOBS, state): 1})
    drop_waiting_chunks(connection, job_id)
    return True


def drop_waiting_chunks(connection: Connection, job_id: str) -> None:
    """Drops what still waits of a job that ended; the caller holds the job's row."""
    # Whoever holds the job's row must not wait for a chunk's: a worker that finishes locks them the other
    # way round. A chunk that is locked at this moment is somebody's; what it leaves, the reconciler drops.
    waiting = (
        sa.select(chunks.c.id)
        .where(chunks.c.job_id == job_id, chunks.c.state.in_([ChunkState.PENDING, ChunkState.HELD]))
        .with_for_update(skip_locked=True)
    )
    drop_chunks(connection, waiting)


def drop_chunks(connection: Connection, ids: sa.Select[tuple[str]] | list[str]) -> None:
    """Ends chunks that nobody is at, of a job that ended without them."""
    connection.execute(
        chunks.update()
        .where(chunks.c.id.in_(ids))
        .values(state=ChunkState.DROPPED, finished_at=db_now(), lease_until=None, **crash_if_vanished())
    )


def chunk_is_due() -> sa.ColumnElement[bool]:
    """Waits for a worker, or has lost the one it had."""
    return sa.and_(
        CHUNK_IS_OPEN,
        sa.or_(chunks.c.state == ChunkState.PENDING, chunks.c.lease_until < db_now()),
    )


def may_ring() -> sa.ColumnElement[bool]:
    """Of a chunk: it was not rung for, nor put off, a moment ago."""
    return sa.or_(chunks.c.ring_after.is_(None), chunks.c.ring_after < db_now())


def chunk_is_in_work() -> sa.ColumnElement[bool]:
    """A worker has it, and its lease has not run out."""
    return sa.and_(CHUNK_IS_OPEN, chunks.c.state == ChunkState.CLAIMED, chunks.c.lease_until >= db_now())


def crash_if_vanished() -> dict[str, Any]:
    """What is written to a chunk that is due, whoever comes by it first: where its lease ran out without a
    word, a crash.
    """
    vanished = chunks.c.state == ChunkState.CLAIMED
    return {
        "crashes": chunks.c.crashes + sa.case((vanished, 1), else_=0),
        "crash_code": sa.case((vanished, ErrorCode.QUARANTINED), else_=chunks.c.crash_code),
        "error": sa.case((vanished, VANISHED), else_=chunks.c.error),
    }


def job_was_stopped() -> sa.ColumnElement[bool]:
    """Of a chunk: its job failed or was cancelled."""
    stopped = jobs.c.state.in_(STOPPED)
    return sa.exists().where(jobs.c.id == chunks.c.job_id, stopped).correlate(chunks)


def job_is_paused() -> sa.ColumnElement[bool]:
    """Of a chunk: work on its job is held up."""
    return sa.exists().where(jobs.c.id == chunks.c.job_id, jobs.c.paused_at.is_not(None)).correlate(chunks)


def _named_by(claims: Sequence[Claim]) -> tuple[list[str], str]:
    """The ids of their chunks, and the one token of all."""
    (token,) = {claim.token for claim in claims}
    return [claim.chunk_id for claim in claims], token


def ours(claims: Sequence[Claim]) -> sa.ColumnElement[bool]:
    """The fence: those of these chunks that are still claimed under the token of all."""
    return _still_ours(*_named_by(claims))


def _claimed_under(token: str | sa.ScalarSelect[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return (sa.and_(CHUNK_IS_OPEN, chunks.c.state == ChunkState.CLAIMED), chunks.c.token == token)


def _give_back(
    connection: Connection, end: AttemptEnd, *which: sa.ColumnElement[bool], **values: Any
) -> None:
    given_back = connection.execute(
        chunks.update()
        .where(*which)
        .values(
            # Not held where the job is paused: it may be resumed at this moment, which would pass this chunk
            # over. Nobody can claim it, and the reconciler holds it (`jobs.ledger.pausing`).
            state=sa.case((job_was_stopped(), ChunkState.DROPPED), else_=ChunkState.PENDING),
            finished_at=sa.case((job_was_stopped(), db_now()), else_=None),
            lease_until=None,
            **values,
        )
    )
    if given_back.rowcount:
        _count_end(connection, end, given_back.rowcount)


def _count_end(connection: Connection, end: AttemptEnd, number: int = 1) -> None:
    count(connection, {(CounterName.ATTEMPTS, end): number})


# Built once: SQLAlchemy takes longer to put such statements together than the database to run them.

_TAKE: Final = (
    chunks.update()
    .where(chunks.c.id == sa.bindparam("of_chunk"), chunk_is_due(), ~job_was_stopped(), ~job_is_paused())
    .where(chunks.c.state == sa.bindparam("was"))
    .values(
        state=ChunkState.CLAIMED,
        token=sa.bindparam("by_token"),
        owner=sa.bindparam("by_owner"),
        attempts=chunks.c.attempts + 1,
        lease_until=db_now("for_seconds"),
        **crash_if_vanished(),
    )
    .returning(chunks)
)

_JOB_OF_CHUNK: Final = sa.select(jobs.c.model_id, jobs.c.started_at, jobs.c.traceparent).where(
    jobs.c.id == sa.bindparam("of_job")
)


def _still_ours(
    ids: list[str] | sa.BindParameter[Any], token: str | sa.BindParameter[Any]
) -> sa.ColumnElement[bool]:
    """The fence: of the chunks that were claimed together, those that still are."""
    return sa.and_(chunks.c.id.in_(ids), chunks.c.token == token, chunks.c.state == ChunkState.CLAIMED)


_FINISH: Final = (
    chunks.update()
    .where(_still_ours(sa.bindparam("of_chunks", expanding=True), sa.bindparam("by_token")))
    .values(state=sa.bindparam("as_state"), lease_until=None, finished_at=db_now())
    .returning(chunks.c.id, chunks.c.images)
)
