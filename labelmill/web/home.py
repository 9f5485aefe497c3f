"""`/home`: what runs, what failed, what waits for a person, and how much was done."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.ledger import Ledger
from jobs.ledger.jobs.review_queue import count_unsure
from jobs.ledger.learning.models import champions
from jobs.ledger.learning.runs import Run
from jobs.ledger.metrics import count_by_day
from jobs.models.dataset import MNIST
from labelmill.server.access import Session, SubmitSession
from labelmill.server.batches import list_batches
from labelmill.server.reading import Reading
from labelmill.web.bars import Bar, bars_of
from labelmill.web.health import HealthReadings
from labelmill.web.rendering import page

router = APIRouter(prefix="/home")

_JOBS: Final = 10

#: Unsure labels are counted up to this number, for each dataset.
_UNSURE: Final = 1_000

#: The latest training runs, of which some may wait for a person.
_RUNS: Final = 20

#: The days whose images are counted, and for how many seconds everybody is shown the same count, because it
#: reads all jobs of these days.
_DAYS: Final = 7
_VOLUME_SECONDS: Final = 10.0

#: For how many seconds a drift is shown before it is read again, which takes many statements.
_DRIFT_SECONDS: Final = 600.0

#: Images that have an outcome, by project and day.
Volume = dict[tuple[str, date], int]


class Unsure(NamedTuple):
    """A dataset, and how many unsure labels of its latest jobs wait for a person."""

    dataset: str
    images: int


def volume_of(ledger: Ledger) -> Reading[Volume]:
    """Return the reading of the latest days' images of all projects."""

    def read() -> Volume:
        with ledger.reading() as connection:
            return count_by_day(connection, _latest_days())

    return Reading(read)


@router.get("")
async def show_home(request: Request, session: SubmitSession) -> Response:
    """Show the first page."""
    health: HealthReadings = request.app.state.health
    volume: Volume = await request.app.state.volume.latest(_VOLUME_SECONDS)
    drifted = [each for each in health.drift.known(_DRIFT_SECONDS) or () if each.has_drifted]
    values = await run_in_threadpool(_summary, session)
    days = _bars_of_days(volume, session.project)
    return page(request, "home.html", days=days, drifted=drifted, **values)


def _summary(session: Session) -> dict[str, Any]:
    """Return what runs, what has ended, and what waits for a person."""
    latest = list_batches(session, limit=_JOBS).data
    with session.client.ledger.reading() as connection:
        models = champions(connection)
        unsure = [
            Unsure(
                each.dataset,
                count_unsure(connection, project=session.project, dataset=each.dataset, most=_UNSURE),
            )
            for each in models
        ]
    return {
        "running": [each for each in latest if not each.ended],
        "ended": [each for each in latest if each.ended],
        "models": models,
        "unsure": [each for each in unsure if each.images],
        "most_unsure": _UNSURE,
        "refused": _refused(session.client.runs(limit=_RUNS)),
        "workers": session.client.workers(),
        "digits": MNIST,
    }


def _bars_of_days(volume: Volume, project: str) -> list[Bar]:
    """Return a bar for each of the latest days, the oldest first; none if nothing was done."""
    counts = [(day, volume.get((project, day), 0)) for day in _latest_days()]
    if not any(images for _, images in counts):
        return []
    return bars_of((f"{day:%a} {day.day} {day:%b}", images, None) for day, images in counts)


def _latest_days() -> list[date]:
    today = datetime.now(UTC).date()
    return [today - timedelta(days=ago) for ago in reversed(range(_DAYS))]


def _refused(runs: list[Run]) -> list[Run]:
    """Return the runs whose models the gate refused, if no later run of the dataset has ended."""
    latest: dict[str, Run] = {}
    for run in runs:  # newest first
        if run.finished:
            latest.setdefault(run.dataset, run)
    return [run for run in latest.values() if (run.verdict or "").startswith("refused")]
