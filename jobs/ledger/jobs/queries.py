"""Queries: what people ask for. Jobs, pages of predictions, ids, and images to retry. Reads only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, NotFound
from jobs.ids import id_range, is_id
from jobs.ledger.database import Ledger, batched
from jobs.ledger.jobs.control import settle_job, still_claimed
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.outcomes import COLUMN_NAMES, Prediction
from jobs.ledger.learning.models import CHAMPION, find_alias, get_model, model_or_champion
from jobs.models.dataset import MNIST
from jobs.models.model import Model
from jobs.schema import (
    FINISHED,
    PAYLOAD_COLUMNS,
    UNFINISHED,
    ChunkState,
    JobState,
    batch_metadata,
    chunks,
    db_now,
    jobs,
    models,
    predictions,
    training_runs,
)

# ---- jobs and predictions -------------------------------------------------------------------------

#: Rows read from the ledger at a time when a whole job is streamed: a few megabytes.
PAGE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job: its row, and how long its oldest pending chunk has waited."""

    # Its texts are those of the HTTP API and of the reference.
    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}

    id: str
    """the job's id"""
    project: str
    """the project that it belongs to"""
    state: JobState
    """its state"""
    total: int
    """images submitted so far; final once the state is no longer `receiving`"""
    succeeded: int
    """images with a label"""
    failed: int
    """images with an error"""
    model: str
    """id of the model that classifies the job"""
    key: str | None
    """the submission key, or null"""
    error: str | None
    """why the job failed, or null"""
    paused: bool
    """whether it is paused"""
    top_k: int | None
    """how many of the most probable classes each prediction keeps, or null"""
    retry_of: str | None
    """id of the job whose images it retries, or null"""
    created_at: datetime
    """when its first chunk was stored"""
    submitted_at: datetime | None
    """when the submission was complete"""
    started_at: datetime | None
    """when work began; null until the first results are recorded"""
    finished_at: datetime | None
    """when it ended"""
    purged_at: datetime | None
    """when the removal of its images began"""
    read_at: datetime
    """the database's time when this was read"""
    oldest_waiting_at: datetime | None
    """when its oldest waiting chunk was created; null if none waits"""

    @property
    def done(self) -> int:
        """Return how many images have a label or an error."""
        return self.succeeded + self.failed

    @property
    def finished(self) -> bool:
        """Return whether the job has ended."""
        return self.state in FINISHED

    @property
    def rate(self) -> float | None:
        """Return images per second since work began, or None if nothing is done yet."""
        if self.started_at is None or not self.done:
            return None
        seconds = ((self.finished_at or self.read_at) - self.started_at).total_seconds()
        return self.done / seconds if seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Return the estimated seconds to the end, or None if unknown."""
        # The total is not known while the job is being submitted.
        if self.state != JobState.RUNNING or self.paused:
            return None
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    @property
    def oldest_waiting_seconds(self) -> float | None:
        """Return how long the oldest pending chunk has waited, in seconds; None if none is pending."""
        if self.oldest_waiting_at is None:
            return None
        return max(0.0, (self.read_at - self.oldest_waiting_at).total_seconds())


#: When the oldest pending chunk of a job was created. The index on (job_id, state, first_index) finds it in
#: one step: chunks are created in the order of their images, and the rest of a chunk that was cut keeps its
#: creation time.
OLDEST_PENDING_AT: Final = (
    sa.select(chunks.c.created_at)
    .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.PENDING)
    .order_by(chunks.c.first_index)
    .limit(1)
    .scalar_subquery()
)

_STATUS: Final[sa.Select[Any]] = sa.select(
    *jobs.c["id", "project", "state", "total", "succeeded", "failed", "key", "error", "top_k", "retry_of"],
    *jobs.c["created_at", "submitted_at", "started_at", "finished_at", "purged_at"],
    jobs.c.model_id.label("model"),
    # A job that ended while it was paused keeps its `paused_at`.
    sa.and_(jobs.c.paused_at.is_not(None), jobs.c.state.in_(UNFINISHED)).label("paused"),
    OLDEST_PENDING_AT.label("oldest_waiting_at"),
    db_now().label("read_at"),
)

#: The status of one job. Composed once, because it is read all the time.
_STATUS_OF: Final = _STATUS.where(jobs.c.id == sa.bindparam("job_id"))


def _to_status(row: Row[Any]) -> JobStatus:
    return JobStatus(**{**row._mapping, "state": JobState(row.state)})


def job_status(connection: Connection, job_id: str, *, project: str | None = None) -> JobStatus:
    """Return the status of a job. Raises NotFound; with `project`, even for a job of another project."""
    row = connection.execute(_STATUS_OF, {"job_id": job_id}).one_or_none()
    if row is None or project not in (None, row.project):
        raise no_job(job_id)
    return _to_status(row)


def no_job(job_id: str) -> NotFound:
    """Return the error that there is no such job."""
    return NotFound(f"There is no job {job_id!r}: `labelmill jobs` lists them.")


def latest_jobs(
    connection: Connection,
    *,
    limit: int,
    project: str | None = None,
    state: JobState | None = None,
    after: str | None = None,
    pair: tuple[str, str] | None = None,
    unlisted: bool = True,
) -> list[JobStatus]:
    """Return the latest jobs, newest first, without shadows; with `after`, those older than this job.

    With `project` or `state`, only jobs of that project, or in that state. With `pair`, which needs a
    project, only batches that have this name and value in their metadata. Without `unlisted`, only jobs that
    are listed.
    """
    query = _STATUS.where(jobs.c.shadow_of.is_(None)).limit(limit)
    if project is not None:
        query = query.where(jobs.c.project == project)
    if state is not None:
        query = query.where(jobs.c.state == state)
    if not unlisted:
        query = query.where(~jobs.c.unlisted)
    if pair is not None:
        query = _with_pair(query, project, pair, after)
    else:
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        if after is not None:
            created_at = sa.select(jobs.c.created_at).where(jobs.c.id == after).scalar_subquery()
            is_as_old = sa.and_(jobs.c.created_at == created_at, jobs.c.id < after)
            query = query.where(sa.or_(jobs.c.created_at < created_at, is_as_old))
    return [_to_status(row) for row in connection.execute(query)]


def _with_pair(
    query: sa.Select[Any], project: str | None, pair: tuple[str, str], after: str | None
) -> sa.Select[Any]:
    """Return the query for a project's batches with this pair in their metadata, newest first."""
    # In the order of the index, so that a page reads no more than its own batches. Ids sort by time.
    found = batch_metadata.c
    query = query.join(batch_metadata, found.job_id == jobs.c.id).order_by(found.job_id.desc())
    query = query.where(found.project == project, found.name == pair[0], found.value == pair[1])
    return query if after is None else query.where(found.job_id < after)


