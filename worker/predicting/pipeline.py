"""Process one claim: claim, read, fetch, decode, predict, record, or release with a reason.

`jobs.ledger.jobs.claims` claims chunks, `worker.predicting.windows` turns their images into outcomes, and
`jobs.ledger.jobs.results` records those. `worker.predicting.telemetry` writes the log and traces.
"""

from __future__ import annotations

import logging
from concurrent.futures import wait
from typing import Final

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ErrorCode, ImageError, JobError, LeaseLost, LedgerFull, PayloadDamaged, Unavailable
from jobs.ids import new_id
from jobs.ledger.jobs.claims import Claim, Reason, claim_next, claimed_as, claimed_under, release_claims
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.outcomes import Outcomes
from jobs.ledger.jobs.results import Classified, record_results, split_outcomes
from jobs.network.references import Reference
from jobs.schema import JobState
from jobs.storage.payloads import Content, Payload
from worker.backoff import retry
from worker.predicting import telemetry
from worker.predicting.context import WorkerContext
from worker.predicting.free_space import wait_for_room
from worker.predicting.slim import pass_wake_up_on
from worker.predicting.timings import Timings
from worker.predicting.windows import classify_images
from worker.time_limit import time_limit_unmasked

logger = logging.getLogger(__name__)

#: Attempts, with back-off over more than four minutes, to reach all references of a chunk. In the last one,
#: images that cannot be reached get the error `source_missing`, and the others are classified.
ATTEMPTS_TO_REACH: Final = 10

#: The share of the soft time limit for fetching references. A server without an answer by then counts as
#: unavailable, and time is left to decode the images that were fetched.
FETCH_SHARE: Final = 0.4

#: References that a thread fetches per task: each task costs as much as reading a small local file.
_REFERENCES_PER_TASK: Final = 64

#: Pauses before recording is retried, in seconds: a restarting database needs seconds, and giving up would
#: waste the computed results.
_RECORD_PAUSES: Final = (0.1, 0.5, 1.0, 2.0)


def classify_next(context: WorkerContext) -> int:
    """Classify the next due chunks of one model. Return the number of images recorded, 0 if nothing is due.

    Errors of an image, a job or a service are not raised: they end as an outcome, a failed job or a released
    chunk. A bug in this program is raised, after the chunk was released as crashed.
    """
    timings, token = Timings(), new_id()
    claims: list[Claim] = []
    try:
        with time_limit_unmasked():
            claims = _claim(context, token, timings)
            if not claims:
                return 0
            with telemetry.traced(claims, timings, context.tracing.tracer) as recorded:
                recorded += _classify_or_fail(claims, context, timings)
            return telemetry.log_recorded(recorded, timings)
    except LeaseLost:
        logger.warning("%s: another worker has it; nothing was recorded", telemetry.describe(claims))
    except LedgerFull as error:
        _release(token, Reason.UNAVAILABLE, str(error), context, claims, timings)
        logger.warning("this process claims nothing until the ledger's disk has room")
        context.ledger_is_full = True
        wait_for_room(context)
    except Unavailable as error:
        _release(token, Reason.UNAVAILABLE, str(error), context, claims, timings)
    except SoftTimeLimitExceeded:
        # The slowest stage shows the cause: slow images, or a service that did not answer.
        slowest, reason = timings.longest(), Reason.UNAVAILABLE
        if slowest in ("decode", "predict"):
            reason = Reason.TIMED_OUT
            images = sum(claim.images for claim in claims)
            context.record_time_out(claims[0].model_id, images, timings.of("decode", "predict"))
        _release(token, reason, f"the time limit struck in stage {slowest!r}", context, claims, timings)
        context.drop_fetchers()
    except MemoryError:
        # Not raised: if a child raises MemoryError, Celery stops the whole worker.
        _release(token, Reason.OUT_OF_MEMORY, "it ran out of memory", context, claims, timings)
    except (SystemExit, KeyboardInterrupt):
        _release(token, Reason.INTERRUPTED, "its worker was stopped", context, claims, timings)
        raise
    except BaseException as error:
        _release(token, Reason.CRASHED, repr(error), context, claims, timings)
        raise
    return 0


