"""The command lines of Celery's workers and of beat."""

from __future__ import annotations

import sys
from typing import Final

from jobs.messages import WEBHOOK_QUEUE
from jobs.settings import Settings

#: Threads that send webhooks. They wait for receivers, each project's in at most `SENDERS_PER_PROJECT`.
WEBHOOK_SENDERS: Final = 32


def settings_with(processes: int | None) -> Settings:
    """Load the settings, with this number of processes if it is not None. Raises SettingsError."""
    return Settings.load(**({} if processes is None else {"processes": processes}))


def worker_command(
    *, queue: str, processes: int, name: str, loglevel: str = "info", threads: bool = False
) -> list[str]:
    """Return the command line of a Celery worker that prints no banner.

    Remote control, gossip and mingle are off: nothing here uses them, and their queues in Redis leak. With
    `threads`, it has threads instead of processes.
    """
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "worker.app", "worker"),
        *("--queues", queue, "--concurrency", str(processes), "--hostname", f"{name}@%h"),
        *("--loglevel", loglevel, "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *(("--pool", "threads") if threads else ()),
    ]


def webhooks_command(*, loglevel: str = "info") -> list[str]:
    """Return the command line of the Celery worker that sends webhooks."""
    return worker_command(
        queue=WEBHOOK_QUEUE, processes=WEBHOOK_SENDERS, name="webhooks", loglevel=loglevel, threads=True
    )


def beat_command() -> list[str]:
    """Return the command line of Celery beat, without a pid file: a stale one would keep it from starting."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "worker.app", "beat"),
        *("--pidfile=", "--loglevel", "info"),
    ]
