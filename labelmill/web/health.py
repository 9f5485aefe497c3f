"""`/health`: workers, backlog, drift, the doctor's findings, webhooks and keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import Delivery, list_deliveries
from jobs.ledger.api.keys import ApiKey, Role, list_keys
from jobs.ledger.api.projects import list_projects
from jobs.ledger.api.webhooks import Endpoint, list_endpoints
from jobs.ledger.learning.health import RECENT_DAYS, Health, model_health
from jobs.ledger.learning.models import champions
from jobs.ledger.metrics import Backlog, backlog
from jobs.ledger.workers import WorkerStatus, list_workers
from jobs.models.drift import Shift
from jobs.options import DEFAULT_PROJECT
from jobs.settings import Settings
from labelmill.server.access import AdminSession, Session, SubmitSession
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.reading import Reading
from labelmill.web.rendering import page

if TYPE_CHECKING:
    from labelmill.operations.doctor import Finding

router = APIRouter(prefix="/health")

#: For how many seconds people are shown what was read last: workers and backlog, drift, and the findings.
_WORK_SECONDS: Final = 2.0
_DRIFT_SECONDS: Final = 60.0
_FINDINGS_SECONDS: Final = 30.0

#: Messages that are listed for each webhook, newest first.
_MESSAGES: Final = 3

#: Groups of images that are listed for a mix that has moved.
_GROUPS: Final = 3


class Work(NamedTuple):
    """What the workers do, and what waits for them."""

    workers: list[WorkerStatus]
    backlog: Backlog


class Checked(NamedTuple):
    """What the doctor found, by area."""

    at: datetime
    findings: list[tuple[str, Finding]]


class Receiver(NamedTuple):
    """A receiver of webhooks, and the latest messages to it."""

    endpoint: Endpoint
    messages: list[Delivery]


class Moved(NamedTuple):
    """A group of images, with its share in the evaluation and since, from 0 to 1."""

    what: str
    group: str
    expected: float
    actual: float


@dataclass(frozen=True, slots=True)
class HealthReadings:
    """What is read once for all who look at the page."""

    work: Reading[Work]
    drift: Reading[list[Health]]
    findings: Reading[Checked]

    @classmethod
    def of(cls, settings: Settings, ledger: Ledger) -> HealthReadings:
        """Return the readings of one server."""
        return cls(
            work=Reading(lambda: _read_work(ledger)),
            drift=Reading(lambda: _read_drift(ledger), own_thread=True),
            findings=Reading(lambda: _examine(settings), own_thread=True),
        )


@router.get("")
async def show_health(request: Request, session: SubmitSession) -> Response:
    """Show the workers, the backlog, and what the key's role may see."""
    work = await _readings(request).work.latest(_WORK_SECONDS)
    is_admin = session.key.role is Role.ADMIN
    receivers = await run_in_threadpool(_receivers, session) if is_admin else []
    return page(
        request,
        "health.html",
        work=work,
        is_admin=is_admin,
        is_operator=is_admin and session.project == DEFAULT_PROJECT,
        receivers=receivers,
    )


@router.get("/drift")
async def show_drift(request: Request, _session: SubmitSession) -> Response:
    """Show how far the recent images of each champion differ from those of its evaluation."""
    found = await _readings(request).drift.latest(_DRIFT_SECONDS)
    return page(
        request, "health_drift.html", champions=[(each, _moved(each)) for each in found], days=RECENT_DAYS
    )


@router.get("/doctor")
async def show_findings(request: Request, session: AdminSession) -> Response:
    """Show what the doctor finds.

    Findings name jobs and keys of all projects, so only an admin of the default project may see them.
    """
    if session.project != DEFAULT_PROJECT:
        detail = f"Only an admin's key of the project {DEFAULT_PROJECT} may see this: use another key."
        raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, detail)
    found = await _readings(request).findings.latest(_FINDINGS_SECONDS)
    return page(request, "health_doctor.html", checked=found)


@router.get("/keys")
def show_keys(request: Request, session: AdminSession) -> Response:
    """Show the keys of the project, without their secrets, and what the project has stored."""
    with session.client.ledger.reading() as connection:
        keys: list[ApiKey] = list_keys(connection, project=session.project)
        [project] = list_projects(connection, name=session.project)
    now = datetime.now(UTC)
    return page(request, "health_keys.html", keys=keys, project=project, now=now)


def _readings(request: Request) -> HealthReadings:
    found: HealthReadings = request.app.state.health
    return found


def _read_work(ledger: Ledger) -> Work:
    with ledger.reading() as connection:
        return Work(list_workers(connection), backlog(connection))


def _read_drift(ledger: Ledger) -> list[Health]:
    with ledger.reading() as connection:
        models = champions(connection)
    found = []
    for model in models:
        with ledger.reading() as connection:
            found.append(model_health(connection, model.id))
    return found


def _examine(settings: Settings) -> Checked:
    # Here, because it takes half a second, and few servers are asked for it.
    from labelmill.operations.doctor import examine

    found = examine(settings)
    return Checked(datetime.now(UTC), [(area, each) for area, all_ in found.items() for each in all_])


def _receivers(session: Session) -> list[Receiver]:
    with session.client.ledger.reading() as connection:
        return [
            Receiver(each, list_deliveries(connection, limit=_MESSAGES, endpoint_id=each.id))
            for each in list_endpoints(connection, project=session.project)
        ]


def _moved(health: Health) -> list[Moved]:
    """Return the groups whose shares have changed most, if there is a warning about them."""
    if not health.drift_warnings:
        return []
    shifts = (("label", health.labels), ("confidence", health.confidences))
    return [moved for what, shift in shifts if shift for moved in _most_moved(what, shift)]


def _most_moved(what: str, shift: Shift) -> list[Moved]:
    before, now = max(1, sum(shift.expected)), max(1, sum(shift.actual))
    found = [
        Moved(what, group, expected / before, actual / now)
        for group, expected, actual in zip(shift.groups, shift.expected, shift.actual, strict=True)
    ]
    return sorted(found, key=lambda each: -abs(each.actual - each.expected))[:_GROUPS]
