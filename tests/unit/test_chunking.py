"""Chunks begin small, stay within their limits, and do not depend on how their images arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.schema import SMALL_JOB_IMAGES
from producer import chunking
from producer.chunking import FIRST_IMAGES, MAX_CHUNK_URLS, Chunk, chunks_of, items_of
from producer.sources import SourceImage, SourceImages

MAX_BYTES = 40

NAMES = st.sampled_from(["a.png", "b/c.png", "\u00e9.png", "\U0001f600"])
IMAGES = st.lists(st.tuples(NAMES, st.binary(max_size=MAX_BYTES + 10)), min_size=1, max_size=30)


def in_groups(images: list[tuple[str, bytes]], cuts: set[int]) -> Iterator[SourceImage | SourceImages]:
    """Yield the images in groups that end at these indices; a group of one is sometimes a single image."""
    start = 0
    for end in sorted({*(cut for cut in cuts if cut < len(images)), len(images)} - {0}):
        part = images[start:end]
        if len(part) == 1 and end % 2:
            yield from one_by_one(part)
        else:
            names, data = [name for name, _ in part], [data for _, data in part]
            yield SourceImages(names, data, names)
        start = end


def one_by_one(images: list[tuple[str, bytes]]) -> Iterator[SourceImage]:
    return (SourceImage(name, data, None, name) for name, data in images)


def chunks(images: Iterable[SourceImage | SourceImages], chunk_images: int) -> list[Chunk]:
    return list(chunks_of(items_of(images, None), chunk_images))


@contextmanager
def few_bytes() -> Iterator[None]:
    """Let chunks have few bytes inside the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "MAX_CHUNK_BYTES", MAX_BYTES)
        patch.setattr(chunking, "CHUNK_BYTES", MAX_BYTES // 3)
        patch.setattr(chunking, "SMALL_JOB_IMAGES", 3)
        yield


@given(IMAGES, st.sets(st.integers(1, 30)), st.integers(1, 12))
def test_images_that_arrive_in_groups_make_the_same_chunks(
    images: list[tuple[str, bytes]], cuts: set[int], chunk_images: int
) -> None:
    # Given images that arrive in groups, then their chunks are the same as for single images
    with few_bytes():
        found = chunks(in_groups(images, cuts), chunk_images)
        assert found == chunks(one_by_one(images), chunk_images)

    # and no chunk exceeds its limits, except with a single image
    for chunk in found:
        held = sum(map(len, chunk.contents)) + sum(len(name.encode()) for name in chunk.names)
        assert (chunk.size + chunk.names_size) == held
        assert len(chunk.names) == 1 or (held <= MAX_BYTES and len(chunk.names) <= chunk_images)
    assert [chunk.is_last for chunk in found] == [chunk is found[-1] for chunk in found]


def test_a_jobs_first_chunk_is_small_and_each_one_after_it_up_to_twice_as_large() -> None:
    images = [(f"{number}.png", b"1") for number in range(20_000)]
    assert [len(chunk.names) for chunk in chunks(one_by_one(images), 8_192)] == [
        FIRST_IMAGES,
        2 * FIRST_IMAGES,
        8_192,
        20_000 - 3 * FIRST_IMAGES - 8_192,
    ]


def test_a_small_job_is_one_chunk_however_large_its_images() -> None:
    # Given as many photographs as a small job may have, with more bytes than other chunks may have
    photographs = [(f"{number}.jpg", bytes(200_000)) for number in range(SMALL_JOB_IMAGES)]
    assert len(chunks(one_by_one(photographs), 8_192)) == 1
    # When there is one more, then the job is not small
    assert len(chunks(one_by_one([*photographs, photographs[0]]), 8_192)) > 1


def test_images_from_urls_are_few_per_chunk() -> None:
    images = (SourceImage("a.png", b"1", None, f"s3://bucket/{number}.png") for number in range(300))
    assert [len(chunk.names) for chunk in chunks(images, 8_192)] == [MAX_CHUNK_URLS, 300 - MAX_CHUNK_URLS]
