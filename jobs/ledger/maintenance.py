"""What the reconciler does in the ledger: expired leases, abandoned jobs, stalled sessions, and its lock."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import Reason, lease_expired, next_due, release_claims
from jobs.ledger.control import JOB_GOES_ON, end_job
from jobs.ledger.database import APPLICATION, STANDSTILL_SECONDS, insert_into
from jobs.ledger.submission import ABANDONED_SECONDS
from jobs.schema import JobState, db_now, jobs, locks

#: The lock of the process that reconciles.
RECONCILE_LOCK: Final = "reconcile"

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


def release_expired_claims(connection: Connection) -> int:
    """Make claimed chunks whose lease has run out pending again, with a crash counted. Return how many."""
    return release_claims(connection, lease_expired(), Reason.EXPIRED)


def count_due(connection: Connection, *, limit: int) -> int:
    """Return how many chunks are due, counting no further than `limit`."""
    return connection.scalar(sa.select(sa.func.count()).select_from(next_due(limit).subquery())) or 0


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
