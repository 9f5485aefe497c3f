"""A worker's heartbeat: its row in the ledger, written every few seconds by its main process.

The row shows that the main loop runs and reaches the ledger, and which children have started. A child that
classifies has tried to load the champion by then (`worker.app`). Health checks read this row
(`jobs.ledger.workers`), and ask the broker themselves.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from jobs.ledger import Ledger
from jobs.ledger.workers import HEARTBEAT_SECONDS, WorkerRow, forget_worker, report_worker
from worker.context import owner_name


class Heartbeat:
    """The heartbeat of one main process."""

    def __init__(self, ledger: Ledger, *, queue: str) -> None:
        """Write nothing yet. `queue` is the one from which this worker takes messages."""
        self._ledger = ledger
        self._queue = queue
        self._name = owner_name(os.getpid())
        self._version = metadata.version("labelmill")
        self._began = time.monotonic()
        self._children: tuple[str, ...] | None = None
        self._written_at = self._began

    def tick(self, pids: Sequence[int]) -> bool:
        """Write the row if it is due or the ready children have changed. Return whether it was written.

        Raises Unavailable.
        """
        children = tuple(map(owner_name, pids))
        now = time.monotonic()
        if children == self._children and now - self._written_at < HEARTBEAT_SECONDS:
            return False
        row = WorkerRow(self._name, socket.gethostname(), self._queue, children, self._version)
        with self._ledger.transaction() as connection:
            report_worker(connection, row, up_seconds=now - self._began)
        self._children, self._written_at = children, now
        return True

    def end(self) -> None:
        """Delete the row, because this worker takes no more work. Raises Unavailable."""
        with self._ledger.transaction() as connection:
            forget_worker(connection, self._name)


def ready_children(pool: Any) -> list[int]:
    """Return the process ids of a prefork pool's children that have started."""
    starting = {process.pid for process in pool._pool._waiting_to_start}
    return [pid for pid in pool.info["processes"] if pid not in starting]
