"""`/v1/batches/{id}/images` and `/v1/corrections`: read single images, and correct their labels."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from jobs.errors import NotFound
from jobs.ledger.corrections import Correction
from labelmill.correction_files import CorrectionRequest
from labelmill.job_images import read_images
from labelmill.server.access import ReviewSession, SubmitSession
from labelmill.server.batches import found_id
from labelmill.server.problems import PROBLEMS, conflicts
from labelmill.server.schemas import MAX_NUMBER, CorrectionObject, Listing, NewCorrections, NewLabel

router = APIRouter(tags=["images and labels"], responses=PROBLEMS)

Index = Annotated[int, Path(ge=0, le=MAX_NUMBER)]


@router.get(
    "/batches/{batch_id}/images/{index}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def read_image(batch_id: str, index: Index, session: SubmitSession) -> Response:
    """Return the bytes of an image as they were submitted: nothing was checked, they may be dangerous."""
    client = session.client
    found_id(session, batch_id)
    for _, content in read_images(client.ledger, client.store, client.settings, batch_id, [index]):
        # Never shown by a browser, whatever it contains.
        headers = {"Content-Disposition": "attachment"}
        return Response(content, media_type="application/octet-stream", headers=headers)
    raise NotFound(f"Batch {batch_id} has no image {index} that can be read.")


@router.put("/batches/{batch_id}/images/{index}/label")
def put_label(batch_id: str, index: Index, wanted: NewLabel, session: ReviewSession) -> CorrectionObject:
    """Store the true label of an image, for the next training run."""
    with conflicts():
        correction = session.client.correct(found_id(session, batch_id), index, wanted.label)
    session.record_done("correct image", f"{batch_id}/{index}")
    return _to_object(correction)


@router.delete("/batches/{batch_id}/images/{index}/label")
def delete_label(batch_id: str, index: Index, session: ReviewSession) -> CorrectionObject:
    """Remove the correction of an image, and return what it was."""
    correction = session.client.undo_correction(found_id(session, batch_id), index)
    session.record_done("undo correction", f"{batch_id}/{index}")
    return _to_object(correction)


@router.post("/corrections")
def correct_many(wanted: NewCorrections, session: ReviewSession) -> Listing[CorrectionObject]:
    """Store the true labels of many images: all of them, or none if one cannot be stored."""
    for batch_id in {each.batch_id for each in wanted.corrections}:
        found_id(session, batch_id)
    requests = [
        CorrectionRequest(each.batch_id, each.index, each.label, each.line or number)
        for number, each in enumerate(wanted.corrections, 1)
    ]
    with conflicts():
        corrections = session.client.correct_all(requests)
    for batch_id in {correction.job_id for correction in corrections}:
        session.record_done("correct images", batch_id)
    return Listing(data=list(map(_to_object, corrections)))


def _to_object(correction: Correction) -> CorrectionObject:
    return CorrectionObject(
        batch_id=correction.job_id,
        index=correction.index,
        name=correction.name,
        label=correction.label,
        predicted=correction.predicted,
        confidence=correction.confidence,
        model=correction.model_id,
        image_sha256=correction.image_sha256,
        created_at=int(correction.created_at.timestamp()),
    )
