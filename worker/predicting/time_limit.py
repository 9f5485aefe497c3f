"""Whose fault it is that a chunk ran out of time: its images', or somebody's they waited for.

Celery raises `SoftTimeLimitExceeded` in the middle of anything, some seconds before it kills the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.ledger.claims import Claim
from worker.predicting.stages import Stages

#: The images are to blame for the time limit where they took more than this share of the time. Not half of
#: it: where the store is slow and the images are, too, the halves of a chunk are still to get through.
_BLAMED_SHARE: Final = 0.25

LEDGER_SILENT: Final = "the ledger did not answer within the time limit"

#: Who kept a chunk waiting until the time limit struck, by the stage that took the most time.
_KEPT_WAITING: Final = {
    "claim": LEDGER_SILENT,
    "read": "the store did not answer within the time limit",
    "load": "its model was not loaded within the time limit",
    "shadow": "the model in the shadow took up the time limit",
    "record": LEDGER_SILENT,
}


def images_took_it(claims: Sequence[Claim], stages: Stages) -> bool:
    """Whether the images may be to blame that the time limit struck: where the time went tells, not where the
    limit struck. It may strike while outcomes are written that took all of the time to compute, or at the
    first image after a store that took nearly all of it.
    """
    took = sum(stages.found[name].seconds for name in ("decode", "predict") if name in stages.found)
    if len(claims) == 1 and claims[0].images > 1 and "read" in stages.found:
        # Reading references one by one: there may be too many for the limit, or one may hold the others up.
        # In smaller chunks they finish. Alone, an image is never given up for a store that keeps it waiting.
        # Where chunks were gathered, their payloads were read one by one: next time each is alone.
        took += stages.found["read"].nested
    return took > _BLAMED_SHARE * stages.elapsed()


def time_ran_out(error: BaseException | None) -> bool:
    """Whether the time limit struck in what raised this, or while that was being cleaned up after."""
    while error is not None and not isinstance(error, SoftTimeLimitExceeded):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def showing_the_time_limit() -> Iterator[None]:
    """Makes the time limit again of what others make of it. Celery raises it in the middle of anything: a
    driver that was waiting for its database then cannot roll back, and says that the connection is broken.
    """
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if time_ran_out(error):
            raise SoftTimeLimitExceeded from error
        raise


def kept_waiting(stages: Stages) -> str:
    """Who did, in words, where the images are not to blame."""
    return _KEPT_WAITING.get(stages.longest(), "something beside its images took up the time limit")
