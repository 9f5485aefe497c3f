"""`/new`: submit images from the browser, or those at URLs, as one job."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from jobs.ledger.learning.models import champions
from jobs.limits import MAX_PRIORITY, MAX_TOP_K
from labelmill.server.access import SubmitSession
from labelmill.web.rendering import page

router = APIRouter(prefix="/new")


@router.get("")
def show_new_job(request: Request, session: SubmitSession) -> Response:
    """Show the form."""
    with session.client.ledger.reading() as connection:
        models = champions(connection)
    return page(request, "new_job.html", champions=models, max_top_k=MAX_TOP_K, max_priority=MAX_PRIORITY)
