"""`/jobs/{id}/images`: the images of a job that match a filter, and each of them large."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, Field

from jobs.errors import NotFound, UserError
from jobs.ledger.jobs.browsing import ORDERS
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.queries import predictions_of
from jobs.ledger.learning.corrections import find_corrections
from jobs.ledger.learning.known_labels import manifest_labels
from jobs.ledger.learning.models import get_model
from jobs.limits import MAX_GLOB_LENGTH
from jobs.models.dataset import known_label
from jobs.schema import UNSURE
from labelmill.server.access import SubmitSession
from labelmill.server.batches import read_batch
from labelmill.server.images import Index
from labelmill.server.schemas import NO_NUL
from labelmill.web.rendering import page

router = APIRouter(prefix="/jobs")

#: Images of one page.
_IMAGES: Final = 60

#: The cursor of `browse_by_index` or `browse_least_sure`.
_CURSOR: Final = r"^(-?\d{1,16}|[0-9.e-]{1,32},\d{1,16})$"

Label = Annotated[str, Query(max_length=1024, pattern=NO_NUL)]
#: A form sends an empty field, too.
Share = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(lambda typed: typed or None), Query()
]


@router.get("/{job_id}/images")
def show_images(
    job_id: str,
    request: Request,
    session: SubmitSession,
    label: Label = "",
    truth: Label = "",
    at_least: Share = None,
    below: Share = None,
    error: Annotated[str, Query(max_length=32, pattern=NO_NUL)] = "",
    name: Annotated[str, Query(max_length=MAX_GLOB_LENGTH, pattern=NO_NUL)] = "",
    order: Literal["index", "unsure"] = "index",
    after: Annotated[str | None, Query(pattern=_CURSOR)] = None,
    *,
    errors: bool = False,
    mistakes: bool = False,
) -> Response:
    """Show a page of the images that match."""
    batch = read_batch(session.client.ledger, session.project, job_id)
    with session.client.ledger.reading() as connection:
        model = get_model(connection, batch.model)
    chosen: dict[str, Any] = {
        "label": label,
        "truth": truth,
        "at_least": at_least,
        "below": below,
        "error": error,
        "errors": errors,
        "name": name,
        "mistakes": mistakes,
        "order": order if order != "index" else "",
    }
    wanted = Filter(
        label=label or None,
        truth=truth or None,
        at_least=at_least,
        below=below,
        error=error or None,
        errors=errors,
        name=name or None,
        mistakes=mistakes,
        classes=tuple(model.classes),
    )
    if after is not None and ("," in after) != (order == "unsure"):
        raise UserError("after: it is from a list in another order: begin at the first page.")
    ledger = session.client.ledger
    found = ORDERS[order](ledger, batch.id, batch.job.total, wanted, after=after, limit=_IMAGES)
    with ledger.reading() as connection:
        indices = [each.index for each in found.images]
        corrections = find_corrections(connection, batch.id, indices)
        labels = manifest_labels(connection, batch.id, indices)
    # The next page of a list needs only its images: thousands of whole pages would fill the browser's memory.
    is_next = after is not None and "hx-request" in request.headers
    return page(
        request,
        "gallery_items.html" if is_next else "gallery.html",
        batch=batch,
        job=batch.job,
        model=model,
        chosen=chosen,
        found=found,
        corrections=corrections,
        classes=model.classes,
        after=after,
        unsure=UNSURE,
        truths={each.index: known_label(each.name, labels.get(each.index)) for each in found.images},
    )


@router.get("/{job_id}/images/{index}")
def show_image(job_id: str, index: Index, request: Request, session: SubmitSession) -> Response:
    """Show one image large, with all that is known about it."""
    batch = read_batch(session.client.ledger, session.project, job_id)
    with session.client.ledger.reading() as connection:
        prediction = predictions_of(connection, batch.id, [index]).get(index)
        correction = find_corrections(connection, batch.id, [index]).get(index)
        label = manifest_labels(connection, batch.id, [index]).get(index)
        model = get_model(connection, batch.model)
    if prediction is None:
        raise NotFound(f"Job {batch.id} has no image {index} with an outcome.")
    return page(
        request,
        "image.html",
        batch=batch,
        job=batch.job,
        image=prediction,
        correction=correction,
        classes=model.classes,
        truth=known_label(prediction.name, label),
        source="folder" if label is None else "manifest",
    )
