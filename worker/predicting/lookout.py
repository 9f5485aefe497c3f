"""Looking up from a chunk that takes long: whether it is still ours, and whether to leave it before its end.

A chunk is left, its outcomes so far recorded and the rest a chunk of its own (`jobs.ledger.parts`), where a
small job waits for a process, and where it takes long for its time limit. So chunks can be large, which is
cheap, and nobody waits for the end of one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from jobs.errors import Unavailable
from jobs.ledger.claims import Claim, renew_leases
from jobs.ledger.gathering import neglected_small
from worker.bench import Bench
from worker.predicting.stages import Stages
from worker.predicting.time_limit import time_ran_out

#: How often a chunk that takes long looks at its lease and its job, at the most: an image may take seconds.
RENEW_SECONDS: Final = 1.0

#: And where leases are short, after this share of it: early enough for a second try.
_RENEW_SHARE: Final = 1 / 3

#: How often it looks whether a small job waits.
SMALL_LOOK_SECONDS: Final = 0.04

#: One that has waited for less will be taken by somebody who has nothing to do, if there is anybody.
NEGLECTED_SECONDS: Final = 0.015

#: To leave a chunk costs its worker, the ledger and the broker some 10 ms. What is done sooner than that is
#: done.
_WORTH_LEAVING_SECONDS: Final = 0.02

#: The share of its time limit after which a chunk is left: what it has by then is kept, whatever comes.
_LONG_SHARE: Final = 0.5


class Lookout:
    """Of one attempt, from its first image on."""

    def __init__(self, bench: Bench, claims: Sequence[Claim], stages: Stages) -> None:
        """`claims`: of one token."""
        self._bench = bench
        self._claims = claims
        self._stages = stages
        self._lease = bench.settings.lease_seconds
        self._began = self._renewed = self._looked = time.monotonic()
        # What crashed before is suspected, and tried as it is; what was gathered is small.
        self._may_leave = len(claims) == 1 and not claims[0].crashes
        #: The small job for which the chunk is to be left; None where it is for another reason.
        self.small_id: str | None = None

    def must_leave(self, done: int) -> bool:
        """Whether to leave the chunk when so many of its images are through. Renews the leases now and then.
        Raises LeaseLost, JobStopped, Unavailable.
        """
        now = time.monotonic()
        if now - self._renewed >= min(RENEW_SECONDS, self._lease * _RENEW_SHARE):
            with self._stages.timed("claim"), self._bench.ledger.transaction() as connection:
                renew_leases(connection, self._claims, lease_seconds=self._lease)
            self._renewed = time.monotonic()
        left = self._claims[0].images - done
        if not (self._may_leave and done and left):
            return False
        if self._stages.elapsed() > _LONG_SHARE * self._bench.settings.soft_time_limit:
            return True
        to_come = (now - self._began) / done * left
        if now - self._looked < SMALL_LOOK_SECONDS or to_come < _WORTH_LEAVING_SECONDS:
            return False
        self._looked = now
        self.small_id = self._neglected_small()
        return self.small_id is not None

    def _neglected_small(self) -> str | None:
        try:
            with self._stages.timed("claim"), self._bench.ledger.reading() as connection:
                return neglected_small(connection, seconds=NEGLECTED_SECONDS)
        except Unavailable as error:
            # Whether anybody waits is no reason to throw away what was computed.
            if time_ran_out(error):
                raise
            return None
