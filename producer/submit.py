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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from opentelemetry.trace import Tracer
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, ImageError, SourceError, Stopped, Unavailable, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
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
from jobs.limits import MAX_TOP_K, ErrorLimits, JobLimits
from jobs.models.dataset import MNIST
from jobs.network.references import Reference, Roots
from jobs.queue import Publisher
from jobs.storage.payloads import payload_folder
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from jobs.traces import NO_TRACER, open_span, traceparent_of
from producer.chunking import Chunk, choose_priority, chunks_of, enforce_limits, items_of, store_payload
from producer.heartbeat import ProducerHeartbeat
from producer.sources import SourceImage, Sources, no_images

#: Maximum characters of a submission key. PostgreSQL's index would allow 2,700 bytes.
MAX_KEY_LENGTH: Final = 256

#: A priority given by the user is at most this, and at least its negative.
MAX_PRIORITY: Final = 100

_DEFAULT_LIMITS: Final = JobLimits()

#: The interval of checks whether another producer has finished submitting under the same key.
_KEY_POLL_SECONDS: Final = 0.2


class Submitted(NamedTuple):
    """The result of a submission."""

    job_id: str
    images: int
    #: False if the submission key already had its job, and nothing new was stored.
    new: bool


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The properties of a new job, apart from its images."""

    model_id: str
    key: str | None = None
    error_limits: ErrorLimits | None = None
    priority: int | None = None
    top_k: int | None = None
    retry_of: str | None = None
    traceparent: str | None = None


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
    images: Iterable[SourceImage],
    *,
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    chunk_images: int,
    key: str | None = None,
    model_id: str | None = None,
    dataset: str = MNIST,
    by_reference: Roots | None = None,
    error_limits: ErrorLimits | None = None,
    priority: int | None = None,
    top_k: int | None = None,
    shadow_share: float = 0.0,
    limits: JobLimits = _DEFAULT_LIMITS,
    on_progress: Callable[[int], None] = lambda _images: None,
    on_wait: Callable[[str], None] = lambda _job_id: None,
    on_seal: Callable[[Connection, str], object] = lambda *_: None,
    tracer: Tracer = NO_TRACER,
) -> Submitted:
    """Submit one job of all `images`. When this returns, the job is committed in the ledger.

    The job is pinned to the model `model_id`, or to the champion of `dataset`. If `key` already has a job
    with the same content, return that job. With `by_reference`, payloads hold the locations of images below
    these roots and their SHA-256 instead of their bytes. `error_limits` end a job early that has too many
    errors. Chunks of a higher `priority`, -100 to 100, are classified first; the default is
    SMALL_JOB_PRIORITY for a small job and DEFAULT_PRIORITY for any other. Each prediction keeps the `top_k`
    (1 to 10) most probable classes; by default only the label. The challenger, if there is one, also
    classifies `shadow_share` of the chunks. `on_progress` is called with the number of images stored so far.
    `on_wait` is called with a job's id before waiting for another producer that is still submitting it under
    the same key. `on_seal` is called with the job's id in the transaction that submits it. `tracer` records
    a span. Memory holds one chunk. Reading `images` may take any time, because a thread writes the producer's
    heartbeat.

    Raises SourceError if there is no image, more than `limits` allow, or one that cannot be submitted by
    reference; UserError for an invalid key, priority or `top_k`; NotFound if there is no such model, or no
    champion yet; Conflict if `key` was used for other content, or for another model, dataset or `top_k`;
    Unavailable if the ledger or the store cannot be reached; Stopped if the job was cancelled, failed or was
    removed during submission. After any exception, Ctrl-C included, nothing of the job is left, except that a
    stopped job stays as it is.
    """
    check_key(key)
    if priority is not None and not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise UserError(f"A priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {priority}.")
    if top_k is not None and not 1 <= top_k <= MAX_TOP_K:
        raise UserError(f"top must be from 1 to {MAX_TOP_K} classes, got {top_k}.")
    submitter = Submitter(ledger, store, publisher, on_progress, tracer, shadow_share, on_seal)
    with ledger.reading() as connection:
        pinned_to = model_or_champion(connection, model_id, dataset).id
    check_store(ledger, store)

    if by_reference is not None and not by_reference:
        raise SourceError(
            "Submitting by reference is not enabled: set LABELMILL_REFERENCE_ROOTS to folders and URLs that "
            "every worker can reach, for producers and workers, or leave out --by-reference."
        )

    found = images.batches() if isinstance(images, Sources) else images
    chunks = enforce_limits(limits, chunks_of(items_of(found, by_reference), chunk_images))
    first = next(chunks, None)
    if first is None:
        raise no_images(images)

    while True:
        if key is not None and (holder := submitter.find_job_by_key(key, on_wait)) is not None:
            with ledger.reading() as connection:
                other = get_model(connection, holder.model_id).dataset
            if model_id is None and other != dataset:
                raise Conflict(
                    f"The key {key!r} already belongs to job {holder.job_id}, which was submitted for "
                    f"dataset {other}: choose another key, or leave it out."
                )
            return _compare_with_holder(holder, key, model_id, top_k, chain([first], chunks))
        try:
            return submitter.submit(
                JobOptions(pinned_to, key, error_limits, priority, top_k), chain([first], chunks)
            )
        except _KeyInUse:
            continue  # another producer was faster: nothing of this job is stored, only `first` was read


def check_key(key: str | None) -> None:
    """Raise UserError if this is no submission key."""
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise UserError(f"A submission key has 1 to {MAX_KEY_LENGTH} characters; this one has {len(key):,}.")


class _KeyInUse(Conflict):
    """Another producer created a job with this key at the same time."""


@dataclass(frozen=True, slots=True)
class Submitter:
    """Submits chunks as one job, for `submit` and `producer.resubmit`."""

    ledger: Ledger
    store: Store
    publisher: Publisher
    on_progress: Callable[[int], None]
    tracer: Tracer
    shadow_share: float
    #: Called in the transaction that seals the job, with its id.
    on_seal: Callable[[Connection, str], object] = lambda *_: None
    began: int = field(default_factory=time.time_ns)  # nanoseconds since the epoch, for the span

    def submit(self, options: JobOptions, chunks: Iterator[Chunk]) -> Submitted:
        """Submit one job of these chunks, in a span.

        Exceptions, and what they leave behind, are those of the function `submit`, and _KeyInUse.
        """
        job_id = new_id()
        ids = {"labelmill.job": job_id, "labelmill.model": options.model_id}
        with open_span(self.tracer, "submit", began=self.began, attributes=ids) as span:
            submitted = self._store_job(job_id, replace(options, traceparent=traceparent_of(span)), chunks)
            span.set_attribute("labelmill.images", submitted.images)
            return submitted

    def find_job_by_key(self, key: str, on_wait: Callable[[str], None]) -> KeyHolder | None:
        """Return the submitted job that owns the key, or None.

        If another producer is still submitting under this key, wait for it. If that producer has died,
        discard its job.
        """
        waiting_for: str | None = None
        while True:
            with self.ledger.reading() as connection:
                holder = find_key(connection, key)
            if holder is None or holder.sealed:
                return holder
            if holder.receiving:
                if holder.job_id != waiting_for:
                    waiting_for = holder.job_id
                    on_wait(waiting_for)
                time.sleep(_KEY_POLL_SECONDS)
            else:
                self._discard_job(holder.job_id)

    def _store_job(self, job_id: str, options: JobOptions, chunks: Iterator[Chunk]) -> Submitted:
        heartbeat = ProducerHeartbeat(self.ledger, partial(touch_job, job_id=job_id))
        try:
            images = self._store_chunks(job_id, options, chunks, heartbeat)
        except Stopped:
            heartbeat.end()
            raise  # the job was stopped on purpose, so it is kept
        except BaseException as error:
            # Ctrl-C may have interrupted the end of a transaction. The traceback's frames then keep it open,
            # and SQLite has only one writer: clear them.
            traceback.clear_frames(error.__traceback__)
            heartbeat.end()  # only now, because the thread may be waiting for that transaction
            try:
                sealed = self._discard_unless_sealed(job_id)
            except Unavailable as unavailable:
                # The first error is the one to report. The reconciler ends the abandoned job.
                raise error from unavailable
            if sealed is None:
                raise
            # The last COMMIT went through although its answer was lost: the job is submitted.
            images = sealed
        return Submitted(job_id, images, new=True)

    def _store_chunks(
        self, job_id: str, options: JobOptions, chunks: Iterator[Chunk], heartbeat: ProducerHeartbeat
    ) -> int:
        """Open the job, add its chunks, seal it. Return its number of images."""
        fingerprint = _Fingerprint() if options.key is not None else None
        total = 0
        for chunk in chunks:
            priority = choose_priority(options.priority, chunk, first=total == 0)
            row = store_payload(self.store, job_id, total, chunk, priority)
            if fingerprint is not None:
                fingerprint.add(chunk)
            if chunk.is_last:
                heartbeat.end()
            with self.ledger.transaction() as connection:
                if total == 0:
                    _open_job(connection, job_id, options)
                add_chunk(connection, job_id, row)
                if chunk.is_last:  # in the same COMMIT: this halves their number for small jobs
                    seal_job(connection, job_id, fingerprint=fingerprint.hex() if fingerprint else None)
                    shadow_job(connection, job_id, share=self.shadow_share)
                    self.on_seal(connection, job_id)
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


def _open_job(connection: Connection, job_id: str, options: JobOptions) -> None:
    """Open the job. Raises _KeyInUse if the key has a job already."""
    try:
        open_job(
            connection,
            job_id,
            model_id=options.model_id,
            key=options.key,
            error_limits=options.error_limits,
            top_k=options.top_k,
            retry_of=options.retry_of,
            traceparent=options.traceparent,
        )
    except Conflict:
        raise _KeyInUse from None


def _compare_with_holder(
    holder: KeyHolder, key: str, model_id: str | None, top_k: int | None, chunks: Iterator[Chunk]
) -> Submitted:
    """Return the job that owns the key if it has the same options and content. Raises Conflict otherwise."""
    if model_id not in (None, holder.model_id):
        raise Conflict(
            f"The key {key!r} already belongs to job {holder.job_id}, which was submitted for model "
            f"{holder.model_id}: choose another key, or leave it out."
        )
    if top_k not in (None, holder.top_k):
        how = "without --top" if holder.top_k is None else f"with --top {holder.top_k}"
        raise Conflict(
            f"The key {key!r} already belongs to job {holder.job_id}, which was submitted {how}: choose "
            "another key, or leave it out."
        )
    found = _Fingerprint()
    images = 0
    for chunk in chunks:
        found.add(chunk)
        images += len(chunk.names)
    if found.hex() != holder.fingerprint:
        raise Conflict(
            f"The key {key!r} already belongs to job {holder.job_id}, which was submitted with other "
            "content: choose another key, or leave it out."
        )
    return Submitted(holder.job_id, images, new=False)
