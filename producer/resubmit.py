"""Submit the images of a finished job that got no label as a new job under the same model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from jobs.errors import Conflict, ImageError, PayloadDamaged
from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import (
    Unlabelled,
    check_not_purged,
    check_retry,
    images_without_label,
    job_status,
)
from jobs.network.references import Reference
from jobs.options import JobOptions
from jobs.storage.payloads import Payload, read_payload
from jobs.storage.store import Store
from producer.chunking import Item, chunks_of
from producer.submit import Submitted, Submitter


class Retried(NamedTuple):
    """The result of a retry."""

    #: None if there was nothing to retry.
    submitted: Submitted | None
    #: Number of images that could not be read when they were submitted. They have no bytes to retry, and keep
    #: their error. 0 if the key already had a job: they are counted while it is submitted.
    unreadable: int


def retry(submitter: Submitter, job_id: str, *, failed_only: bool, key: str | None = None) -> Retried:
    """Submit the job's images without a label again, with their original names and contents.

    With `failed_only`, leave out images that never got an outcome. If `key` already has a job, return that
    job. Memory holds one chunk of the old job and one of the new. Raises NotFound; Conflict if the job has
    not finished, if its payloads were purged, even during the retry, or if the key belongs to another job;
    and what `submit` raises.
    """
    ledger = submitter.ledger
    with ledger.reading() as connection:
        old = job_status(connection, job_id)
    options = JobOptions(project=old.project, key=key, top_k=old.top_k)
    if (holder := submitter.find_job_by_key(options)) is not None:
        with ledger.reading() as connection:
            again = job_status(connection, holder.job_id)
        if again.retry_of != job_id:
            raise Conflict(
                f"The key already belongs to job {again.id}, which is not a retry of job {job_id}: choose "
                "another key."
            )
        return Retried(Submitted(again.id, again.total, new=False), 0)
    with ledger.transaction() as connection:
        check_retry(connection, job_id)
    images = _Images(ledger, submitter.store, job_id, failed_only=failed_only)
    chunks = chunks_of(images, submitter.chunk_images)
    first = next(chunks, None)
    if first is None:
        return Retried(None, images.unreadable)
    submitted = submitter.submit(options, chain([first], chunks), model_id=old.model, retry_of=job_id)
    return Retried(submitted, images.unreadable)


class _Images:
    """The images to retry, read chunk by chunk."""

    def __init__(self, ledger: Ledger, store: Store, job_id: str, *, failed_only: bool) -> None:
        self._ledger = ledger
        self._store = store
        self._job_id = job_id
        self._failed_only = failed_only
        self.unreadable = 0

    def __iter__(self) -> Iterator[Item]:
        for chunk in images_without_label(self._ledger, self._job_id, failed_only=self._failed_only):
            names, contents = self._read(chunk)
            for place in chunk.places:
                content = contents[place]
                # An unreadable image without an outcome is submitted too: it must get one.
                if chunk.failed and isinstance(content, ImageError):
                    self.unreadable += 1
                else:
                    yield names[place], content, content.url if isinstance(content, Reference) else None

    def _read(self, chunk: Unlabelled) -> Payload:
        try:
            payload = read_payload(self._store, chunk.payload, chunk.payload_digest)
            return payload.part(chunk.payload_offset, chunk.images)
        except PayloadDamaged:
            # If the payload was just purged, report that instead of damage.
            with self._ledger.reading() as connection:
                check_not_purged(connection, self._job_id)
            raise
