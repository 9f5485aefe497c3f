"""`/home`: what runs, what failed, and what waits for a person."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from jobs.models.dataset import MNIST
from labelmill.server.access import SubmitSession
from labelmill.server.batches import list_batches
from labelmill.web.rendering import page

router = APIRouter(prefix="/home")

_JOBS: Final = 10


@router.get("")
def show_home(request: Request, session: SubmitSession) -> Response:
    """Show the first page."""
    latest = list_batches(session, limit=_JOBS).data
    running = [each for each in latest if not each.ended]
    ended = [each for each in latest if each.ended]
    models = [each for each in session.client.models() if "champion" in each.aliases]
    workers = session.client.workers()
    return page(
        request,
        "home.html",
        running=running,
        ended=ended,
        models=models,
        workers=workers,
        digits=MNIST,
    )
