"""A producer's heartbeat: every ten seconds it marks its job, or its claim, as still being worked on.

It comes from a thread, because the producer may wait long for the next image: for a pipe, a network, or an
archive with gigabytes of other files. If the process is killed or suspended, the thread stops with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger import Ledger

#: The interval. About ten heartbeats in a row can fail before a job counts as abandoned.
HEARTBEAT_SECONDS: Final = 10.0

#: The interval of looks, which cost less than heartbeats. A cancelled batch is read for this much longer.
_LOOK_SECONDS: Final = 1.0


class ProducerHeartbeat:
    """The heartbeat of one job's producer, from `begin` to `end`."""

    def __init__(
        self,
        ledger: Ledger,
        touch: Callable[[Connection], bool],
        *,
        look: Callable[[Connection], bool] | None = None,
        stopped: threading.Event | None = None,
    ) -> None:
        """Start nothing yet. The caller can go on using `ledger`: the thread has its own connection.

        `touch` writes one heartbeat in a transaction. `look` only reads, every second. When one of them
        returns False, the event `stopped` is set, and there are no more heartbeats.
        """
        self._ledger = ledger
        self._touch = touch
        self._look = look
        self._stopped = stopped or threading.Event()
        self._stop = threading.Event()
        # A daemon, so that it does not keep the process alive if the producer is interrupted twice.
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self) -> None:
        """Start the thread, once the job is in the ledger. Further calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Stop the thread, if it was started, and wait for its end. It can be called again.

        The caller must have no transaction open, because the thread may be waiting for it.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        touched_at = time.monotonic()
        pause = HEARTBEAT_SECONDS if self._look is None else min(_LOOK_SECONDS, HEARTBEAT_SECONDS)
        while not self._stop.wait(pause):
            try:
                if self._look is not None and time.monotonic() - touched_at < HEARTBEAT_SECONDS:
                    with self._ledger.reading() as connection:
                        goes_on = self._look(connection)
                else:
                    with self._ledger.transaction() as connection:
                        goes_on = self._touch(connection)
                    touched_at = time.monotonic()
            except Unavailable:
                # Not reported here: the producer uses the same ledger, and reports that it is unavailable.
                continue
            if not goes_on:  # the job was stopped; a producer that has no event notices with its next chunk
                self._stopped.set()
                return
