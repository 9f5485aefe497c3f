"""Turn a stream of images into a job: for each chunk a payload in the store, a row in the ledger, a wake-up.

They are written in this order. So the ledger never names a missing payload, whatever fails in between, and
the reconciler sends a wake-up that was not sent. `producer.chunking` groups the images into chunks; the next
step is the worker's, in `worker.tasks`.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from opentelemetry.trace import Tracer
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, ImageError, SourceError, Stopped, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.projects import check_project
from jobs.ledger.jobs.shadows import shadow_job
from jobs.ledger.jobs.submission import (
    KeyHolder,
    add_chunk,
    discard_job,
    find_key,
    open_job,
    seal_job,
    sealed_images,
    touch_job,
)
from jobs.ledger.learning.models import get_model, model_or_champion
from jobs.limits import JobLimits
from jobs.models.dataset import MNIST
from jobs.network.references import Reference, Roots
from jobs.options import DEFAULT_OPTIONS, JobOptions
from jobs.queue import Publisher
from jobs.storage.payloads import payload_folder
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from jobs.traces import NO_TRACER, open_span, traceparent_of
from producer.chunking import Chunk, choose_priority, chunks_of, enforce_limits, items_of, store_payload
from producer.heartbeat import ProducerHeartbeat
from producer.sources import SourceImage, Sources, no_images

_DEFAULT_LIMITS: Final = JobLimits()

#: The interval of checks whether another producer has finished submitting under the same key.
_KEY_POLL_SECONDS: Final = 0.2


class Submitted(NamedTuple):
    """The result of a submission."""

    job_id: str
    images: int
    #: False if the submission key already had its job, and nothing new was stored.
    new: bool


class _Fingerprint:
    """A fingerprint of submitted images: the sum, modulo 2^256, of one SHA-256 per image.

    It does not depend on the order, because a file system may list a folder in any order, nor on whether
    images are submitted by reference. Unlike an exclusive or, a sum changes if an image is there twice.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, chunk: Chunk) -> None:
        for name, content in zip(chunk.names, chunk.contents, strict=True):
            if isinstance(content, ImageError):
                kind, data = b"e", str(content.code).encode()
            elif isinstance(content, Reference):
                kind, data = b"i", bytes.fromhex(content.sha256)
            else:
                kind, data = b"i", hashlib.sha256(content).digest()
            encoded = name.encode()
            digest = hashlib.sha256(kind + len(encoded).to_bytes(8, "big") + encoded + data).digest()
            self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)

    def hex(self) -> str:
        return f"{self._sum:064x}"


def submit(
    submitter: Submitter,
    images: Iterable[SourceImage],
    options: JobOptions = DEFAULT_OPTIONS,
    *,
    by_reference: Roots | None = None,
    limits: JobLimits = _DEFAULT_LIMITS,
) -> Submitted:
    """Submit one job of all `images`. When this returns, the job is committed in the ledger.

    The job is pinned to the model whose id the options name, or to the champion of their dataset. If their
    key already has a job with the same content, return that job. With `by_reference`, payloads hold the
    locations of images below these roots and their SHA-256 instead of their bytes. Memory holds one chunk.
    Reading `images` may take any time, because a thread writes the producer's heartbeat.

    Raises SourceError if there is no image, more than `limits` allow, or one that cannot be submitted by
    reference; NotFound if there is no such project or model, or no champion yet; Conflict if the key was used
    for other content, or for another model, dataset or `top_k`; Unavailable if the ledger or the store cannot
    be reached; Stopped if the job was cancelled, failed or was removed during submission. After any
    exception, Ctrl-C included, nothing of the job is left, except that a stopped job stays as it is.
    """
    ledger = submitter.ledger
    dataset = options.dataset or MNIST
    with ledger.reading() as connection:
        check_project(connection, options.project)
        model_id = model_or_champion(connection, options.model, dataset).id
    check_store(ledger, submitter.store)

    if by_reference is not None and not by_reference:
        raise SourceError(
            "Submitting by reference is not enabled: set LABELMILL_REFERENCE_ROOTS to folders and URLs that "
            "every worker can reach, for producers and workers, or leave out --by-reference."
        )

    found = images.batches() if isinstance(images, Sources) else images
    chunks = enforce_limits(limits, chunks_of(items_of(found, by_reference), submitter.chunk_images))
    first = next(chunks, None)
    if first is None:
        raise no_images(images)

    while True:
        if (holder := submitter.find_job_by_key(options)) is not None:
            with ledger.reading() as connection:
                other = get_model(connection, holder.model_id).dataset
            if options.model is None and other != dataset:
                raise _key_conflict(holder, options, f"for dataset {other}")
            return _compare_with_holder(holder, options, chain([first], chunks))
        try:
            return submitter.submit(options, chain([first], chunks), model_id=model_id)
        except _KeyInUse:
            continue  # another producer was faster: nothing of this job is stored, only `first` was read


