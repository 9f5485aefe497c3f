"""Retention: beat purges what is older than the settings allow, once a day even if several beats run.

By default it removes only what no job needs.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from typing import IO, Final

from jobs.ledger import Ledger
from jobs.ledger.locks import take_lock
from jobs.ledger.workers import owner_name
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: The lock in the ledger that lets one beat purge, once a day.
_LOCK: Final = "daily purge"
_DAY_SECONDS: Final = 24 * 3600.0

#: No purge starts sooner after beat, because starting takes all cores of a small machine.
_START_SECONDS: Final = 300.0

#: A purge that failed is tried again after this time.
_RETRY_SECONDS: Final = 3600.0


class Retention:
    """Starts each day's purge in a separate process, because it can take hours and must not hold up beat."""

    def __init__(self, settings: Settings) -> None:
        """Start nothing yet."""
        options = (("--payloads", settings.keep_payloads_days), ("--jobs", settings.keep_jobs_days))
        by_age = [f"{option}={days:g}" for option, days in options if days is not None]
        self._options = by_age or ["--strays"]
        self._holder = owner_name(os.getpid())
        self._due_at = time.monotonic() + _START_SECONDS
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes]

    def tick(self, ledger: Ledger) -> None:
        """Start a purge if one is due, and note the end of one that was started. Raises Unavailable."""
        if self._process is None:
            if time.monotonic() >= self._due_at:
                self._start(ledger)
        elif (status := self._process.poll()) is not None:
            self._process = None
            self._wait(ledger, _RETRY_SECONDS if status else _DAY_SECONDS)
            with self._output:
                self._output.seek(0)
                said = self._output.read().decode(errors="replace").strip().rpartition("\n")[2]
            logger.log(logging.ERROR if status else logging.INFO, "purge, exit code %d: %s", status, said)

    def _start(self, ledger: Ledger) -> None:
        if not self._wait(ledger, _DAY_SECONDS):
            self._due_at = time.monotonic() + _RETRY_SECONDS  # another beat does it, and may fail
            return
        logger.info("labelmill purge %s", " ".join(self._options))
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 -- closed at the end of the process
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- our own command
                [sys.executable, "-m", "labelmill", "purge", *self._options],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        except OSError as error:
            logger.error("the purge cannot be started: %s", error)
            self._wait(ledger, _RETRY_SECONDS)

    def _wait(self, ledger: Ledger, seconds: float) -> bool:
        """Make all beats wait. Return False if another beat has already done so."""
        with ledger.transaction() as connection:
            taken = take_lock(connection, _LOCK, self._holder, seconds=seconds)
        self._due_at = time.monotonic() + seconds
        return taken
