"""Small jobs are gathered: who has claimed a small chunk takes others that wait along, and classifies them as
one batch.

A job of one image is a chunk of one image. Alone, each would cost a message, three transactions and a batch
that is as good as empty; gathered, they share all but their message, which then finds nothing to do.

All that are gathered carry the token of the claim that they were gathered for, so whoever is at them can let
go of them, and the main process can bury them, knowing no more than one of them. Only a chunk that was never
tried is gathered: what crashed, or was given back, is taken alone, so that none pays for another one twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import Claim, claim_of, may_ring
from jobs.ledger.workers import classifying_processes
from jobs.schema import FRESH_AND_SMALL, SMALL_JOB_IMAGES, ChunkState, JobState, chunks, db_now, jobs

#: No more chunks than this at once: each has its payload to be read, while the first of them waits.
MAX_GATHERED: Final = 512

#: Of a chunk. The condition of its index to the letter: with parameters in the place of the constants,
#: neither database sees that the index will do.
_OF_THE_CHUNK: Final = (sa.text(FRESH_AND_SMALL), chunks.c.crash_code.is_(None))
_OF_ITS_JOB: Final = (jobs.c.state == JobState.RUNNING, jobs.c.chunks == 1, jobs.c.paused_at.is_(None))
_WAITING: Final = (*_OF_THE_CHUNK, *_OF_ITS_JOB)

#: The small chunk that has waited longest to be gathered: its id.
FIRST_SMALL: Final = (
    sa.select(chunks.c.id)
    .join(jobs, jobs.c.id == chunks.c.job_id)
    .where(*_WAITING)
    .order_by(chunks.c.created_at)
    .limit(1)
)
_OLDEST: Final = FIRST_SMALL.with_for_update(of=chunks, skip_locked=True)


def of_a_small_job() -> sa.ColumnElement[bool]:
    """Of a chunk: all of its job, which is small."""
    # Not EXISTS, for which PostgreSQL may read all jobs of one chunk that there are, and keep them at hand.
    only = sa.select(jobs.c.chunks == 1).where(jobs.c.id == chunks.c.job_id).correlate(chunks)
    return sa.and_(chunks.c.images <= SMALL_JOB_IMAGES, only.scalar_subquery())


def is_gathered() -> sa.ColumnElement[bool]:
    """Of a chunk: it waits to be taken along by whoever takes another small one."""
    of_its_job = sa.select(sa.and_(*_OF_ITS_JOB)).where(jobs.c.id == chunks.c.job_id).correlate(chunks)
    return sa.and_(*_OF_THE_CHUNK, of_its_job.scalar_subquery())


def oldest_small(connection: Connection) -> str | None:
    """The small chunk that has waited longest to be gathered, and nobody is about to take: the next to be
    rung for. Locks it until the transaction ends.
    """
    oldest: str | None = connection.scalar(_OLDEST)
    return oldest


def overdue_small(connection: Connection) -> str | None:
    """The same, if it has waited for so long that nobody seems to have rung for it."""
    overdue: str | None = connection.scalar(_OLDEST.where(may_ring()))
    return overdue


def may_gather(claim: Claim) -> bool:
    """Whether this chunk is one to gather others for: small, and never tried before."""
    return claim.images <= SMALL_JOB_IMAGES and claim.attempts == 1 and claim.crash_code is None


def gather_chunks(
    connection: Connection,
    claim: Claim,
    *,
    images: int,
    lease_seconds: float,
    owner: str,
    leave_out: Callable[[str], bool] | None = None,
) -> list[Claim]:
    """Claims the chunks of other small jobs that wait for the same model, the oldest first, with no more than
    `images` in all, but for those whose id is to be left out. To be called in the transaction of the claim
    that they join, whose token they get.

    Leaves the other processes their share of what waits: images may be large, and then one process would be
    at them for long while all others had nothing to do.
    """
    waiting = (
        sa.select(chunks.c.id, chunks.c.images, jobs.c.traceparent)
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .where(*_WAITING, jobs.c.model_id == claim.model_id)
        .order_by(chunks.c.created_at)
    )
    share = _share(connection, waiting)
    if not share:
        return []
    # Skipping what is locked: it is somebody's, or will be in a moment.
    found = connection.execute(waiting.limit(share).with_for_update(of=chunks, skip_locked=True))
    traces: dict[str, str | None] = {}
    for chunk_id, chunk_images, traceparent in found.all():
        if leave_out is not None and leave_out(chunk_id):
            continue
        images -= chunk_images
        if images < 0:
            break
        traces[chunk_id] = traceparent
    if not traces:
        return []
    taken = connection.execute(
        chunks.update()
        .where(chunks.c.id.in_(traces))
        .values(
            state=ChunkState.CLAIMED,
            token=claim.token,
            owner=owner,
            attempts=chunks.c.attempts + 1,
            lease_until=db_now(lease_seconds),
        )
        .returning(chunks)
    )
    return [claim_of(row, model_id=claim.model_id, traceparent=traces[row.id]) for row in taken]


def _share(connection: Connection, waiting: sa.Select[tuple[str, int, str | None]]) -> int:
    """How many of the waiting chunks are for one of the processes that classify."""
    # In their order, which only their index has: else PostgreSQL may look for them in all of the table.
    few = waiting.with_only_columns(chunks.c.id).limit(MAX_GATHERED).subquery()
    number: int
    number, processes = connection.execute(
        sa.select(
            sa.select(sa.func.count()).select_from(few).scalar_subquery(),
            classifying_processes(),
        )
    ).one()
    return -(-number // max(1, processes or 1))
