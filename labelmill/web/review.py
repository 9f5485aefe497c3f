"""`/review`: correct or confirm labels, one key for each image."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from jobs.errors import NotFound
from jobs.ledger.jobs.review_queue import ReviewKind
from jobs.ledger.learning.corrections import live_accuracy
from jobs.ledger.learning.models import champions, get_model
from jobs.models.dataset import MNIST
from jobs.models.model import Model
from labelmill.labels.next_training import next_training
from labelmill.server.access import ReviewSession
from labelmill.server.batches import read_batch
from labelmill.server.schemas import NO_NUL
from labelmill.web.rendering import page

router = APIRouter(prefix="/review")


@router.get("")
def show_review(
    request: Request,
    session: ReviewSession,
    dataset: Annotated[str | None, Query(max_length=64, pattern=NO_NUL)] = None,
    job: Annotated[str | None, Query(max_length=64, pattern=NO_NUL)] = None,
    kind: Annotated[ReviewKind, Query()] = ReviewKind.UNSURE,
    view: Literal["card", "grid"] = "card",
) -> Response:
    """Show the queue of images to review: those of a dataset's latest jobs, or of one job.

    A grid shows the suggested labels, so random images, whose suggestion is hidden, have none.
    """
    batch = None if job is None else read_batch(session.client.ledger, session.project, job)
    with session.client.ledger.reading() as connection:
        models = champions(connection)
        model = get_model(connection, batch.model) if batch else _champion(models, dataset)
        live = model and live_accuracy(connection, model.id)
        training = model and next_training(connection, model.dataset, session.client.settings.live_share)
    return page(
        request,
        "review.html",
        batch=batch,
        model=model,
        datasets=[each.dataset for each in models],
        kind=kind,
        kinds=list(ReviewKind),
        view="card" if kind == ReviewKind.RANDOM else view,
        live=live,
        training=training,
    )


def _champion(models: list[Model], dataset: str | None) -> Model | None:
    """Return the champion of the dataset; by default of `mnist`, otherwise of any. Raises NotFound."""
    found = {each.dataset: each for each in models}
    if dataset is not None and dataset not in found:
        raise NotFound(f"Dataset {dataset!r} has no champion, so none of its images has a label to review.")
    return found.get(dataset or MNIST) or next(iter(models), None)
