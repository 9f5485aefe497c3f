"""Write the log lines and trace spans of a claim for `worker.predicting.pipeline`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from structlog.contextvars import bind_contextvars

from jobs.ledger.jobs.claims import Claim
from jobs.ledger.jobs.results import Classified
from jobs.traces import Tracing
from worker.predicting.timings import Timings

logger = logging.getLogger(__name__)

#: The place of the trace id in a W3C `traceparent`.
_TRACE_ID: Final = slice(3, 35)


def describe(claims: Sequence[Claim]) -> str:
    """Return what a log line calls these claims."""
    if not claims:
        return "claim"
    others = f" and {len(claims) - 1} more small chunks" if len(claims) > 1 else ""
    return f"chunk {claims[0].chunk_id}{others}"


def log_fields(claims: Sequence[Claim], timings: Timings) -> dict[str, Any]:
    """Return the fields of a log line about claims, besides its message (`worker.logs.FIELDS`)."""
    if not claims:
        return {"seconds": timings.seconds()}
    images = sum(claim.images for claim in claims)
    return {"images": images, "attempt": claims[0].attempts, "seconds": timings.seconds()}


def _ids_of(claim: Claim) -> dict[str, str]:
    ids = {"chunk": claim.chunk_id, "job": claim.job_id}
    return ids if claim.traceparent is None else ids | {"trace": claim.traceparent[_TRACE_ID]}


def log_recorded(recorded: Sequence[Classified], timings: Timings) -> int:
    """Log a line for each recorded chunk. Return the total number of their images."""
    for claim, outcomes in recorded:
        fields = log_fields([claim], timings)
        logger.info(
            "chunk %s of job %s is done: %d images, %d errors, attempt %d; seconds: %s",
            claim.chunk_id,
            claim.job_id,
            claim.images,
            outcomes.failed,
            claim.attempts,
            ", ".join(f"{name} {seconds:.3f}" for name, seconds in fields["seconds"].items()),
            extra=fields | {"errors": outcomes.failed} | _ids_of(claim),
        )
    return sum(claim.images for claim, _ in recorded)


@contextmanager
def traced(claims: Sequence[Claim], timings: Timings, tracing: Tracing | None) -> Iterator[list[Classified]]:
    """Record a span of the enclosed code for each claim, and add their ids to this task's log lines.

    The enclosed code adds the chunks that it recorded to the list.
    """
    bind_contextvars(model=claims[0].model_id)
    if len(claims) == 1:  # of several jobs, each chunk's own line names its job
        bind_contextvars(**_ids_of(claims[0]))
    recorded: list[Classified] = []
    failed: str | None = None
    try:
        yield recorded
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        if tracing is not None:
            errors = {claim.chunk_id: outcomes.failed for claim, outcomes in recorded}
            ended = time.time_ns()
            for claim in claims:
                attributes: dict[str, str | int] = {
                    "chunk": claim.chunk_id,
                    "job": claim.job_id,
                    "model": claim.model_id,
                    "images": claim.images,
                    "attempt": claim.attempts,
                }
                if claim.chunk_id in errors:
                    attributes["errors"] = errors[claim.chunk_id]
                tracing.record(
                    "chunk",
                    traceparent=claim.traceparent,
                    began=timings.began,
                    ended=ended,
                    attributes=attributes,
                    parts=timings.parts(),
                    error=failed,
                )
