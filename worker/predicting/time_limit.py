"""Celery's soft time limit: it raises `SoftTimeLimitExceeded` in the middle of anything, wherever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from billiard.exceptions import SoftTimeLimitExceeded


def time_ran_out(error: BaseException | None) -> bool:
    """Return whether the time limit struck in what raised this, or during its clean-up."""
    while error is not None and not isinstance(error, SoftTimeLimitExceeded):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def time_limit_unmasked() -> Iterator[None]:
    """Raise the time limit again if other code made another error of it.

    A driver that was waiting for its database then cannot roll back, and says that the connection is broken.
    """
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if time_ran_out(error):
            raise SoftTimeLimitExceeded from error
        raise
