"""How long one image may take: an alarm that interrupts its decoding, not its neighbours'."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Final, Self

from jobs.errors import ErrorCode, ImageError

#: The alarm rings so often within the time one image may take: it may get so much more than its share.
_RINGS: Final = 4


class Deadline:
    """A context manager around the decoding of a chunk, in the main thread of a process.

    An alarm an image would cost as much as reading it; one alarm that rings again and again looks whether the
    same image is still at it. What counts is the time this thread computes, not what a clock on the wall
    shows: a process that stands still, on a busy or suspended machine, must not cost the image it was at.

    An exception can be raised only where Python runs, between two steps of a decoder. One that hangs in C is
    for the task's time limit, which kills the process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._decoding = False
        self._image = 0
        self._seen = 0  # the image at the latest ring, and the time computed when it was first seen
        self._seen_at = 0.0

    def begin(self) -> None:
        """An image's time begins."""
        self._image += 1
        self._decoding = True

    def end(self) -> None:
        """What comes now is no image's."""
        self._decoding = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        each = self._seconds / _RINGS
        self._before_it = signal.setitimer(signal.ITIMER_REAL, each, each)
        return self

    def __exit__(self, *_: object) -> None:
        # One chunk may be classified in the middle of another, which has its alarm again.
        signal.setitimer(signal.ITIMER_REAL, *self._before_it)
        signal.signal(signal.SIGALRM, self._before)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if not self._decoding:
            return
        computed = time.thread_time()
        if self._seen != self._image:
            self._seen, self._seen_at = self._image, computed
        elif computed - self._seen_at > self._seconds:
            self._decoding = False
            raise ImageError(ErrorCode.TIMEOUT, f"took longer than {self._seconds:g} s to decode")
