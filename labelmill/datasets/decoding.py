"""Decode each image once, to find the hash of its pixels, its size and its mode, or its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Final, TypeAlias

from jobs.cores import usable_cores
from jobs.errors import ImageError
from jobs.limits import ImageLimits
from labelmill.datasets.near_duplicates import Look, look_of
from worker.predicting.decode import Picture, describe_many

#: Decoding one image takes up to 1.3 GB (`jobs.limits`).
_MAX_THREADS: Final = 4

#: A thread decodes images of this many bytes as one task.
_TASK_BYTES: Final = 256 * 1024

#: Images that are smaller on average are not split into tasks: decoding thousands of them together is faster.
_SMALL_BYTES: Final = 2 * 1024

Decoded: TypeAlias = Picture | ImageError


class Decoder:
    """Threads that decode images in parallel: Pillow decodes without holding the GIL."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(min(usable_cores(), _MAX_THREADS), thread_name_prefix="decoding")

    def close(self) -> None:
        """Stop the threads. Images that were not begun are dropped."""
        self._threads.shutdown(cancel_futures=True)

    def look(self, data: bytes) -> Future[Look]:
        """Begin to find out how an image looks. The result may be an ImageError."""
        return self._threads.submit(look_of, data, self._limits)

    def begin(self, contents: Sequence[bytes | ImageError]) -> Callable[[], list[Decoded]]:
        """Begin to decode images. Return a function that waits for the results.

        Images that could not be read stay errors.
        """
        readable = [content for content in contents if isinstance(content, bytes)]
        *groups, rest = _groups(readable)
        tasks = [self._threads.submit(describe_many, group, self._limits) for group in groups]

        def wait() -> list[Decoded]:
            # Not in a thread: the code for small images holds the GIL, and two threads that compete for it
            # are slower than one.
            last = describe_many(rest, self._limits)
            described = chain(chain.from_iterable(task.result() for task in tasks), last)
            return [content if isinstance(content, ImageError) else next(described) for content in contents]

        return wait


def _groups(contents: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield the images in groups of _TASK_BYTES, and at the end the rest, which may be many small ones."""
    start = size = 0
    for end, data in enumerate(contents, 1):
        size += len(data)
        if size >= max(_TASK_BYTES, (end - start) * _SMALL_BYTES):
            yield list(contents[start:end])
            start, size = end, 0
    yield list(contents[start:])