#: The columns of a `Prediction`, in order.
PREDICTIONS: Final[sa.Select[Any]] = sa.select(
    *(jobs.c.model_id if name == "model" else predictions.c[name] for name in COLUMN_NAMES)
).join_from(predictions, jobs, jobs.c.id == predictions.c.job_id)


def page_of_predictions(
    connection: Connection, job_id: str, wanted: Filter, *, after: int, limit: int
) -> list[Prediction]:
    """Return at most `limit` predictions with an index above `after` (-1: from the start), in index order.

    The cursor is the last index of the previous page, so every page costs the same.
    """
    table = predictions.c
    query = PREDICTIONS.where(table.job_id == job_id, table.index > after).order_by(table.index).limit(limit)
    query = wanted.apply(connection, query)
    return [Prediction(*row) for row in connection.execute(query)]


def predictions_of(connection: Connection, job_id: str, indices: Sequence[int]) -> dict[int, Prediction]:
    """Return the predictions of these images, by index. An image without one is left out."""
    found: dict[int, Prediction] = {}
    for some in batched(indices):
        query = PREDICTIONS.where(predictions.c.job_id == job_id, predictions.c.index.in_(some))
        found |= {row[0]: Prediction(*row) for row in connection.execute(query)}
    return found


def stream_predictions(
    ledger: Ledger, job_id: str, wanted: Filter, *, after: int = -1, limit: int | None = None
) -> Iterator[Prediction]:
    """Yield predictions in index order. Read a page at a time, with constant memory and no open transaction.

    Raises Conflict at the end if the job was purged meanwhile.
    """
    left = limit
    while left is None or left > 0:
        size = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
        with ledger.reading() as connection:
            page = page_of_predictions(connection, job_id, wanted, after=after, limit=size)
            last = len(page) < size or size == left
            if last:
                _check_complete(connection, job_id)
        yield from page
        if last:
            return
        after = page[-1].index
        left = None if left is None else left - size


