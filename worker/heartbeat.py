"""The heartbeat of a worker or of beat: its row in the ledger, written every few seconds by its main process.

The row shows that the main loop runs and reaches the ledger, and which children have started. A child that
classifies has tried to load the champion by then (`worker.app`). Health checks read this row
(`jobs.ledger.workers`), and ask the broker themselves. A file shows only that the main loop runs, for a probe
that restarts the process if it does not.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import Connection

from jobs.files import make_private_folder
from jobs.ledger import Ledger
from jobs.ledger.clock import CLOCK_SECONDS, clock_error
from jobs.ledger.counters import CounterName, count
from jobs.ledger.disks import Disk, read_disk, report_disk
from jobs.ledger.workers import (
    HEARTBEAT_SECONDS,
    Problem,
    WorkerRow,
    forget_worker,
    owner_name,
    report_worker,
)
from worker.children import Deaths, death_name

logger = logging.getLogger(__name__)

#: A disk is nearly full with less than this share of free space, and less than so many bytes: a tenth of a
#: large disk lasts for months. The alert `LabelmillDiskFillsUp` has the same limits.
FREE_SHARE: Final = 0.1
FREE_BYTES: Final = 10 * 1024**3


class Heartbeat:
    """The heartbeat of one main process."""

    def __init__(
        self, *, queue: str, alive_file: Path, disks: Mapping[str, Path | None] | None = None
    ) -> None:
        """Write nothing yet.

        `queue` is the one from which this worker takes messages. `disks` are paths on the disks whose free
        space it reports, by name; None if a disk cannot be seen here.
        """
        self._alive_file = alive_file
        self._queue = queue
        self._disks = {name: path for name, path in (disks or {}).items() if path is not None}
        self._name = owner_name(os.getpid())
        self._version = metadata.version("labelmill")
        self._began = time.monotonic()
        self._deaths = Deaths()
        self._uncounted: Counter[str] = Counter()  # deaths that are not in the ledger yet
        self._children: tuple[str, ...] = ()
        self._problem: str | None = None
        self._clock: str | None = None
        self._nearly_full: set[str] = set()  # disks
        self._written_at = -math.inf

    def show_alive(self) -> None:
        """Show that the main loop runs, whether or not the ledger can be reached."""
        with suppress(OSError):  # a disk in trouble must not end the process
            make_private_folder(self._alive_file.parent)
            self._alive_file.touch(mode=0o600)

    def tick(self, ledger: Ledger, pids: Sequence[int], exit_codes: Sequence[int] = ()) -> bool:
        """Write the row if it is due or something has changed. Return whether it was written.

        `pids` are the ready children; `exit_codes` those of the children that died since the last call.

        Raises Unavailable.
        """
        self._deaths.add(exit_codes)
        self._uncounted.update(map(death_name, exit_codes))
        children, problem = tuple(map(owner_name, pids)), self._deaths.problem() or self._clock
        now = time.monotonic()
        is_due = now - self._written_at >= HEARTBEAT_SECONDS
        if not is_due and not self._uncounted and (children, problem) == (self._children, self._problem):
            return False
        self._log(problem)
        self._children = children
        with ledger.transaction() as connection:
            self._clock = _clock_problem(connection)
            problem = self._deaths.problem() or self._clock
            row = WorkerRow(self._name, socket.gethostname(), self._queue, children, self._version, problem)
            report_worker(connection, row, up_seconds=now - self._began)
            for name, path in self._disks.items():
                with suppress(OSError):  # it does not exist yet
                    report_disk(connection, self._disk(name, path))
            count(connection, {(CounterName.CHILD_DEATHS, name): n for name, n in self._uncounted.items()})
        self._log(problem)
        self._uncounted.clear()
        self._written_at = now
        return True

    def _log(self, problem: str | None) -> None:
        if problem and problem != self._problem:
            logger.error("%s", problem)
        self._problem = problem

    def _disk(self, name: str, path: Path) -> Disk:
        """Return the disk's free space, and log once if it becomes short. Raises OSError."""
        disk = read_disk(name, path)
        is_nearly_full = disk.free_bytes < min(FREE_SHARE * disk.total_bytes, FREE_BYTES)
        if is_nearly_full and name not in self._nearly_full:
            mebibytes = disk.free_bytes // 2**20, disk.total_bytes // 2**20
            logger.warning("the disk of the %s is nearly full: %d of %d MiB are free", name, *mebibytes)
        (self._nearly_full.add if is_nearly_full else self._nearly_full.discard)(name)
        return disk

    def end(self, ledger: Ledger) -> None:
        """Delete the row, because this worker takes no more work. Raises Unavailable."""
        with ledger.transaction() as connection:
            forget_worker(connection, self._name)


def _clock_problem(connection: Connection) -> str | None:
    # Without the exact difference: each change of the text would be logged.
    error = clock_error(connection)
    if abs(error) < CLOCK_SECONDS:
        return None
    ahead = "ahead of" if error > 0 else "behind"
    return f"{Problem.CLOCK}, more than {CLOCK_SECONDS:g} s {ahead} the database's: set both by a time server"


def children_of(pool: Any) -> tuple[list[int], list[int]]:
    """Return the process ids of a pool's ready children, and the exit codes of those that have died since.

    A pool of threads has none: its main process does the work.
    """
    prefork = getattr(pool, "_pool", None)
    if prefork is None:
        return [os.getpid()], []
    died, prefork.died = prefork.died, []
    ready = prefork._fileno_to_inq.values()  # a child is in it from its first message to its end
    return [process.pid for process in ready], died
