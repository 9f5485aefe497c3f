"""Chunks are the same whether their images come together or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from producer.drafts import ChunkDraft, drafts_of, items_of

from producer import drafts
from producer.sources import SourceImage, SourceImages

MAX_BYTES = 40

NAMES = st.sampled_from(["a.png", "b/c.png", "\u00e9.png", "\U0001f600"])
IMAGES = st.lists(st.tuples(NAMES, st.binary(max_size=MAX_BYTES + 10)), min_size=1, max_size=30)


def together(images: list[tuple[str, bytes]], cuts: set[int]) -> Iterator[SourceImage | SourceImages]:
    """In groups, of which some are cut off after these places; one alone is sometimes a group, too."""
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


def chunks(images: Iterable[SourceImage | SourceImages], chunk_images: int) -> list[ChunkDraft]:
    return list(drafts_of(items_of(images, None), chunk_images))


@pytest.fixture(autouse=True, scope="module")
def few_bytes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "MAX_CHUNK_BYTES", MAX_BYTES)
        patch.setattr(drafts, "FIRST_BYTES", MAX_BYTES // 3)
        patch.setattr(drafts, "SMALL_JOB_IMAGES", 3)
        yield


@given(IMAGES, st.sets(st.integers(1, 30)), st.integers(1, 12))
def test_images_that_come_together_make_the_same_chunks(
    images: list[tuple[str, bytes]], cuts: set[int], chunk_images: int
) -> None:
    # Given images that come in groups, When chunks are made of them, Then they are those that would be anyway
    found = chunks(together(images, cuts), chunk_images)
    assert found == chunks(one_by_one(images), chunk_images)

    # And none is larger than it may be, but where a single image is
    for draft in found:
        held = sum(map(len, draft.contents)) + sum(len(name.encode()) for name in draft.names)
        assert (draft.size + draft.names_size) == held
        assert len(draft.names) == 1 or (held <= MAX_BYTES and len(draft.names) <= chunk_images)
    assert [draft.is_last for draft in found] == [draft is found[-1] for draft in found]
