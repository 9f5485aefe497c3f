"""`/new`: submit images from the browser, or those at URLs, as one job."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from jobs.ledger.learning.models import champions, list_models
from jobs.limits import MAX_PRIORITY, MAX_TOP_K
from jobs.models.dataset import MNIST
from jobs.models.model import Model
from labelmill.server.access import SubmitSession
from labelmill.web.rendering import page

router = APIRouter(prefix="/new")

#: Models of one dataset that are offered in addition to its champion, newest first.
_MODELS: Final = 30


@router.get("")
def show_new_job(request: Request, session: SubmitSession) -> Response:
    """Show the form."""
    with session.client.ledger.reading() as connection:
        used_first = champions(connection)
        models = list_models(connection)
    others: dict[str, list[Model]] = {each.dataset: [] for each in used_first}
    for model in models:
        others.setdefault(model.dataset, []).append(model)
    return page(
        request,
        "new_job.html",
        champions={each.dataset: each for each in used_first},
        models={dataset: found[:_MODELS] for dataset, found in others.items()},
        digits=MNIST,
        max_top_k=MAX_TOP_K,
        max_priority=MAX_PRIORITY,
    )
