"""Read the images of a job without submitting it, and count them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jobs.errors import SourceError
from jobs.limits import JobLimits
from jobs.network.references import Roots
from producer.chunking import chunks_of, enforce_limits, items_of
from producer.sources import SourceImage, SourceImages, Sources
from producer.sources.repeats import Repeats


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a submission would store."""

    images: int
    bytes: int
    duplicates: int  # images with the same bytes as an earlier one
    unreadable: int
    chunks: int


def dry_run(
    images: Sources,
    *,
    chunk_images: int,
    limits: JobLimits,
    by_reference: Roots | None = None,
    on_progress: Callable[[int], None] = lambda _images: None,
) -> DryRun:
    """Read all images as for a submission, in constant memory except eight bytes per image.

    Raises SourceError if there is no image, more than the limits allow, or one that cannot be submitted by
    reference; Unavailable.
    """
    repeats = Repeats()
    total = size = chunks = 0
    found = items_of(_hashed(images.batches(), repeats), by_reference)
    for chunk in enforce_limits(limits, chunks_of(found, chunk_images)):
        total += len(chunk.names)
        size += chunk.size
        chunks += 1
        on_progress(total)
    if not total:
        raise SourceError("The sources contain no images: name other sources.")
    return DryRun(total, size, repeats.count(), images.unreadable, chunks)


def _hashed(
    images: Iterable[SourceImage | SourceImages], repeats: Repeats
) -> Iterator[SourceImage | SourceImages]:
    for found in images:
        for data in found.data if isinstance(found, SourceImages) else [found.data]:
            if data is not None:
                repeats.add(data)
        yield found
