"""Submit the images of a finished job that got no label as a new job under the same model."""

from __future__ import annotations

from itertools import chain

from jobs.ledger.jobs.queries import check_is_retry, check_retry, job_status
from jobs.options import JobOptions
from jobs.settings import Settings
from producer.batch_images import BatchReader
from producer.chunking import chunks_of
from producer.submit import Submitted, Submitter


def retry(
    submitter: Submitter, settings: Settings, job_id: str, *, failed_only: bool, key: str | None = None
) -> Submitted | None:
    """Submit the job's images without a label again, with their original names and contents.

    These are the images that an intake process copies if the retry was requested over HTTP. With
    `failed_only`, leave out images that never got an outcome. If there is none, return None. If `key` already
    has a job, return that job. Memory holds one chunk of the old job and one of the new. Raises NotFound;
    Conflict if the job has not finished, if its payloads were purged, even during the retry, if it was
    stopped before all its images were read and the rest is gone, or if the key belongs to another job; and
    what `submit` raises.
    """
    ledger = submitter.ledger
    with ledger.reading() as connection:
        old = job_status(connection, job_id)
    options = JobOptions(project=old.project, key=key, top_k=old.top_k)
    if (holder := submitter.find_job_by_key(options)) is not None:
        with ledger.reading() as connection:
            again = job_status(connection, holder.job_id)
        check_is_retry(again, job_id)
        return Submitted(again.id, again.total, new=False)
    with ledger.transaction() as connection:
        check_retry(connection, job_id)
    reader = BatchReader(ledger, submitter.store, settings)
    items = reader.items_to_retry(job_id, job_id, failed_only=failed_only)
    chunks = chunks_of(items, submitter.chunk_images)
    first = next(chunks, None)
    if first is None:
        return None
    return submitter.submit(options, chain([first], chunks), model_id=old.model, retry_of=job_id)
