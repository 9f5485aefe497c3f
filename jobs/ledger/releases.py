"""Releases: how a claim ends without results, and when its chunk is due again.

A crash is counted, because one of the chunk's images may be the cause: `jobs.ledger.claims` then splits the
chunk, until the image is alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode
from jobs.ledger.claims import IS_CLAIMED, job_was_stopped
from jobs.ledger.counters import AttemptEnd, CounterName, count
from jobs.schema import ChunkState, chunks, db_now

#: Seconds before a chunk is due again after a service was unavailable, by the releases before; then the last.
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_BACK_OFF: Final = sa.case(dict(enumerate(RETRY_SECONDS)), value=chunks.c.releases, else_=RETRY_SECONDS[-1])


class Reason(StrEnum):
    """Why a claim ended without results. From CRASHED on, it counts against the chunk as a crash."""

    INTERRUPTED = "interrupted"  # the worker was told to stop
    UNAVAILABLE = "unavailable"  # a service could not be reached; the chunk waits with back-off
    CRASHED = "crashed"  # the process died, or raised an error that no image explains
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    EXPIRED = "expired"  # the lease ran out without a word


def release_claims(connection: Connection, which: sa.ColumnElement[bool], reason: Reason, error: str) -> int:
    """Release claims without results; return how many there were.

    `which` is `claimed_under`, `claimed_as`, `claimed_by`, or a narrower condition than IS_CLAIMED. Nothing
    happens to a chunk that another worker has claimed meanwhile. The chunk is pending again, or dropped if
    its job was stopped.
    """
    values: dict[str, Any] = {}
    if reason in (Reason.INTERRUPTED, Reason.UNAVAILABLE):
        end = AttemptEnd.RELEASED
        values["releases"] = chunks.c.releases + 1
    else:
        end = AttemptEnd.EXPIRED if reason is Reason.EXPIRED else AttemptEnd.CRASHED
        values["crashes"] = chunks.c.crashes + 1
        values["crash_code"] = ErrorCode.TIMEOUT if reason is Reason.TIMED_OUT else ErrorCode.QUARANTINED
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
            error=error,
            **values,
        )
    ).rowcount
    if released:
        count(connection, {(CounterName.ATTEMPTS, end): released})
    return released


def claimed_under(token: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that were claimed under this token."""
    return chunks.c.token == token


def claimed_by(owner: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that this process has claimed."""
    return chunks.c.owner == owner
