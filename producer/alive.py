"""A producer's signs of life: every ten seconds its job's row says that somebody is still submitting it.

They come from a thread of their own. What a producer waits for is not its own affair and may take long: a
pipe that somebody writes to, a network, an archive with gigabytes of what is no image. Between two images
there is nobody to ask; but a process that was killed, or stopped as a whole, gives no sign in any thread.
"""

from __future__ import annotations

import threading
from typing import Final

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.intake import touch_job

#: How often. Some ten of them in a row may be lost, with a ledger that is away, before a job is given up.
SIGN_SECONDS: Final = 10.0


class ProducerSigns:
    """Of one job, from `begin` to `end`."""

    def __init__(self, ledger: Ledger, job_id: str) -> None:
        """`ledger` may be in use meanwhile: the thread has a connection of its own from it."""
        self._ledger = ledger
        self._job_id = job_id
        self._over = threading.Event()
        # A daemon: it must not keep a process from ending whose producer was broken off twice.
        self._thread = threading.Thread(target=self._give, name="signs of life", daemon=True)

    def begin(self) -> None:
        """When the job is in the ledger; once it has begun, nothing more happens."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Returns when no sign is given any more; as often as you like, and where none ever was. The caller
        has no transaction open, or a sign may be waiting for it.
        """
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _give(self) -> None:
        while not self._over.wait(SIGN_SECONDS):
            try:
                with self._ledger.transaction() as connection:
                    if not touch_job(connection, self._job_id):
                        return  # somebody stopped it: the producer learns that with its next chunk
            except Unavailable:
                # Nobody has to be told: the producer has the same ledger, and says so if it is still away.
                continue
