"""Retry operations on a service that may be unavailable for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from jobs.errors import Unavailable
from worker.time_limit import time_ran_out

T = TypeVar("T")

logger = logging.getLogger(__name__)


def retry(do: Callable[[], T], pauses: Iterable[float], *, unless: type[Unavailable] | None = None) -> T:
    """Return what `do` returns, calling it again after each pause while it raises Unavailable.

    `do` must be safe to repeat. `pauses` are in seconds, and each is logged with its reason. Raises
    Unavailable if the call after the last pause fails too. Raises at once if the error is an `unless`, or if
    the soft time limit struck, because the hard one is near.
    """
    for pause in pauses:
        try:
            return do()
        except Unavailable as error:
            if time_ran_out(error) or (unless is not None and isinstance(error, unless)):
                raise
            logger.warning("retrying in %g s: %s", pause, error)
            time.sleep(pause)
    return do()
