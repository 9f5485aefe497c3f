"""Turns a stream of images into a job: payload to the store, row to the ledger, message to the queue.

In this order, chunk by chunk: whatever breaks in between, the ledger never names a payload that is not
there, and a message that was not sent is sent later by the reconciler. What a worker does with the message
is told in `worker.tasks`.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from jobs.errors import Conflict, ImageError, SourceError, Stopped, Unavailable, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.intake import (
    KeyHolder,
    NewChunk,
    add_chunk,
    discard_job,
    find_key,
    is_sealed,
    open_job,
    seal_job,
)
from jobs.ledger.models import model_or_champion
from jobs.limits import ErrorLimits, JobLimits
from jobs.payloads import Content, pack_payload, payload_digest, payload_folder, payload_key
from jobs.queue import Bell
from jobs.references import Reference, Roots
from jobs.remote import is_url
from jobs.schema import SMALL_JOB_IMAGES
from jobs.store import Store
from producer.alive import ProducerSigns
from producer.sources import SourceImage, Sources
from producer.sources.image import name_bytes

if TYPE_CHECKING:
    from jobs.traces import Tracing

#: A chunk is closed before it grows beyond this many bytes of images and their names: it is held in memory
#: whole, by the producer and by a worker, and must be done within its lease.
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024

#: And before it has more images than these from URLs, which are fetched one by one. At a tenth of a second
#: each a chunk takes less than a lease, for the worker that fetches it by reference.
MAX_CHUNK_URLS: Final = 256

#: The most characters a submission key may have: PostgreSQL's index takes 2,700 bytes, a person fewer.
MAX_KEY_LENGTH: Final = 256

_DEFAULT_LIMITS: Final = JobLimits()

#: How often to look whether somebody else has finished submitting under the same key.
_KEY_POLL_SECONDS: Final = 0.2


class Submitted(NamedTuple):
    """What came of a submission."""

    job_id: str
    images: int
    #: False where the submission key already had its job and nothing new was stored.
    new: bool


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a job is made with, beside its images."""

    model_id: str
    key: str | None = None
    error_limits: ErrorLimits | None = None
    retry_of: str | None = None
    traceparent: str | None = None


#: One image on its way into a payload: its name, its content, and where its bytes were read, or are to be.
_Item: TypeAlias = tuple[str, Content, str | None]


@dataclass(slots=True)
class _ChunkDraft:
    """The images of one chunk while they are gathered."""

    names: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    size: int = 0  # of the images, in bytes
    names_size: int = 0  # in bytes
    is_all: bool = False  # of its job: there is no other


