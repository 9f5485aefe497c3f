"""A producer's heartbeat: every ten seconds it marks the job's row as still being submitted.

It comes from a thread, because the producer may wait long for the next image: for a pipe, a network, or an
archive with gigabytes of other files. If the process is killed or suspended, the thread stops with it.
"""

from __future__ import annotations

import threading
from typing import Final

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.submission import touch_job

#: The interval. About ten heartbeats in a row can fail before a job counts as abandoned.
HEARTBEAT_SECONDS: Final = 10.0


class ProducerHeartbeat:
    """The heartbeat of one job's producer, from `begin` to `end`."""

    def __init__(self, ledger: Ledger, job_id: str) -> None:
        """Start nothing yet. The caller can go on using `ledger`: the thread has its own connection."""
        self._ledger = ledger
        self._job_id = job_id
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
                    if not touch_job(connection, self._job_id):
                        return  # the job was stopped: the producer notices with its next chunk
            except Unavailable:
                # Not reported here: the producer uses the same ledger, and reports that it is unavailable.
                continue