def _check_complete(connection: Connection, job_id: str) -> None:
    """Raise Conflict if a purge has removed predictions of the job.

    A purge deletes the chunks before the first prediction. Only a batch without images has no chunk either.
    """
    has_chunk = sa.exists().where(chunks.c.job_id == jobs.c.id)
    intact = sa.select(jobs.c.id).where(jobs.c.id == job_id, sa.or_(jobs.c.total == 0, has_chunk))
    if connection.scalar(intact) is None:
        raise Conflict(
            f"Job {job_id} was purged before all its predictions were read, so some are missing: submit its "
            "images again if you need them."
        )


# ---- ids, as people type them ---------------------------------------------------------------------

#: The fewest characters of an id that are accepted. Ids begin with their time: six characters cover four
#: minutes.
MIN_BEGINNING: Final = 6

_IDS: Final = {"job": jobs.c.id, "training run": training_runs.c.id, "model": models.c.id}

#: How many ids a message lists if several match.
_MAX_LISTED_IDS: Final = 4


def model_named(connection: Connection, typed: str | None, dataset: str | None = None) -> Model:
    """Return the model that an id, the beginning of one, or an alias means; the champion if `typed` is None.

    Aliases are those of the dataset, by default of `mnist`. Raises NotFound; Conflict if several models
    match, or if the model belongs to another dataset than the given one.
    """
    if typed is None or typed.strip() == CHAMPION:
        return model_or_champion(connection, None, dataset or MNIST)
    found = find_alias(connection, typed.strip(), dataset or MNIST)
    model = get_model(connection, found or full_id(connection, "model", typed))
    if dataset not in (None, model.dataset):
        raise Conflict(
            f"Model {model.id} belongs to dataset {model.dataset}, not to {dataset}: leave out --dataset, or "
            f"name a model of {dataset}."
        )
    return model


def full_id(
    connection: Connection,
    what: Literal["job", "training run", "model"],
    typed: str,
    *,
    project: str | None = None,
) -> str:
    """Return the id that an id or its beginning means, or `typed` itself if none matches.

    With `project`, only the beginning of an id of its own jobs matches.
    Raises Conflict if several ids match, NotFound if too few characters are given.
    """
    text = typed.strip().lower()
    if is_id(text):
        return text
    if not text or (bounds := id_range(text)) is None:
        return typed
    if len(text) < MIN_BEGINNING:
        raise NotFound(f"There is no {what} {typed!r}: type at least {MIN_BEGINNING} characters of its id.")
    # BETWEEN, not LIKE: it uses the index.
    ids = _IDS[what]
    between = sa.select(ids).where(ids.between(*bounds)).order_by(ids)
    if project is not None:
        between = between.where(jobs.c.project == project)
    found = list(connection.scalars(between.limit(_MAX_LISTED_IDS + 1)))
    if len(found) > 1:
        told = ", ".join(found[:_MAX_LISTED_IDS]) + (", ..." if len(found) > _MAX_LISTED_IDS else "")
        raise Conflict(f"{typed!r} is the beginning of several {what}s: type more of {told}.")
    return found[0] if found else typed


