"""Follow a job to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from jobs.errors import LabelmillError
from jobs.ledger.jobs.queries import JobStatus

#: Pauses start short, for jobs of one image, and grow for long jobs.
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5
_PAUSE_GROWTH: Final = 1.3


class NotFinished(LabelmillError):
    """The job did not finish in time; it continues."""


def follow(
    read_status: Callable[[str], JobStatus], job_id: str, *, timeout: float | None = None
) -> Iterator[JobStatus]:
    """Yield the job's status repeatedly; the last one is final.

    Raises what `read_status` raises, and NotFinished after `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for pause in pauses():
        status = read_status(job_id)
        yield status
        if status.finished:
            return
        if deadline is not None and time.monotonic() + pause > deadline:
            raise NotFinished(f"Job {job_id} has not finished after {timeout:g} seconds; it continues.")
        time.sleep(pause)


def pauses() -> Iterator[float]:
    """Yield the pauses, in seconds, between two looks at a job, without end."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE_SECONDS)
