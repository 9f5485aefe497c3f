"""Maintenance: what the reconciler does in the ledger, and what a purge removes.

A purge is a series of small transactions that can stop after any of them. It marks the job before it removes
files and deletes the job's row last, so the next purge finds what is left. It deletes the chunks before the
predictions: as long as a chunk exists, no prediction is missing (`jobs.ledger.jobs.queries`). Predictions
outlive their job only if their whole partition will soon be emptied (`jobs.ledger.partitions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger.database import APPLICATION, STALLED_SESSION_SECONDS
from jobs.ledger.jobs.claims import CLAIM_ORDER, IS_DUE, Reason, release_claims
from jobs.ledger.jobs.control import JOB_IS_UNFINISHED, end_job, settle_job, shadows_of
from jobs.ledger.jobs.submission import ABANDONED_SECONDS
from jobs.schema import CHUNK_IS_CLAIMED, FINISHED, JobState, batches, chunks, db_now, jobs, purges

# ---- the reconciler -------------------------------------------------------------------------------

#: Why a job whose producer vanished is marked as failed.
ABANDONED: Final = "Its producer stopped before the submission was complete: submit it again."

#: Claimed chunks whose lease has run out.
_EXPIRED: Final = sa.select(chunks.c.id).where(CHUNK_IS_CLAIMED, chunks.c.lease_until < db_now())

#: Sessions of this ledger and user that have written, and wait for their client within a statement. A client
#: sends or reads a chunk's rows in less than a second.
_END_STALLED_SESSIONS: Final = sa.text("""
    SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = :application
      AND state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite') AND backend_xid IS NOT NULL
      AND query_start < clock_timestamp() - make_interval(secs => :seconds)
