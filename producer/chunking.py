"""Chunking: what a payload holds of each image, and where one chunk ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from jobs.errors import ImageError, SourceError
from jobs.limits import JobLimits
from jobs.payloads import Content
from jobs.references import Reference, Roots
from jobs.remote import is_url
from jobs.schema import SMALL_JOB_IMAGES
from producer.sources import SourceImage, SourceImages
from producer.sources.image import name_bytes

#: A chunk is closed before it grows beyond this many bytes of images and their names: it is held in memory
#: whole, by the producer and by a worker, and must be done within its lease.
MAX_CHUNK_BYTES: Final = 32 * 1024 * 1024

#: The first chunk has no more images, and no more bytes, than these, and each after it up to twice as many,
#: until the most: the workers begin while the second is still read. What may be a small job, which goes ahead
#: of others where it is one chunk, is not divided for its bytes.
FIRST_IMAGES: Final = 2_048
FIRST_BYTES: Final = 4 * 1024 * 1024

#: A chunk is closed before it has more images than these from URLs, which are fetched one by one. At a tenth
#: of a second each a chunk takes less than a lease, for the worker that fetches it by reference.
MAX_CHUNK_URLS: Final = 256

#: One image on its way into a payload: its name, its content, and where its bytes were read, or are to be.
Item: TypeAlias = tuple[str, Content, str | None]


@dataclass(slots=True)
class Chunk:
    """The images of one chunk while they are collected."""

    names: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    size: int = 0  # of the images, in bytes
    names_size: int = 0  # in bytes
    is_last: bool = False  # of its job

    def add(
        self, names: Sequence[str], contents: Sequence[Content], size: int, *, most: int, most_bytes: int
    ) -> bool:
        """False, and nothing is added, where the chunk would then have more images or bytes than the most; a
        single one always has room in an empty chunk. `size`: of these images, in bytes.
        """
        named = sum(map(len if all(map(str.isascii, names)) else name_bytes, names))
        images, held = len(self.names) + len(names), self.size + self.names_size + size + named
        if images <= SMALL_JOB_IMAGES:
            most_bytes = MAX_CHUNK_BYTES
        if (images > most or held > most_bytes) and (self.names or len(names) > 1):
            return False
        self.names += names
        self.contents += contents
        self.size += size
        self.names_size += named
        return True


def items_of(
    images: Iterable[SourceImage | SourceImages], roots: Roots | None
) -> Iterator[Item | SourceImages]:
    """What a payload holds of each image: its bytes, where they are below these roots, or its error. Raises
    SourceError for one that must be a reference and cannot be.
    """
    for found in images:
        if isinstance(found, SourceImage):
            yield found.name, _content(found, roots), found.url
        elif roots is None:
            yield found
        else:
            for image in found.one_by_one():
                yield image.name, _content(image, roots), image.url


def _content(image: SourceImage, roots: Roots | None) -> Content:
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


def chunks_of(items: Iterable[Item | SourceImages], chunk_images: int) -> Iterator[Chunk]:
    """Chunks of so many images, or of fewer where they are large, come from URLs or are a job's first."""
    chunk = Chunk()
    room, room_bytes = min(FIRST_IMAGES, chunk_images), min(FIRST_BYTES, MAX_CHUNK_BYTES)
    for item in items:
        waiting = [item]  # the next one last
        while waiting:
            found = waiting.pop()
            if isinstance(found, SourceImages):
                size = sum(map(len, found.data))
                added = chunk.add(found.names, found.data, size, most=room, most_bytes=room_bytes)
            else:
                name, content, url = found
                most = min(room, MAX_CHUNK_URLS) if url is not None and is_url(url) else room
                added = chunk.add((name,), (content,), _size_of(content), most=most, most_bytes=room_bytes)
            if added:
                continue
            if isinstance(found, SourceImages) and len(found.names) > 1:
                waiting += reversed(found.halves())  # there may be room for the first
            else:
                yield chunk
                chunk = Chunk()
                room, room_bytes = min(2 * room, chunk_images), min(2 * room_bytes, MAX_CHUNK_BYTES)
                waiting.append(found)
    if chunk.names:
        chunk.is_last = True
        yield chunk


def _size_of(content: Content) -> int:
    """In bytes: they are what a worker will be busy with."""
    if isinstance(content, bytes):
        return len(content)
    return content.size if isinstance(content, Reference) else 0


def within(limits: JobLimits, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same, up to a job's limits. Raises SourceError at the chunk that is over them."""
    images = size = 0
    for chunk in chunks:
        images += len(chunk.names)
        size += chunk.size
        if images > limits.max_images:
            raise _too_much(f"{limits.max_images:,} images", "LABELMILL_MAX_JOB_IMAGES")
        if size > limits.max_bytes:
            raise _too_much(f"{limits.max_bytes:,} bytes", "LABELMILL_MAX_JOB_BYTES")
        yield chunk


def _too_much(most: str, setting: str) -> SourceError:
    return SourceError(
        f"What was named has more than {most}, which is the most that a job may have: submit it in parts, as "
        f"several jobs, or set {setting} higher. Nothing of it is stored."
    )
