"""A producer's heartbeat: every ten seconds it marks its job, or its claim, as still being worked on.

It comes from a thread, because the producer may wait long for the next image: for a pipe, a network, or an
archive with gigabytes of other files. If the process is killed or suspended, the thread stops with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger import Ledger

#: The interval. About ten heartbeats in a row can fail before a job counts as abandoned.
HEARTBEAT_SECONDS: Final = 10.0


class ProducerHeartbeat:
    """The heartbeat of one job's producer, from `begin` to `end`."""

    def __init__(self, ledger: Ledger, touch: Callable[[Connection], bool]) -> None:
        """Start nothing yet. The caller can go on using `ledger`: the thread has its own connection.

        `touch` writes one heartbeat in a transaction; when it returns False, there are no more.
        """
        self._ledger = ledger
        self._touch = touch
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
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                with self._ledger.transaction() as connection:
                    if not self._touch(connection):
                        return  # the job was stopped: the producer notices with its next chunk
            except Unavailable:
                # Not reported here: the producer uses the same ledger, and reports that it is unavailable.
                continue
