"""Submission: what a producer writes. It opens a job, adds chunks, and seals the job when it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobs.errors import Conflict, NotFound, Stopped
from jobs.ledger.counters import CounterName, count
from jobs.ledger.webhook_outbox import report_ended_jobs
from jobs.limits import ErrorLimits
from jobs.options import DEFAULT_OPTIONS, JobOptions
from jobs.schema import JOB_PLACES, ChunkState, JobState, chunks, db_now, jobs, known_labels

#: A job in state `receiving` without a heartbeat for this long is abandoned: its producer was killed or has
#: stalled. A heartbeat comes every ten seconds (`producer.heartbeat`) and with every chunk.
ABANDONED_SECONDS: Final = 120.0

#: The priority of a small job, which must not wait behind a large one, and the default of every other job.
SMALL_JOB_PRIORITY: Final = 10
DEFAULT_PRIORITY: Final = 0


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk whose payload is already stored durably."""

    id: str
    first_index: int
    images: int
    payload: str
    payload_digest: str
    priority: int = DEFAULT_PRIORITY


# Built once: SQLAlchemy takes longer to build such a statement than the database takes to run it.

_COUNT_CHUNK: Final = (
    jobs.update()
    .where(jobs.c.id == sa.bindparam("of_job"), jobs.c.state == JobState.RECEIVING)
    .values(
        total=jobs.c.total + sa.bindparam("more", type_=sa.BigInteger()),
        touched_at=db_now(),
    )
    .returning(jobs.c.project, jobs.c.paused_at)
)

_ADD_CHUNK: Final = chunks.insert().values(created_at=db_now())


def open_job(
    connection: Connection,
    job_id: str,
    options: JobOptions = DEFAULT_OPTIONS,
    *,
    model_id: str,
    retry_of: str | None = None,
    traceparent: str | None = None,
) -> None:
    """Add a job in state `receiving`, pinned to the model `model_id`, which the options may name otherwise.

    Raises Conflict if another job holds the key, NotFound if the model was removed.
    """
    limits = options.error_limits or ErrorLimits()
    try:
        connection.execute(
            jobs.insert().values(
                id=job_id,
                project=options.project,
                key=options.key,
                state=JobState.RECEIVING,
                model_id=model_id,
                error_limit=limits.count,
                error_rate_limit=limits.rate,
                error_rate_sample=limits.sample,
                top_k=options.top_k,
                unlisted=options.unlisted,
                retry_of=retry_of,
                traceparent=traceparent,
                created_at=db_now(),
                touched_at=db_now(),
            )
        )
    except IntegrityError as error:
        if "foreign key" in str(error.orig).lower():
            raise NotFound(f"Model {model_id} has just been removed: name another model.") from error
        if options.key is None:
            raise
        raise Conflict(
            f"Another job has just been submitted under the key {options.key!r}: try again, or choose "
            "another key."
        ) from error


def add_chunk(
    connection: Connection, job_id: str, chunk: NewChunk, known: Mapping[int, str] | None = None
) -> None:
    """Add a chunk: pending, or held if the job is paused.

    `known` has true labels of its images, by their place in the chunk. Raises Stopped if the job is not being
    received.
    """
    job = connection.execute(_COUNT_CHUNK, {"of_job": job_id, "more": chunk.images}).one_or_none()
    if job is None:
        raise _stopped(connection, job_id)
    state = ChunkState.PENDING if job.paused_at is None else ChunkState.HELD
    connection.execute(
        _ADD_CHUNK, {**asdict(chunk), "job_id": job_id, "project": job.project, "state": state}
    )
    if known:
        rows = [
            {"job_id": job_id, "index": chunk.first_index + place, "label": label}
            for place, label in known.items()
        ]
        connection.execute(known_labels.insert(), rows)


def touch_job(connection: Connection, job_id: str) -> bool:
    """Write the producer's heartbeat. Return False, and change nothing, if the job is not being received."""
    touched = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state == JobState.RECEIVING)
        .values(touched_at=db_now())
    )
    return touched.rowcount == 1


