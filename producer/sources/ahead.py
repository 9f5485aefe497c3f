"""Read many objects at the same time, in a fixed order and in bounded memory: each takes a round trip."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, NamedTuple

from producer.sources.image import SourceImage, Turn

#: Objects that are read at the same time.
READERS: Final = 32

#: Maximum objects, and bytes of objects, that are read or being read before they are needed. One object is
#: always read, whatever its size.
AHEAD_OBJECTS: Final = 256
AHEAD_BYTES: Final = 64 * 1024 * 1024

#: Seconds between two checks whether the turn is over, while an object does not come.
_CHECK_SECONDS: Final = 0.2


class Unread(NamedTuple):
    """An object that is still to be read."""

    read: Callable[[], SourceImage]  # called in a thread
    max_bytes: int  # that it may have


def read_ahead(found: Iterable[SourceImage | Unread], turn: Turn) -> Iterator[SourceImage]:
    """Yield the images in the same order; up to READERS of those that are unread are read at the same time.

    Raises what reading an object raises, when its place in the order comes; TurnOver.
    """
    waiting: deque[tuple[int, Future[SourceImage]]] = deque()
    held = 0
    readers = _Readers()
    try:
        for each in found:
            size = each.max_bytes if isinstance(each, Unread) else len(each.data or b"")
            while waiting and (len(waiting) >= AHEAD_OBJECTS or held + size > AHEAD_BYTES):
                freed, image = waiting.popleft()
                yield _result(image, turn)
                held -= freed
            waiting.append((size, readers.begin(each)))
            held += size
        while waiting:
            yield _result(waiting.popleft()[1], turn)
    finally:
        readers.stop()


def _result(future: Future[SourceImage], turn: Turn) -> SourceImage:
    """Wait for an image. Raises TurnOver if the turn ends before it comes, and what reading it raised."""
    while not future.done():
        began = time.monotonic()
        wait((future,), _CHECK_SECONDS)
        turn.unanswered += time.monotonic() - began
        turn.check()
    image = future.result()
    if image.data is not None:
        turn.unanswered = 0.0
    return image


class _Readers:
    """Threads that read. Unlike an executor's, they do not keep a process from ending.

    So Ctrl-C ends a command even if a server does not answer.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], SourceImage], Future[SourceImage]] | None] = SimpleQueue()
        self._threads = 0

    def begin(self, image: SourceImage | Unread) -> Future[SourceImage]:
        """Begin to read an image, and return its future."""
        future: Future[SourceImage] = Future()
        if isinstance(image, SourceImage):
            future.set_result(image)
            return future
        if self._threads < READERS:
            self._threads += 1
            Thread(target=self._work, name="reader", daemon=True).start()
        self._tasks.put((image.read, future))
        return future

    def stop(self) -> None:
        """End the threads; those in the middle of an object end after it."""
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in range(self._threads):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            read, future = task
            try:
                future.set_result(read())
            except BaseException as error:  # raised where the image is needed
                future.set_exception(error)
            del task, read, future  # free the image while this thread waits for the next
