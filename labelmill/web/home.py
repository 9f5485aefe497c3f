"""`/home`: what runs, what failed, and what waits for a person."""

from __future__ import annotations

from typing import Final, NamedTuple

from fastapi import APIRouter, Request, Response

from jobs.ledger.jobs.review_queue import count_unsure
from jobs.ledger.learning.models import champions
from jobs.ledger.learning.runs import Run
from jobs.models.dataset import MNIST
from labelmill.server.access import SubmitSession
from labelmill.server.batches import list_batches
from labelmill.web.rendering import page

router = APIRouter(prefix="/home")

_JOBS: Final = 10

#: Unsure labels are counted up to this number, for each dataset.
_UNSURE: Final = 1_000

#: The latest training runs, of which some may wait for a person.
_RUNS: Final = 20


class Unsure(NamedTuple):
    """A dataset, and how many unsure labels of its latest jobs wait for a person."""

    dataset: str
    images: int


@router.get("")
def show_home(request: Request, session: SubmitSession) -> Response:
    """Show the first page."""
    latest = list_batches(session, limit=_JOBS).data
    running = [each for each in latest if not each.ended]
    ended = [each for each in latest if each.ended]
    with session.client.ledger.reading() as connection:
        models = champions(connection)
        unsure = [
            Unsure(
                each.dataset,
                count_unsure(connection, project=session.project, dataset=each.dataset, most=_UNSURE),
            )
            for each in models
        ]
    workers = session.client.workers()
    return page(
        request,
        "home.html",
        running=running,
        ended=ended,
        models=models,
        unsure=[each for each in unsure if each.images],
        most_unsure=_UNSURE,
        refused=_refused(session.client.runs(limit=_RUNS)),
        workers=workers,
        digits=MNIST,
    )


def _refused(runs: list[Run]) -> list[Run]:
    """Return the runs whose models the gate refused, if no later run of the dataset has ended."""
    latest: dict[str, Run] = {}
    for run in runs:  # newest first
        if run.finished:
            latest.setdefault(run.dataset, run)
    return [run for run in latest.values() if (run.verdict or "").startswith("refused")]
