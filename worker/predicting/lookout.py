"""Looking up from a chunk that takes long: whether it is still ours, who waits, and whether to leave it.

A small job that waits is served there and then, in the middle of the large chunk. Where another process has
nothing to do, it gets a half of what is still to be done of the chunk. One that takes long for its time limit
is left: what is done of it is recorded, the rest becomes a chunk of its own (`jobs.ledger.parts`). So chunks
can be large, which is cheap, and nobody waits for the end of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger.claims import Claim, renew_leases
from jobs.ledger.parts import give_away
from jobs.ledger.waiting import NOBODY, Waiting, who_waits
from jobs.schema import SMALL_JOB_IMAGES
from worker.bench import Bench
from worker.predicting.stages import Stages
from worker.predicting.time_limit import time_ran_out

logger = logging.getLogger(__name__)

#: How often a chunk that takes long looks at its lease and its job, at the most: an image may take seconds.
RENEW_SECONDS: Final = 1.0

#: And where leases are short, after this share of it: early enough for a second try.
_RENEW_SHARE: Final = 1 / 3

#: After so long it has looked again whether a small job waits, or another process has nothing to do; later
#: only where the images between two looks take longer. Looking takes a fortieth of that beside two processes
#: that compute.
SMALL_LOOK_SECONDS: Final = 0.04

#: One that has waited for less will be taken by a process that has nothing to do, if there is any.
NEGLECTED_SECONDS: Final = 0.01

#: What is still to be done is worth two chunks, where another process could do a half of it, if it takes for
#: so long: the second costs a hundredth of a second.
WORTH_TWO_SECONDS: Final = 0.06

#: The share of its time limit after which a chunk is left: what it has by then is kept, whatever comes.
LONG_SHARE: Final = 0.5


class Lookout:
    """Of one attempt, from its first image to its last."""

    def __init__(
        self,
        bench: Bench,
        claims: Sequence[Claim],
        stages: Stages,
        serve: Callable[[str], None],
        *,
        may_share: bool,
    ) -> None:
        """`claims`: of one token. `serve`: classifies the small chunk of this id, if it is to be had.
        `may_share`: whether a part of a large chunk may be given to others.
        """
        self._bench = bench
        self._claims = claims
        self._stages = stages
        self._serve = serve
        self._lease = bench.settings.lease_seconds
        # Reckoned here, not once an image.
        self._renew_seconds = min(RENEW_SECONDS, self._lease * _RENEW_SHARE)
        self._long_seconds = LONG_SHARE * bench.settings.soft_time_limit
        self._began = self._renewed = self._looked = self._asked = time.monotonic()
        self._lead = claims[0]
        self._images = sum(claim.images for claim in claims)
        # What crashed before is suspected: it is tried as it is, and no crash of another's is put down to it.
        self._may_leave = len(claims) == 1 and not self._lead.crashes
        self._may_serve = self._may_leave and self._images > SMALL_JOB_IMAGES
        self._may_share = self._may_serve and may_share

    def until(self, done: int) -> int:
        """Of how many images there are to be outcomes, when `done` of them are through: of all; of fewer,
        where the others were given away; of no more, where the chunk is to be left. Before that, now and
        then, renews the leases, serves a small job that waits, and gives away. Raises LeaseLost, JobStopped.
        """
        if time.monotonic() - self._renewed >= self._renew_seconds:
            self._renew()
            self._renewed = time.monotonic()
        # Before the next time will be too late: what is decoded together takes nearly as long by itself.
        now = time.monotonic()
        step, self._asked = now - self._asked, now
        if self._may_serve and now - self._looked + step >= SMALL_LOOK_SECONDS:
            waiting = self._look(after=self._lead.job_id if self._is_worth_two(done) else None)
            if waiting.small is not None:
                with self._stages.apart():
                    self._serve(waiting.small)
            elif waiting.somebody_idle:
                self._give_away(done)
            self._looked = self._asked = time.monotonic()
        return done if self._is_divisible(done) and self.takes_long() else self._images

    def may_keep(self, done: int, error: Unavailable) -> bool:
        """Whether to leave the chunk where it is, as the next image is out of reach for now. A server that
        answers one request in fifty with an error would otherwise have a chunk begin anew for ever.
        """
        if time_ran_out(error) or not self._is_divisible(done):
            return False
        logger.warning("after %d images: %s", done, error)
        return True

    def may_set_first_aside(self, error: Unavailable) -> bool:
        """Whether the chunk's first image, which is out of reach, may be the only one that is. Not at the
        first time: most are to be had a moment later.
        """
        return self._is_divisible(1) and self._lead.attempts > 1 and not time_ran_out(error)

    def claim_of(self, claim: Claim) -> Claim:
        """The claim as it is by now, with the images that were not given away."""
        return self._lead if claim.chunk_id == self._lead.chunk_id else claim

    def _is_divisible(self, done: int) -> bool:
        return self._may_leave and 0 < done < self._images

    def _is_worth_two(self, done: int) -> bool:
        if not (self._may_share and self._is_divisible(done)):
            return False
        seconds = (time.monotonic() - self._began) / done  # an image
        return seconds * (self._images - done) >= WORTH_TWO_SECONDS

    def _give_away(self, done: int) -> None:
        """A half of what is not done becomes a chunk of its own."""
        keep, rest_id = done + (self._images - done + 1) // 2, new_id()
        try:
            with self._stages.timed("claim"), self._bench.ledger.transaction() as connection:
                given = give_away(connection, self._lead, keep=keep, rest_id=rest_id)
        except Unavailable as error:
            # Whether it went through or not, the chunk's row tells, when its outcomes are recorded.
            if time_ran_out(error):
                raise
            return
        if given:
            logger.info("%d images go to chunk %s: somebody is idle", self._images - keep, rest_id)
            self._lead, self._images = replace(self._lead, images=keep), keep
            self._bench.bell.anew().ring([rest_id], ahead=True)

    def takes_long(self) -> bool:
        """Whether what this process is at takes long for its time limit."""
        return self._stages.task_elapsed() > self._long_seconds

    def _renew(self) -> None:
        try:
            with self._stages.timed("claim"), self._bench.ledger.transaction() as connection:
                renew_leases(connection, self._claims, lease_seconds=self._lease)
        except Unavailable as error:
            # The lease goes on for a while, and the next try is soon: a database that is restarted is no
            # reason to throw away what was computed. Where it stays away, the token decides what counts.
            if time_ran_out(error):
                raise
            logger.warning("the lease was not renewed: %s", error)

    def _look(self, *, after: str | None) -> Waiting:
        try:
            with self._stages.timed("claim"), self._bench.ledger.reading() as connection:
                return who_waits(connection, seconds=NEGLECTED_SECONDS, after=after)
        except Unavailable as error:
            # Whether anybody waits is no reason to throw away what was computed.
            if time_ran_out(error):
                raise
            return NOBODY
