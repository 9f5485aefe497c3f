"""A producer's heartbeat: every ten seconds its job's row says that it is still being submitted.

It comes from a thread, because the producer may wait long for the next image: for a pipe, a network, or an
archive with gigabytes that are no images. A process that was killed, or stopped as a whole, runs no thread.
"""

from __future__ import annotations

import threading
from typing import Final

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.submission import touch_job

#: How often. About ten in a row may fail, with an unavailable ledger, before a job is abandoned.
HEARTBEAT_SECONDS: Final = 10.0


class ProducerHeartbeat:
    """The heartbeat of one job's producer, from `begin` to `end`."""

    def __init__(self, ledger: Ledger, job_id: str) -> None:
        """Start nothing yet. `ledger` may be in use meanwhile: the thread has its own connection."""
        self._ledger = ledger
        self._job_id = job_id
        self._over = threading.Event()
        # A daemon: it must not keep a process alive whose producer was interrupted twice.
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self) -> None:
        """Begin, when the job is in the ledger. Does nothing the second time."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Return when the thread has ended, if it ever began. May be called again.

        The caller must have no transaction open, because the thread may be waiting for it.
        """
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                with self._ledger.transaction() as connection:
                    if not touch_job(connection, self._job_id):
                        return  # somebody stopped it: the producer learns that with its next chunk
            except Unavailable:
                # Nobody has to be told: the producer has the same ledger, and says so if it is still away.
                continue
