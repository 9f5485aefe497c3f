"""What needs a service that may be away for a moment is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from jobs.errors import Unavailable
from worker.predicting.time_limit import time_ran_out

T = TypeVar("T")

logger = logging.getLogger(__name__)


def try_again(
    do: Callable[[], T],
    pauses: Iterable[float],
    *,
    on_away: Callable[[float, Unavailable], None] = lambda _pause, _error: None,
) -> T:
    """What `do` gives back, which may be done several times: tried again after each of the pauses, in
    seconds, where a service is away. `on_away` is told before one.

    Raises Unavailable where it stays away, and at once where the time limit struck: the hard one is near.
    """
    for pause in pauses:
        try:
            return do()
        except Unavailable as error:
            if time_ran_out(error):
                raise
            on_away(pause, error)
            time.sleep(pause)
    return do()


def say_again(pause: float, error: Unavailable) -> None:
    """For `on_away`: a line in the log."""
    logger.warning("trying again in %g s: %s", pause, error)