class _KeyInUse(Conflict):
    """Another producer created a job with this key at the same time."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A job to submit."""

    id: str
    options: JobOptions
    model_id: str
    retry_of: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Submitter:
    """Submits chunks as one job, for `submit` and `producer.resubmit`: where to, and whom to tell."""

    ledger: Ledger
    store: Store
    publisher: Publisher
    chunk_images: int
    #: The challenger, if there is one, also classifies this share of the chunks.
    shadow_share: float = 0.0
    #: Records a span.
    tracer: Tracer = NO_TRACER
    #: Called with the number of images stored so far.
    on_progress: Callable[[int], None] = lambda _images: None
    #: Called with a job's id before waiting for another producer that is submitting it under the same key.
    on_wait: Callable[[str], None] = lambda _job_id: None
    #: Called in the transaction that seals the job, with its id.
    on_seal: Callable[[Connection, str], object] = lambda *_: None
    began: int = field(default_factory=time.time_ns)  # nanoseconds since the epoch, for the span

    def submit(
        self, options: JobOptions, chunks: Iterator[Chunk], *, model_id: str, retry_of: str | None = None
    ) -> Submitted:
        """Submit one job of these chunks for this model, in a span.

        Exceptions, and what they leave behind, are those of the function `submit`, and _KeyInUse.
        """
        job_id = new_id()
        ids = {"labelmill.job": job_id, "labelmill.model": model_id}
        with open_span(self.tracer, "submit", began=self.began, attributes=ids) as span:
            job = _Job(job_id, options, model_id, retry_of, traceparent_of(span))
            submitted = self._store_job(job, chunks)
            span.set_attribute("labelmill.images", submitted.images)
            return submitted

    def find_job_by_key(self, options: JobOptions) -> KeyHolder | None:
        """Return the submitted job that owns the key of these options, or None, as when they have no key.

        If another producer is still submitting under this key, wait for it. If that producer has died,
        discard its job.
        """
        waiting_for: str | None = None
        while options.key is not None:
            with self.ledger.reading() as connection:
                holder = find_key(connection, options.project, options.key)
            if holder is None or holder.sealed:
                return holder
            if holder.receiving:
                if holder.job_id != waiting_for:
                    waiting_for = holder.job_id
                    self.on_wait(waiting_for)
                time.sleep(_KEY_POLL_SECONDS)
            else:
                self._discard_job(holder.job_id)
        return None

    def _store_job(self, job: _Job, chunks: Iterator[Chunk]) -> Submitted:
        heartbeat = ProducerHeartbeat(self.ledger, partial(touch_job, job_id=job.id))
        try:
            images = self._store_chunks(job, chunks, heartbeat)
        except Stopped:
            heartbeat.end()
            raise  # the job was stopped on purpose, so it is kept
        except BaseException as error:
            # Ctrl-C may have interrupted the end of a transaction. The traceback's frames then keep it open,
            # and SQLite has only one writer: clear them.
            traceback.clear_frames(error.__traceback__)
            heartbeat.end()  # only now, because the thread may be waiting for that transaction
            try:
                sealed = self._discard_unless_sealed(job.id)
            except Unavailable as unavailable:
                # The first error is the one to report. The reconciler ends the abandoned job.
                raise error from unavailable
            if sealed is None:
                raise
            # The last COMMIT went through although its answer was lost: the job is submitted.
            images = sealed
        return Submitted(job.id, images, new=True)

    def _store_chunks(self, job: _Job, chunks: Iterator[Chunk], heartbeat: ProducerHeartbeat) -> int:
        """Open the job, add its chunks, seal it. Return its number of images."""
        fingerprint = _Fingerprint() if job.options.key is not None else None
        total = 0
        for chunk in chunks:
            priority = choose_priority(job.options.priority, chunk, first=total == 0)
            row = store_payload(self.store, job.id, total, chunk, priority)
            if fingerprint is not None:
                fingerprint.add(chunk)
            if chunk.is_last:
                heartbeat.end()
            with self.ledger.transaction() as connection:
                if total == 0:
                    _open_job(connection, job)
                add_chunk(connection, job.id, row, chunk.labels)
                if chunk.is_last:  # in the same COMMIT: this halves their number for small jobs
                    seal_job(connection, job.id, fingerprint=fingerprint.hex() if fingerprint else None)
                    shadow_job(connection, job.id, share=self.shadow_share)
                    self.on_seal(connection, job.id)
            total += row.images
            if not chunk.is_last:
                heartbeat.begin()
            self.publisher.wake_up()
            self.on_progress(total)
        return total

    def _discard_unless_sealed(self, job_id: str) -> int | None:
        """Return the number of images if the job turns out to be sealed.

        Otherwise discard the job, unless it was stopped during its submission, and return None.
        """
        if self._discard_job(job_id, keep_stopped=True):
            return None
        with self.ledger.reading() as connection:
            return sealed_images(connection, job_id)

    def _discard_job(self, job_id: str, *, keep_stopped: bool = False) -> bool:
        """Discard the job with its payloads. Return False, and change nothing, if it turns out to be sealed.

        With `keep_stopped`, also keep a job that was stopped.
        """
        with self.ledger.transaction() as connection:
            if not discard_job(connection, job_id, keep_stopped=keep_stopped):
                return False
        self.store.remove_folder(payload_folder(job_id))
        return True


