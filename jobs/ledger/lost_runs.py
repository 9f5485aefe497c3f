"""Training runs that nobody will bring to an end: which they are, and who ends them.

A lease that is over is no proof of death, so nobody ends a run at their first look. Every reconciler looks,
and, as there may be none, who follows a run and who wants another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import Ledger
from jobs.ledger.runs import LOST, STALE, Run, end_active, find_active_run, is_lost, is_stale
from jobs.schema import RunState, training_runs

#: For how long a trainer's lease has to be seen to be over until it is taken for dead: some heartbeats.
RUN_GRACE_SECONDS: Final = 10.0

#: What is between two looks counts for no more of it: a little more than a reconciler lets pass.
_MOST_BETWEEN_LOOKS: Final = 3.0

#: How often who waits for that looks.
_LOOK_SECONDS: Final = 0.5


class Silence:
    """How long a run's lease has been seen to be over, by one who looks again and again.

    A lease that is over is no proof. The database's clock may have been set, the machine may have slept, or
    the ledger was away; a trainer that lives renews it with its next heartbeat. So nobody ends a run at their
    first look: the same lease has to be over for RUN_GRACE_SECONDS by their own clock, and of that only what
    they were awake and in touch for counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lease: tuple[str, datetime] | None = None
        self._looked_at = 0.0
        self._seconds = 0.0

    def lasts(self, run_id: str, lease_until: datetime) -> bool:
        """Whether it has lasted for long enough now that this lease is seen to be over."""
        now, lease = self._clock(), (run_id, lease_until)
        if self._lease == lease:
            self._seconds += min(now - self._looked_at, _MOST_BETWEEN_LOOKS)
        else:
            self._lease, self._seconds = lease, 0.0
        self._looked_at = now
        return self._seconds >= RUN_GRACE_SECONDS


def end_lost_runs(connection: Connection, silence: Silence) -> list[Run]:
    """Ends what nobody will bring to an end: a run whose trainer gave no sign of life for its whole lease,
    and none for as long as `silence` takes after that, is interrupted; one of the schedule that no trainer
    took in time is skipped. Gives them back as they are now. `silence` is the same at each of the caller's
    looks.
    """
    # One row at most, by the index on `active`: every reconciler asks this every few seconds.
    active = connection.execute(
        sa.select(training_runs.c.id, training_runs.c.state, training_runs.c.lease_until).where(
            training_runs.c.active == 1, sa.or_(is_lost(), is_stale())
        )
    ).one_or_none()
    if active is None:
        return []
    if active.state != RunState.RUNNING:
        return end_active(connection, *STALE)
    if not silence.lasts(active.id, active.lease_until):
        return []
    return end_active(connection, *LOST)


def make_way(ledger: Ledger, *, on_wait: Callable[[Run], None] = lambda _run: None) -> None:
    """For who is about to ask for a run, and not in a transaction: where the lease of the one under way is
    over, waits until its trainer is heard of again or, some RUN_GRACE_SECONDS later, the run is ended.
    `on_wait` is told which one. Raises Unavailable.
    """
    silence, told = Silence(), False
    while True:
        with ledger.reading() as connection:
            run = find_active_run(connection)
        if run is None or run.silent_since is None:
            return
        if not told:
            on_wait(run)
            told = True
        with ledger.transaction() as connection:
            if end_lost_runs(connection, silence):
                return
        time.sleep(_LOOK_SECONDS)
