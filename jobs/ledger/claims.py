"""Claims: how a worker takes the next due chunk, and how it releases one without results.

A claim writes a fresh token into the chunk's row. Every later statement about the chunk carries the token and
touches nothing if the row has another one, so a worker that was declared dead and comes back does no harm.
`jobs.ledger.results` ends a claim with results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode, LeaseLost
from jobs.ids import new_id
from jobs.ledger.counters import AttemptEnd, CounterName, count
from jobs.schema import SMALL_JOB_IMAGES, UNFINISHED, ChunkState, chunks, db_now, jobs

#: Images of small chunks that are claimed together: a full batch (`worker.predicting.classifier.BATCH`).
COMBINED_CLAIM_IMAGES: Final = 512

#: A chunk that crashed this often is halved at its next claim. One crash may have any cause.
CRASHES_TO_SPLIT: Final = 2

#: An image that crashed this often while it was alone is not tried again. More than for a split, because this
#: is final: a good image that was near two unrelated deaths must still get its label.
CRASHES_TO_GIVE_UP: Final = 3

#: Seconds before a chunk is due again after a service was unavailable, by the releases before; then the last.
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

#: The conditions of the indexes on chunks, literally: with parameters instead of the states, neither database
#: sees that the index applies, and reads the whole table.
IS_PENDING: Final = sa.text("chunks.state = 'pending'")
IS_CLAIMED: Final = sa.text("chunks.state = 'claimed'")


class Reason(StrEnum):
    """Why a claim ended without results."""

    INTERRUPTED = "interrupted"  # the worker was told to stop
    UNAVAILABLE = "unavailable"  # a service could not be reached; the chunk waits with back-off
    CRASHED = "crashed"  # the process died, or raised an error that no image explains
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    EXPIRED = "expired"  # the lease ran out without a word

    @property
    def is_crash(self) -> bool:
        """Return whether it counts against the chunk: one of its images may be the cause."""
        return self not in (Reason.INTERRUPTED, Reason.UNAVAILABLE)


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
    #: Earlier attempts that ended with an unavailable service or a stopped worker, and in a crash.
    releases: int
    crashes: int
    #: The error code of an image that crashes alone; None if nothing has crashed yet.
    crash_code: ErrorCode | None
    #: How the latest attempt without results ended.
    error: str | None
    #: The trace that the job belongs to, if any (`jobs.traces`).
    traceparent: str | None
    #: The rest of a chunk that this claim has cut is pending.
    was_cut: bool = False

    @property
    def gives_up(self) -> bool:
        """Return whether its only image gets its error code without another attempt."""
        return self.images == 1 and self.crashes >= CRASHES_TO_GIVE_UP


def claim_next(
    connection: Connection,
    *,
    owner: str,
    token: str,
    lease_seconds: float,
    images_for: Callable[[str], int],
) -> list[Claim]:
    """Claim the next due chunk, and other small ones with it if it is small. Return [] if nothing is due.

    `images_for` returns how many images of a model, by its id, one claim may have: a larger chunk is cut. All
    claims carry the token. The caller commits before it reads a byte, so that a chunk that kills its worker
    has been counted.
    """
    chunk = connection.execute(_NEXT).one_or_none()
    if chunk is None:
        return []
    job = connection.execute(_JOB, {"of_job": chunk.job_id}).one()
    limit, crashes = images_for(job.model_id), chunk.crashes
    if crashes >= CRASHES_TO_SPLIT:
        # Both parts are suspected: one more crash splits them again.
        limit, crashes = min(limit, max(1, chunk.images // 2)), CRASHES_TO_SPLIT - 1
    ids, was_cut = [chunk.id], chunk.images > limit
    if was_cut:
        cut(connection, chunk, keep=limit, crashes=crashes)
    elif chunk.images <= SMALL_JOB_IMAGES and not chunk.attempts:
        ids += _small_chunks_like(
            connection, chunk, job.model_id, min(limit, COMBINED_CLAIM_IMAGES) - chunk.images
        )
    taken = connection.execute(
        _TAKE, {"ids": ids, "by_owner": owner, "by_token": token, "for_seconds": lease_seconds}
    ).all()
    traces = {chunk.job_id: job.traceparent}
    if len(taken) > 1:
        query = sa.select(jobs.c.id, jobs.c.traceparent).where(jobs.c.id.in_([row.job_id for row in taken]))
        traces = {row.id: row.traceparent for row in connection.execute(query)}
    claims = [
        Claim(
            **{**row._mapping, "crash_code": ErrorCode(row.crash_code) if row.crash_code else None},
            model_id=job.model_id,
            traceparent=traces[row.job_id],
            was_cut=was_cut,
        )
        for row in taken
    ]
    return sorted(claims, key=lambda claim: ids.index(claim.chunk_id))


def cut(connection: Connection, chunk: sa.Row[Any], *, keep: int, crashes: int) -> None:
    """Keep the first `keep` images in the pending chunk, and move the rest to a new one of the same age.

    Both start with `crashes`. An image that is alone starts with none: its neighbour may have been the cause.
    """
    rest = chunk.images - keep
    connection.execute(
        chunks.update().where(chunks.c.id == chunk.id).values(images=keep, crashes=crashes if keep > 1 else 0)
    )
    changed = {
        "id": new_id(),
        "first_index": chunk.first_index + keep,
        "images": rest,
        "payload_offset": chunk.payload_offset + keep,
        "crashes": crashes if rest > 1 else 0,
        "token": None,
        "owner": None,
        "not_before": None,
    }
    connection.execute(chunks.insert().values({**chunk._mapping, **changed}))


def release_claims(
    connection: Connection, which: sa.ColumnElement[bool], reason: Reason, error: str | None = None
) -> int:
    """Release claims without results. Return how many.

    `which`: `claimed_under`, `claimed_as`, `claimed_by` or `lease_expired`. Nothing happens to a chunk that
    another worker has claimed meanwhile. The chunk is pending again, or dropped if its job was stopped.
    """
    if reason.is_crash:
        timed_out = reason is Reason.TIMED_OUT
        values: dict[str, Any] = {
            "crashes": chunks.c.crashes + 1,
            "crash_code": ErrorCode.TIMEOUT if timed_out else ErrorCode.QUARANTINED,
        }
    else:
        values = {"releases": chunks.c.releases + 1}
    if reason is Reason.UNAVAILABLE:
        values["not_before"] = db_now(_BACK_OFF)
    released = connection.execute(
        chunks.update()
        .where(IS_CLAIMED, which)
        .values(
            # A paused job's chunk is not held here: the job may be resumed at this moment, which would pass
            # this chunk over. Nobody can claim it, and the reconciler holds it (`jobs.ledger.control`).
            state=sa.case((job_was_stopped(), ChunkState.DROPPED), else_=ChunkState.PENDING),
            finished_at=sa.case((job_was_stopped(), db_now()), else_=None),
            lease_until=None,
            error=error or _ERRORS[reason],
            **values,
        )
    ).rowcount
    if released:
        count(connection, {(CounterName.ATTEMPTS, _ATTEMPT_ENDS.get(reason, AttemptEnd.CRASHED)): released})
    return released


def claimed_under(token: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that were claimed under this token."""
    return chunks.c.token == token