# ---- images to retry ------------------------------------------------------------------------------

#: How many chunks one statement reads; up to one error per image of theirs is held in memory.
_PAGE_CHUNKS: Final = 64


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Images of one chunk that have no label, and the payload that holds them."""

    payload: str
    payload_digest: str
    payload_offset: int
    first_index: int
    images: int
    #: Their positions in the chunk, from 0, in order.
    places: list[int]
    #: They got an error. Otherwise they never got an outcome.
    failed: bool


def check_retry(connection: Connection, job_id: str) -> JobStatus:
    """Check that the job's images can be submitted again. Return the job's status.

    Raises NotFound; Conflict if the job has not finished, was purged, or a worker still has images of it.
    """
    status = job_status(connection, job_id)
    if not status.finished:
        raise Conflict(
            f"Job {job_id} has not finished, it is {status.state}: retry its images when it has ended."
        )
    if status.purged_at is not None:
        raise Conflict(
            f"The images of job {job_id} were purged on {status.purged_at:%Y-%m-%d}: submit them again."
        )
    if not settle_job(connection, job_id):
        raise still_claimed(job_id)
    return status


def check_is_retry(status: JobStatus, job_id: str) -> None:
    """Raise Conflict if the job that has a retry's key is not a retry of this job."""
    if status.retry_of != job_id:
        raise Conflict(
            f"The key already belongs to job {status.id}, which is not a retry of job {job_id}: choose "
            "another key."
        )


def check_not_purged(connection: Connection, job_id: str) -> None:
    """Raise Conflict if the job is being purged, or is gone.

    Otherwise the rows that were read before are complete, because a purge marks the job before it removes
    anything.
    """
    kept = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.purged_at.is_(None))
    if connection.scalar(kept) is None:
        raise Conflict(
            f"Job {job_id} was purged while its images were being submitted again: submit the images from "
            "their original source."
        )


def images_without_label(ledger: Ledger, job_id: str, *, failed_only: bool) -> Iterator[Unlabelled]:
    """Yield the images that got no label, in their order, reading a page at a time.

    With `failed_only`, yield only those that got an error; otherwise also those that never got an outcome.
    Raises Conflict if the job is purged meanwhile.
    """
    after = -1
    while True:
        with ledger.reading() as connection:
            page = connection.execute(
                sa.select(*PAYLOAD_COLUMNS, chunks.c.state)
                .where(chunks.c.job_id == job_id, chunks.c.first_index > after)
                .order_by(chunks.c.first_index)
                .limit(_PAGE_CHUNKS)
            ).all()
            errors = list(connection.scalars(_errors_of(job_id, page))) if page else []
            # Checked after the rows are read, because a purge may have removed some of them; on the last page
            # too.
            check_not_purged(connection, job_id)
        for chunk in page:
            failed = chunk.state == ChunkState.DONE
            if failed:  # all its images have an outcome, because they are recorded together
                begin = bisect_left(errors, chunk.first_index)
                end = bisect_left(errors, chunk.first_index + chunk.images)
                places = [index - chunk.first_index for index in errors[begin:end]]
            else:
                places = [] if failed_only else list(range(chunk.images))
            if places:
                yield Unlabelled(
                    chunk.payload,
                    chunk.payload_digest,
                    chunk.payload_offset,
                    chunk.first_index,
                    chunk.images,
                    places,
                    failed,
                )
        if len(page) < _PAGE_CHUNKS:
            return
        after = page[-1].first_index


def _errors_of(job_id: str, page: Sequence[Any]) -> sa.Select[Any]:
    """Return the query for the indices of these chunks' images that got an error."""
    return (
        sa.select(predictions.c.index)
        .where(predictions.c.job_id == job_id, predictions.c.error.is_not(None))
        .where(predictions.c.index >= page[0].first_index)
        .where(predictions.c.index < page[-1].first_index + page[-1].images)
        .order_by(predictions.c.index)
    )
