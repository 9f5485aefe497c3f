"""Follow a job at the console: progress, closing line, and the message on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import Unavailable
from jobs.ledger.jobs.queries import JobStatus
from jobs.schema import JobState
from labelmill.client import Client
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import ExitCode, say

if TYPE_CHECKING:
    from labelmill.client.remote import RemoteClient
    from labelmill.local.stack import Stack

#: How long a ledger that has answered may be away, and the pause between two attempts.
_AWAY_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 1.0

#: If no worker has started a job after this long, probably none is running.
_NO_WORKER_SECONDS: Final = 10.0


def watch(client: Client | RemoteClient, job_id: str, *, own_stack: Stack | None = None) -> JobStatus:
    """Follow the job to its end and show its progress. On Ctrl-C, say how to continue and exit with 130.

    `own_stack`: the stack that was started for this job and ends with it, which changes the advice. Raises
    Unavailable if one of its processes ends before the job does.
    """
    advice = _advice(client)
    try:
        with ProgressLine("classifying") as progress:
            for status in _statuses(client, job_id):
                note = _note(status, own_stack=own_stack is not None, advice=advice)
                progress.update(status.done, total=status.total, note=note)
                if own_stack is not None and not status.finished:
                    own_stack.check_running()
    except KeyboardInterrupt:
        say(f"Interrupted; {_how_to_continue(job_id, own_stack=own_stack is not None)}")
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except Unavailable:
        if own_stack is not None:
            say(_how_to_continue(job_id, own_stack=True))
        raise
    say(closing_line(status))
    return status


def _statuses(client: Client | RemoteClient, job_id: str) -> Iterator[JobStatus]:
    """Yield the job's status to its end, also if the ledger restarts in between.

    Raises Unavailable if it never answered, or has not answered for two minutes.
    """
    answered_at, is_away = None, False
    while True:
        try:
            for status in client.follow(job_id):
                answered_at, is_away = time.monotonic(), False
                yield status
        except Unavailable as error:
            if answered_at is None or time.monotonic() - answered_at > _AWAY_SECONDS:
                raise
            if not is_away:
                say(f"{str(error).rstrip('.')}; trying again for two minutes")
            is_away = True
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def report_broker_unavailable(client: Client | RemoteClient, waits: str, *, starts: str = "workers") -> None:
    """Print why the latest messages could not be sent; nothing if they were sent.

    `waits`: what happens to the work meanwhile; `starts`: what `labelmill up` starts besides the broker.
    """
    if not client.broker_unavailable:
        return
    if client.settings.embedded_broker:
        say(f"The broker does not answer: {waits}. `labelmill up` starts it, and {starts}.")
    else:
        say(f"The broker cannot be used ({client.broker_error}): {waits}.")


def closing_line(status: JobStatus) -> str:
    """Return how a job ended, for people."""
    counts = f"{status.succeeded:,} of {status.total:,} images classified"
    if status.failed:
        counts += f", {status.failed:,} with an error (labelmill predictions {status.id} --errors)"
    if status.rate:
        counts += f", {status.rate:,.0f} per second"
    if status.state == JobState.FAILED:
        return f"job {status.id} failed: {status.error}\n{counts}"
    if status.state == JobState.CANCELLED:
        return f"job {status.id} was cancelled: {counts}"
    return counts


def report_incomplete(status: JobStatus) -> None:
    """Print that some images had no outcome when the status was read; nothing if all had one."""
    if status.done < status.total or status.state == JobState.RECEIVING:
        say(
            f"incomplete: job {status.id} is {format_state(status)}; {status.done:,} of its {status.total:,} "
            "images were done at the start"
        )


def format_state(status: JobStatus) -> str:
    """Return a job's state, for people."""
    if status.paused:
        return f"{status.state}, paused"
    if status.state == JobState.RUNNING and status.started_at is None:
        return f"{status.state}, waits for a worker"
    return str(status.state)


def status_to_json(status: JobStatus) -> dict[str, Any]:
    """Return a job's status as a dictionary, for `--json`."""
    derived = {
        "rate": status.rate,
        "eta_seconds": status.eta_seconds,
        "oldest_waiting_seconds": status.oldest_waiting_seconds,
    }
    return asdict(status) | derived


def _how_to_continue(job_id: str, *, own_stack: bool) -> str:
    when = "continues when `labelmill up` runs" if own_stack else "continues"
    return (
        f"job {job_id} {when}.\n"
        f"  follow it:  labelmill status {job_id} --watch\n"
        f"  stop it:    labelmill cancel {job_id}"
    )


def _advice(client: Client | RemoteClient) -> str:
    """Return how to find out why no worker has begun a job."""
    if not isinstance(client, Client):
        return "does one run where the API is served?"
    if client.settings.embedded_broker:
        return "is `labelmill up` running?"
    return "`labelmill workers` lists those that run"


def _note(status: JobStatus, *, own_stack: bool, advice: str) -> str:
    parts = []
    if status.failed:
        parts.append(f"{status.failed:,} with an error")
    if status.paused:
        parts.append(f"paused: labelmill resume {status.id}")
        return ", ".join(parts)
    if status.rate:
        parts.append(f"{status.rate:,.0f} per second")
    waited = status.oldest_waiting_seconds
    if status.started_at is None and own_stack:
        parts.append("the workers are loading the model")
    elif status.started_at is None and waited is not None and waited > _NO_WORKER_SECONDS:
        parts.append(f"waiting for a worker: {advice}")
    return ", ".join(parts)
