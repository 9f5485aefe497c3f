"""Recognise Celery's soft time limit, which can raise `SoftTimeLimitExceeded` at any point of the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from billiard.exceptions import SoftTimeLimitExceeded


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
