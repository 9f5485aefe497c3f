"""`/runs`: training runs and schedules, and each run with its learning curves and the gate's verdict."""

from __future__ import annotations

from typing import Final, get_args

from fastapi import APIRouter, Request, Response

from jobs.errors import NotFound
from jobs.ids import is_id
from jobs.ledger.learning.runs import epochs_of, verdict_on
from jobs.models.dataset import describe_version
from jobs.models.training_request import Architecture
from labelmill.reporting.model_page import learning_curves
from labelmill.server.access import SubmitSession
from labelmill.web.rendering import page

router = APIRouter(prefix="/runs")

_RUNS: Final = 50


@router.get("")
def show_runs(request: Request, session: SubmitSession) -> Response:
    """Show the latest training runs and the schedules, and a form to start one."""
    client = session.client
    return page(
        request,
        "runs.html",
        runs=client.runs(limit=_RUNS),
        schedules=client.schedules(),
        datasets=[each.dataset for each in client.datasets()],
        architectures=get_args(Architecture),
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
        **learning_curves(run, epochs),
    )
