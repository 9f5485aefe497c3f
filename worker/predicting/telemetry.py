"""Write the log lines and trace spans of a claim for `worker.predicting.pipeline`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context
from structlog.contextvars import bind_contextvars

from jobs.ledger.jobs.claims import Claim
from jobs.ledger.jobs.results import Classified
from jobs.traces import context_of
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
    for each in recorded:
        claim, failed = each.claim, each.outcomes.failed
        fields = log_fields([claim], timings)
        logger.info(
            "chunk %s of job %s is done: %d images, %d errors, attempt %d; seconds: %s",
            claim.chunk_id,
            claim.job_id,
            claim.images,
            failed,
            claim.attempts,
            ", ".join(f"{name} {seconds:.3f}" for name, seconds in fields["seconds"].items()),
            extra=fields | {"errors": failed} | _ids_of(claim),
        )
    return sum(each.claim.images for each in recorded)


@contextmanager
def traced(claims: Sequence[Claim], timings: Timings, tracer: Tracer) -> Iterator[list[Classified]]:
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
        errors = {each.claim.chunk_id: each.outcomes.failed for each in recorded}
        ended = time.time_ns()
        for claim in claims:
            span = _start_span(claim, timings, tracer)
            if claim.chunk_id in errors:
                span.set_attribute("labelmill.errors", errors[claim.chunk_id])
            if failed is not None:
                span.set_status(StatusCode.ERROR, failed)
            span.end(ended)


def _start_span(claim: Claim, timings: Timings, tracer: Tracer) -> Span:
    """Return the span of a claim in its job's trace, with the stages of its work as spans that have ended."""
    attributes: dict[str, str | int] = {
        "labelmill.chunk": claim.chunk_id,
        "labelmill.job": claim.job_id,
        "labelmill.model": claim.model_id,
        "labelmill.images": claim.images,
        "labelmill.attempt": claim.attempts,
    }
    span = tracer.start_span(
        "chunk", context_of(claim.traceparent), start_time=timings.began, attributes=attributes
    )
    if span.is_recording():  # a claim can have 512 chunks
        below = set_span_in_context(span)
        for name, stage in timings.stages.items():
            seconds = {"labelmill.seconds": round(stage.seconds, 6)}
            tracer.start_span(name, below, start_time=stage.began, attributes=seconds).end(stage.ended)
    return span
