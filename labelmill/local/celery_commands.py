"""Celery's command line: its workers and beat."""

from __future__ import annotations

import sys
from typing import Final

from jobs.messages import WEBHOOK_QUEUE
from jobs.settings import Settings

#: What runs Celery with the arguments below in a process of its own.
CELERY: Final = (sys.executable, "-m", "celery")

#: Threads that send webhooks. They wait for receivers, each project's in at most `SENDERS_PER_PROJECT`.
WEBHOOK_SENDERS: Final = 32


def settings_with(processes: int | None) -> Settings:
    """Load the settings, with this number of processes if it is not None. Raises SettingsError."""
    return Settings.load(**({} if processes is None else {"processes": processes}))


def worker_arguments(
    *, queue: str, processes: int, name: str, loglevel: str = "info", threads: bool = False
) -> list[str]:
    """Return the arguments for Celery to run a worker that prints no banner.

    Remote control, gossip and mingle are off: nothing here uses them, and their queues in Redis leak. With
    `threads`, it has threads instead of processes.
    """
    return [
        *("--quiet", "-A", "worker.app", "worker"),
        *("--queues", queue, "--concurrency", str(processes), "--hostname", f"{name}@%h"),
        *("--loglevel", loglevel, "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *(("--pool", "threads") if threads else ()),
    ]


def webhooks_arguments(*, loglevel: str = "info") -> list[str]:
    """Return the arguments for Celery to run the worker that sends webhooks."""
    return worker_arguments(
        queue=WEBHOOK_QUEUE, processes=WEBHOOK_SENDERS, name="webhooks", loglevel=loglevel, threads=True
    )


def beat_arguments() -> list[str]:
    """Return the arguments for Celery to run beat."""
    # A pid file of a beat that was killed would keep the next one from starting.
    return ["--quiet", "-A", "worker.app", "beat", "--pidfile=", "--loglevel", "info"]
