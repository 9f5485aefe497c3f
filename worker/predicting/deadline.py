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

    An alarm an image would cost as much as reading it; one alarm that rings again and again looks at the
    clock that each image sets. An exception can be raised only where Python runs, between two steps of a
    decoder. One that hangs in C is for the task's time limit, which kills the process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    def begin(self) -> None:
        """An image's time begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """What comes now is no image's."""
        self._began = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._seconds / _RINGS, self._seconds / _RINGS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, self._before)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        began = self._began
        if began is not None and time.monotonic() - began > self._seconds:
            self._began = None
            raise ImageError(ErrorCode.TIMEOUT, f"took longer than {self._seconds:g} s to decode")
