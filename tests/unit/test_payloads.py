"""The payload comes back as it was stored, or not at all."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import ErrorCode, ImageError, JobError, PayloadDamaged, Unavailable
from jobs.payloads import pack_payload, payload_digest, payload_folder, payload_key, read_payload
from jobs.store import Store

NAMES = st.text()
ERRORS = st.builds(ImageError, st.sampled_from(ErrorCode), st.text())
IMAGES = st.lists(st.tuples(NAMES, st.binary(max_size=200) | ERRORS), max_size=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def put(store: Store, data: bytes) -> tuple[str, str]:
    key = payload_key("job", "chunk")
    store.put(key, data)
    return key, payload_digest(data)


def comparable(content):
    """An error's code and what it says; bytes as they are."""
    return content if isinstance(content, bytes) else (content.code, content.detail)


@given(IMAGES)
def test_a_payload_comes_back_as_it_was_stored(images):
    # Given images with any names and bytes, and errors in place of some
    names = [name for name, _ in images]
    contents = [content for _, content in images]
    store = Store("memory://payloads")

    # When they are stored and read
    key, digest = put(store, pack_payload(names, contents))
    found = read_payload(store, key, digest, images=len(images))

    # Then they are the same in the same order
    assert found.names == names
    assert [comparable(content) for content in found.contents] == [
        comparable(content) for content in contents
    ]


def test_the_same_images_make_the_same_bytes():
    images = ["a.png", "b.png"], [b"one", ImageError(ErrorCode.CORRUPT, "no")]
    assert pack_payload(*images) == pack_payload(*images)


@given(st.data())
def test_a_payload_with_one_byte_changed_is_damaged(data):
    # Given a stored payload of which one bit has flipped
    packed = pack_payload(["a.png", "b.png"], [b"some pixels", b"more pixels"])
    store = Store("memory://flipped")
    place = data.draw(st.integers(0, len(packed) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(packed)
    flipped[place] ^= 1 << bit
    key, _ = put(store, bytes(flipped))

    # When it is read, Then that is noticed, before it is parsed
    with pytest.raises(PayloadDamaged, match="SHA-256"):
        read_payload(store, key, payload_digest(packed), images=2)


@pytest.mark.parametrize("damage", [lambda data: data[:0], lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_payload_that_is_cut_or_grown_is_damaged(store, damage):
    packed = pack_payload(["a.png"], [b"pixels"])
    key, _ = put(store, damage(packed))
    with pytest.raises(PayloadDamaged):
        read_payload(store, key, payload_digest(packed), images=1)


def test_a_payload_that_is_gone_is_damaged_for_good(store):
    # Given no such file: trying again would not help, so it ends the job
    with pytest.raises(PayloadDamaged, match="gone") as damaged:
        read_payload(store, "payloads/job/none.msgpack", "0" * 64, images=1)
    assert isinstance(damaged.value, JobError)


def test_a_store_that_is_away_is_tried_again(tmp_path):
    # Given a store that cannot be read at the moment
    (tmp_path / "payloads").write_bytes(b"a file where a folder should be")
    with pytest.raises(Unavailable):
        read_payload(Store(str(tmp_path)), payload_key("job", "chunk"), "0" * 64, images=1)


def test_the_number_of_images_is_checked(store):
    packed = pack_payload(["a.png", "b.png"], [b"1", b"2"])
    key, digest = put(store, packed)
    for images in (0, 1, 3):
        with pytest.raises(PayloadDamaged, match=f"2 images .* not {images}"):
            read_payload(store, key, digest, images=images)


@pytest.mark.parametrize(
    "stored",
    [[2, ["a.png"], [b"1"]], [1, ["a.png"], []], [1, ["a.png", "b.png"], [b"1"]], [None, ["a.png"], [b"1"]]],
    ids=repr,
)
def test_a_payload_of_another_version_or_with_holes_is_damaged(store, stored):
    key, digest = put(store, msgpack.packb(stored))
    with pytest.raises(PayloadDamaged):
        read_payload(store, key, digest, images=1)


def test_a_jobs_payloads_lie_together():
    assert payload_key("job", "chunk").startswith(payload_folder("job") + "/")
    assert payload_key("job", "chunk") != payload_key("job", "other")
    assert not payload_key("job2", "chunk").startswith(payload_folder("job") + "/")
