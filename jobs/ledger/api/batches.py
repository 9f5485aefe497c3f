"""Batches: jobs that were submitted over HTTP, and the lease of the process that takes their images in.

A batch is committed before its images are read. Any intake process claims it, under a lease with a fencing
token, and adds the images to its job. If the process is killed, the next one continues after the last image
that is in the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, LeaseLost, NotFound
from jobs.ids import new_id
from jobs.ledger.api.files import delete_file, known_files
from jobs.ledger.jobs.claims import RETRY_SECONDS
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.queries import JobStatus, check_retry
from jobs.ledger.jobs.submission import DEFAULT_PRIORITY, open_job
from jobs.options import JobOptions
from jobs.schema import (
    JobState,
    api_keys,
    batch_metadata,
    batch_urls,
    batches,
    chunks,
    db_now,
    jobs,
    projects,
)

#: A claim expires after so many seconds, unless it is renewed.
INTAKE_LEASE_SECONDS: Final = 60.0

#: A batch fails after so many claims in a row that added no image: something in it kills the process.
MAX_ATTEMPTS: Final = 5

#: A batch fails after so many claims in a row that ended because something was unavailable: a day of them, as
#: the longest of the pauses in between is a minute.
MAX_RELEASES: Final = 1_440

#: Maximum batches that wait for an intake process: no more are accepted.
MAX_WAITING_BATCHES: Final = 100_000


#: The name of a retry's own option in its request: leave out images that never got an outcome.
FAILED_ONLY: Final = "failed_only"

_BATCHES: Final = sa.select(
    *batches.c["job_id", "request", "file_id"], api_keys.c.name.label("submitted_by")
).outerjoin_from(batches, api_keys)

#: Composed once, because it is read all the time.
_BATCH_OF: Final = _BATCHES.where(batches.c.job_id == sa.bindparam("job_id"))

#: The priority of a batch. Its default depends on the number of images, which is unknown before the intake.
_PRIORITY: Final = sa.func.coalesce(batches.c.request["priority"].as_integer(), DEFAULT_PRIORITY)

#: The condition for a batch that a process can claim. The first part is that of the index.
_IS_FREE: Final = sa.and_(
    batches.c.state != "done",
    sa.or_(
        sa.and_(
            batches.c.state == "pending",
            sa.or_(batches.c.not_before.is_(None), batches.c.not_before <= db_now()),
        ),
        sa.and_(batches.c.state == "claimed", batches.c.lease_until < db_now()),
    ),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """How a batch was requested."""

    job_id: str
    request: dict[str, Any]
    file_id: str | None
    submitted_by: str | None = None  # the name of the API key; None: a command


@dataclass(frozen=True, slots=True)
class Intake:
    """A claimed batch: the right to add images to its job."""

    job_id: str
    project: str
    token: str
    request: dict[str, Any]
    file_id: str | None
    attempts: int
    releases: int  # since the latest progress
    unanswered: float  # seconds of waiting for objects since the latest one that could be read
    images: int  # that its job has already


@dataclass(frozen=True, slots=True)
class LastChunk:
    """Where a job's last images are."""

    payload: str
    payload_digest: str
    payload_offset: int
    images: int


def add_batch(
    connection: Connection,
    job_id: str,
    *,
    request: dict[str, Any],
    file_id: str | None,
    urls: Sequence[str] | None = None,
    state: str = "pending",
    key_id: str | None = None,
) -> None:
    """Add the batch of a job that was opened in the same transaction. `urls` are kept until they are read.

    `key_id` is the API key that submits it.
    """
    project = sa.select(jobs.c.project).where(jobs.c.id == job_id).scalar_subquery()
    connection.execute(
        batches.insert().values(
            job_id=job_id,
            project=project,
            request=request,
            file_id=file_id,
            key_id=key_id,
            state=state,
            created_at=db_now(),
        )
    )
    if urls is not None:
        connection.execute(batch_urls.insert().values(job_id=job_id, urls=urls))
    pairs = (request.get("metadata") or {}).items()
    if pairs:
        rows = [{"job_id": job_id, "name": name, "value": value} for name, value in pairs]
        connection.execute(batch_metadata.insert().values(project=project), rows)


def repeat_batch(connection: Connection, job_id: str, retry_id: str) -> None:
    """Give the retry of a batch the batch's request: its metadata, and where its webhook goes.

    Its images are there already, so no intake process has to read any. A job that was not submitted over HTTP
    has no request to give.
    """
    batch = find_batch(connection, job_id)
    if batch is not None:
        add_batch(connection, retry_id, request=batch.request, file_id=None, state="done")


