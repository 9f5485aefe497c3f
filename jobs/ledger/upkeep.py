"""The reconciler's view: which chunks need another message, which jobs were abandoned, and its lock."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import JOB_GOES_ON, chunk_is_due, drop_chunks, end_job, job_was_stopped, may_ring
from jobs.ledger.database import APPLICATION, STANDSTILL_SECONDS, insert_into
from jobs.ledger.gathering import is_gathered, of_a_small_job
from jobs.ledger.intake import ABANDONED_SECONDS, QUIET_SECONDS
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs, locks

#: The lock of whoever reconciles.
RECONCILE_LOCK: Final = "reconcile"

#: The states of a chunk that may be due.
_OPEN: Final = (ChunkState.PENDING, ChunkState.CLAIMED)

#: How many of the chunks that wait are looked at for whether their job was stopped.
LOOKED_AT: Final = 1_000

#: Why a job whose producer vanished is marked as failed.
ABANDONED: Final = "Its producer stopped before the submission was complete: submit it again."

#: Of this ledger and this user: in the middle of a statement, having written, and the other end silent. That
#: end reads or sends a chunk's rows, which takes less than a second.
_END_STANDING_SESSIONS: Final = sa.text("""
    SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = :application
      AND state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite') AND backend_xid IS NOT NULL
      AND query_start < clock_timestamp() - make_interval(secs => :seconds)
""")


def take_lock(connection: Connection, name: str, holder: str, *, seconds: float) -> bool:
    """Takes, or keeps, what only one may hold. A holder that died loses it after `seconds`."""
    taken = connection.scalar(
        insert_into(connection, locks)
        .values(name=name, holder=holder, until=db_now(seconds))
        .on_conflict_do_update(
            index_elements=[locks.c.name],
            set_={"holder": holder, "until": db_now(seconds)},
            where=sa.or_(locks.c.holder == holder, locks.c.until < db_now()),
        )
        .returning(locks.c.holder)
    )
    return taken is not None


def count_due(connection: Connection, *, limit: int) -> int:
    """How many chunks wait for a worker or have lost theirs; counts no further than `limit`."""
    due = _next_due(limit).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(due)) or 0


def chunks_to_ring(connection: Connection, *, limit: int) -> list[tuple[str, bool]]:
    """Up to `limit` due chunks whose time to be rung for has come, the oldest first: by id, and whether
    it goes ahead of others. Marks them as rung now, so the caller must send the messages. Those that are
    gathered are left out: of them one message is enough (`overdue_small`).
    """
    # Asked for apart: of one state they are in the order of the index on open chunks, of both together all
    # that waits would have to be read and sorted.
    due = [chunk for state in _OPEN for chunk in connection.execute(_oldest_to_ring(state, limit))]
    due.sort(key=lambda chunk: chunk.created_at)
    waiting = [(chunk.id, bool(chunk.ahead)) for chunk in due[:limit] if not chunk.gathered]
    if waiting:
        connection.execute(
            chunks.update()
            .where(chunks.c.id.in_([chunk_id for chunk_id, _ in waiting]))
            .values(rung_at=db_now(), ring_after=db_now(QUIET_SECONDS))
        )
    return waiting


def _oldest_to_ring(state: ChunkState, limit: int) -> sa.Select[tuple[str, datetime, bool, bool]]:
    # Skipping what is locked: a chunk is locked by a worker that finishes it late or has just claimed it. The
    # caller is a worker's main loop, which must not stand still because another worker does.
    return (
        sa.select(
            chunks.c.id,
            chunks.c.created_at,
            of_a_small_job().label("ahead"),
            is_gathered().label("gathered"),
        )
        .where(chunk_is_due(), chunks.c.state == state, may_ring())
        .order_by(chunks.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def _next_due(limit: int) -> sa.Select[tuple[str]]:
    # In the order of the index on open chunks, claimed ones first: without it PostgreSQL may read the table
    # from its beginning, where all that is done lies.
    due = sa.select(chunks.c.id).where(chunk_is_due())
    return due.order_by(chunks.c.state, chunks.c.created_at).limit(limit)


def drop_leftover_chunks(connection: Connection) -> None:
    """Drops what a stopped job left: chunks that somebody was at when it was stopped, and gave up since.
    Looks at those that come next, not at all that waits: what is left further behind is dropped in its turn.
    """
    # Skipping what is locked: a worker that finishes late has its chunk and waits for its job, whose row the
    # caller may have.
    left = (
        sa.select(chunks.c.id)
        .where(chunks.c.id.in_(_next_due(LOOKED_AT)), chunk_is_due(), job_was_stopped())
        .with_for_update(skip_locked=True)
    )
    drop_chunks(connection, left)


def end_standing_sessions(connection: Connection) -> int:
    """Ends the sessions on PostgreSQL whose process stood still in the middle of writing, so that what they
    hold locked is free again; gives back how many.

    A process that is stopped, or whose machine is, in the middle of COPY, of a pipeline or of reading what it
    has changed is beyond all of PostgreSQL's own timeouts: while a server waits for the other end it heeds
    nothing but an order to end. Only those of the same user can be ended, so all workers have to share one.
    """
    if connection.dialect.name != "postgresql":
        return 0
    ended = connection.scalar(
        _END_STANDING_SESSIONS, {"application": APPLICATION, "seconds": STANDSTILL_SECONDS}
    )
    return ended or 0


def fail_abandoned_jobs(connection: Connection) -> list[str]:
    """Ends the jobs whose producer was killed in mid-submission; gives back their ids."""
    abandoned = sa.select(jobs.c.id).where(
        JOB_GOES_ON, jobs.c.state == JobState.RECEIVING, jobs.c.touched_at < db_now(-ABANDONED_SECONDS)
    )
    # Skipping what is locked: that job's producer may be giving a sign of life at this moment, or somebody
    # holds the row for long, for whom nobody else's job shall wait.
    job_ids = connection.scalars(abandoned.with_for_update(skip_locked=True)).all()
    return [job_id for job_id in job_ids if end_job(connection, job_id, JobState.FAILED, error=ABANDONED)]
