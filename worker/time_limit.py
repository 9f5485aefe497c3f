"""Recognise and delay Celery's soft time limit: `SoftTimeLimitExceeded` can be raised at any point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT


def time_ran_out(error: BaseException | None) -> bool:
    """Return whether the time limit caused this error, or struck while it was being handled."""
    while error is not None and not isinstance(error, SoftTimeLimitExceeded):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def time_limit_unmasked() -> Iterator[None]:
    """Raise SoftTimeLimitExceeded if other code turned it into another error.

    For example, a driver that was waiting for its database cannot roll back, and reports a broken connection.
    """
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if time_ran_out(error):
            raise SoftTimeLimitExceeded from error
        raise


@contextmanager
def time_limit_deferred() -> Iterator[None]:
    """Delay Celery's soft time limit until the enclosed code has ended. Use it in the main thread only.

    If the limit interrupted the import of TensorFlow, this process could never import it again, and all its
    jobs would fail.
    """
    frames: list[Any] = []
    handler = signal.signal(SIG_SOFT_TIMEOUT, lambda _, frame: frames.append(frame))
    try:
        yield
    finally:
        signal.signal(SIG_SOFT_TIMEOUT, handler)
    if frames and callable(handler):
        handler(SIG_SOFT_TIMEOUT, frames[0])
