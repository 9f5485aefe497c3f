"""Which images of a finished job got no label, chunk by chunk, for a job that tries them again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.control import settle_job, still_at_work
from jobs.ledger.database import Ledger
from jobs.ledger.progress import job_status
from jobs.schema import ChunkState, chunks, jobs, predictions

#: Chunks looked at in one statement: as many errors as they have images are held in memory.
_PAGE_CHUNKS: Final = 64


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Images of one chunk that have no label, and the payload that holds them."""

    payload: str
    payload_digest: str
    payload_offset: int
    images: int
    #: Where in the chunk they are, counted from 0, in order.
    places: list[int]
    #: They have an error. Otherwise they never got an outcome.
    failed: bool


def check_retry(connection: Connection, job_id: str) -> str:
    """The model that the job is pinned to. Raises NotFound; Conflict where its images cannot be tried again,
    or not yet.
    """
    status = job_status(connection, job_id)
    if not status.finished:
        raise Conflict(
            f"Job {job_id} has not finished, it is {status.state}: only then is it known what to try again."
        )
    if status.purged_at is not None:
        raise Conflict(
            f"The images of job {job_id} were purged on {status.purged_at:%Y-%m-%d}: submit them again."
        )
    if not settle_job(connection, job_id):
        raise still_at_work(job_id)
    return status.model


def check_not_purged(connection: Connection, job_id: str) -> None:
    """Raises Conflict where the job is being purged, or is gone. Otherwise what was read of its rows before
    is all there was: a purge marks the job before it removes anything.
    """
    kept = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.purged_at.is_(None))
    if connection.scalar(kept) is None:
        raise Conflict(
            f"Job {job_id} was purged while its images were being submitted again, so nothing of that is "
            "kept: submit them from where they came."
        )


def images_without_label(ledger: Ledger, job_id: str, *, failed_only: bool) -> Iterator[Unlabelled]:
    """In the order of the images, read a page at a time. `failed_only`: only those that got an error; else
    also those that never got an outcome. Raises Conflict where the job is purged meanwhile.
    """
    after = -1
    while True:
        with ledger.reading() as connection:
            page = connection.execute(_chunks_after(job_id, after)).all()
            errors = list(connection.scalars(_errors_of(job_id, page))) if page else []
            # After the rows, of which a purge may have left a part; and for the page that ends it as well.
            check_not_purged(connection, job_id)
        for chunk in page:
            failed = chunk.state == ChunkState.DONE
            if failed:  # all its images have an outcome: they are recorded together
                begin = bisect_left(errors, chunk.first_index)
                end = bisect_left(errors, chunk.first_index + chunk.images)
                places = [index - chunk.first_index for index in errors[begin:end]]
            else:
                places = [] if failed_only else list(range(chunk.images))
            if places:
                yield Unlabelled(
                    chunk.payload, chunk.payload_sha256, chunk.payload_offset, chunk.images, places, failed
                )
        if len(page) < _PAGE_CHUNKS:
            return
        after = page[-1].first_index


def _chunks_after(job_id: str, after: int) -> sa.Select[Any]:
    return (
        sa.select(
            chunks.c.first_index,
            chunks.c.images,
            chunks.c.state,
            chunks.c.payload,
            chunks.c.payload_sha256,
            chunks.c.payload_offset,
        )
        .where(chunks.c.job_id == job_id, chunks.c.first_index > after)
        .order_by(chunks.c.first_index)
        .limit(_PAGE_CHUNKS)
    )


def _errors_of(job_id: str, page: Sequence[sa.Row[Any]]) -> sa.Select[Any]:
    """The indices of the images of these chunks that got an error."""
    return (
        sa.select(predictions.c.index)
        .where(predictions.c.job_id == job_id, predictions.c.error.is_not(None))
        .where(predictions.c.index >= page[0].first_index)
        .where(predictions.c.index < page[-1].first_index + page[-1].images)
        .order_by(predictions.c.index)
    )
