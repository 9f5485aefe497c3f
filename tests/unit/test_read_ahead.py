"""Objects that are read ahead keep their order, and take bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from jobs.errors import Unavailable
from producer.sources.ahead import AHEAD_BYTES, AHEAD_OBJECTS, READERS, Unread, read_ahead
from producer.sources.image import SourceImage, Turn


class Objects:
    """Unread objects that count how many are being read."""

    def __init__(self, *, size: int = 1) -> None:
        self.size = size
        self.listed = self.now = self.at_once = 0
        self._lock = threading.Lock()

    def listing(self, number: int, *, missing: int | None = None) -> Iterator[Unread]:
        for index in range(number):
            self.listed += 1
            yield Unread(partial(self._read, index, fails=index == missing), self.size)

    def _read(self, index: int, *, fails: bool) -> SourceImage:
        with self._lock:
            self.now += 1
            self.at_once = max(self.at_once, self.now)
        time.sleep(0.002 if index % 7 else 0.03)  # some are slow
        with self._lock:
            self.now -= 1
        if fails:
            raise Unavailable("gone")
        return SourceImage(f"{index}.png", b"x", None)


def test_many_are_read_at_the_same_time_and_come_in_order() -> None:
    objects = Objects()
    found = [image.name for image in read_ahead(objects.listing(300), Turn())]
    assert found == [f"{index}.png" for index in range(300)]
    assert 4 < objects.at_once <= READERS


@pytest.mark.parametrize(
    ("size", "ahead"),
    [(1, AHEAD_OBJECTS), (AHEAD_BYTES // 10, 10), (AHEAD_BYTES * 2, 1)],
    ids=["small", "large", "larger than the limit"],
)
def test_no_more_is_read_than_fits_into_memory(size: int, ahead: int) -> None:
    # Given a consumer that takes its time
    objects = Objects(size=size)
    for taken, _ in enumerate(read_ahead(objects.listing(2 * AHEAD_OBJECTS if size == 1 else 30), Turn()), 1):
        # Then at most so many are read ahead; the next one is known, but not being read
        assert objects.listed - taken <= ahead
        assert objects.at_once <= ahead


def test_an_error_comes_in_its_turn_and_ends_the_reading() -> None:
    objects = Objects()
    found = read_ahead(objects.listing(1_000, missing=20), Turn())
    assert [next(found).name for _ in range(20)] == [f"{index}.png" for index in range(20)]
    with pytest.raises(Unavailable, match="gone"):
        next(found)
    # No thread is left
    deadline = time.monotonic() + 10
    while any(thread.name == "reader" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert objects.listed <= 21 + AHEAD_OBJECTS


def test_an_image_that_is_known_already_keeps_its_place() -> None:
    known = SourceImage("known", None, None)
    unread = Unread(lambda: SourceImage("read", b"x", None), 1)
    assert [image.name for image in read_ahead([unread, known, unread], Turn())] == ["read", "known", "read"]
