"""What is removed when it is old: the payloads of finished jobs, and finished jobs as a whole.

Every statement is a small transaction of its own, and they can break off anywhere: a job's mark comes before
its files are removed, and its row goes last, so that whoever goes on finds what is left. Its chunks go before
its predictions: as long as it has one, no prediction is missing (`jobs.ledger.progress`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.control import end_shadows, settle_job
from jobs.schema import FINISHED, chunks, db_now, jobs, predictions

#: Rows that one transaction deletes: some hundredths of a second of SQLite's only write lock.
DELETE_ROWS: Final = 10_000

_DAY_SECONDS: Final = 86_400.0


def finished_jobs(connection: Connection, *, days: float, with_payloads: bool = False) -> list[str]:
    """Jobs that finished more than so many days ago, the oldest first; `with_payloads`: only those whose
    payloads were not removed yet.
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
    # Chunks first and the job last, as a worker locks them.
    settled = [settle_job(connection, each) for each in (*end_shadows(connection, job_id), job_id)]
    if not all(settled):
        return False
    marked = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state.in_(FINISHED))
        .values(purged_at=sa.func.coalesce(jobs.c.purged_at, db_now()))
    )
    return marked.rowcount == 1


def shadows_of(connection: Connection, job_id: str) -> list[str]:
    """Return the ids of the job's shadows, whose predictions and chunks go with it."""
    return list(connection.scalars(sa.select(jobs.c.id).where(jobs.c.shadow_of == job_id)))


def payload_owners(connection: Connection, job_ids: Iterable[str]) -> dict[str, bool]:
    """Which of these jobs there are, and for each whether its payloads were marked as removed."""
    query = sa.select(jobs.c.id, jobs.c.purged_at.is_not(None)).where(jobs.c.id.in_(list(job_ids)))
    return {job_id: bool(purged) for job_id, purged in connection.execute(query)}


def prediction_ranges(connection: Connection, job_id: str) -> list[range]:
    """The indices of the job's predictions, in parts that one transaction may delete."""
    # Asked for once, not before each part: PostgreSQL would step over all that was deleted so far.
    first, last = connection.execute(
        sa.select(sa.func.min(predictions.c.index), sa.func.max(predictions.c.index)).where(
            predictions.c.job_id == job_id
        )
    ).one()
    if first is None:
        return []
    return [range(start, min(start + DELETE_ROWS, last + 1)) for start in range(first, last + 1, DELETE_ROWS)]


def delete_predictions(connection: Connection, job_id: str, indices: range) -> int:
    """Deletes the predictions of these images; gives back how many there were."""
    gone = connection.execute(
        predictions.delete().where(
            predictions.c.job_id == job_id,
            predictions.c.index >= indices.start,
            predictions.c.index < indices.stop,
        )
    )
    return gone.rowcount


def delete_chunks(connection: Connection, job_id: str) -> int:
    """Deletes up to `DELETE_ROWS` of the job's chunks; gives back how many there were, 0 at the end."""
    some = sa.select(chunks.c.id).where(chunks.c.job_id == job_id).limit(DELETE_ROWS)
    return connection.execute(chunks.delete().where(chunks.c.id.in_(some))).rowcount


def delete_job(connection: Connection, job_id: str) -> bool:
    """Deletes the job's row, when all else of it is gone. False where its payloads were not marked as
    removed, or somebody else deleted it.
    """
    gone = connection.execute(jobs.delete().where(jobs.c.id == job_id, jobs.c.purged_at.is_not(None)))
    connection.execute(jobs.delete().where(jobs.c.shadow_of == job_id))
    return gone.rowcount == 1