def seal_job(connection: Connection, job_id: str, *, fingerprint: str | None) -> None:
    """Mark the job as complete: no chunk will be added. Raises Stopped if the job is not being received."""
    complete = jobs.c.succeeded + jobs.c.failed == jobs.c.total
    sealed = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.state == JobState.RECEIVING)
        .values(
            # The workers may have been faster than the producer.
            state=sa.case((complete, JobState.DONE), else_=JobState.RUNNING),
            finished_at=sa.case((complete, db_now()), else_=None),
            submitted_at=db_now(),
            touched_at=db_now(),
            fingerprint=fingerprint,
        )
        .returning(jobs.c.state)
    ).scalar_one_or_none()
    if sealed is None:
        raise _stopped(connection, job_id)
    if sealed == JobState.DONE:
        count(connection, {(CounterName.JOBS, JobState.DONE): 1})
        report_ended_jobs(connection, [job_id])


def _stopped(connection: Connection, job_id: str) -> Stopped:
    job = connection.execute(sa.select(jobs.c.error, jobs.c.key).where(jobs.c.id == job_id)).one_or_none()
    if job is None:
        return Stopped(
            f"Job {job_id} was removed while it was being submitted, by another submission under its key or "
            "by a purge. None of its results are kept."
        )
    why = f": {job.error.rstrip('.')}" if job.error else ""
    # A job that was never sealed is discarded by the next submission under its key.
    until = "" if job.key is None else f" until the key {job.key!r} is used again"
    return Stopped(
        f"Job {job_id} was stopped while it was being submitted{why}; the results so far are kept{until}."
    )


def discard_job(connection: Connection, job_id: str, *, keep_stopped: bool = False) -> bool:
    """Delete a job that was never sealed, with its chunks and predictions. Return whether it is gone.

    The caller removes the payloads. A worker that has one of the chunks loses its claim, and its results are
    discarded. Return False, and change nothing, if the job is sealed, even if that happened just now; with
    `keep_stopped`, also if it was cancelled or has failed.
    """
    # Chunks first and the job last, as a worker locks them. Whether the job is sealed is certain only once
    # its own row is locked.
    with connection.begin_nested() as savepoint:
        work, *results = (place.table for place in JOB_PLACES)
        connection.execute(sa.delete(work).where(work.c.job_id == job_id))
        may_go = jobs.c.state == JobState.RECEIVING if keep_stopped else sa.true()
        gone = connection.execute(
            jobs.delete().where(jobs.c.id == job_id, jobs.c.submitted_at.is_(None), may_go)
        )
        if gone.rowcount == 1:
            # Last, when nothing can be recorded any more. The first statement does not see the new part of a
            # chunk that is being cut at that moment: it is deleted with the job's row, and may already have
            # predictions.
            for table in results:
                connection.execute(sa.delete(table).where(table.c.job_id == job_id))
            return True
        stays = connection.scalar(sa.select(jobs.c.id).where(jobs.c.id == job_id)) is not None
        if stays:
            savepoint.rollback()
        return not stays


def sealed_images(connection: Connection, job_id: str) -> int | None:
    """Return the job's number of images, or None if it was never sealed or does not exist."""
    total: int | None = connection.scalar(
        sa.select(jobs.c.total).where(jobs.c.id == job_id, jobs.c.submitted_at.is_not(None))
    )
    return total


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """The job that holds a submission key."""

    job_id: str
    #: Its producer is alive and still submitting.
    receiving: bool
    #: It was submitted completely. If neither `receiving` nor `sealed`, its producer stopped halfway, and the
    #: key is free.
    sealed: bool
    fingerprint: str | None
    model_id: str
    top_k: int | None = None


def find_key(connection: Connection, project: str, key: str) -> KeyHolder | None:
    """Return the project's job that holds this submission key, or None."""
    alive = sa.and_(jobs.c.state == JobState.RECEIVING, jobs.c.touched_at >= db_now(-ABANDONED_SECONDS))
    row = connection.execute(
        sa.select(
            *jobs.c["id", "submitted_at", "fingerprint", "model_id", "top_k"], alive.label("alive")
        ).where(jobs.c.project == project, jobs.c.key == key)
    ).one_or_none()
    if row is None:
        return None
    sealed = row.submitted_at is not None
    return KeyHolder(row.id, bool(row.alive), sealed, row.fingerprint, row.model_id, row.top_k)
