"""What is told of a chunk on its way: lines of the log, what they are about, and the spans of its trace.

The way itself is in `worker.predicting.pipeline`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from structlog.contextvars import bind_contextvars

from jobs.ledger.claims import Claim
from jobs.ledger.outcomes import Classified
from jobs.outcomes import Outcomes
from jobs.traces import Part, Tracing
from worker.predicting.stages import Stages

logger = logging.getLogger(__name__)

#: Where the trace's id is in W3C's `traceparent`.
_TRACE_ID: Final = slice(3, 35)


def subject_of(claims: list[Claim]) -> str:
    """What a line of the log is about."""
    others = f" and {len(claims) - 1} more small chunks" if len(claims) > 1 else ""
    return f"chunk {claims[0].chunk_id}{others}"


def facts_of(claims: list[Claim], stages: Stages) -> dict[str, Any]:
    """What a line about chunks has beside its words (`worker.logs.FIELDS`)."""
    images = sum(claim.images for claim in claims)
    return {"images": images, "attempt": claims[0].attempts, "seconds": stages.seconds()}


def name_in_log(claims: list[Claim]) -> None:
    """What the lines of the log are about from here on, until the task is over (`worker.tasks`)."""
    claim = claims[0]
    bind_contextvars(model=claim.model_id)
    if len(claims) > 1:  # of several jobs: their own lines name them
        return
    bind_contextvars(chunk=claim.chunk_id, job=claim.job_id)
    if claim.traceparent is not None:
        bind_contextvars(trace=claim.traceparent[_TRACE_ID])


def say_done(classified: list[Classified], stages: Stages) -> int:
    """One line for each chunk, when all went well; gives back how many images these are."""
    images = 0
    for claim, outcomes, _, rest_id in classified:
        facts = facts_of([claim], stages)
        errors = Outcomes.of(outcomes).failed
        rest = "" if rest_id is None else f", {claim.images - len(outcomes)} left to chunk {rest_id}"
        logger.info(
            "chunk %s of job %s is done: %d images%s, %d errors, attempt %d; seconds: %s",
            claim.chunk_id,
            claim.job_id,
            len(outcomes),
            rest,
            errors,
            claim.attempts,
            ", ".join(f"{name} {seconds:.3f}" for name, seconds in facts["seconds"].items()),
            extra=facts
            | {"images": len(outcomes), "errors": errors, "chunk": claim.chunk_id, "job": claim.job_id},
        )
        images += len(outcomes)
    return images


def traced(
    claims: list[Claim], stages: Stages, tracing: Tracing | None, work: Callable[[], list[Classified]]
) -> list[Classified]:
    """What `work` gives back or raises; where there is tracing, each claim gets a span of it."""
    if tracing is None:
        return work()
    recorded: list[Classified] = []
    failed: str | None = None
    try:
        recorded = work()
        return recorded
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        outcomes = {one.claim.chunk_id: one.outcomes for one in recorded}
        ended = time.time_ns()
        for claim in claims:
            attributes: dict[str, str | int] = {
                "chunk": claim.chunk_id,
                "job": claim.job_id,
                "model": claim.model_id,
                "images": claim.images,
                "attempt": claim.attempts,
            }
            if claim.chunk_id in outcomes:
                found = outcomes[claim.chunk_id]
                # Of one that was left, those that are left have a span of their own.
                attributes |= {"images": len(found), "errors": Outcomes.of(found).failed}
            tracing.record(
                "chunk",
                traceparent=claim.traceparent,
                began=stages.began,
                ended=ended,
                attributes=attributes,
                parts=[
                    Part(name, stage.began, stage.ended, stage.seconds)
                    for name, stage in stages.found.items()
                ],
                error=failed,
            )
