"""Limit the decoding time of one image with an alarm that does not affect its neighbours."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Final, Self

from jobs.errors import ErrorCode, ImageError

#: Number of alarms within the time limit of one image: an image may exceed its limit by two intervals.
_ALARMS: Final = 4


class Deadline:
    """A context manager around the decoding of a chunk, in the main thread of a process.

    One alarm per image would cost as much as reading the image, so one repeating alarm checks whether the
    same image is still being decoded. The limit is on this thread's CPU time, not on elapsed time: an image
    must not fail because the machine was busy or suspended.

    The exception is raised only while Python code runs, between two steps of a decoder. A decoder that hangs
    in C is left to the task's time limit, which kills the process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._decoding = False
        self._image = 0
        self._seen = 0  # the image at the latest alarm, and the CPU time when an alarm first saw it
        self._seen_at = 0.0

    def begin(self) -> None:
        """Start the time of the next image."""
        self._image += 1
        self._decoding = True

    def end(self) -> None:
        """Stop the current image's time."""
        self._decoding = False

    def __enter__(self) -> Self:
        self._previous_handler = signal.signal(signal.SIGALRM, self._on_alarm)
        interval = self._seconds / _ALARMS
        self._previous_timer = signal.setitimer(signal.ITIMER_REAL, interval, interval)
        return self

    def __exit__(self, *_: object) -> None:
        # Restore the previous timer: this may be nested in the decoding of another chunk.
        signal.setitimer(signal.ITIMER_REAL, *self._previous_timer)
        signal.signal(signal.SIGALRM, self._previous_handler)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        if not self._decoding:
            return
        computed = time.thread_time()
        if self._seen != self._image:
            self._seen, self._seen_at = self._image, computed
        elif computed - self._seen_at > self._seconds:
            self._decoding = False
            raise ImageError(ErrorCode.TIMEOUT, f"took longer than {self._seconds:g} s to decode")
