"""One chunk from its message to its rows: claim, read, decode, predict, record.

The steps are told apart here; how a picture is decoded is in `worker.predicting.decode`, how a batch is
predicted in `worker.predicting.classifier`, and what is written in `jobs.ledger.outcomes`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from jobs.errors import ErrorCode, ImageError, JobError, LeaseLost, Unavailable
from jobs.ledger.claims import Claim, claim_chunk, end_job, release_chunk, renew_lease
from jobs.ledger.outcomes import Outcome, record_outcomes
from jobs.payloads import Payload, read_payload
from jobs.schema import JobState
from worker.bench import Bench

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

logger = logging.getLogger(__name__)

#: A lease is renewed when this share of it has gone by: early enough for a second try.
_RENEW_SHARE: Final = 1 / 3

#: Confidences are stored with this many digits after the point; a float32 holds no more.
_CONFIDENCE_DIGITS: Final = 7


def classify_chunk(chunk_id: str, bench: Bench) -> int:
    """Classifies the chunk if it is ours to take; gives back how many images were recorded, 0 if it was not.

    Raises nothing that is the fault of an image, the job or a service: those end as outcomes, as a failed
    job, or as a chunk given back. What it does raise is a mistake in this program, after giving the chunk
    back with its attempt counted.
    """
    lease = bench.settings.lease_seconds
    with bench.ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=lease, owner=bench.owner)
    if claim is None:
        logger.debug("chunk %s is not to be had: done, or somebody else's", chunk_id)
        return 0
    try:
        payload = read_payload(bench.store, claim.payload, claim.payload_sha256, images=claim.images)
        if claim.exhausted:
            outcomes = _quarantine(payload)
        else:
            outcomes = classify_payload(
                payload, bench.classifier(claim.model_id), between_batches=_renewal(bench, claim)
            )
        with bench.ledger.transaction() as connection:
            record_outcomes(connection, claim, outcomes)
    except LeaseLost:
        logger.warning("chunk %s was taken over by somebody else; nothing of ours was recorded", chunk_id)
        return 0
    except Unavailable as error:
        # Nobody's fault, and the reconciler rings again. Where the ledger itself is away, the lease runs out.
        logger.warning("chunk %s is given back: %s", chunk_id, error)
        with suppress(Unavailable), bench.ledger.transaction() as connection:
            release_chunk(connection, claim, error=str(error), burn_attempt=False)
        return 0
    except JobError as error:
        logger.error("job %s cannot go on: %s", claim.job_id, error)
        with bench.ledger.transaction() as connection:
            release_chunk(connection, claim, error=str(error), burn_attempt=True)
            end_job(connection, claim.job_id, JobState.FAILED, error=str(error))
        return 0
    except BaseException as error:
        with suppress(Unavailable), bench.ledger.transaction() as connection:
            release_chunk(connection, claim, error=repr(error), burn_attempt=True)
        raise
    return len(outcomes)


def classify_payload(
    payload: Payload, classifier: Classifier, *, between_batches: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """One outcome an image, in the payload's order. An image that cannot be decoded leaves its place in the
    batch to the next one, so that the model always sees full batches but for the last.
    """
    # Imported here, not above: the Celery parent imports this file and must not bring in TensorFlow.
    import numpy as np

    from worker.predicting.classifier import BATCH
    from worker.predicting.decode import decode

    outcomes: list[Outcome | None] = [None] * len(payload.names)
    pixels = np.empty((BATCH, *classifier.spec.shape), np.uint8)
    places: list[int] = []

    def predict() -> None:
        found = classifier.predict(pixels[: len(places)])
        labels = found.class_index.tolist()
        confidences = found.confidence.astype("float64").round(_CONFIDENCE_DIGITS).tolist()
        for place, label, confidence in zip(places, labels, confidences, strict=True):
            name = payload.names[place]
            if label < 0:
                outcomes[place] = Outcome(name, None, None, ErrorCode.MODEL_ERROR, "no probability came out")
            else:
                outcomes[place] = Outcome(name, classifier.classes[label], confidence)
        places.clear()

    for place, content in enumerate(payload.contents):
        try:
            if isinstance(content, ImageError):
                raise content
            pixels[len(places)] = decode(content, classifier.spec)
        except ImageError as error:
            outcomes[place] = Outcome(payload.names[place], None, None, error.code, error.detail or None)
            continue
        places.append(place)
        if len(places) == BATCH:
            predict()
            between_batches()
    if places:
        predict()
    return [outcome for outcome in outcomes if outcome is not None]


def _quarantine(payload: Payload) -> list[Outcome]:
    detail = "its chunk stopped every worker that tried it"
    return [Outcome(name, None, None, ErrorCode.QUARANTINED, detail) for name in payload.names]


def _renewal(bench: Bench, claim: Claim) -> Callable[[], None]:
    lease = bench.settings.lease_seconds
    renewed_at = time.monotonic()

    def renew() -> None:
        nonlocal renewed_at
        if time.monotonic() - renewed_at < lease * _RENEW_SHARE:
            return
        with bench.ledger.transaction() as connection:
            renew_lease(connection, claim, lease_seconds=lease)
        renewed_at = time.monotonic()

    return renew