def _claim(context: WorkerContext, token: str, timings: Timings) -> list[Claim]:
    if context.ledger_is_full and not wait_for_room(context):
        return []
    with timings.timed("claim"):
        # Not durable: if the database loses the claim, nothing can be recorded under its token.
        with context.ledger.transaction(durable=False) as connection:
            claims = claim_next(
                connection,
                owner=context.owner,
                token=token,
                lease_seconds=context.settings.lease_seconds,
                images_for=context.images_per_claim,
                served=context.served,
            )
        if claims and claims[0].was_cut:
            context.publisher.reset().wake_up()  # for the rest of the chunk
    if not claims and context.served is not None:
        pass_wake_up_on(context, context.served)
    return claims


def _classify_or_fail(claims: list[Claim], context: WorkerContext, timings: Timings) -> list[Classified]:
    """Classify the claims' images and return what was recorded: nothing if their jobs fail."""
    try:
        with time_limit_unmasked():  # the time limit must not fail a job
            return _classify(claims, context, timings)
    except JobError as error:
        _fail_jobs(claims, error, context)
        return []


def _classify(claims: list[Claim], context: WorkerContext, timings: Timings) -> list[Classified]:
    with timings.timed("read"):
        claims, names, contents = _read_payloads(claims, context)
    if not claims:
        return []
    with timings.timed("fetch"):
        # A chunk that was released before is claimed alone.
        fetched = _fetch(contents, context, is_last=claims[0].releases + 1 >= ATTEMPTS_TO_REACH)
    errors = [content for content in fetched if isinstance(content, ImageError)]
    if len(errors) == len(fetched):  # no model needed, so a chunk also ends if loading its model crashes
        none = [None] * len(names)
        codes, details = [error.code for error in errors], [error.detail or None for error in errors]
        outcomes = Outcomes(names, none, none, codes, details)
    else:
        model_id = claims[0].model_id
        with timings.timed("load"):
            classifier = context.classifier(model_id)
        # Small jobs that are claimed together may ask for different numbers: each is given its own below.
        top_k = max((claim.top_k for claim in claims if claim.top_k is not None), default=None)
        outcomes = classify_images(names, fetched, classifier, context.settings, timings, top_k=top_k)
        classified = len(outcomes) - outcomes.failed
        context.record_speed(model_id, classified, timings.of("fetch", "decode", "predict"))
    with timings.timed("record"):
        recorded = _record(claims, outcomes, context, timings)
    context.record_ledger_time(timings.of("claim", "record"))
    return recorded


def _read_payloads(
    claims: list[Claim], context: WorkerContext
) -> tuple[list[Claim], list[str], list[Content]]:
    """Return the claims with intact payloads, and their images' names and contents; fail the other jobs."""
    intact: list[Claim] = []
    names: list[str] = []
    contents: list[Content] = []

    def read(claim: Claim) -> Payload | PayloadDamaged:
        try:
            return context.payload(claim)
        except PayloadDamaged as error:
            return error

    each = context.fetchers.map if context.store.is_concurrent and len(claims) > 1 else map
    for claim, payload in zip(claims, each(read, claims), strict=True):
        if isinstance(payload, PayloadDamaged):
            _fail_jobs([claim], payload, context)
            continue
        intact.append(claim)
        names += payload.names
        if claim.gives_up:
            code = claim.crash_code or ErrorCode.QUARANTINED
            contents.append(ImageError(ErrorCode(code), claim.error or ""))
        else:
            contents += payload.contents
    return intact, names, contents


