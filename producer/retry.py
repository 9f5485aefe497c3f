"""The images of a finished job that got no label, as a job of their own under the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from jobs.errors import ImageError, PayloadDamaged
from jobs.ledger import Ledger
from jobs.ledger.queries import Unlabelled, check_not_purged, check_retry, images_without_label
from jobs.payloads import Content, Payload, read_payload
from jobs.queue import Publisher
from jobs.store import Store
from producer.submit import Submitted, submit_again

if TYPE_CHECKING:
    from jobs.traces import Tracing


class Retried(NamedTuple):
    """What came of a retry."""

    #: None where there was nothing to try again.
    submitted: Submitted | None
    #: Images that could not be read when they were submitted: there is nothing of them to try again, and they
    #: keep their error.
    unreadable: int


def retry(
    job_id: str,
    *,
    failed_only: bool,
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    chunk_images: int,
    shadow_share: float = 0.0,
    on_progress: Callable[[int], None] = lambda _images: None,
    tracing: Tracing | None = None,
) -> Retried:
    """Submits those images of the job that have no label, with the names and contents they were submitted
    with. `failed_only`: only those that got an error, not those that never got an outcome.

    Memory holds a chunk of the old job and one of the new. Raises NotFound; Conflict where the job has not
    finished, or its payloads were purged, if only halfway through; and what `submit` raises.
    """
    with ledger.transaction() as connection:
        model_id = check_retry(connection, job_id)
    images = _Images(ledger, store, job_id, failed_only=failed_only)
    submitted = submit_again(
        images,
        model_id=model_id,
        retry_of=job_id,
        ledger=ledger,
        store=store,
        publisher=publisher,
        chunk_images=chunk_images,
        shadow_share=shadow_share,
        on_progress=on_progress,
        tracing=tracing,
    )
    return Retried(submitted, images.unreadable)


class _Images:
    """Names and contents of what is tried again, read chunk by chunk."""

    def __init__(self, ledger: Ledger, store: Store, job_id: str, *, failed_only: bool) -> None:
        self._ledger = ledger
        self._store = store
        self._job_id = job_id
        self._failed_only = failed_only
        self.unreadable = 0

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        for chunk in images_without_label(self._ledger, self._job_id, failed_only=self._failed_only):
            names, contents = self._read(chunk)
            for place in chunk.places:
                # One that never got an outcome is taken along all the same: it must get one.
                if chunk.failed and isinstance(contents[place], ImageError):
                    self.unreadable += 1
                else:
                    yield names[place], contents[place]

    def _read(self, chunk: Unlabelled) -> Payload:
        try:
            payload = read_payload(self._store, chunk.payload, chunk.payload_digest)
            return payload.part(chunk.payload_offset, chunk.images)
        except PayloadDamaged:
            # A payload that was purged a moment ago is no damage, and nobody should look for one.
            with self._ledger.reading() as connection:
                check_not_purged(connection, self._job_id)
            raise
