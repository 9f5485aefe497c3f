"""`/v1/batches/{id}/images` and `/v1/corrections`: read single images, and correct their labels."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Final, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from jobs.errors import ErrorCode, ImageError, NotFound
from jobs.ledger.jobs.queries import predictions_of
from jobs.ledger.jobs.review_queue import claim_images, release_images
from jobs.ledger.learning.corrections import Correction
from jobs.ledger.learning.models import datasets_of
from labelmill.labels.correction_files import CorrectionRequest
from labelmill.labels.job_images import LatestPayload, read_images
from labelmill.labels.next_training import next_training
from labelmill.server.access import ReviewSession, Session, SubmitSession
from labelmill.server.batches import found_id
from labelmill.server.problems import ApiError, conflicts
from labelmill.server.schemas import (
    BINARY,
    MAX_NUMBER,
    ChangedCorrection,
    ChangedCorrections,
    CorrectionObject,
    Listing,
    NewCorrections,
    NewLabel,
    ReviewObject,
    ReviewWanted,
)
from worker.predicting.pictures import cautious_limits, thumbnail

router = APIRouter(tags=["images and labels"])

#: Pixels of the longer side of a thumbnail.
_SIDES: Final = {"small": 128, "large": 1024}

#: An image of a batch never changes. Only the browser may cache it, for this session.
_CACHED: Final = {"Cache-Control": "private, max-age=3600, immutable", "Vary": "Authorization, Cookie"}

#: Images are decoded one at a time, because this takes the most memory and time.
one_at_a_time: Final = CapacityLimiter(1)

#: Of the thread that makes thumbnails.
_latest: Final = LatestPayload()

Index = Annotated[int, Path(ge=0, le=MAX_NUMBER, description="the image's index in the batch")]


@router.get(
    "/batches/{batch_id}/images/{index}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": BINARY}}}},
)
def read_image(batch_id: str, index: Index, session: SubmitSession) -> Response:
    """Return the bytes of an image as they were submitted: nothing was checked, they may be dangerous."""
    client = session.client
    found_id(session, batch_id)
    for _, content in read_images(client.ledger, client.store, client.settings, batch_id, [index]):
        # Never shown by a browser, whatever it contains.
        headers = {"Content-Disposition": "attachment"}
        return Response(content, media_type="application/octet-stream", headers=headers)
    raise _no_image(batch_id, index)


@router.get(
    "/batches/{batch_id}/images/{index}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": BINARY}}}},
)
async def read_thumbnail(
    batch_id: str,
    index: Index,
    session: SubmitSession,
    size: Annotated[
        Literal["small", "large"], Query(description="the longer side: 128 pixels, or at most 1,024")
    ] = "small",
) -> Response:
    """Return an image as a small WebP. If the image got an error, the answer has its code."""
    # Requests that wait hold no thread.
    side = _SIDES[size]
    content = await to_thread.run_sync(_thumbnail, session, batch_id, index, side, limiter=one_at_a_time)
    return Response(content, media_type="image/webp", headers=_CACHED)


@router.put("/batches/{batch_id}/images/{index}/label")
def put_label(batch_id: str, index: Index, wanted: NewLabel, session: ReviewSession) -> ChangedCorrection:
    """Store the true label of an image, for the next training run."""
    with conflicts():
        correction = session.client.correct(found_id(session, batch_id), index, wanted.label)
    return _changed(session, correction)


@router.delete("/batches/{batch_id}/images/{index}/label")
def delete_label(batch_id: str, index: Index, session: ReviewSession) -> ChangedCorrection:
    """Remove the correction of an image, and return what it was."""
    correction = session.client.undo_correction(found_id(session, batch_id), index)
    return _changed(session, correction)


@router.post("/corrections", responses={HTTPStatus.NOT_FOUND: {}, HTTPStatus.CONFLICT: {}})
def correct_many(wanted: NewCorrections, session: ReviewSession) -> ChangedCorrections:
    """Store the true labels of many images: all of them, or none if one cannot be stored.

    A label that is null removes the image's correction, if it has one. `undo` takes back what the same
    request without it stored.
    """
    for batch_id in {each.batch_id for each in wanted.corrections}:
        found_id(session, batch_id)
    requests = [
        CorrectionRequest(each.batch_id, each.index, each.label, each.line or number, each.confirms)
        for number, each in enumerate(wanted.corrections, 1)
        if each.label is not None
    ]
    if wanted.undo:
        changed = session.client.undo_all(requests)
    else:
        with conflicts():
            changed = session.client.correct_all(requests)
    removed = session.client.undo_corrections(
        (each.batch_id, each.index) for each in wanted.corrections if each.label is None
    )
    return ChangedCorrections(
        data=list(map(CorrectionObject.of, changed)), effect=_effect(session, [*changed, *removed])
    )


@router.post("/review", responses={HTTPStatus.NOT_FOUND: {}})
def claim_to_review(wanted: ReviewWanted, request: Request, session: ReviewSession) -> Listing[ReviewObject]:
    """Give the images that are most worth a person's look. For ten minutes, nobody else is given them."""
    if wanted.batch_id is not None:
        found_id(session, wanted.batch_id)
    holder = request.state.key_digest
    with session.client.ledger.transaction() as connection:
        if wanted.again:
            release_images(connection, holder)
        found = claim_images(
            connection,
            wanted.kind,
            project=session.project,
            dataset=wanted.dataset,
            job_id=wanted.batch_id,
            holder=holder,
            limit=wanted.limit,
        )
    return Listing(
        data=[
            ReviewObject(
                batch_id=each.job_id,
                index=each.prediction.index,
                name=each.prediction.name,
                label=each.prediction.label or "",
                confidence=each.prediction.confidence or 0.0,
            )
            for each in found
        ]
    )