class _Fingerprint:
    """What was submitted, whatever its order and by reference or not: the sum, modulo 2^256, of one SHA-256
    an image.

    A folder's order is the file system's affair, so the same content must give the same value in any order;
    a sum, unlike an exclusive or, also notices an image that is there twice.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, name: str, content: Content) -> None:
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
    bell: Bell,
    chunk_images: int,
    key: str | None = None,
    model_id: str | None = None,
    by_reference: Roots | None = None,
    error_limits: ErrorLimits | None = None,
    limits: JobLimits = _DEFAULT_LIMITS,
    on_progress: Callable[[int], None] = lambda _images: None,
    tracing: Tracing | None = None,
) -> Submitted:
    """Submits one job of all `images`; when this returns, the job is committed in the ledger.

    The job is pinned to the model that is named, or to the champion. With `by_reference`, payloads say where
    images lie, below these roots, and what their SHA-256 is, instead of holding their bytes. With
    `error_limits`, the job is stopped early where it has too many errors. Memory holds one chunk at a time.
    `on_progress` is called with the number of images stored so far; `tracing`, where there is one, gets a
    span. Raises SourceError where there is not one image, more than `limits` allow, or one that cannot be
    submitted by reference; UserError for a key that is none; NotFound where there is no such model, or none
    yet, Conflict where `key` was used for other content, or for another model than the one that is named,
    Unavailable where the ledger or the store cannot be reached, Stopped where the job was cancelled, has
    failed or was removed before all of it was in. After any exception, Ctrl-C included, nothing of the job
    is left; but where somebody has stopped it, it is as it was stopped.

    `images` may take as long as they like: while they are waited for, a thread says that we are alive.
    """
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise UserError(f"A submission key has 1 to {MAX_KEY_LENGTH} characters, and this one {len(key):,}.")
    began = time.time_ns()
    with ledger.reading() as connection:
        pinned_to = model_or_champion(connection, model_id).id

    if by_reference is not None and not by_reference:
        raise SourceError(
            "Nothing may be submitted by reference: set LABELMILL_REFERENCE_ROOTS to the folders and URLs "
            "that every worker reaches, for producers and workers alike, or leave out --by-reference."
        )

    drafts = _within(limits, _drafts(_items(images, by_reference), chunk_images))
    first = next(drafts, None)
    if first is None:
        raise SourceError(f"There is no image in what was named{_passed_over(images)}: nothing is submitted.")
    drafts = chain([first], drafts)

    while True:
        if key is not None and (holder := _job_with_key(ledger, store, key)) is not None:
            return _same_job(holder, key, model_id, drafts)
        job_id = new_id()
        try:
            return _store_job(
                job_id,
                _Terms(pinned_to, key, error_limits),
                drafts,
                ledger=ledger,
                store=store,
                bell=bell,
                on_progress=on_progress,
                tracing=tracing,
                began=began,
            )
        except _KeyTaken as taken:
            # Somebody was faster by a moment: nothing of ours is stored, theirs is now the job to match.
            drafts = chain([taken.draft], drafts)


def submit_again(
    images: Iterable[tuple[str, Content]],
    *,
    model_id: str,
    retry_of: str,
    ledger: Ledger,
    store: Store,
    bell: Bell,
    chunk_images: int,
    on_progress: Callable[[int], None] = lambda _images: None,
    tracing: Tracing | None = None,
) -> Submitted | None:
    """Submits names and contents that come from the payloads of another job, pinned to that job's model. None
    where there is not one image. Raises, and leaves behind, what `submit` does.
    """
    began = time.time_ns()
    items = (
        (name, content, content.url if isinstance(content, Reference) else None) for name, content in images
    )
    drafts = _drafts(items, chunk_images)
    first = next(drafts, None)
    if first is None:
        return None
    return _store_job(
        new_id(),
        _Terms(model_id, retry_of=retry_of),
        chain([first], drafts),
        ledger=ledger,
        store=store,
        bell=bell,
        on_progress=on_progress,
        tracing=tracing,
        began=began,
    )


def _passed_over(images: Iterable[SourceImage]) -> str:
    """What was there instead of an image, in words."""
    skipped = images.skipped if isinstance(images, Sources) else 0
    return f", only files that are none by their names ({skipped:,})" if skipped else ""


class _KeyTaken(Conflict):
    """The key got its job between our look and our insert."""

    def __init__(self, draft: _ChunkDraft) -> None:
        super().__init__()
        self.draft = draft


def _store_job(
    job_id: str,
    terms: _Terms,
    drafts: Iterator[_ChunkDraft],
    *,
    ledger: Ledger,
    store: Store,
    bell: Bell,
    on_progress: Callable[[int], None],
    tracing: Tracing | None,
    began: int,
) -> Submitted:
    def store_chunks(traceparent: str | None) -> Submitted:
        return _store_chunks(
            job_id,
            replace(terms, traceparent=traceparent),
            drafts,
            ledger=ledger,
            store=store,
            bell=bell,
            on_progress=on_progress,
        )

    if tracing is None:
        return store_chunks(None)
    from jobs.traces import traceparent_of

    with tracing.span("submit", began=began, job=job_id, model=terms.model_id) as span:
        submitted = store_chunks(traceparent_of(span))
        span.set_attribute("labelmill.images", submitted.images)
        return submitted


def _store_chunks(
    job_id: str,
    terms: _Terms,
    drafts: Iterator[_ChunkDraft],
    *,
    ledger: Ledger,
    store: Store,
    bell: Bell,
    on_progress: Callable[[int], None],
) -> Submitted:
    fingerprint = _Fingerprint() if terms.key is not None else None
    total = 0
    opened = False
    signs = ProducerSigns(ledger, job_id)
    try:
        for draft in drafts:
            chunk = _store_payload(store, job_id, total, draft)
            with ledger.transaction() as connection:
                if not opened:
                    try:
                        open_job(
                            connection,
                            job_id,
                            model_id=terms.model_id,
                            key=terms.key,
                            error_limits=terms.error_limits,
                            retry_of=terms.retry_of,
                            traceparent=terms.traceparent,
                        )
                    except Conflict:
                        raise _KeyTaken(draft) from None
                add_chunk(connection, job_id, chunk)
            opened = True
            signs.begin()
            _ring(bell, chunk, is_all=draft.is_all)
            if fingerprint is not None:
                for name, content in zip(draft.names, draft.contents, strict=True):
                    fingerprint.add(name, content)
            total += chunk.images
            on_progress(total)
        signs.end()
        with ledger.transaction() as connection:
            seal_job(connection, job_id, fingerprint=fingerprint.hex() if fingerprint else None)
    except Stopped:
        signs.end()
        raise  # somebody stopped it, and keeps what there is
    except BaseException as error:
        # Ctrl-C may have hit the very code that ends a transaction. The frames it came through then hold that
        # transaction open, and SQLite has one writer only: they are let go.
        traceback.clear_frames(error.__traceback__)
        signs.end()  # only now: one may be waiting for just that transaction
        try:
            sealed = _taken_back_or_sealed(ledger, store, job_id)
        except Unavailable as trouble:
            # What went wrong first is what people have to know. The reconciler ends a job nobody adds to.
            raise error from trouble
        if not sealed:
            raise
        # The answer to the last COMMIT was lost, but it went through: the job is submitted.
    return Submitted(job_id, total, new=True)


def _ring(bell: Bell, chunk: NewChunk, *, is_all: bool) -> None:
    if is_all and chunk.images <= SMALL_JOB_IMAGES:
        bell.ring_for_small(chunk.id)
    else:
        bell.ring([chunk.id])


def _store_payload(store: Store, job_id: str, first_index: int, draft: _ChunkDraft) -> NewChunk:
    chunk_id = new_id()
    data = pack_payload(draft.names, draft.contents)
    key = payload_key(job_id, chunk_id)
    store.put(key, data)
    return NewChunk(chunk_id, first_index, len(draft.names), key, payload_digest(data))


def _taken_back_or_sealed(ledger: Ledger, store: Store, job_id: str) -> bool:
    """Whether the job turns out to be sealed. If not, it is taken back, unless somebody stopped it while its
    source was waited for: they keep what there is.
    """
    if _take_back(ledger, store, job_id, keep_stopped=True):
        return False
    with ledger.reading() as connection:
        return is_sealed(connection, job_id)


def _take_back(ledger: Ledger, store: Store, job_id: str, *, keep_stopped: bool = False) -> bool:
    """False, and nothing is taken back, where the job turns out to be sealed; with `keep_stopped` also where
    somebody stopped it.
    """
    with ledger.transaction() as connection:
        if not discard_job(connection, job_id, keep_stopped=keep_stopped):
            return False
    store.remove_folder(payload_folder(job_id))
    return True


def _job_with_key(ledger: Ledger, store: Store, key: str) -> KeyHolder | None:
    """The sealed job that holds the key. Waits for a producer that is still at it, and clears away what one
    that died left behind.
    """
    while True:
        with ledger.reading() as connection:
            holder = find_key(connection, key)
        if holder is None or holder.sealed:
            return holder
        if holder.receiving:
            time.sleep(_KEY_POLL_SECONDS)
        else:
            _take_back(ledger, store, holder.job_id)


def _same_job(holder: KeyHolder, key: str, model_id: str | None, drafts: Iterator[_ChunkDraft]) -> Submitted:
    if model_id not in (None, holder.model_id):
        raise Conflict(
            f"The key {key!r} already belongs to job {holder.job_id}, which was submitted for model "
            f"{holder.model_id}: choose another key, or leave it out."
        )
    found = _Fingerprint()
    images = 0
    for draft in drafts:
        for name, content in zip(draft.names, draft.contents, strict=True):
            found.add(name, content)
        images += len(draft.names)
    if found.hex() != holder.fingerprint:
        raise Conflict(
            f"The key {key!r} already belongs to job {holder.job_id}, which was submitted with other "
            "content: choose another key, or leave it out."
        )
    return Submitted(holder.job_id, images, new=False)


def _drafts(items: Iterable[_Item], chunk_images: int) -> Iterator[_ChunkDraft]:
    yielded, draft = False, _ChunkDraft()
    fetched = min(chunk_images, MAX_CHUNK_URLS)
    for name, content, url in items:
        size = len(content) if isinstance(content, bytes) else _size_by_reference(content)
        # The cheap question first: it is asked once an image.
        most = fetched if url is not None and "://" in url and is_url(url) else chunk_images
        named = name_bytes(name)
        held = draft.size + draft.names_size
        if draft.names and (len(draft.names) >= most or held + size + named > MAX_CHUNK_BYTES):
            yield draft
            yielded, draft = True, _ChunkDraft()
        draft.names.append(name)
        draft.contents.append(content)
        draft.size += size
        draft.names_size += named
    if draft.names:
        draft.is_all = not yielded
        yield draft


def _size_by_reference(content: Content) -> int:
    """In bytes: they are what a worker will be busy with."""
    return content.size if isinstance(content, Reference) else 0


def _within(limits: JobLimits, drafts: Iterable[_ChunkDraft]) -> Iterator[_ChunkDraft]:
    """The same, up to a job's limits. Raises SourceError at the chunk that is over them."""
    images = size = 0
    for draft in drafts:
        images += len(draft.names)
        size += draft.size
        if images > limits.max_images:
            raise _too_much(f"{limits.max_images:,} images", "LABELMILL_MAX_JOB_IMAGES")
        if size > limits.max_bytes:
            raise _too_much(f"{limits.max_bytes:,} bytes", "LABELMILL_MAX_JOB_BYTES")
        yield draft