""")


def has_expired_claim(connection: Connection) -> bool:
    """Return whether the lease of a claimed chunk has run out."""
    return connection.scalar(_EXPIRED.limit(1)) is not None


def release_expired_claims(connection: Connection, *, after_outage: bool = False) -> int:
    """Make claimed chunks whose lease has run out pending again. Return how many.

    Each counts a crash, except `after_outage`: then its worker may have been unable to release it.
    """
    # Skip locked rows: a worker that records late has its chunk locked, and the reconciler must not wait.
    which = chunks.c.id.in_(_EXPIRED.with_for_update(skip_locked=True))
    if after_outage:
        error = "its lease ran out while the ledger was unavailable"
        return release_claims(connection, which, Reason.UNAVAILABLE, error)
    return release_claims(connection, which, Reason.EXPIRED, "its lease ran out: its worker vanished")


def count_due(connection: Connection, *, limit: int) -> int:
    """Return how many chunks are due, counting no further than `limit`."""
    # In the order of the index: otherwise PostgreSQL may read the whole table.
    due = sa.select(chunks.c.id).where(IS_DUE).order_by(chunks.c.project, *CLAIM_ORDER).limit(limit)
    return connection.scalar(sa.select(sa.func.count()).select_from(due.subquery())) or 0


def end_stalled_sessions(connection: Connection) -> int:
    """End stalled sessions on PostgreSQL, which frees the locks they hold. Return how many.

    A session is stalled if its process, or its machine, stopped while PostgreSQL waited for it within a
    statement: during COPY, in a pipeline, or while it read a result. None of PostgreSQL's own timeouts
    applies then. Only sessions of the same database user can be ended, so all workers must share one user. On
    SQLite, do nothing.
    """
    if connection.dialect.name != "postgresql":
        return 0
    ended = connection.scalar(
        _END_STALLED_SESSIONS, {"application": APPLICATION, "seconds": STALLED_SESSION_SECONDS}
    )
    return ended or 0


def fail_abandoned_jobs(connection: Connection) -> list[str]:
    """Fail the jobs whose producer died during the submission. Return their ids."""
    abandoned = sa.select(jobs.c.id).where(
        JOB_IS_UNFINISHED, jobs.c.state == JobState.RECEIVING, jobs.c.touched_at < db_now(-ABANDONED_SECONDS)
    )
    # Any intake process may continue a batch, so it is never abandoned.
    is_batch = sa.exists().where(batches.c.job_id == jobs.c.id, batches.c.state != "done")
    abandoned = abandoned.where(~is_batch)
    # A locked job is skipped: its producer may be sending a heartbeat, and other jobs must not wait for that
    # row.
    job_ids = connection.scalars(abandoned.with_for_update(skip_locked=True)).all()
    return [job_id for job_id in job_ids if end_job(connection, job_id, JobState.FAILED, error=ABANDONED)]


# ---- what a purge removes -------------------------------------------------------------------------

#: How many rows one transaction deletes; it holds SQLite's only write lock for some hundredths of a second.
DELETE_ROWS: Final = 10_000

_DAY_SECONDS: Final = 86_400.0


def finished_jobs(connection: Connection, *, days: float, with_payloads: bool = False) -> list[str]:
    """Return the jobs that finished more than `days` days ago, oldest first.

    With `with_payloads`, return only those whose payloads are not marked as removed. Shadows are left out.
    """
    query = (
        sa.select(jobs.c.id)
        .where(jobs.c.state.in_(FINISHED), jobs.c.finished_at < db_now(-days * _DAY_SECONDS))
        .where(jobs.c.shadow_of.is_(None))  # a shadow goes with its job
        .order_by(jobs.c.finished_at, jobs.c.id)
    )
    if with_payloads:
        query = query.where(jobs.c.purged_at.is_(None))
    return list(connection.scalars(query))


def mark_purged(connection: Connection, job_id: str) -> bool:
    """Note that the job's payloads are about to be removed, and cancel its shadows, which read them.

    Return False, and note nothing, if it has not finished or a worker has a chunk of it or of a shadow.
    """
    shadow_ids = shadows_of(connection, job_id)
    for shadow_id in shadow_ids:
        end_job(connection, shadow_id, JobState.CANCELLED)
    # Chunks first and the job last, as a worker locks them.
    settled = [settle_job(connection, each) for each in (*shadow_ids, job_id)]
    if not all(settled):
        return False
    marked = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED))
        .values(purged_at=sa.func.coalesce(jobs.c.purged_at, db_now()))
    )
    return marked.rowcount == 1


def payload_owners(connection: Connection, job_ids: Iterable[str]) -> dict[str, bool]:
    """Return those of these jobs that exist, each with whether its payloads are marked as removed."""
    query = sa.select(jobs.c.id, jobs.c.purged_at.is_not(None)).where(jobs.c.id.in_(list(job_ids)))
    return {job_id: bool(purged) for job_id, purged in connection.execute(query)}


def count_predictions(connection: Connection, job_id: str) -> int:
    """Return how many predictions the job has, by its counters; 0 if there is no such job."""
    return connection.scalar(sa.select(jobs.c.succeeded + jobs.c.failed).where(jobs.c.id == job_id)) or 0


def delete_rows(
    connection: Connection, place: sa.Column[Any], job_id: str, *, after: int
) -> tuple[int, int | None]:
    """Delete the next rows of a job, at most `DELETE_ROWS`, whose place (of JOB_PLACES) is above `after`.

    Return how many there were, and the last one's place, or None if no rows are left.
    """
    # Deleted from place to place: PostgreSQL would otherwise scan over all rows deleted so far.
    following = sa.and_(place.table.c.job_id == job_id, place > after)
    query = sa.select(place).where(following).order_by(place).offset(DELETE_ROWS - 1).limit(1)
    last: int | None = connection.scalar(query)
    gone = sa.delete(place.table).where(following, sa.true() if last is None else place <= last)
    return connection.execute(gone).rowcount, last


def delete_job(connection: Connection, job_id: str) -> bool:
    """Delete the rows of the job and its shadows, when all else is gone.

    Return False if the job's payloads are not marked as removed, or its row is already deleted.
    """
    gone = connection.execute(jobs.delete().where(jobs.c.id == job_id, jobs.c.purged_at.is_not(None)))
    connection.execute(jobs.delete().where(jobs.c.shadow_of == job_id))
    return gone.rowcount == 1


def record_purge(connection: Connection, options: Mapping[str, Any], removed: Mapping[str, Any]) -> None:
    """Record what a purge with these options has removed."""
    row = {"id": new_id(), "options": dict(options), "removed": dict(removed), "ended_at": db_now()}
    connection.execute(purges.insert().values(row))