def _fetch(contents: list[Content], context: WorkerContext, *, is_last: bool) -> list[bytes | ImageError]:
    """Return the bytes or the error of each image.

    Raises Unavailable if an image cannot be reached now; in the last attempt, it gets an error instead.
    """
    found: list[bytes | ImageError] = []
    for content in _fetch_references(contents, context, one_per_task=is_last):
        if isinstance(content, Unavailable):
            context.drop_fetchers()  # one of them may wait for ever
            if not is_last:
                raise content
            found.append(ImageError(ErrorCode.SOURCE_MISSING, str(content)))
        else:
            found.append(content)
    return found


def _fetch_references(
    contents: list[Content], context: WorkerContext, *, one_per_task: bool
) -> list[bytes | ImageError | Unavailable]:
    """Return each image's bytes or error, in order; references are fetched concurrently.

    An image that cannot be reached now is represented by an Unavailable. With `one_per_task`, a reference
    without an answer does not delay others.
    """
    seconds = FETCH_SHARE * context.settings.soft_time_limit
    no_answer = Unavailable(f"An image was not read within {seconds:.3g} s: check its server or disk.")
    found = [no_answer if isinstance(each, Reference) else each for each in contents]

    def fetch(part: list[tuple[int, Reference]]) -> None:
        for place, reference in part:
            try:
                found[place] = context.roots.read(reference, max_bytes=context.settings.max_image_bytes)
            except (ImageError, Unavailable) as error:
                found[place] = error

    references = [(place, each) for place, each in enumerate(contents) if isinstance(each, Reference)]
    step = 1 if one_per_task else min(_REFERENCES_PER_TASK, 1 + len(references) // 16)
    parts = [references[start : start + step] for start in range(0, len(references), step)]
    done, _ = wait([context.fetchers.submit(fetch, part) for part in parts], timeout=seconds)
    for each in done:
        each.result()  # raises unexpected errors, such as MemoryError
    return list(found)  # a copy, because a thread may still write to `found`


def _record(
    claims: list[Claim], outcomes: Outcomes, context: WorkerContext, timings: Timings
) -> list[Classified]:
    """Record the results in one transaction, which is safe to repeat. Raises LeaseLost, Unavailable."""
    classified = split_outcomes(claims, outcomes)

    def record() -> list[Classified]:
        with context.ledger.transaction() as connection:
            return record_results(connection, classified, timings.spent())

    return retry(record, _RECORD_PAUSES, unless=LedgerFull)


def _release(
    token: str, reason: Reason, error: str, context: WorkerContext, claims: list[Claim], timings: Timings
) -> None:
    """Release everything that was claimed under the token.

    That can be more than `claims`, because the answer to the claim's COMMIT may have been lost. If the ledger
    is unavailable, the lease runs out.
    """
    line = f"{telemetry.describe(claims)}: released, {reason}: {error}"
    logger.warning("%s", line, extra=telemetry.log_fields(claims, timings))
    for _ in range(2):  # the time limit strikes only once, but it may strike here
        try:
            with time_limit_unmasked(), context.ledger.transaction() as connection:
                release_claims(connection, claimed_under(token), reason, error)
        except SoftTimeLimitExceeded:
            continue
        except Unavailable as problem:
            logger.warning("not released; the lease will expire: %s", problem)
        return


def _fail_jobs(claims: list[Claim], error: JobError, context: WorkerContext) -> None:
    """End the claims' jobs as failed. Raises Unavailable."""
    for claim in claims:
        ids = {"job": claim.job_id, "chunk": claim.chunk_id, "attempt": claim.attempts}
        logger.error("job %s failed: %s", claim.job_id, error, extra=ids)
        with context.ledger.transaction() as connection:
            # Chunks are locked before jobs, as everywhere: another order could deadlock.
            release_claims(connection, claimed_as([claim]), Reason.INTERRUPTED, str(error))
            end_job(connection, claim.job_id, JobState.FAILED, error=str(error))
