"""`/runs`: training runs and schedules, and each run with its learning curves and the gate's verdict."""

from __future__ import annotations

from typing import Final, NamedTuple, get_args

from fastapi import APIRouter, Request, Response

from jobs.errors import NotFound
from jobs.ids import is_id
from jobs.ledger.learning.runs import Run, epochs_of, latest_scheduled_runs, verdict_on
from jobs.models.dataset import describe_version
from jobs.models.training_request import Architecture
from labelmill.client import Client
from labelmill.client.schedules import ScheduleStatus
from labelmill.reporting.model_page import learning_curves
from labelmill.reporting.run_lines import added_line, end_line
from labelmill.server.access import SubmitSession
from labelmill.web.rendering import page

router = APIRouter(prefix="/runs")

_RUNS: Final = 50

#: Runs of each schedule.
_SCHEDULED: Final = 5


class DatasetSchedule(NamedTuple):
    """A dataset's schedule, and the latest runs that it requested."""

    dataset: str
    status: ScheduleStatus | None  # None if it never had a schedule
    runs: list[Run]


@router.get("")
def show_runs(request: Request, session: SubmitSession) -> Response:
    """Show the latest training runs and the schedules, and a form to start one."""
    client = session.client
    datasets = [each.dataset for each in client.datasets()]
    return page(
        request,
        "runs.html",
        runs=client.runs(limit=_RUNS),
        schedules=_schedules_of(client, datasets),
        datasets=datasets,
        architectures=get_args(Architecture),
        backbones=client.backbones(),
        has_trainer=client.trainer_is_running(),
    )


@router.get("/{run_id}")
def show_run(run_id: str, request: Request, session: SubmitSession) -> Response:
    """Show a training run, live until it ends."""
    found = session.client.run_id(run_id)
    if not is_id(found):
        raise NotFound(f"There is no training run {run_id!r}.")
    run = session.client.run(found)
    with session.client.ledger.reading() as connection:
        epochs = epochs_of(connection, run.id)
        verdict = verdict_on(connection, run.id)
    return page(
        request,
        "run.html",
        run=run,
        verdict=verdict,
        data=describe_version(run.dataset, run.dataset_version),
        has_trainer=session.client.trainer_is_running(),
        recipe=run.recipe,
        added=added_line(run),
        end=end_line(run, epochs),
        **learning_curves(run, epochs),
    )


def _schedules_of(client: Client, datasets: list[str]) -> list[DatasetSchedule]:
    """Return each of the datasets with its schedule, those with one first."""
    with client.ledger.reading() as connection:
        runs = latest_scheduled_runs(connection, limit=_SCHEDULED)
    found = {each.schedule.dataset: each for each in client.schedules()}
    return [
        DatasetSchedule(name, found.get(name), [run for run in runs if run.dataset == name])
        for name in sorted(datasets, key=lambda name: name not in found)
    ]