def add_retry(
    connection: Connection,
    job_id: str,
    retry_id: str,
    *,
    key: str | None,
    failed_only: bool,
    key_id: str | None = None,
) -> bool:
    """Add a batch of a finished job's images without a label, which an intake process copies later.

    It has the job's model and, if the job is a batch, its request: metadata, webhook and priority. With
    `failed_only`, leave out images that never got an outcome. Return False, and add nothing, if there is no
    such image. Raises NotFound; Conflict if the job cannot be retried, or another job has the key.
    """
    status = check_retry(connection, job_id)
    unread = None if failed_only else find_unread(connection, status)
    if not (status.failed if failed_only else status.total - status.succeeded) and unread is None:
        return False
    options = JobOptions(project=status.project, key=key, top_k=status.top_k)
    open_job(connection, retry_id, options, model_id=status.model, retry_of=job_id)
    batch = find_batch(connection, job_id)
    request = (batch.request if batch is not None else {}) | {FAILED_ONLY: failed_only}
    file_id = unread.file_id if unread is not None else None
    add_batch(connection, retry_id, request=request, file_id=file_id, key_id=key_id)
    return True


def find_unread(connection: Connection, status: JobStatus) -> Batch | None:
    """Return the batch of a job that was stopped before all its images were read, or None if all were.

    Raises Conflict if the rest cannot be read any more: `urls` are gone then, and files may be.
    """
    if status.submitted_at is not None:
        return None
    batch = find_batch(connection, status.id)
    if batch is not None:
        has_file = batch.file_id is not None and known_files(connection, [batch.file_id])
        if status.retry_of is not None or has_file or batch.request.get("source_url"):
            return batch
    raise Conflict(
        f"Job {status.id} was stopped when {status.total:,} of its images had been read, and the rest "
        "cannot be read here any more: submit all of them again, or retry only those with an error."
    )


def find_batch(connection: Connection, job_id: str) -> Batch | None:
    """Return the batch of a job, or None if the job was not submitted over HTTP."""
    row = connection.execute(_BATCH_OF, {"job_id": job_id}).one_or_none()
    return None if row is None else Batch(**row._mapping)


def is_batch_free(connection: Connection, *, busy: Collection[str] = ()) -> bool:
    """Return whether a process can claim a batch of a project that is not among the `busy` ones."""
    free = sa.select(batches.c.job_id).where(_IS_FREE, batches.c.project.not_in(busy))
    return connection.scalar(free.limit(1)) is not None


def is_backlog_full(connection: Connection) -> bool:
    """Return whether too many batches wait for an intake process."""
    waiting = sa.select(batches.c.job_id).where(batches.c.state != "done").limit(MAX_WAITING_BATCHES)
    count = connection.scalar(sa.select(sa.func.count()).select_from(waiting.subquery()))
    return (count or 0) >= MAX_WAITING_BATCHES


def abandoned_seconds(connection: Connection) -> float | None:
    """Return the seconds that the oldest batch has waited for an intake process.

    None if no batch waits, or an intake process is at work: it takes the others in later.
    """
    is_open = sa.exists().where(jobs.c.id == batches.c.job_id, jobs.c.state == JobState.RECEIVING)
    row = connection.execute(
        sa.select(
            sa.func.min(batches.c.created_at).label("oldest"),
            sa.func.max(batches.c.lease_until).label("lease"),
            db_now().label("now"),
        ).where(batches.c.state != "done", is_open)
    ).one()
    if row.oldest is None or (row.lease is not None and row.lease > row.now):
        return None
    waited: timedelta = row.now - row.oldest
    return waited.total_seconds()


def find_batches(connection: Connection, job_ids: Collection[str]) -> dict[str, Batch]:
    """Return the batches of these jobs by id. Jobs that were not submitted over HTTP are left out."""
    found = connection.execute(_BATCHES.where(batches.c.job_id.in_(job_ids)))
    return {row.job_id: Batch(**row._mapping) for row in found}


def claim_intake(connection: Connection, *, owner: str, busy: Collection[str] = ()) -> Intake | None:
    """Claim a batch that no process takes in, or return None.

    Projects take turns: it is a batch of the one whose latest claim is the longest ago, except the `busy`
    ones. Of its batches, the one with the highest priority is first, then the oldest. A batch whose job was
    stopped needs no intake any more. A batch that was claimed too often without progress fails.
    """
    stopped = sa.exists().where(jobs.c.id == batches.c.job_id, jobs.c.state != JobState.RECEIVING)
    closed = batches.update().where(batches.c.state != "done", stopped).values(state="done")
    columns = (batches.c.job_id, batches.c.request, batches.c.file_id)
    for each in connection.execute(closed.returning(*columns)).all():
        _delete_urls(connection, each.job_id)
        delete_input(connection, each.request, each.file_id)
    # The index finds the open batches, which are few, and they are sorted.
    first = (
        sa.select(batches.c.job_id)
        .join(projects, projects.c.name == batches.c.project)
        .where(_IS_FREE, batches.c.project.not_in(busy))
        .order_by(projects.c.intake_at.nulls_first(), _PRIORITY.desc(), batches.c.created_at)
        .limit(1)
        .with_for_update(of=batches, skip_locked=True)
    )
    token = new_id()
    row = connection.execute(
        batches.update()
        .where(batches.c.job_id == first.scalar_subquery())
        .values(
            state="claimed",
            attempts=batches.c.attempts + 1,
            token=token,
            owner=owner,
            lease_until=db_now(INTAKE_LEASE_SECONDS),
            not_before=None,
        )
        .returning(*batches.c["job_id", "project", "token", "request", "file_id"])
        .returning(*batches.c["attempts", "releases", "unanswered"])
    ).one_or_none()
    if row is None:
        return None
    connection.execute(projects.update().where(projects.c.name == row.project).values(intake_at=db_now()))
    images = connection.execute(sa.select(jobs.c.total).where(jobs.c.id == row.job_id)).scalar_one()
    intake = Intake(**row._mapping, images=images)
    if intake.attempts > MAX_ATTEMPTS:
        why = f"Reading its images ended the intake process {MAX_ATTEMPTS} times: submit them in parts."
        fail_intake(connection, intake, why)
        return None
    return intake


