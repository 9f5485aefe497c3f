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

#: An uploaded file's id is this, and its id in the ledger.
FILE_PREFIX: Final = "file-"

#: The ids of the files with the labels and the errors of a batch are the prefix, its id, and one of these.
OUTPUT: Final = "-output"
ERRORS: Final = "-errors"

#: The place in a message about a line of a manifest, such as `photos.csv, line 3: it is not CSV`.
_LINE: Final = re.compile(r", line (\d+): ")


def seconds(moment: datetime | None) -> int | None:
    """Return a time in Unix seconds."""
    return None if moment is None else int(moment.timestamp())


def describe_batch(job: Any, request: Mapping[str, Any], file_id: str | None) -> dict[str, Any]:
    """Return a job as a batch.

    `job` is its status, or a row with such columns. `request` and `file_id`, its uploaded file, are empty and
    None unless it was submitted over HTTP.
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
        "input_file_id": FILE_PREFIX + file_id if file_id else None,
        "output_file_id": f"{FILE_PREFIX}{job.id}{OUTPUT}" if ended and job.succeeded else None,
        "error_file_id": f"{FILE_PREFIX}{job.id}{ERRORS}" if ended and job.failed else None,
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
        "expected_at": seconds(run.expected_at),
        "finished_at": seconds(run.finished_at),
        "epochs_done": run.epochs_done,
        "model": run.model_id,
        "accuracy": run.accuracy,
        "verdict": run.verdict,
        "error": run.error,
    }
