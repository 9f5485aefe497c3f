"""A payload is read as it was stored, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import ErrorCode, ImageError, JobError, PayloadDamaged
from jobs.network.references import Reference
from jobs.storage.payloads import Content, pack_payload, payload_digest, payload_key, read_payload
from jobs.storage.store import Store

NAMES = st.text()
ERRORS = st.builds(ImageError, st.sampled_from(ErrorCode), st.text())
#: Any name that a file can have, from any bytes.
PATHS = st.binary(min_size=1, max_size=20).map(lambda name: os.fsdecode(b"/" + name))
REFERENCES = st.builds(
    Reference,
    PATHS | st.text().map("s3://bucket/{}".format),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.integers(0, 2**40),
)
#: About the size from which an image is a piece of its own.
LARGE = st.integers(16_382, 16_386).map(os.urandom)
IMAGES = st.lists(st.tuples(NAMES, st.binary(max_size=200) | LARGE | ERRORS | REFERENCES), max_size=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def put(store: Store, *pieces: bytes) -> tuple[str, str]:
    key = payload_key("job", "chunk")
    store.put(key, *pieces)
    return key, payload_digest(*pieces)


def packed(names: Sequence[str], contents: Sequence[Content]) -> bytes:
    """Return the payload in one piece."""
    return b"".join(pack_payload(names, contents))


def comparable(content: Content):
    """Return an error's code and detail, or bytes and references unchanged."""
    return (content.code, content.detail) if isinstance(content, ImageError) else content


@given(IMAGES, st.data())
def test_a_payload_and_each_part_of_it_come_back_as_they_were_stored(images, data):
    # Given images with any names, as bytes, references or errors, and a part of them
    store = Store("memory://payloads")
    key, digest = put(store, *(pack_payload(*zip(*images, strict=True)) if images else pack_payload([], [])))
    offset = data.draw(st.integers(0, len(images)))
    count = data.draw(st.integers(0, len(images) - offset))

    # When they are read, Then they are the same in the same order, and the part has no others
    whole = read_payload(store, key, digest)
    for found, expected in (
        (whole, images),
        (whole.part(offset, count), images[offset : offset + count]),
    ):
        assert found.names == [name for name, _ in expected]
        assert list(map(comparable, found.contents)) == [comparable(content) for _, content in expected]


def test_a_payload_has_the_documented_format():
    for contents in ([b"1"], [b"1" * 100_000], [ImageError(ErrorCode.CORRUPT, "no")]):
        version, names, [stored] = msgpack.unpackb(packed(["a.png"], contents))
        assert (version, names) == (1, ["a.png"])
        assert stored in (*contents, ["corrupt", "no"])


def test_the_digest_is_a_blake3():
    # Given one of the published test vectors of BLAKE3: the numbers 0 to 250, repeated
    stored = bytes(number % 251 for number in range(8192))
    assert payload_digest(stored[:5000], stored[5000:]) == (
        "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"
    )


def test_large_images_are_not_copied():
    # Given large and small images
    contents = [b"1" * 16_384, b"2", b"3" * 100_000, b"4" * 16_383]

    # When they are packed, Then large images are not copied, and everything between them is joined
    pieces = pack_payload(["a", "b", "c", "d"], contents)
    assert [piece for piece in pieces if piece in contents] == [contents[0], contents[2]]
    assert all(any(piece is content for piece in pieces) for content in (contents[0], contents[2]))
    assert len(pieces) == 5


@given(st.data())
def test_a_payload_with_one_byte_changed_is_damaged(data):
    # Given a stored payload with one bit flipped
    stored = packed(["a.png", "b.png"], [b"some pixels", b"more pixels"])
    store = Store("memory://flipped")
    place = data.draw(st.integers(0, len(stored) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(stored)
    flipped[place] ^= 1 << bit
    key, _ = put(store, bytes(flipped))

    # When it is read, Then the digest shows that, before the payload is parsed
    with pytest.raises(PayloadDamaged, match="digest"):
        read_payload(store, key, payload_digest(stored))


def test_a_payload_that_is_gone_is_damaged(store):
    # Given a missing file among others: another attempt would not help, so the job fails
    store.put(payload_key("job", "other"), b"")
    with pytest.raises(PayloadDamaged, match="gone") as damaged:
        read_payload(store, "payloads/job/none.msgpack", "0" * 64)
    assert isinstance(damaged.value, JobError)


@pytest.mark.parametrize(("offset", "images"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_a_payload_with_fewer_images_than_the_chunk_is_damaged(store, offset, images):
    data = packed(["a.png", "b.png"], [b"1", b"2"])
    key, digest = put(store, data)
    with pytest.raises(PayloadDamaged, match="2 images, not 3"):
        read_payload(store, key, digest).part(offset, images)


@pytest.mark.parametrize(
    "stored",
    [
        [2, ["a.png"], [b"1"]],
        [0, ["a.png"], [b"1"]],
        [1, ["a.png"], []],
        [1, ["a.png", "b.png"], [b"1"]],
        [None, ["a.png"], [b"1"]],
    ],
    ids=repr,
)
def test_a_payload_of_another_version_or_with_holes_is_damaged(store, stored):
    key, digest = put(store, msgpack.packb(stored))
    with pytest.raises(PayloadDamaged):
        read_payload(store, key, digest).part(0, 1)
