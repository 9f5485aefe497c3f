"""Group images into chunks, choose what a payload holds of each image, and write the payloads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from jobs.errors import ImageError, SourceError
from jobs.ids import new_id
from jobs.ledger.jobs.submission import DEFAULT_PRIORITY, SMALL_JOB_PRIORITY, NewChunk
from jobs.limits import JobLimits
from jobs.network.objects import is_url
from jobs.network.references import Reference, Roots
from jobs.schema import SMALL_JOB_IMAGES
from jobs.storage.payloads import Content, pack_payload, payload_digest, payload_key
from jobs.storage.store import Store
from producer.sources import SourceImage, SourceImages
from producer.sources.image import TurnOver, name_bytes

#: Maximum bytes of a chunk's images and names: hardly more photographs than one claim covers, because each
#: process that claims a part of a chunk reads all of its payload.
CHUNK_BYTES: Final = 8 * 1024 * 1024

#: The same for a chunk that may be a small job: only a job of one chunk gets a small job's priority. The
#: producer and a worker hold a whole chunk in memory.
MAX_CHUNK_BYTES: Final = 32 * 1024 * 1024

#: Maximum images of a job's first chunk, doubled for each following chunk up to the maximum, so that workers
#: can begin while the second chunk is read.
FIRST_IMAGES: Final = 2_048

#: Maximum images per chunk that come from URLs. At a tenth of a second each, a worker that fetches them by
#: reference needs less than a lease.
MAX_CHUNK_URLS: Final = 256

#: One image for a payload: its name, its content, the path or URL of its bytes, and its true label.
Item: TypeAlias = tuple[str, Content, str | None, str | None]


@dataclass(slots=True)
class Chunk:
    """The images of one chunk while they are collected."""

    names: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    size: int = 0  # of the images, in bytes
    names_size: int = 0  # in bytes
    is_last: bool = False  # of its job
    labels: dict[int, str] = field(default_factory=dict)  # the true ones, by the image's place in the chunk

    def add(self, names: Sequence[str], contents: Sequence[Content], size: int, *, max_images: int) -> bool:
        """Add images, of `size` bytes together, unless the chunk would exceed `max_images` or its bytes.

        Return whether they were added. An empty chunk always accepts a single image.
        """
        named = sum(map(len if all(map(str.isascii, names)) else name_bytes, names))
        images, held = len(self.names) + len(names), self.size + self.names_size + size + named
        max_bytes = MAX_CHUNK_BYTES if images <= SMALL_JOB_IMAGES else CHUNK_BYTES
        if (images > max_images or held > max_bytes) and (self.names or len(names) > 1):
            return False
        self.names += names
        self.contents += contents
        self.size += size
        self.names_size += named
        return True


def items_of(
    images: Iterable[SourceImage | SourceImages], roots: Roots | None
) -> Iterator[Item | SourceImages]:
    """Yield what a payload holds of each image: its bytes, or its error.

    If `roots` are given, yield a reference below these roots instead of the bytes. Raises SourceError for an
    image that cannot be a reference.
    """
    for found in images:
        if isinstance(found, SourceImage):
            yield found.name, content_of(found, roots), found.url, found.label
        elif roots is None:
            yield found
        else:
            for image in found.one_by_one():
                yield image.name, content_of(image, roots), image.url, image.label


def content_of(image: SourceImage, roots: Roots | None) -> Content:
    """Return what a payload holds of an image: its bytes, its error, or with `roots` a reference.

    Raises SourceError if it cannot be a reference below these roots.
    """
    if image.data is None:
        assert image.error is not None  # noqa: S101 -- a source gives one or the other
        return image.error
    if roots is None:
        return image.data
    if image.url is None:
        raise SourceError(
            f"{image.name} is part of a file, and only whole files can be submitted by reference: unpack the "
            "file and name the folder, or leave out --by-reference."
        )
    try:
        url = roots.locate(image.url)
    except ImageError as error:
        raise SourceError(
            f"{image.name} cannot be submitted by reference: {error.detail}. The roots are now {roots}. "
            "Without --by-reference, its bytes are stored."
        ) from None
    return Reference(url, hashlib.sha256(image.data).hexdigest(), len(image.data))


def chunks_of(items: Iterable[Item | SourceImages], chunk_images: int) -> Iterator[Chunk]:
    """Yield chunks of `chunk_images` images, or fewer if images are large or come from URLs.

    The first chunks are smaller too (FIRST_IMAGES), and so is one that is interrupted by TurnOver, which is
    raised after it.
    """
    chunk = Chunk()
    room = min(FIRST_IMAGES, chunk_images)
    try:
        for item in items:
            waiting = [item]  # a stack: the next one is last
            while waiting:
                found = waiting.pop()
                if isinstance(found, SourceImages):
                    size = sum(map(len, found.data))
                    added = chunk.add(found.names, found.data, size, max_images=room)
                else:
                    name, content, url, label = found
                    max_images = min(room, MAX_CHUNK_URLS) if url is not None and is_url(url) else room
                    added = chunk.add((name,), (content,), _size_of(content), max_images=max_images)
                    if added and label is not None:
                        chunk.labels[len(chunk.names) - 1] = label
                if added:
                    continue
                if isinstance(found, SourceImages) and len(found.names) > 1:
                    waiting += reversed(found.halves())  # there may be room for the first
                else:
                    yield chunk
                    chunk = Chunk()
                    room = min(2 * room, chunk_images)
                    waiting.append(found)
    except TurnOver:
        if chunk.names:
            yield chunk
        raise
    if chunk.names:
        chunk.is_last = True
        yield chunk


def _size_of(content: Content) -> int:
    """Return the bytes that a worker will process, including those behind a reference."""
    if isinstance(content, bytes):
        return len(content)
    return content.size if isinstance(content, Reference) else 0


def enforce_limits(limits: JobLimits, chunks: Iterable[Chunk], images: int = 0) -> Iterator[Chunk]:
    """Yield the same chunks. Raises SourceError at the first one that exceeds a job's limits.

    `images` is how many the job has already.
    """
    size = 0
    for chunk in chunks:
        images += len(chunk.names)
        size += chunk.size
        if images > limits.max_images:
            raise _limit_exceeded(f"{limits.max_images:,} images", "LABELMILL_MAX_JOB_IMAGES")
        if size > limits.max_bytes:
            raise _limit_exceeded(f"{limits.max_bytes:,} bytes", "LABELMILL_MAX_JOB_BYTES")
        yield chunk


def _limit_exceeded(most: str, setting: str) -> SourceError:
    return SourceError(
        f"The sources have more than {most}, the limit for one job: submit them as several jobs, or set "
        f"{setting} higher. Nothing was submitted."
    )


def store_payload(store: Store, job_id: str, first_index: int, chunk: Chunk, priority: int) -> NewChunk:
    """Write a chunk's payload into the store, and return the chunk's row. Raises Unavailable."""
    chunk_id = new_id()
    pieces = pack_payload(chunk.names, chunk.contents)
    key = payload_key(job_id, chunk_id)
    store.put(key, *pieces)
    return NewChunk(chunk_id, first_index, len(chunk.names), key, payload_digest(*pieces), priority)


def choose_priority(wanted: int | None, chunk: Chunk, *, first: bool) -> int:
    """Return the priority of a job's chunk: the one that is wanted, or the default for the job's size."""
    if wanted is not None:
        return wanted
    is_small = first and chunk.is_last and len(chunk.names) <= SMALL_JOB_IMAGES
    return SMALL_JOB_PRIORITY if is_small else DEFAULT_PRIORITY
