"""Read single images of a finished chunk again: the bytes that were submitted, or a reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from jobs.errors import ImageError, PayloadDamaged
from jobs.extras import require_decoders
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import FinishedChunk, chunk_of
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.payloads import Content, Payload, read_payload
from jobs.storage.store import Store

#: Pixels of the longer side of a thumbnail.
THUMBNAIL_SIDE: Final = 96


class LatestPayload:
    """Keeps the payload that was read last: people look at images that lie next to each other."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._payload = Payload([], [])

    def contents(self, store: Store, chunk: FinishedChunk) -> Sequence[Content]:
        """Return the chunk's images; none if its payload is gone or damaged."""
        try:
            if self._key != chunk.payload:
                self._payload = read_payload(store, chunk.payload, chunk.payload_digest)
                self._key = chunk.payload
            return self._payload.part(chunk.payload_offset, chunk.images).contents
        except PayloadDamaged:
            return ()


def read_images(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    job_id: str,
    indices: Sequence[int],
    latest: LatestPayload | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield these images of a job by index, in ascending order. Images that cannot be read are left out.

    Each payload is read once, and only one is in memory; with `latest`, also not again by the next call.
    Raises Unavailable, and SettingsError if a root for references is malformed.
    """
    latest = latest or LatestPayload()
    roots = Roots(settings.reference_roots, settings.private_hosts)
    chunk: FinishedChunk | None = None
    contents: Sequence[Content] = ()
    for index in sorted(indices):
        if chunk is None or index >= chunk.first_index + chunk.images:
            with ledger.reading() as connection:
                chunk = chunk_of(connection, job_id, index)
            contents = () if chunk is None else latest.contents(store, chunk)
        if chunk is None or not contents:
            continue
        content = contents[index - chunk.first_index]
        try:
            if isinstance(content, Reference):
                content = roots.read(content, max_bytes=settings.max_image_bytes)
        except ImageError:
            continue
        if isinstance(content, bytes):
            yield index, content


def thumbnails(
    ledger: Ledger, store: Store, settings: Settings, job_id: str, indices: Sequence[int]
) -> dict[int, bytes]:
    """Return these images as small PNG files, by index. Images that cannot be read are left out.

    Raises UserError without decoders, and what `read_images` raises.
    """
    require_decoders("A page with images")
    from worker.predicting.pictures import thumbnail

    found = {}
    for index, data in read_images(ledger, store, settings, job_id, indices):
        with suppress(ImageError):
            found[index] = thumbnail(data, THUMBNAIL_SIDE, settings.image_limits)
    return found