def _too_much(most: str, setting: str) -> SourceError:
    return SourceError(
        f"What was named has more than {most}, which is the most that a job may have: submit it in parts, as "
        f"several jobs, or set {setting} higher. Nothing of it is stored."
    )


def _items(images: Iterable[SourceImage], roots: Roots | None) -> Iterator[_Item]:
    for image in images:
        name, data, _, url = image
        yield name, _content(image, roots) if roots is not None or data is None else data, url


def _content(image: SourceImage, roots: Roots | None) -> Content:
    """What the payload holds of an image. Raises SourceError where it must be a reference and cannot be."""
    if image.data is None:
        assert image.error is not None  # noqa: S101 -- a source gives one or the other
        return image.error
    if roots is None:
        return image.data
    if image.url is None:
        raise SourceError(
            f"{image.name} is a part of a file, and only whole files can be submitted by reference: unpack "
            "it and name the folder, or leave out --by-reference."
        )
    try:
        url = roots.locate(image.url)
    except ImageError as error:
        raise SourceError(
            f"{image.name} cannot be submitted by reference: {error.detail} (LABELMILL_REFERENCE_ROOTS is "
            f"{roots}). Add its folder there, for producers and workers alike, or leave out --by-reference."
        ) from None
    return Reference(url, hashlib.sha256(image.data).hexdigest(), len(image.data))