def claimed_as(claims: Sequence[Claim]) -> sa.ColumnElement[bool]:
    """Return the condition for the chunks of these claims."""
    return sa.and_(chunks.c.id.in_([claim.chunk_id for claim in claims]), chunks.c.token == claims[0].token)


def claimed_by(owner: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that this process has claimed."""
    return chunks.c.owner == owner


def lease_expired() -> sa.ColumnElement[bool]:
    """Return the condition for all claimed chunks whose lease has run out."""
    # Skip locked rows: a worker that records late has its chunk locked, and the reconciler must not wait.
    expired = sa.select(chunks.c.id).where(IS_CLAIMED, chunks.c.lease_until < db_now())
    return chunks.c.id.in_(expired.with_for_update(skip_locked=True))


def finish_claims(connection: Connection, claims: Sequence[Claim]) -> set[str]:
    """Mark the chunks of claims under one token done: the fence. Return the ids of those still ours.

    Nothing may be recorded for any other. Raises LeaseLost if none is ours: the caller must roll back.
    """
    (token,) = {claim.token for claim in claims}
    ids = [claim.chunk_id for claim in claims]
    finished = set(connection.scalars(_FINISH, {"ids": ids, "by_token": token}))
    if not finished:
        raise LeaseLost
    count(connection, {(CounterName.ATTEMPTS, AttemptEnd.DONE): len(finished)})
    return finished


def were_finished(connection: Connection, claims: Sequence[Claim]) -> bool:
    """Return whether a chunk was finished under these claims' token, and so all that were still ours.

    This resolves a COMMIT whose answer was lost.
    """
    finished = sa.select(chunks.c.id).where(claimed_as(claims), chunks.c.state == ChunkState.DONE)
    return connection.scalar(finished.limit(1)) is not None


def chunk_is_due() -> sa.ColumnElement[bool]:
    """Return the condition for a chunk that waits for a worker, and whose back-off is over."""
    return sa.and_(IS_PENDING, sa.or_(chunks.c.not_before.is_(None), chunks.c.not_before <= db_now()))


def chunk_is_in_work() -> sa.ColumnElement[bool]:
    """Return the condition for a chunk that a worker has under a lease that has not run out."""
    return sa.and_(IS_CLAIMED, chunks.c.lease_until >= db_now())


def next_due(limit: int) -> sa.Select[tuple[str]]:
    """Return the query for the ids of the first due chunks, in the order in which they are claimed."""
    return sa.select(chunks.c.id).where(chunk_is_due()).order_by(*CLAIM_ORDER).limit(limit)


def job_was_stopped() -> sa.ColumnElement[bool]:
    """Return the condition for a chunk whose job failed, was cancelled, or is gone."""
    return ~sa.exists().where(jobs.c.id == chunks.c.job_id, jobs.c.state.in_(UNFINISHED)).correlate(chunks)


def _small_chunks_like(connection: Connection, chunk: sa.Row[Any], model_id: str, images: int) -> list[str]:
    """Return the ids of the next small chunks of the same model, with at most this many images.

    Only chunks that were never tried: one that crashed or was released is claimed alone, so that it cannot
    make others pay twice.
    """
    ids: list[str] = []
    if images <= 0:
        return ids
    for row in connection.execute(_SMALL, {"not_id": chunk.id, "of_model": model_id, "most": images}):
        images -= row.images
        if images < 0:
            break
        ids.append(row.id)
    return ids


#: The error of a release without more detail.
_ERRORS: Final = {
    Reason.INTERRUPTED: "its worker was told to stop",
    Reason.UNAVAILABLE: "a service could not be reached",
    Reason.CRASHED: "its worker crashed",
    Reason.TIMED_OUT: "it took longer than its time limit",
    Reason.OUT_OF_MEMORY: "it ran out of memory",
    Reason.EXPIRED: "its lease ran out: its worker vanished",
}

_ATTEMPT_ENDS: Final = {
    Reason.INTERRUPTED: AttemptEnd.RELEASED,
    Reason.UNAVAILABLE: AttemptEnd.RELEASED,
    Reason.EXPIRED: AttemptEnd.EXPIRED,
}

_BACK_OFF: Final = sa.case(dict(enumerate(RETRY_SECONDS)), value=chunks.c.releases, else_=RETRY_SECONDS[-1])

#: The order in which chunks are claimed: that of the index on pending chunks.
CLAIM_ORDER: Final = (chunks.c.priority.desc(), chunks.c.created_at, chunks.c.first_index)

# Built once: SQLAlchemy takes longer to put such statements together than the database takes to run them.

# A scalar subquery: for a join or EXISTS, PostgreSQL may choose a plan that reads and sorts all due chunks.
_JOB_IS_RUNNABLE: Final = (
    sa.select(sa.and_(jobs.c.state.in_(UNFINISHED), jobs.c.paused_at.is_(None)))
    .where(jobs.c.id == chunks.c.job_id)
    .correlate(chunks)
    .scalar_subquery()
)

_NEXT: Final = (
    sa.select(chunks)
    .where(chunk_is_due(), _JOB_IS_RUNNABLE)
    .order_by(*CLAIM_ORDER)
    .limit(1)
    .with_for_update(of=chunks, skip_locked=True)
)

_JOB: Final = sa.select(jobs.c.model_id, jobs.c.traceparent).where(jobs.c.id == sa.bindparam("of_job"))

# Among the next ones only, so that a million large chunks are not searched for small ones.
_SMALL: Final = (
    sa.select(chunks.c.id, chunks.c.images)
    .where(
        chunks.c.id.in_(next_due(COMBINED_CLAIM_IMAGES)),
        chunks.c.id != sa.bindparam("not_id"),
        chunk_is_due(),
        chunks.c.attempts == 0,
        chunks.c.images <= SMALL_JOB_IMAGES,
        sa.select(jobs.c.model_id == sa.bindparam("of_model"))
        .where(jobs.c.id == chunks.c.job_id)
        .correlate(chunks)
        .scalar_subquery(),
        _JOB_IS_RUNNABLE,
    )
    .order_by(*CLAIM_ORDER)
    .limit(sa.bindparam("most"))  # no more rows are locked than can be taken
    .with_for_update(of=chunks, skip_locked=True)
)

_TAKE: Final = (
    chunks.update()
    .where(chunks.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(
        state=ChunkState.CLAIMED,
        token=sa.bindparam("by_token"),
        owner=sa.bindparam("by_owner"),
        attempts=chunks.c.attempts + 1,
        not_before=None,
        lease_until=db_now("for_seconds"),
    )
    .returning(
        *(chunks.c.id.label("chunk_id"), chunks.c.token, chunks.c.job_id, chunks.c.first_index),
        *(chunks.c.images, chunks.c.payload, chunks.c.payload_sha256.label("payload_digest")),
        *(chunks.c.payload_offset, chunks.c.attempts, chunks.c.releases, chunks.c.crashes),
        *(chunks.c.crash_code, chunks.c.error),
    )
)

_FINISH: Final = (
    chunks.update()
    .where(
        chunks.c.id.in_(sa.bindparam("ids", expanding=True)),
        chunks.c.token == sa.bindparam("by_token"),
        chunks.c.state == ChunkState.CLAIMED,
    )
    .values(state=ChunkState.DONE, lease_until=None, finished_at=db_now())
    .returning(chunks.c.id)
)
