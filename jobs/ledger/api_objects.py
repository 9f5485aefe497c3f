"""Jobs and training runs as the HTTP API and webhooks describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from jobs.schema import JobState

#: The status of a batch, by the state of its job.
BATCH_STATUS: Final[Mapping[str, str]] = {
    JobState.RECEIVING: "validating",
    JobState.RUNNING: "in_progress",
    JobState.DONE: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}

#: The place in a message about a line of a manifest, such as `photos.csv, line 3: it is not CSV`.
_LINE: Final = re.compile(r", line (\d+): ")


def seconds(moment: datetime | None) -> int | None:
    """Return a time in Unix seconds."""
    return None if moment is None else int(moment.timestamp())


def describe_batch(job: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job as a batch.

    `job` is its status, or a row with such columns; `request` is empty unless it was submitted over HTTP.
    """
    ended = seconds(job.finished_at)
    errors = None
    if job.state == JobState.FAILED:
        message = job.error or "The batch failed."
        place = _LINE.search(message)
        line = int(place[1]) if place else None
        error = {"code": "batch_failed", "message": message, "line": line, "param": None}
        errors = {"object": "list", "data": [error]}
    return {
        "id": job.id,
        "object": "batch",
        "status": BATCH_STATUS[job.state],
        "created_at": seconds(job.created_at),
        "in_progress_at": seconds(job.submitted_at),
        "completed_at": ended if job.state == JobState.DONE else None,
        "failed_at": ended if job.state == JobState.FAILED else None,
        "cancelled_at": ended if job.state == JobState.CANCELLED else None,
        "request_counts": {"total": job.total, "completed": job.succeeded, "failed": job.failed},
        "errors": errors,
        "metadata": request.get("metadata"),
        "model": job.model,
    }


def describe_run(run: Any) -> dict[str, Any]:
    """Return a training run."""
    return {
        "id": run.id,
        "object": "run",
        "status": run.state,
        "dataset": run.dataset,
        "created_at": seconds(run.requested_at),
        "started_at": seconds(run.started_at),
        "finished_at": seconds(run.finished_at),
        "epochs_done": run.epochs_done,
        "model": run.model_id,
        "accuracy": run.accuracy,
        "verdict": run.verdict,
        "error": run.error,
    }
