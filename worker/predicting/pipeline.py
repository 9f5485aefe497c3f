"""One chunk from its message to its rows: claim, read, decode, predict, record.

The steps are told apart here; how a picture is decoded is in `worker.predicting.decode`, how a batch is
predicted in `worker.predicting.classifier`, and what is written in `jobs.ledger.outcomes`. A challenger may
see the same batches, see `worker.predicting.shadow`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy.engine import Connection
from structlog.contextvars import bind_contextvars

from jobs.errors import ErrorCode, ImageError, JobError, JobStopped, LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import (
    Claim,
    claim_chunk,
    crash_chunk,
    end_job,
    release_chunk,
    renew_lease,
    was_finished,
    withdraw_claim,
)
from jobs.ledger.isolation import must_give_up, must_split, outcome_of_the_lone, split_chunk
from jobs.ledger.outcomes import CONFIDENCE_DIGITS, Outcome, record_outcomes
from jobs.ledger.shadows import Shadowed, find_challenger
from jobs.limits import ImageLimits
from jobs.payloads import Payload, read_payload
from jobs.references import Reference, Roots
from jobs.schema import JobState
from jobs.traces import Part
from worker.bench import Bench
from worker.predicting.deadline import Deadline
from worker.predicting.shadow import TIME_SHARE, Shadow
from worker.predicting.stages import Stages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from worker.predicting.classifier import Classifier, Predictions

logger = logging.getLogger(__name__)

#: How often a chunk that takes long looks at its lease and its job, at the most: an image may take seconds.
_LOOK_SECONDS: Final = 1.0

#: And where leases are short, after this share of it: early enough for a second try.
_RENEW_SHARE: Final = 1 / 3

#: Where the trace's id is in W3C's `traceparent`.
_TRACE_ID: Final = slice(3, 35)

#: How long to wait before outcomes that are ready are written again: a database that is restarted takes
#: seconds, and what was computed would have to be computed again.
_WRITE_AGAIN_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)

#: The images are to blame for the time limit where they took more than this share of the time. Not half of
#: it: where the store is slow and the images are, too, the halves of a chunk are still to get through.
_BLAMED_SHARE: Final = 0.25

#: Who kept a chunk waiting until the time limit struck, by the stage that took the most time.
_KEPT_WAITING: Final = {
    "claim": "the ledger did not answer within the time limit",
    "read": "the store did not answer within the time limit",
    "load": "its model was not loaded within the time limit",
    "shadow": "the model in the shadow took up the time limit",
    "record": "the ledger did not answer within the time limit",
}


def classify_chunk(chunk_id: str, bench: Bench) -> int:
    """Classifies the chunk if it is ours to take; gives back how many images were recorded, 0 if it was not.

    Raises nothing that is the fault of an image, the job or a service: those end as outcomes, as a failed
    job, or as a chunk given back. What it does raise is a mistake in this program, after giving the chunk
    back with its crash counted.
    """
    stages = Stages()
    with stages.timed("claim"):
        claimed = _claim(chunk_id, bench)
    if claimed is None:
        logger.debug("chunk %s is not to be had: done, or somebody else's", chunk_id)
        return 0
    claim, challenger_id = claimed
    try:
        _name_in_log(claim)
        with _showing_the_time_limit():
            if must_split(claim):
                _write(bench.ledger, claim, lambda connection: split_chunk(connection, claim))
                logger.warning(
                    "chunk %s of %d images crashed (%s) and was split",
                    chunk_id,
                    claim.images,
                    claim.error,
                    extra=_facts(claim, stages),
                )
                return 0
            outcomes = _classify(claim, challenger_id, bench, stages)
    except LeaseLost:
        logger.warning(
            "chunk %s was taken over by somebody else; nothing of ours was recorded",
            chunk_id,
            extra=_facts(claim, stages),
        )
        return 0
    except JobStopped:
        logger.info("chunk %s is dropped: its job was stopped", chunk_id, extra=_facts(claim, stages))
        _give_back(bench, claim, error="its job was stopped")
        return 0
    except Unavailable as error:
        # Nobody's fault, and the reconciler rings again. Where the ledger itself is away, the lease runs out.
        logger.warning("chunk %s is given back: %s", chunk_id, error, extra=_facts(claim, stages))
        _give_back(bench, claim, error=str(error))
        return 0
    except JobError as error:
        logger.error("job %s cannot go on: %s", claim.job_id, error, extra=_facts(claim, stages))
        with bench.ledger.transaction() as connection:
            # The chunk first, as everywhere: two who lock them in different orders wait for each other.
            release_chunk(connection, claim, error=str(error))
            end_job(connection, claim.job_id, JobState.FAILED, error=str(error))
        return 0
    except (SystemExit, KeyboardInterrupt):
        _give_back(bench, claim, error="its worker was told to stop")
        logger.info(
            "chunk %s is given back: its worker was told to stop", chunk_id, extra=_facts(claim, stages)
        )
        raise
    except (SoftTimeLimitExceeded, MemoryError) as error:
        # Not raised: Celery answers a MemoryError of a child with the end of the whole worker.
        _give_back_at_limit(error, claim, bench, stages)
        return 0
    except BaseException as error:
        _crash(bench, claim, code=ErrorCode.QUARANTINED, error=repr(error))
        # In one line: Celery tells the traceback.
        logger.error("chunk %s crashed: %s", chunk_id, repr(error), extra=_facts(claim, stages))
        raise
    _say_done(claim, outcomes, stages)
    return len(outcomes)


def _give_back_at_limit(error: Exception, claim: Claim, bench: Bench, stages: Stages) -> None:
    """Gives back a chunk that ran out of time or memory: with a crash where its images may have done it."""
    code = None
    if isinstance(error, MemoryError):
        code, reason = ErrorCode.QUARANTINED, "it ran out of memory"
    elif _images_took_it(claim, stages):
        code, reason = ErrorCode.TIMEOUT, "it took longer than its time limit"
    else:
        reason = _KEPT_WAITING.get(stages.longest(), "something beside its images took up the time limit")
    logger.warning("chunk %s is given back: %s", claim.chunk_id, reason, extra=_facts(claim, stages))
    if code is None:
        _give_back(bench, claim, error=reason)
    else:
        _crash(bench, claim, code=code, error=reason)


def _images_took_it(claim: Claim, stages: Stages) -> bool:
    """Whether the images may be to blame that the time limit struck: where the time went tells, not where the
    limit struck. It may strike while outcomes are written that took all of the time to compute, or at the
    first image after a store that took nearly all of it.
    """
    took = sum(stages.found[name].seconds for name in ("decode", "predict") if name in stages.found)
    if claim.images > 1 and "read" in stages.found:
        # Reading references one by one: there may be too many for the limit, or one may hold the others up.
        # In smaller chunks they finish. Alone, an image is never given up for a store that keeps it waiting.
        took += stages.found["read"].nested
    return took > _BLAMED_SHARE * stages.elapsed()


def _time_ran_out(error: BaseException | None) -> bool:
    """Whether the time limit struck in what raised this, or while that was being cleaned up after."""
    while error is not None and not isinstance(error, SoftTimeLimitExceeded):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _showing_the_time_limit() -> Iterator[None]:
    """Makes the time limit again of what others make of it. Celery raises it in the middle of anything: a
    driver that was waiting for its database then cannot roll back, and says that the connection is broken.
    """
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if _time_ran_out(error):
            raise SoftTimeLimitExceeded from error
        raise


def _classify(claim: Claim, challenger_id: str | None, bench: Bench, stages: Stages) -> list[Outcome]:
    """From the payload to the rows. Raises whatever ends the attempt before them."""
    if bench.tracing is None:
        return _from_payload_to_rows(claim, challenger_id, bench, stages)
    attributes: dict[str, str | int] = {
        "chunk": claim.chunk_id,
        "job": claim.job_id,
        "model": claim.model_id,
        "images": claim.images,
        "attempt": claim.attempts,
    }
    failed: str | None = None
    try:
        outcomes = _from_payload_to_rows(claim, challenger_id, bench, stages)
        attributes["errors"] = _errors_of(outcomes)
        return outcomes
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        bench.tracing.record(
            "chunk",
            traceparent=claim.traceparent,
            began=stages.began,
            ended=time.time_ns(),
            attributes=attributes,
            parts=[
                Part(name, stage.began, stage.ended, stage.seconds) for name, stage in stages.found.items()
            ],
            error=failed,
        )


def _from_payload_to_rows(
    claim: Claim, challenger_id: str | None, bench: Bench, stages: Stages
) -> list[Outcome]:
    outcomes, shadowed = _outcomes(claim, challenger_id, bench, stages)
    with stages.timed("record"):
        _write(
            bench.ledger,
            claim,
            lambda connection: record_outcomes(connection, claim, outcomes, shadowed, stages.spent()),
        )
    return outcomes


def _errors_of(outcomes: list[Outcome]) -> int:
    return sum(outcome.error is not None for outcome in outcomes)


def _say_done(claim: Claim, outcomes: list[Outcome], stages: Stages) -> None:
    """The one line that a chunk has in the log when all went well."""
    facts = _facts(claim, stages)
    errors = _errors_of(outcomes)
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in facts["seconds"].items())
    logger.info(
        "chunk %s of job %s is done: %d images, %d errors, attempt %d; seconds: %s",
        claim.chunk_id,
        claim.job_id,
        claim.images,
        errors,
        claim.attempts,
        parts,
        extra=facts | {"errors": errors},
    )


def _facts(claim: Claim, stages: Stages) -> dict[str, Any]:
    """What a line about a chunk has beside its words (`worker.logs.FIELDS`)."""
    return {"images": claim.images, "attempt": claim.attempts, "seconds": stages.seconds()}


def _name_in_log(claim: Claim) -> None:
    """What the lines of the log are about from here on, until the task is over (`worker.tasks`)."""
    bind_contextvars(chunk=claim.chunk_id, job=claim.job_id, model=claim.model_id)
    if claim.traceparent is not None:
        bind_contextvars(trace=claim.traceparent[_TRACE_ID])


def _claim(chunk_id: str, bench: Bench) -> tuple[Claim, str | None] | None:
    """The claim, and the challenger that is to see the chunk, if one is. Raises Unavailable."""
    token = new_id()
    try:
        with _showing_the_time_limit(), bench.ledger.transaction() as connection:
            claim = claim_chunk(
                connection,
                chunk_id,
                lease_seconds=bench.settings.lease_seconds,
                owner=bench.owner,
                token=token,
            )
            if claim is None:
                return None
            return claim, find_challenger(connection, claim, share=bench.settings.shadow_share)
    except (Unavailable, SoftTimeLimitExceeded) as error:
        # Committed or not: nobody is going to work on it, which must not look like a crash later.
        _let_go(bench, lambda connection: withdraw_claim(connection, chunk_id, token))
        if isinstance(error, SoftTimeLimitExceeded):
            raise Unavailable(_KEPT_WAITING["claim"]) from error
        raise


def _outcomes(
    claim: Claim, challenger_id: str | None, bench: Bench, stages: Stages
) -> tuple[list[Outcome], Shadowed | None]:
    with stages.timed("read"):
        payload = read_payload(
            bench.store, claim.payload, claim.payload_sha256, offset=claim.payload_offset, images=claim.images
        )
    if must_give_up(claim):
        return [outcome_of_the_lone(claim, payload.names[0])], None
    with stages.timed("load"):
        classifier = bench.classifier(claim.model_id)
    classify = partial(
        classify_payload,
        payload,
        classifier,
        roots=bench.roots,
        limits=bench.settings.image_limits,
        image_seconds=bench.settings.image_seconds,
        between_images=_looking(bench, claim, stages),
        stages=stages,
    )
    shadow = None if challenger_id is None else _shadow(claim, challenger_id, classifier, bench)
    if shadow is None:
        return classify(), None
    see = stages.timed("shadow")(shadow.see)
    return classify(after_batch=see), shadow.result()


def _shadow(claim: Claim, challenger_id: str, classifier: Classifier, bench: Bench) -> Shadow | None:
    challenger = bench.challenger(challenger_id)
    if challenger is None:
        return None
    seconds = bench.settings.soft_time_limit * TIME_SHARE
    return Shadow(challenger_id, challenger, classifier, first_index=claim.first_index, seconds=seconds)


def _write(ledger: Ledger, claim: Claim, write: Callable[[Connection], None]) -> None:
    """Ends the claim in one transaction, tried again where the ledger is away for a moment.

    Raises LeaseLost, Unavailable. A COMMIT that breaks off may have gone through: the token in the row tells.
    Where the time limit struck it is not tried again: the hard one is near.
    """
    for pause in (*_WRITE_AGAIN_SECONDS, None):
        try:
            with ledger.transaction() as connection:
                write(connection)
        except Unavailable as error:
            if pause is None or _time_ran_out(error):
                raise
            time.sleep(pause)
        except LeaseLost:
            with ledger.reading() as connection:
                if was_finished(connection, claim):  # by us: an earlier COMMIT had gone through
                    return
            raise
        else:
            return


def _give_back(bench: Bench, claim: Claim, *, error: str) -> None:
    _let_go(bench, lambda connection: release_chunk(connection, claim, error=error))


def _crash(bench: Bench, claim: Claim, *, code: ErrorCode, error: str) -> None:
    _let_go(bench, lambda connection: crash_chunk(connection, claim, code=code, error=error))


def _let_go(bench: Bench, end: Callable[[Connection], None]) -> None:
    """Ends a claim without outcomes. Where the ledger is away, its lease runs out.

    Again where the time limit strikes in here, which it does once: a lease that runs out counts as a crash.
    """
    for _ in range(2):
        try:
            with _showing_the_time_limit(), bench.ledger.transaction() as connection:
                end(connection)
        except SoftTimeLimitExceeded:
            continue
        except Unavailable:
            pass
        return


def classify_payload(
    payload: Payload,
    classifier: Classifier,
    *,
    roots: Roots,
    limits: ImageLimits,
    image_seconds: float,
    between_images: Callable[[], None] = lambda: None,
    after_batch: Callable[[npt.NDArray[np.uint8], list[int], Predictions], None] = lambda *_: None,
    stages: Stages | None = None,
) -> list[Outcome]:
    """One outcome an image, in the payload's order. An image that cannot be decoded leaves its place in the
    batch to the next one, so that the model always sees full batches but for the last. `after_batch` gets the
    pixels of each, the places of its images, and the answers. `stages` gets the seconds of reading referenced
    images, of predicting, and of all the rest as decoding.

    To be called from the main thread. Raises Unavailable where a referenced image's store is away.
    """
    # Imported here, not above: the Celery parent imports this file and must not bring in TensorFlow.
    import numpy as np

    from worker.predicting.classifier import BATCH
    from worker.predicting.decode import decode

    outcomes: list[Outcome | None] = [None] * len(payload.names)
    pixels = np.empty((BATCH, *classifier.spec.shape), np.uint8)
    places: list[int] = []
    stages = stages or Stages()

    def predict() -> None:
        with stages.timed("predict"):
            found = classifier.predict(pixels[: len(places)])
            labels = found.class_index.tolist()
            confidences = found.confidence.astype("float64").round(CONFIDENCE_DIGITS).tolist()
            for place, label, confidence in zip(places, labels, confidences, strict=True):
                name = payload.names[place]
                if label < 0:
                    detail = "no probability came out"
                    outcomes[place] = Outcome(name, None, None, ErrorCode.MODEL_ERROR, detail)
                else:
                    outcomes[place] = Outcome(name, classifier.classes[label], confidence)
        after_batch(pixels[: len(places)], places, found)
        places.clear()

    with stages.timed("decode"), Deadline(image_seconds) as deadline:
        for place, content in enumerate(payload.contents):
            between_images()
            try:
                data = _bytes_of(content, roots, limits, stages)
                deadline.begin()
                pixels[len(places)] = decode(data, classifier.spec, limits)
                deadline.end()
            except ImageError as error:
                deadline.end()
                outcomes[place] = Outcome(payload.names[place], None, None, error.code, error.detail or None)
                continue
            places.append(place)
            if len(places) == BATCH:
                predict()
    if places:
        predict()
    return [outcome for outcome in outcomes if outcome is not None]


def _bytes_of(
    content: bytes | Reference | ImageError, roots: Roots, limits: ImageLimits, stages: Stages
) -> bytes:
    """Of an image in a payload. Raises ImageError, Unavailable."""
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, Reference):
        with stages.timed("read"):
            return roots.read(content, max_bytes=limits.max_bytes)
    return content


def _looking(bench: Bench, claim: Claim, stages: Stages) -> Callable[[], None]:
    """Renews the lease now and then. Raises LeaseLost, JobStopped, Unavailable."""
    lease = bench.settings.lease_seconds
    pause = min(_LOOK_SECONDS, lease * _RENEW_SHARE)
    looked_at = time.monotonic()

    def look() -> None:
        nonlocal looked_at
        if time.monotonic() - looked_at < pause:
            return
        with stages.timed("claim"), bench.ledger.transaction() as connection:
            renew_lease(connection, claim, lease_seconds=lease)
        looked_at = time.monotonic()

    return look
