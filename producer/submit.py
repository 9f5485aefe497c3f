"""Turns a stream of images into a job: payload to the store, row to the ledger, message to the queue.

In this order, chunk by chunk: whatever breaks in between, the ledger never names a payload that is not
there, and a message that was not sent is sent later by the reconciler. What a worker does with the message
is told in `worker.tasks`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

from jobs.errors import Conflict, ImageError, NotFound, SourceError, Stopped
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.intake import NewChunk, add_chunk, discard_job, find_key, open_job, seal_job
from jobs.ledger.models import find_champion
from jobs.payloads import pack_payload, payload_digest, payload_folder, payload_key
from jobs.queue import Bell
from jobs.store import Store
from producer.sources import SourceImage

#: A chunk is closed before it grows beyond this many bytes of images: it is held in memory whole, by the
#: producer and by a worker, and must be done within its lease.
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024

#: How often to look whether somebody else has finished submitting under the same key.
_KEY_POLL_SECONDS: Final = 0.2


class Submitted(NamedTuple):
    """What came of a submission."""

    job_id: str
    images: int
    #: False where the submission key already had its job and nothing new was stored.
    new: bool


@dataclass
class _ChunkDraft:
    """The images of one chunk while they are gathered."""

    names: list[str] = field(default_factory=list)
    contents: list[bytes | ImageError] = field(default_factory=list)


class _Fingerprint:
    """What was submitted, whatever its order: the sum, modulo 2^256, of one SHA-256 an image.

    A folder's order is the file system's affair, so the same content must give the same value in any order;
    a sum, unlike an exclusive or, also notices an image that is there twice.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, name: str, content: bytes | ImageError) -> None:
        kind, data = (b"i", content) if isinstance(content, bytes) else (b"e", str(content.code).encode())
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
    on_progress: Callable[[int], None] = lambda _images: None,
) -> Submitted:
    """Submits one job of all `images`; when this returns, the job is committed in the ledger.

    Memory holds one chunk at a time. `on_progress` is called with the number of images stored so far.
    Raises SourceError where there is not one image, NotFound where there is no model yet, Conflict where
    `key` was used for other content, Unavailable where the ledger or the store cannot be reached. After any
    exception, Ctrl-C included, nothing of the job is left; but for Stopped, where somebody cancelled it.
    """
    with ledger.reading() as connection:
        champion = find_champion(connection)
    if champion is None:
        raise NotFound("There is no model yet: run `labelmill train`.")

    drafts = _drafts(images, chunk_images)
    first = next(drafts, None)
    if first is None:
        raise SourceError("There is no image in what was named, so there is nothing to submit.")
    drafts = chain([first], drafts)

    while True:
        if key is not None and (known := _job_with_key(ledger, store, key)) is not None:
            return _same_job(known, key, drafts)
        job_id = new_id()
        try:
            return _store_job(
                job_id,
                champion.id,
                key,
                drafts,
                ledger=ledger,
                store=store,
                bell=bell,
                on_progress=on_progress,
            )
        except _KeyTaken as taken:
            # Somebody was faster by a moment: nothing of ours is stored, theirs is now the job to match.
            drafts = chain([taken.draft], drafts)


class _KeyTaken(Conflict):
    """The key got its job between our look and our insert."""

    def __init__(self, draft: _ChunkDraft) -> None:
        super().__init__()
        self.draft = draft


def _store_job(
    job_id: str,
    model_id: str,
    key: str | None,
    drafts: Iterator[_ChunkDraft],
    *,
    ledger: Ledger,
    store: Store,
    bell: Bell,
    on_progress: Callable[[int], None],
) -> Submitted:
    fingerprint = _Fingerprint() if key is not None else None
    total = 0
    opened = False
    try:
        for draft in drafts:
            chunk = _store_payload(store, job_id, total, draft)
            with ledger.transaction() as connection:
                if not opened:
                    try:
                        open_job(connection, job_id, model_id=model_id, key=key)
                    except Conflict:
                        raise _KeyTaken(draft) from None
                add_chunk(connection, job_id, chunk)
            opened = True
            bell.ring([chunk.id])
            if fingerprint is not None:
                for name, content in zip(draft.names, draft.contents, strict=True):
                    fingerprint.add(name, content)
            total += chunk.images
            on_progress(total)
        with ledger.transaction() as connection:
            seal_job(connection, job_id, fingerprint=fingerprint.hex() if fingerprint else None)
    except Stopped:
        raise  # somebody cancelled it, and keeps what there is
    except BaseException:
        _take_back(ledger, store, job_id)
        raise
    return Submitted(job_id, total, new=True)


def _store_payload(store: Store, job_id: str, first_index: int, draft: _ChunkDraft) -> NewChunk:
    chunk_id = new_id()
    data = pack_payload(draft.names, draft.contents)
    key = payload_key(job_id, chunk_id)
    store.put(key, data)
    return NewChunk(chunk_id, first_index, len(draft.names), key, payload_digest(data))


def _take_back(ledger: Ledger, store: Store, job_id: str) -> None:
    with ledger.transaction() as connection:
        discard_job(connection, job_id)
    store.remove_folder(payload_folder(job_id))


def _job_with_key(ledger: Ledger, store: Store, key: str) -> tuple[str, str | None] | None:
    """The sealed job that holds the key, with its fingerprint. Waits for a producer that is still at it, and
    clears away what one that died left behind.
    """
    while True:
        with ledger.reading() as connection:
            holder = find_key(connection, key)
        if holder is None:
            return None
        if holder.sealed:
            return holder.job_id, holder.fingerprint
        if holder.receiving:
            time.sleep(_KEY_POLL_SECONDS)
        else:
            _take_back(ledger, store, holder.job_id)


def _same_job(known: tuple[str, str | None], key: str, drafts: Iterator[_ChunkDraft]) -> Submitted:
    job_id, expected = known
    found = _Fingerprint()
    images = 0
    for draft in drafts:
        for name, content in zip(draft.names, draft.contents, strict=True):
            found.add(name, content)
        images += len(draft.names)
    if found.hex() != expected:
        raise Conflict(
            f"The key {key!r} already belongs to job {job_id}, which was submitted with other content: "
            "choose another key, or leave it out."
        )
    return Submitted(job_id, images, new=False)


def _drafts(images: Iterable[SourceImage], chunk_images: int) -> Iterator[_ChunkDraft]:
    draft = _ChunkDraft()
    size = 0
    for name, data, error in images:
        if draft.names and (len(draft.names) == chunk_images or size + len(data or b"") > MAX_CHUNK_BYTES):
            yield draft
            draft, size = _ChunkDraft(), 0
        draft.names.append(name)
        if data is None:
            assert error is not None  # noqa: S101 -- a source gives one or the other
            draft.contents.append(error)
        else:
            draft.contents.append(data)
            size += len(data)
    if draft.names:
        yield draft
