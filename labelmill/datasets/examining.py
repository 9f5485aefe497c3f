"""Decode each image once: is it one, what are its pixels, its size and its mode?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from jobs.cores import usable_cores
from jobs.errors import ImageError
from jobs.limits import ImageLimits
from worker.predicting.decode import Picture, describe

#: Decoding one image takes up to 1.3 GB (`jobs.limits`).
_MAX_THREADS: Final = 4

Examined: TypeAlias = Picture | ImageError


class Examiner:
    """Examines images, several at a time: Pillow decodes without holding Python's lock."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(min(usable_cores(), _MAX_THREADS), thread_name_prefix="examining")

    def close(self) -> None:
        """Stop the threads. Images that were not begun are dropped."""
        self._threads.shutdown(cancel_futures=True)

    def examine(self, contents: Sequence[bytes]) -> list[Examined]:
        """Return each image's description, or its error."""
        return list(self._threads.map(self._examine_one, contents))

    def _examine_one(self, data: bytes) -> Examined:
        try:
            return describe(data, self._limits)
        except ImageError as error:
            return error.with_traceback(None)