def delete_input(connection: Connection, request: dict[str, Any], file_id: str | None) -> None:
    """Delete the row of a batch's uploaded file, if that was requested and no other batch reads the file.

    The caller, or else a purge, removes its bytes.
    """
    if request.get("delete_input") and file_id is not None:
        delete_unused(connection, file_id)


def delete_unused(connection: Connection, file_id: str) -> bool:
    """Delete the row of an uploaded file, unless a batch still reads it. Return whether it was deleted."""
    with suppress(NotFound, Conflict), connection.begin_nested():
        delete_file(connection, file_id)
        return True
    return False


def read_urls(connection: Connection, job_id: str) -> list[str] | None:
    """Return the `urls` of a batch whose images are not all read, or None if it has another source."""
    urls: list[str] | None = connection.scalar(
        sa.select(batch_urls.c.urls).where(batch_urls.c.job_id == job_id)
    )
    return urls


def _delete_urls(connection: Connection, job_id: str) -> None:
    connection.execute(batch_urls.delete().where(batch_urls.c.job_id == job_id))


def last_chunk(connection: Connection, job_id: str) -> LastChunk:
    """Return the last chunk of a job that has one."""
    columns = (chunks.c.payload, chunks.c.payload_digest, chunks.c.payload_offset, chunks.c.images)
    query = sa.select(*columns).where(chunks.c.job_id == job_id)
    return LastChunk(*connection.execute(query.order_by(chunks.c.first_index.desc()).limit(1)).one())


def is_held(connection: Connection, intake: Intake) -> bool:
    """Return whether the claim is still ours, and the job has not been stopped."""
    ours = sa.select(jobs.c.id).join(batches, batches.c.job_id == jobs.c.id).where(_is_ours(intake))
    return connection.scalar(ours.where(jobs.c.state == JobState.RECEIVING)) is not None


def hold_intake(connection: Connection, intake: Intake) -> None:
    """Renew the claim. Raises LeaseLost if another process has claimed the batch."""
    _update(connection, intake, lease_until=db_now(INTAKE_LEASE_SECONDS))


def note_progress(connection: Connection, intake: Intake, *, unanswered: float) -> None:
    """Renew the claim, in the transaction that adds images. Raises LeaseLost."""
    lease = db_now(INTAKE_LEASE_SECONDS)
    _update(connection, intake, lease_until=lease, attempts=0, releases=0, unanswered=unanswered)


def finish_intake(connection: Connection, intake: Intake) -> None:
    """Record that the batch needs no intake any more. Raises LeaseLost."""
    _update(connection, intake, state="done", lease_until=None)
    _delete_urls(connection, intake.job_id)


def release_intake(connection: Connection, intake: Intake, **values: Any) -> None:
    """Give the claim back, so that any process can claim the batch. Raises LeaseLost.

    The attempt does not count.
    """
    attempts = sa.case((batches.c.attempts > 0, batches.c.attempts - 1), else_=0)
    _update(connection, intake, state="pending", attempts=attempts, lease_until=None, **values)


def postpone_intake(connection: Connection, intake: Intake, why: str) -> None:
    """Give the claim back because something is unavailable. Raises LeaseLost.

    The batch is claimed again after a pause, which grows as for chunks. After a day of pauses it fails.
    """
    if intake.releases >= MAX_RELEASES:
        fail_intake(connection, intake, f"Its images could not be read for a day: {why}")
        return
    seconds = RETRY_SECONDS[min(intake.releases, len(RETRY_SECONDS) - 1)]
    release_intake(connection, intake, releases=intake.releases + 1, not_before=db_now(seconds))


def fail_intake(connection: Connection, intake: Intake, why: str) -> None:
    """End the job as failed, and its intake. Raises LeaseLost."""
    finish_intake(connection, intake)
    end_job(connection, intake.job_id, JobState.FAILED, error=why)
    delete_input(connection, intake.request, intake.file_id)


def _is_ours(intake: Intake) -> sa.ColumnElement[bool]:
    return sa.and_(
        batches.c.job_id == intake.job_id, batches.c.token == intake.token, batches.c.state == "claimed"
    )


def _update(connection: Connection, intake: Intake, **values: Any) -> None:
    """Change the batch. Raises LeaseLost if another process has claimed it."""
    held = connection.execute(batches.update().where(_is_ours(intake)).values(**values))
    if held.rowcount != 1:
        raise LeaseLost("Another process has claimed this batch.")