def _changed(session: Session, correction: Correction) -> ChangedCorrection:
    return ChangedCorrection.model_validate(asdict(correction) | {"effect": _effect(session, [correction])})


def _effect(session: Session, changed: list[Correction]) -> str:
    """Return what the next training makes of corrections that were stored or removed, in sentences."""
    client = session.client
    with client.ledger.reading() as connection:
        datasets = set(datasets_of(connection, {each.model_id for each in changed}).values())
        found = [next_training(connection, each, client.settings.live_share) for each in sorted(datasets)]
    return " ".join(map(str, found))


def _thumbnail(session: Session, batch_id: str, index: int, side: int) -> bytes:
    """Return an image as a small WebP. Raises NotFound, and ApiError if it cannot be decoded here."""
    client = session.client
    found_id(session, batch_id)
    with client.ledger.reading() as connection:
        prediction = predictions_of(connection, batch_id, [index]).get(index)
    if prediction is None:
        raise NotFound(
            f"Batch {batch_id} has no image {index} that is classified: its results list those that are."
        )
    if prediction.error is not None:
        raise _no_thumbnail(prediction.error, prediction.detail)
    limits = client.settings.image_limits
    found = read_images(client.ledger, client.store, client.settings, batch_id, [index], _latest)
    for _, content in found:
        try:
            return thumbnail(content, side, cautious_limits(content, limits), "WEBP")
        except ImageError as error:
            raise _no_thumbnail(error.code, error.detail) from None
    raise _no_image(batch_id, index)


def _no_image(batch_id: str, index: int) -> NotFound:
    """Return the error for an image that the batch does not have, or that was never read."""
    return NotFound(f"Batch {batch_id} has no image {index} that can be read: its results list its images.")


def _no_thumbnail(code: str, detail: str | None) -> ApiError:
    reason = f": {detail}" if detail else ""
    return ApiError(HTTPStatus.NOT_FOUND, ErrorCode(code), f"The image has no thumbnail{reason}.")
