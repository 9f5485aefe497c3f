"""Images on their way into chunks: what a payload holds of each, and where one chunk ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from jobs.errors import ImageError, SourceError
from jobs.limits import JobLimits
from jobs.payloads import Content
from jobs.references import Reference, Roots
from jobs.remote import is_url
from producer.sources import SourceImage
from producer.sources.image import name_bytes

#: A chunk is closed before it grows beyond this many bytes of images and their names: it is held in memory
#: whole, by the producer and by a worker, and must be done within its lease.
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024

#: And before it has more images than these from URLs, which are fetched one by one. At a tenth of a second
#: each a chunk takes less than a lease, for the worker that fetches it by reference.
MAX_CHUNK_URLS: Final = 256

#: One image on its way into a payload: its name, its content, and where its bytes were read, or are to be.
Item: TypeAlias = tuple[str, Content, str | None]


@dataclass(slots=True)
class ChunkDraft:
    """The images of one chunk while they are gathered."""

    names: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    size: int = 0  # of the images, in bytes
    names_size: int = 0  # in bytes
    is_all: bool = False  # of its job: there is no other


def items_of(images: Iterable[SourceImage], roots: Roots | None) -> Iterator[Item]:
    """What a payload holds of each image: its bytes, where they are below these roots, or its error. Raises
    SourceError for one that must be a reference and cannot be.
    """
    for image in images:
        name, data, _, url = image
        yield name, _content(image, roots) if roots is not None or data is None else data, url


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


def drafts_of(items: Iterable[Item], chunk_images: int) -> Iterator[ChunkDraft]:
    """Chunks of so many images, or of fewer where they are large or come from URLs."""
    yielded, draft = False, ChunkDraft()
    fetched = min(chunk_images, MAX_CHUNK_URLS)
    for name, content, url in items:
        size = len(content) if isinstance(content, bytes) else _size_by_reference(content)
        # The cheap question first: it is asked once an image.
        most = fetched if url is not None and "://" in url and is_url(url) else chunk_images
        named = name_bytes(name)
        held = draft.size + draft.names_size
        if draft.names and (len(draft.names) >= most or held + size + named > MAX_CHUNK_BYTES):
            yield draft
            yielded, draft = True, ChunkDraft()
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


def within(limits: JobLimits, drafts: Iterable[ChunkDraft]) -> Iterator[ChunkDraft]:
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