def _open_job(connection: Connection, job: _Job) -> None:
    """Open the job. Raises _KeyInUse if the key has a job already."""
    try:
        open_job(
            connection,
            job.id,
            job.options,
            model_id=job.model_id,
            retry_of=job.retry_of,
            traceparent=job.traceparent,
        )
    except Conflict as error:
        raise _KeyInUse(str(error)) from None


def _compare_with_holder(holder: KeyHolder, options: JobOptions, chunks: Iterator[Chunk]) -> Submitted:
    """Return the job that owns the key if it has the same options and content. Raises Conflict otherwise."""
    if options.model not in (None, holder.model_id):
        raise _key_conflict(holder, options, f"for model {holder.model_id}")
    if options.top_k not in (None, holder.top_k):
        how = "without --top" if holder.top_k is None else f"with --top {holder.top_k}"
        raise _key_conflict(holder, options, how)
    found = _Fingerprint()
    images = 0
    for chunk in chunks:
        found.add(chunk)
        images += len(chunk.names)
    if found.hex() != holder.fingerprint:
        raise _key_conflict(holder, options, "with other content")
    return Submitted(holder.job_id, images, new=False)


def _key_conflict(holder: KeyHolder, options: JobOptions, how: str) -> Conflict:
    return Conflict(
        f"The key {options.key!r} already belongs to job {holder.job_id}, which was submitted {how}: choose "
        "another key, or leave it out."
    )
