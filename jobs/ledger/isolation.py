"""A chunk that keeps crashing is split in halves, again and again, until the image that does it is alone.

A crash is a death of the worker process, a time-out, or an error that no image's own code explains. Who did
it cannot be told from outside, so the halves are tried apart: the good one is done at its first attempt.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode
from jobs.ledger.claims import Claim
from jobs.ledger.parts import split_in_two
from jobs.outcomes import Outcome

#: A chunk that crashed so often is split. Once may have been anything: a machine that lost its power.
CRASHES_TO_SPLIT: Final = 2

#: A half begins with this many: it is suspected, and split after one crash of its own.
_CRASHES_OF_A_HALF: Final = CRASHES_TO_SPLIT - 1

#: An image that crashed so often while it was alone in its chunk is not tried again. More than for a split,
#: because this is the end: a good image that was beside two unrelated deaths must still get its label.
CRASHES_TO_GIVE_UP: Final = 3


def must_split(claim: Claim) -> bool:
    """Whether the chunk is to be split, not worked on."""
    return claim.images > 1 and claim.crashes >= CRASHES_TO_SPLIT


def must_give_up(claim: Claim) -> bool:
    """Whether the chunk's only image is to get its error code without being looked at again."""
    return claim.images == 1 and claim.crashes >= CRASHES_TO_GIVE_UP


def split_chunk(connection: Connection, claim: Claim) -> None:
    """Ends the claim with two chunks in the chunk's place, each with a half of its images. Raises LeaseLost
    where the claim is somebody else's by now; the transaction must then roll back.
    """
    middle = claim.images // 2
    first, others = (
        {
            # Alone, an image begins anew: what crashed before may have been its neighbour.
            "crashes": _CRASHES_OF_A_HALF if images > 1 else 0,
            "crash_code": claim.crash_code,
            "error": claim.error,
        }
        for images in (middle, claim.images - middle)
    )
    split_in_two(connection, claim, at=middle, first=first, others=others)


def outcome_of_the_lone(claim: Claim, name: str) -> Outcome:
    """What becomes of an image that crashed all alone: `quarantined`, or `timeout`."""
    return Outcome(name, None, None, claim.crash_code or ErrorCode.QUARANTINED, claim.error)
